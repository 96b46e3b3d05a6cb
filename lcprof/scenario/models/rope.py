"""Position encoding: `rope_scaling`, `rope_parameters` and their older spellings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lcprof.domain.model import Rope
from lcprof.scenario.models.families import Family
from lcprof.scenario.models.keys import TOKEN_LIMIT, Keys, is_number

KINDS: Final[Mapping[str, str]] = {
    "default": "default",
    "none": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "ntk": "dynamic",
    "dynamic-ntk": "dynamic",
    "yarn": "yarn",
    "deepseek_yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
    "llama3": "llama3",
    "proportional": "proportional",
    "mrope": "mrope",
}

_NESTED: Final = ("full_attention", "compress", "global", "main")


def read_rope(keys: Keys, family: Family) -> Rope:
    """The rope of the layers that see the whole context.

    `rope_parameters` may hold one block for each layer type; the block of the full-attention
    (DeepSeek-V4: compressed) layers counts.
    """
    block = keys.section("rope_parameters", "rope_scaling")
    theta = _theta(keys)
    if block is not None:
        nested = next((name for name in _NESTED if isinstance(block.values.get(name), dict)), None)
        if nested:
            block = block.section(nested) or block
        theta = block.number("rope_theta", default=theta)
    learned = family.positions in {"learned", "none"}
    if learned or _turned_off(keys):
        return Rope(kind="none")
    if keys.has("dual_chunk_attention_config"):
        chunk = keys.section("dual_chunk_attention_config")
        original = (
            chunk.maybe_count("original_max_position_embeddings", high=TOKEN_LIMIT)
            if chunk
            else None
        )
        return Rope(kind="dual-chunk", theta=theta, original_positions=original)
    if block is None:
        return Rope(kind="default", theta=theta)
    kind = _kind(block, keys)
    original = block.maybe_count("original_max_position_embeddings", high=TOKEN_LIMIT)
    if original is None:
        original = keys.maybe_count("original_max_position_embeddings", high=TOKEN_LIMIT)
    factor = block.number("factor")
    if factor is None and kind == "longrope" and original:
        claimed = keys.maybe_count("max_position_embeddings", high=TOKEN_LIMIT)
        factor = claimed / original if claimed else None
    return Rope(kind=kind, theta=theta, factor=factor or 1.0, original_positions=original)


def read_positions(keys: Keys, rope: Rope) -> int | None:
    """The length that the config claims; a static YaRN factor extends it."""
    positions = keys.maybe_count("model_max_length", high=TOKEN_LIMIT)
    stated = keys.maybe_count(
        "max_position_embeddings",
        "n_positions",
        "seq_length",
        "max_seq_len",
        "max_seq_length",
        "max_sequence_length",
        "max_context_length",
        "n_ctx",
        high=TOKEN_LIMIT,
    )
    if positions is None or (stated is not None and positions > 10_000_000):
        positions = stated
    if rope.kind == "yarn" and rope.original_positions:
        extended = int(rope.original_positions * rope.factor)
        positions = max(positions or 0, min(extended, TOKEN_LIMIT))
    return positions


def _theta(keys: Keys) -> float | None:
    key, value = keys.first("rope_theta", "rotary_emb_base", "rope_freq_base", "rope_freq_constant")
    keys.ignore("rope_pct", "rotary_pct", "partial_rotary_factor", "rotary_dim")
    if isinstance(value, list) and value:
        value = value[0]
    if not key:
        ratio = keys.number("rope_ratio")
        return 10000.0 * ratio if ratio else None
    if is_number(value) and 0 < value < 1e30:
        return float(value)
    keys.fault(key, value, "a number above 0")
    return None


def _kind(block: Keys, keys: Keys) -> str:
    stated = block.text("rope_type", "type") or "default"
    kind = KINDS.get(stated)
    if kind is None:
        keys.assume(f"Rope scaling of type {stated[:40]!r} is unknown; read as unscaled.")
        return "default"
    if kind == "default" and block.has("mrope_section"):
        return "mrope"
    return kind


def _turned_off(keys: Keys) -> bool:
    embedding = keys.text("position_embedding_type")
    if embedding is not None and embedding in {"nope", "absolute", "learned_absolute"}:
        return True
    if keys.flag("alibi", "use_alibi") or keys.flag("mla_use_nope"):
        return True
    position: Any = keys.text("position_embedding")
    return isinstance(position, str) and position.lower() == "alibi"
