"""Which layer is what: layer types, patterns, intervals, offsets and lists, 0- and 1-based."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from lcprof.scenario.models.families import Family
from lcprof.scenario.models.feedforward import is_attention_free
from lcprof.scenario.models.keys import LAYER_LIMIT, TOKEN_LIMIT, Keys, is_whole
from lcprof.scenario.models.layer_plan import LayerPlan
from lcprof.scenario.models.uneven import listed_sizes, plan_blocks

LAYER_COUNTS: Final = (
    "num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_transformer_layers",
)  # fmt: skip
_FULL: Final = {"full_attention", "attention", "full", "global", "global_attention"}
_WINDOW: Final = {"sliding_attention", "sliding", "local", "local_attention", "sliding_window"}
_RECURRENT: Final = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "kda"}
_INDEXED: Final = {"deepseek_sparse_attention", "indexed_attention"}
_COMPRESSED: Final = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}
_PATTERN: Final = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def count_layers(keys: Keys) -> int:
    """How many layers: stated, or the length of the list that names each layer."""
    if not keys.has(*LAYER_COUNTS):
        pattern = keys.values.get("hybrid_override_pattern")
        if isinstance(pattern, str) and pattern:
            return min(len(pattern), LAYER_LIMIT)
        for name in ("layers_block_type", "layer_types", "block_configs", "_block_configs"):
            listed = keys.values.get(name)
            if isinstance(listed, list) and listed:
                return min(len(listed), LAYER_LIMIT)
    return keys.count(*LAYER_COUNTS, high=LAYER_LIMIT)


def spare_layers(keys: Keys) -> int:
    """Multi-token-prediction layers, whose entries may end a per-layer list."""
    found = keys.maybe_count(
        "num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", low=0, high=1000
    )
    return found or 0


def plan_layers(keys: Keys, family: Family, layers: int, *, moe: bool) -> list[LayerPlan]:
    """One plan for each layer, in depth order; faults and refusals stay in `keys`."""
    if _single_part(keys):
        return _alternating(keys, layers)
    plans = [LayerPlan() for _ in range(layers)]
    plans = _mixers(keys, family, plans)
    plans = _shared(keys, plans)
    plans = _indexed(keys, plans)
    sparse = moe_layers(keys, layers) if moe else [False] * layers
    plans = [
        replace(plan, ffn="moe") if is_moe and plan.ffn == "dense" else plan
        for plan, is_moe in zip(plans, sparse, strict=True)
    ]
    return listed_sizes(keys, plans)


def _single_part(keys: Keys) -> bool:
    if keys.has("hybrid_override_pattern"):
        return True
    listed = keys.values.get("layers_block_type")
    return isinstance(listed, list) and any(
        kind in {"moe", "mlp"} for kind in listed if isinstance(kind, str)
    )


def _alternating(keys: Keys, layers: int) -> list[LayerPlan]:
    """Nemotron-H: each layer is one of Mamba-2, attention, MLP or MoE."""
    pattern = keys.text("hybrid_override_pattern")
    keys.ignore("mtp_layers_block_type", "mtp_hybrid_override_pattern", "layer_types")
    if pattern is not None:
        key = "hybrid_override_pattern"
        kinds: list[Any] = [_PATTERN.get(letter, letter) for letter in pattern]
        if len(kinds) != layers:
            keys.fault(key, f"{len(kinds)} letters", f"one letter for each of the {layers} layers")
        keys.ignore("layers_block_type")
    else:
        found = keys.per_layer(layers, "layers_block_type", spare=spare_layers(keys))
        key, kinds = found or ("layers_block_type", [])
    plans = []
    for kind in kinds[:layers]:
        if kind == "moe":
            plans.append(LayerPlan(mixer="none", ffn="moe"))
        elif kind == "mlp":
            plans.append(LayerPlan(mixer="none", ffn="dense"))
        elif kind in ("mamba", "linear_attention"):
            plans.append(LayerPlan(mixer="recurrent", ffn="none"))
        elif kind in ("attention", "full_attention"):
            plans.append(LayerPlan(mixer="grouped", ffn="none"))
        else:
            keys.refuse(key, kind, "mamba (M), attention (*), mlp (-) or moe (E)")
    return plans


# -- mixers ---------------------------------------------------------------------------------


def _mixers(keys: Keys, family: Family, plans: list[LayerPlan]) -> list[LayerPlan]:
    if keys.has("compress_ratios", "compress_rates"):
        return _compressed(keys, plans)
    if keys.flag("use_sliding_window") is False:
        keys.ignore("sliding_window", "sliding_window_size", "max_window_layers")
    latent = keys.has("kv_lora_rank")
    full = LayerPlan(mixer="latent") if latent else LayerPlan()
    layers = len(plans)
    spare = max(spare_layers(keys), 0)
    config = keys.values.get("linear_attn_config")
    if isinstance(config, Mapping):
        section = keys.section("linear_attn_config")
        if section is not None and section.has("kda_layers", "full_attn_layers"):
            return _one_based(section, layers, full)
    if (found := keys.per_layer(layers, "layer_types", spare=spare)) is not None:
        keys.ignore(
            *_PATTERN_KEYS, "full_attention_interval", "max_window_layers", "no_rope_layers"
        )
        keys.ignore("hybrid_layer_pattern", "attn_layer_period", "attn_layer_offset")
        keys.ignore("sliding_window", "sliding_window_size", "attention_chunk_size")
        return _typed(keys, full, *found)
    if (
        found := keys.per_layer(layers, "layers_block_type", "block_types", "_block_types")
    ) is not None:
        return _typed(keys, full, *found)
    if (found := keys.per_layer(layers, "attn_type_list")) is not None:
        return _zero_one(keys, found, zero=LayerPlan(mixer="recurrent"), one=full)
    if (found := keys.per_layer(layers, "hybrid_layer_pattern", spare=spare)) is not None:
        window = keys.count("sliding_window", "sliding_window_size", high=TOKEN_LIMIT)
        keys.ignore("sliding_window_size", "attention_chunk_size", "swa_rope_theta")
        local = replace(full, window=window, other_heads=True)
        return _zero_one(keys, found, zero=full, one=local)
    recurrent = LayerPlan(mixer="recurrent")
    if keys.has("attn_layer_period"):
        period = keys.count("attn_layer_period", high=LAYER_LIMIT)
        offset = keys.count("attn_layer_offset", low=0, high=LAYER_LIMIT, default=0)
        return [full if i % period == offset % period else recurrent for i in range(layers)]
    if keys.has("full_attention_interval") or (family.recurrence == "delta"):
        every = keys.count("full_attention_interval", high=LAYER_LIMIT, default=4)
        return [full if (i + 1) % every == 0 else recurrent for i in range(layers)]
    if keys.has("layer_group_size"):
        every = keys.count("layer_group_size", high=LAYER_LIMIT)
        if every > 1:
            last = layers // every * every
            return [full if (i + 1) % every == 0 or i >= last else recurrent for i in range(layers)]
    if (chosen := keys.items("attn_layer_indices", "full_attn_idxs")) is not None:
        places = _places(keys, *chosen, layers=layers)
        return [full if i in places else recurrent for i in range(layers)]
    if (listed := keys.items("attention_layers")) is not None:
        return _gpt_neo(keys, full, listed, layers)
    if keys.has("block_configs", "_block_configs"):
        return plan_blocks(keys, layers)
    if is_attention_free(keys, family):
        return [recurrent] * layers
    if family.dense_width == "intermediate_size_mlp":
        return _chunked(keys, full, layers)
    return _windowed(keys, family, full, layers)


def _typed(keys: Keys, full: LayerPlan, key: str, kinds: list[Any]) -> list[LayerPlan]:
    plans: list[LayerPlan] = []
    for kind in kinds:
        if not isinstance(kind, str):
            keys.fault(key, kind, "the name of a layer type")
        elif kind in _FULL:
            plans.append(full)
        elif kind in _WINDOW:
            window = keys.count("sliding_window", "window_size", high=TOKEN_LIMIT)
            other = keys.has("attention_other_setting", "swa_num_attention_heads")
            plans.append(replace(full, window=window, other_heads=other))
        elif kind == "chunked_attention":
            chunk = keys.count("attention_chunk_size", high=TOKEN_LIMIT)
            plans.append(replace(full, chunk=chunk))
        elif kind in _RECURRENT:
            plans.append(LayerPlan(mixer="recurrent"))
        elif kind in _INDEXED:
            plans.append(replace(full, indexed=True))
        elif kind == "minimax_m3_sparse":
            plans.append(replace(full, selects=True))
        else:
            keys.refuse(
                key,
                kind,
                "a layer type that is modelled (full, sliding, chunked or linear attention, mamba, "
                "conv)",
            )
    if keys.refusals or len(plans) != len(kinds):
        return [full] * len(kinds)
    if _has_wide_layers(keys):
        plans = [plan if plan.window else replace(plan, wide=True) for plan in plans]
    return [_clipped(keys, plan) for plan in plans]


def _has_wide_layers(keys: Keys) -> bool:
    """Gemma 4: full-attention layers have head sizes of their own."""
    stated = keys.has("global_head_dim", "num_global_key_value_heads")
    return stated or "global_head_dim" in keys.defaults


def _clipped(keys: Keys, plan: LayerPlan) -> LayerPlan:
    """A window at least as long as the longest context is no window."""
    positions = keys.values.get("max_position_embeddings")
    if plan.window and is_whole(positions) and 0 < positions <= plan.window:
        keys.assume(
            f"sliding_window {plan.window} is no shorter than the longest context; read as full."
        )
        return replace(plan, window=None)
    return plan


def _zero_one(
    keys: Keys, found: tuple[str, list[Any]], *, zero: LayerPlan, one: LayerPlan
) -> list[LayerPlan]:
    key, values = found
    for value in values:
        if not (is_whole(value) and value in (0, 1)):
            keys.fault(key, value, "0 or 1 for each layer")
            return [one] * len(values)
    return [one if value else zero for value in values]


def _one_based(section: Keys, layers: int, full: LayerPlan) -> list[LayerPlan]:
    """Kimi-Linear: `kda_layers` and `full_attn_layers` count from 1."""
    linear = section.items("kda_layers") or ("kda_layers", [])
    attending = section.items("full_attn_layers") or ("full_attn_layers", [])
    first = _places(section, *linear, layers=layers, base=1)
    second = _places(section, *attending, layers=layers, base=1)
    both = first | second
    if first & second or both != set(range(layers)):
        section.fault(
            "kda_layers",
            f"{len(first)} and {len(second)} full_attn_layers",
            f"each of the layers 1 to {layers} in exactly one of the two lists",
        )
    recurrent = LayerPlan(mixer="recurrent")
    return [recurrent if i in first else full for i in range(layers)]


def _places(
    keys: Keys, key: str, values: list[Any], *, layers: int, base: int = 0
) -> frozenset[int]:
    for value in values:
        if not is_whole(value) or not base <= value < layers + base:
            keys.fault(key, value, f"layer numbers from {base} to {layers + base - 1}")
            return frozenset()
    return frozenset(int(value) - base for value in values)


def _compressed(keys: Keys, plans: list[LayerPlan]) -> list[LayerPlan]:
    """DeepSeek-V4: one ratio for each layer (and one for the MTP layer), or layer types."""
    layers = len(plans)
    spare = max(1, spare_layers(keys))
    if (found := keys.per_layer(layers, "compress_ratios", spare=spare)) is not None:
        key, values = found
        if not all(is_whole(value) and 0 <= value <= 1_000_000 for value in values):
            keys.fault(key, values, "whole numbers, 0 for a layer without compression")
            return plans
        ratios = [int(value) for value in values]
        keys.ignore("layer_types")
    else:
        kinds = keys.per_layer(layers, "layer_types", spare=spare)
        rates = keys.section("compress_rates")
        if kinds is None:
            if not keys.faults:
                keys.fault("compress_ratios", "nothing", "one ratio for each layer, or layer_types")
            return plans
        table = dict(_COMPRESSED)
        for name in ("compressed_sparse_attention", "heavily_compressed_attention"):
            if rates is not None:
                table[name] = rates.count(name, default=table[name])
        unknown = [kind for kind in kinds[1] if not isinstance(kind, str) or kind not in table]
        if unknown:
            keys.refuse(kinds[0], unknown[0], "a layer type of DeepSeek-V4")
            return plans
        ratios = [table[kind] for kind in kinds[1]]
    sparse = keys.has("index_topk")
    return [
        LayerPlan(mixer="compressed", ratio=ratio, indexed=sparse and 0 < ratio < 32)
        for ratio in ratios
    ]


def _gpt_neo(
    keys: Keys, full: LayerPlan, found: tuple[str, list[Any]], layers: int
) -> list[LayerPlan]:
    key, kinds = found
    keys.ignore("attention_types")
    if len(kinds) != layers or any(kind not in ("global", "local") for kind in kinds):
        keys.refuse(key, kinds, f"global or local for each of the {layers} layers")
        return [full] * layers
    window = keys.count("window_size", high=TOKEN_LIMIT)
    return [full if kind == "global" else replace(full, window=window) for kind in kinds]


def _chunked(keys: Keys, full: LayerPlan, layers: int) -> list[LayerPlan]:
    """Llama 4: rope layers attend within chunks, every fourth (NoPE) layer to everything."""
    chunk = keys.count("attention_chunk_size", high=TOKEN_LIMIT)
    every = keys.count("no_rope_layer_interval", high=LAYER_LIMIT, default=4)
    local = replace(full, chunk=chunk)
    if (found := keys.per_layer(layers, "no_rope_layers")) is not None:
        return _zero_one(keys, found, zero=full, one=local)
    return [local if (i + 1) % every else full for i in range(layers)]


_PATTERN_KEYS: Final = (
    "sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers",
)  # fmt: skip


QWEN_FULL_LAYERS: Final = 28
"""Layers before the first window where the config does not say (transformers `Qwen2Config`,
`max_window_layers`)."""


def _windowed(keys: Keys, family: Family, full: LayerPlan, layers: int) -> list[LayerPlan]:
    key, value = keys.first("sliding_window", "sliding_window_size")
    flag = keys.flag("use_sliding_window", "use_swa")
    pattern_key, pattern = keys.first(*_PATTERN_KEYS)
    if isinstance(value, list):
        return _listed_windows(keys, full, key, value, layers)
    from_ = keys.maybe_count("max_window_layers", low=0, high=TOKEN_LIMIT)
    if not key or flag is False or family.window == "ignored" or value == 0:
        return [full] * layers
    window = keys.whole(key, value, low=1, high=TOKEN_LIMIT)
    local = _clipped(keys, replace(full, window=window))
    if family.window == "flag":
        if not flag:
            return [full] * layers
        start = QWEN_FULL_LAYERS if from_ is None else from_
        return [full if i < start else local for i in range(layers)]
    if isinstance(pattern, str):
        if not pattern or set(pattern) - {"L", "G"}:
            keys.refuse(pattern_key, pattern, "a word of L (window) and G (full)")
            return [full] * layers
        kinds = [pattern[i % len(pattern)] for i in range(layers)]
        if pattern_key and layers:
            kinds[-1] = "G"
        return [full if kind == "G" else local for kind in kinds]
    if pattern_key or family.window == "pattern":
        every = (
            keys.whole(pattern_key, pattern, low=1, high=LAYER_LIMIT)
            if pattern_key
            else family.pattern
        )
        if not pattern_key:
            keys.assume(f"One layer in {every} full, the others windowed: the library's pattern.")
        wide = replace(full, wide=_has_wide_layers(keys))
        return [local if (i + 1) % every else wide for i in range(layers)]
    if family.window == "all":
        return [local] * layers
    if local.window is not None:
        keys.refuse(
            key,
            value,
            "layer_types, sliding_window_pattern or use_sliding_window beside it, "
            "or a model_type whose window lcprof knows",
        )
    return [full] * layers


def _listed_windows(
    keys: Keys, full: LayerPlan, key: str, values: list[Any], layers: int
) -> list[LayerPlan]:
    """Mistral's list of windows, one for each layer or a period of them; null is full."""
    if not values or layers % len(values):
        keys.fault(key, f"{len(values)} entries", f"a list whose length divides {layers} layers")
        return [full] * layers
    period = [
        full
        if value is None
        else _clipped(keys, replace(full, window=keys.whole(key, value, low=1, high=TOKEN_LIMIT)))
        for value in values
    ]
    return [period[i % len(period)] for i in range(layers)]


# -- sharing and indexing ---------------------------------------------------------------


def _shared(keys: Keys, plans: list[LayerPlan]) -> list[LayerPlan]:
    """Layers that read another layer's K and V: Gemma 3n/4's last layers, Hunyuan's CLA."""
    layers = len(plans)
    last = keys.maybe_count("num_kv_shared_layers", low=0, high=LAYER_LIMIT) or 0
    if last >= layers and last:
        keys.fault("num_kv_shared_layers", last, f"fewer than the {layers} layers")
        return plans
    if last:
        # Gemma 3n keeps unused K and V weights in sharing layers, Gemma 4 leaves them out.
        own = keys.has("altup_num_inputs", "laurel_rank")
        start = layers - last
        double = 2 if keys.flag("use_double_wide_mlp") else 1
        width = keys.values.get("intermediate_size")
        wider = int(width) * double if double == 2 and is_whole(width) else 0
        plans = [
            plan if i < start else replace(plan, shares_cache=True, own_kv_weights=own, width=wider)
            for i, plan in enumerate(plans)
        ]
    if keys.flag("use_cla"):
        factor = keys.count("cla_share_factor", high=LAYER_LIMIT, default=2)
        plans = [
            plan if i % factor == 0 else replace(plan, shares_cache=True, own_kv_weights=False)
            for i, plan in enumerate(plans)
        ]
    keys.ignore("cla_share_factor", "use_double_wide_mlp")
    return plans


def _indexed(keys: Keys, plans: list[LayerPlan]) -> list[LayerPlan]:
    layers = len(plans)
    if keys.has("index_topk") and any(plan.mixer == "latent" for plan in plans):
        owners = [True] * layers
        if (found := keys.per_layer(layers, "indexer_types", spare=spare_layers(keys))) is not None:
            unknown = [kind for kind in found[1] if kind not in ("full", "shared")]
            if unknown:
                keys.refuse(found[0], unknown[0], "full or shared")
            owners = [kind == "full" for kind in found[1]]
        keys.ignore("index_topk_freq", "index_skip_topk_offset", "index_topk_pattern")
        keys.ignore("index_share_for_mtp_iteration", "indexer_rope_interleave")
        plans = [
            replace(plan, indexed=True, owns_index=owner) if plan.mixer == "latent" else plan
            for plan, owner in zip(plans, owners, strict=True)
        ]
    sparse = keys.section("sparse_attention_config")
    if sparse is not None and sparse.flag("use_sparse_attention") is not False:
        found = sparse.per_layer(layers, "sparse_attention_freq", spare=spare_layers(keys))
        if found is None:
            sparse.fault("sparse_attention_freq", "nothing", "0 or 1 for each layer")
            return plans
        chosen = _zero_one(
            sparse, found, zero=LayerPlan(selects=False), one=LayerPlan(selects=True)
        )
        plans = [
            replace(plan, selects=mark.selects) for plan, mark in zip(plans, chosen, strict=True)
        ]
    return plans


# -- experts --------------------------------------------------------------------------------


def moe_layers(keys: Keys, layers: int) -> list[bool]:
    """Which layers have routed experts."""
    spare = spare_layers(keys)
    first_dense = keys.count(
        "first_k_dense_replace", "num_dense_layers", "moe_layer_num_skipped",
        low=0, high=LAYER_LIMIT, default=0,
    )  # fmt: skip
    if (found := keys.per_layer(layers, "mlp_layer_types", spare=spare)) is not None:
        unknown = [k for k in found[1] if k not in ("sparse", "moe", "hash_moe", "dense")]
        if unknown:
            keys.refuse(found[0], unknown[0], "sparse or dense")
        keys.ignore("moe_layer_freq", "num_hash_layers")
        return [kind != "dense" for kind in found[1]]
    name, enumerated = keys.first("moe_layers_enum")
    if name:
        if isinstance(enumerated, str):
            parts = [part.strip() for part in enumerated.split(",") if part.strip()]
            enumerated = [
                int(p) if p.isascii() and p.isdigit() and len(p) < 7 else p for p in parts
            ]
        if not isinstance(enumerated, list | tuple):
            keys.fault(name, enumerated, "layer numbers")
            enumerated = []
        numbers = [n for n in enumerated if not (is_whole(n) and layers <= n < layers + spare)]
        places = _places(keys, name, numbers, layers=layers)
        return [i in places for i in range(layers)]
    if (listed := keys.items("moe_layers")) is not None:
        places = _places(keys, *listed, layers=layers)
        return [i in places for i in range(layers)]
    if isinstance(keys.values.get("moe_layer_freq"), list):
        found = keys.per_layer(layers, "moe_layer_freq", spare=spare)
        if found is None:
            return [True] * layers
        marks = _zero_one(keys, found, zero=LayerPlan(ffn="dense"), one=LayerPlan(ffn="moe"))
        return [mark.ffn == "moe" for mark in marks]
    if keys.has("interleave_moe_layer_step"):
        step = keys.count("interleave_moe_layer_step", high=LAYER_LIMIT)
        return [(i + 1) % step == 0 for i in range(layers)]
    if "interleave_moe_layer_step" in keys.defaults:
        return [True] * layers
    if keys.has("expert_layer_period"):
        period = keys.count("expert_layer_period", high=LAYER_LIMIT)
        offset = keys.count("expert_layer_offset", low=0, high=LAYER_LIMIT, default=0)
        return [i % period == offset % period for i in range(layers)]
    if keys.has("moe_layer_start_index", "moe_layer_interval"):
        return _ernie(keys, layers)
    frequency = keys.count("moe_layer_freq", high=LAYER_LIMIT, default=1)
    step = keys.count("decoder_sparse_step", high=LAYER_LIMIT, default=1)
    plain = frozenset[int]()
    if (dense := keys.items("mlp_only_layers")) is not None:
        plain = _places(keys, *dense, layers=layers)
    return [
        i >= first_dense and i % frequency == 0 and (i + 1) % step == 0 and i not in plain
        for i in range(layers)
    ]


def _ernie(keys: Keys, layers: int) -> list[bool]:
    def bound(name: str, default: int) -> int:
        value = keys.values.get(name)
        if isinstance(value, list) and value:  # text and vision experts; text comes first
            keys.seen.add(name)
            return keys.whole(name, value[0], low=-1, high=LAYER_LIMIT)
        return keys.count(name, low=-1, high=LAYER_LIMIT, default=default)

    start = bound("moe_layer_start_index", 0)
    end = bound("moe_layer_end_index", -1)
    every = keys.count("moe_layer_interval", high=LAYER_LIMIT, default=1)
    end = layers - 1 if end < 0 else end
    return [(i + 1) % every == 0 and start <= i <= end for i in range(layers)]
