"""Layers whose sizes differ from layer to layer: DeciLM, OpenELM, Gemma 3n."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from lcprof.scenario.models.keys import TOKEN_LIMIT, Keys
from lcprof.scenario.models.layer_plan import LayerPlan


def plan_blocks(keys: Keys, layers: int) -> list[LayerPlan]:
    """DeciLM / Llama-Nemotron: each block states its heads in a group and its FFN factor."""
    found = keys.per_layer(layers, "block_configs", "_block_configs")
    q_heads = keys.maybe_count("num_attention_heads", high=100_000) or 1
    hidden = keys.maybe_count("hidden_size") or 1
    plans: list[LayerPlan] = []
    for block in found[1] if found else []:
        if not isinstance(block, Mapping):
            keys.fault("block_configs", block, "a mapping for each layer")
            return [LayerPlan()] * layers
        part = Keys(block, where=keys.where, prefix=f"block_configs[{len(plans)}].", parent=keys)
        plans.append(_block(part, q_heads, hidden))
    return plans or [LayerPlan()] * layers


def _block(part: Keys, q_heads: int, hidden: int) -> LayerPlan:
    attention, ffn = part.section("attention"), part.section("ffn")
    plan = LayerPlan()
    if attention is not None:
        if attention.flag("no_op"):
            plan = replace(plan, mixer="none")
        elif attention.flag("replace_with_linear"):
            plan = replace(plan, mixer="none")
            attention.refuse("replace_with_linear", True, "no_op, or attention with a cache")
        else:
            group = attention.count("n_heads_in_group", high=100_000)
            if q_heads % group:
                attention.fault("n_heads_in_group", group, f"a divisor of {q_heads} heads")
            window = attention.maybe_count("window_length", high=TOKEN_LIMIT)
            if attention.flag("sparsify", "is_mamba", "llama4"):
                attention.refuse("sparsify", True, "plain attention")
            plan = replace(plan, kv_heads=max(1, q_heads // group), window=window)
    if ffn is not None:
        if ffn.flag("no_op") or ffn.flag("replace_with_linear"):
            if ffn.flag("replace_with_linear"):
                ffn.refuse("replace_with_linear", True, "no_op, or a feed-forward")
            plan = replace(plan, ffn="none")
        else:
            factor = ffn.number("ffn_mult")
            width = ffn.maybe_count("intermediate_size", low=0)
            if factor is not None:
                width = round_up(int(2 * factor * hidden / 3), 256)
            plan = replace(plan, width=width or 0)
    return plan


def round_up(value: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-value // step) * step


def listed_sizes(keys: Keys, plans: list[LayerPlan]) -> list[LayerPlan]:
    """Heads and widths that differ from layer to layer (OpenELM, Gemma 3n)."""
    layers = len(plans)

    def sizes(*names: str) -> list[int] | None:
        if not isinstance(keys.first(*names)[1], list):
            return None
        found = keys.per_layer(layers, *names)
        if found is None:
            return None
        return [keys.whole(found[0], value, low=1, high=1_000_000) for value in found[1]]

    q_heads = sizes("num_query_heads", "num_attention_heads")
    kv_heads = sizes("num_kv_heads", "num_key_value_heads")
    widths = sizes("intermediate_size", "ffn_hidden_size")
    if kv_heads and q_heads:
        for q, kv in zip(q_heads, kv_heads, strict=True):
            if q % kv:
                keys.fault("num_kv_heads", kv, f"a divisor of the {q} query heads")
                break
    if q_heads:
        plans = [replace(p, q_heads=n) for p, n in zip(plans, q_heads, strict=True)]
    if kv_heads:
        plans = [replace(p, kv_heads=n) for p, n in zip(plans, kv_heads, strict=True)]
    if widths:
        plans = [replace(p, width=n) for p, n in zip(plans, widths, strict=True)]
    if (factors := keys.items("ffn_multipliers")) is not None:
        plans = _openelm_widths(keys, factors, plans)
    return plans


def _openelm_widths(
    keys: Keys, factors: tuple[str, list[Any]], plans: list[LayerPlan]
) -> list[LayerPlan]:
    key, values = factors
    step = keys.count("ffn_dim_divisor", default=1)
    hidden = keys.maybe_count("model_dim", "hidden_size") or 1
    good = [
        v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1000
    ]
    if len(values) != len(plans) or len(good) != len(values):
        keys.fault(key, f"{len(values)} entries", f"a factor for each of the {len(plans)} layers")
        return plans
    widths = []
    for factor in good:
        wanted = factor * hidden
        width = max(step, int(wanted + step / 2) // step * step)
        widths.append(width + step if width < 0.9 * wanted else width)
    return [replace(plan, width=width) for plan, width in zip(plans, widths, strict=True)]
