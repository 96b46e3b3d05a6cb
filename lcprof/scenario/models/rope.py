"""Position encoding: `rope_scaling`, `rope_parameters` and their older spellings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from lcprof.domain.model import SCALABLE, Rope
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

QWEN3_POSITIONS: Final = 40_960
QWEN3_TRAINED: Final = 32_768
"""Qwen3's cards: 32,768 tokens natively and 131,072 with YaRN, whose original length is 32,768;
the 40,960 of max_position_embeddings add 8,192 for the answer."""

DEFAULT_THETA: Final = 10_000.0
"""RotaryEmbeddingConfigMixin.default_theta of transformers, where a config states none."""

_THETAS: Final = ("rope_theta", "rotary_emb_base", "rope_freq_base", "rope_freq_constant")
_LOCAL: Final = (
    "rope_local_base_freq",
    "local_rope_theta",
    "swa_rope_theta",
    "sliding_window_theta",
    "compress_rope_theta",
)
_LOCAL_TYPES: Final = frozenset(
    {"gemma3_text", "gemma3n_text", "step3p5", "step3p7", "step3p7_text", "mimo_v2_flash"}
)
_PARTLY: Final = frozenset(
    {"glm4", "glm4_moe", "glm4v_text", "glm4v_moe_text", "gpt_neox", "minimax", "minimax_m1",
     "minimax_m2", "minimax_m3", "minimax_text_01", "nemotron", "persimmon", "phi", "qwen3_5",
     "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "stablelm"}
)  # fmt: skip
"""Model types whose library turns a part of each head where the config does not say which."""
_MSCALED: Final = frozenset({"deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2"})
"""Model types whose published ropes all state the mscale that attention's softmax scale needs."""
_SECTIONED: Final = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def read_rope(keys: Keys, family: Family) -> Rope:
    """The rope of the layers that see the whole context.

    `rope_parameters` may hold one block for each layer type; the block of the full-attention
    (DeepSeek-V4: compressed) layers counts.
    """
    rope = _read(keys, family)
    if rope.kind not in SCALABLE:
        return rope
    key, stated = keys.first("rope_parameters", "rope_scaling")
    block = dict(stated) if isinstance(stated, Mapping) else {}
    if rope.theta is not None or not any(name in keys.values for name in _THETAS):
        block.setdefault("rope_theta", rope.theta or DEFAULT_THETA)
    part = _turned_part(keys)
    if part is not None:
        block.setdefault("partial_rotary_factor", part)
    unsaid = _unsaid(keys, family, block)
    return replace(
        rope,
        block={} if unsaid else block,
        key=key or rope.key,
        path=tuple(keys.prefix.split(".")[:-1]),
        unsaid=unsaid,
    )


def _read(keys: Keys, family: Family) -> Rope:
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
        return Rope(kind="default", theta=theta, original_positions=_trained(keys))
    kind = _kind(block, keys)
    original = block.maybe_count("original_max_position_embeddings", high=TOKEN_LIMIT)
    if original is None:
        original = keys.maybe_count("original_max_position_embeddings", high=TOKEN_LIMIT)
    factor = block.number("factor")
    if factor is None and kind == "longrope" and original:
        claimed = keys.maybe_count("max_position_embeddings", high=TOKEN_LIMIT)
        factor = claimed / original if claimed else None
    if kind == "default":
        original = original or _trained(keys)
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


def _trained(keys: Keys) -> int | None:
    """The length that an unscaled model was trained on, where the config claims more."""
    claimed = keys.values.get("max_position_embeddings")
    if keys.values.get("model_type") in {"qwen3", "qwen3_moe"} and claimed == QWEN3_POSITIONS:
        return QWEN3_TRAINED
    return None


def _turned_part(keys: Keys) -> float | None:
    """The part of each head that is turned, where the config says so."""
    values = keys.values
    for name in ("partial_rotary_factor", "rotary_pct", "rope_pct"):
        part = values.get(name)
        if is_number(part) and 0 < part <= 1:
            return float(part)
    turned, wide = values.get("rotary_dim"), values.get("head_dim")
    return turned / wide if is_number(turned) and is_number(wide) and 0 < turned <= wide else None


def _unsaid(keys: Keys, family: Family, block: Mapping[str, Any]) -> str:
    """Why `block` alone does not tell the whole rope, or ""."""
    model_type = keys.values.get("model_type")
    if family.positions == "alibi":
        return "its positions are ALiBi's slopes"
    named = block.get("rope_type") or block.get("type")
    if named is not None and not (isinstance(named, str) and named in KINDS):
        return "its config names a scaling that is not known"
    layered = any(isinstance(value, Mapping) for value in block.values())
    thetas = any(isinstance(keys.values.get(name), list) for name in _THETAS)
    if layered or thetas or model_type in _LOCAL_TYPES or keys.has(*_LOCAL):
        return "its layer types have ropes of their own"
    if model_type in _PARTLY and "partial_rotary_factor" not in block:
        return "its config does not say which part of a head is turned"
    if _names(block, "llama3") and not {"low_freq_factor", "high_freq_factor"} <= set(block):
        return "its config does not say the bands of its llama3 rope"
    if _names(block, "yarn") and model_type in _MSCALED and "mscale_all_dim" not in block:
        return "its config does not say the mscale of its YaRN"
    sectioned = isinstance(model_type, str) and model_type.startswith(_SECTIONED)
    if sectioned and "mrope_section" not in block:
        return "its config does not say the sections of its multimodal rope"
    return ""


def _names(block: Mapping[str, Any], kind: str) -> bool:
    return kind in (block.get("rope_type"), block.get("type"))


def _theta(keys: Keys) -> float | None:
    key, value = keys.first(*_THETAS)
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
