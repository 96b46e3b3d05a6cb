"""What an engine is told so that a model reads more positions than it has: its own rope, further.

Static scaling turns every request's positions, short ones too (QwenLM/Qwen3 issue 1567: Arena-Hard
39 falls to 26.5 at factor 4), so the factor is what the length needs and no more. The rest of the
model's rope stands: an engine replaces the whole block by what it is told.
"""

from __future__ import annotations

import math
from typing import Any

from msgspec import Struct

from lcprof.domain.model import SCALABLE, Rope

DECIMALS = 4


class Extension(Struct, frozen=True, kw_only=True):
    """A rope that reaches `positions`: `block` holds the entries, `path` leads to the text part.

    `kind` is the scaling's name. `tables` says that engines size the table of angles by
    max_position_embeddings, which then has to grow; YaRN's is original length x factor in vLLM and
    SGLang, but TensorRT-LLM sizes every table, and caps max_seq_len, by max_position_embeddings.
    """

    kind: str
    positions: int
    block: dict[str, Any]
    path: tuple[str, ...] = ()
    tables: bool = True

    def override(self, key: str) -> dict[str, Any]:
        """The entries of config.json that change, with the rope under `key`."""
        block = dict(self.block)
        if key == "rope_parameters" and "type" in block:
            block.setdefault("rope_type", block["type"])
            del block["type"]
        entries: dict[str, Any] = {key: block}
        if self.tables:
            entries = {"max_position_embeddings": self.positions, **entries}
        for part in reversed(self.path):
            entries = {part: entries}
        return entries


def extend(rope: Rope, positions: int, needed: int) -> Extension | str:
    """The rope of a model of `positions` that reaches `needed` of them, or why there is none.

    YaRN's factor is needed / original length (arXiv:2309.00071, and the cards of Qwen3 and
    DeepSeek-V3, whose positions are original x factor); an unscaled rope gets YaRN (the card of
    Qwen3; of Qwen3-VL for a multimodal rope, whose sections stay). Llama 3's positions are not
    original x factor (8,192 x 8 make 131,072 of them), so its factor grows as the positions do.
    Dynamic NTK measures from max_position_embeddings (transformers, modeling_rope_utils.py). A
    linear factor without its original length says not whether the positions count it.
    """
    if rope.kind == "none":
        return f"the model has {positions:,} positions and no rope to scale"
    if rope.kind not in SCALABLE:
        return f"{rope.kind} rope beyond {positions:,} positions needs factors of its own"
    if rope.unsaid:
        return f"no flag scales the model's rope beyond {positions:,} positions: {rope.unsaid}"
    block = dict(rope.block)
    name = "type" if "type" in block and "rope_type" not in block else "rope_type"
    original = rope.original_positions or positions
    tables = rope.kind not in ("linear", "dynamic")
    if rope.kind in ("default", "mrope"):
        block.pop("type", None)
        block |= {"rope_type": "yarn", "original_max_position_embeddings": original}
        factor = needed / original
    elif rope.kind == "yarn":
        block.setdefault(name, "yarn")
        block["original_max_position_embeddings"] = original
        factor = needed / original
    elif rope.kind == "dynamic":
        factor = max(rope.factor, needed / positions)
    elif rope.kind == "linear" and rope.original_positions is None:
        return f"its config does not say whether its {positions:,} positions count its linear rope"
    else:
        factor = rope.factor * needed / positions
    # Rounded up: a smaller factor would not reach the last token.
    block["factor"] = math.ceil(factor * 10**DECIMALS) / 10**DECIMALS
    _follow(block, rope.factor)
    kind = "yarn" if rope.kind in ("default", "mrope") else rope.kind
    return Extension(kind=kind, positions=needed, block=block, path=rope.path, tables=tables)


def _follow(block: dict[str, Any], before: float) -> None:
    """YaRN's attention factor, 0.1 ln s + 1 (arXiv:2309.00071, equation 22), moves with s where
    the config writes it out (OLMo 3)."""
    stated = block.get("attention_factor")
    if isinstance(stated, float) and math.isclose(
        stated, 0.1 * math.log(before) + 1.0, rel_tol=1e-6
    ):
        block["attention_factor"] = 0.1 * math.log(block["factor"]) + 1.0
