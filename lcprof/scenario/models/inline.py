"""A model written out in a scenario: lcprof's own short keys, or those of a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lcprof.domain.model import ModelShape
from lcprof.errors import Fault, InputError, nearest, shown
from lcprof.scenario.models.keys import LAYER_LIMIT, TOKEN_LIMIT, VOCAB_LIMIT, Keys
from lcprof.scenario.models.read import read_config

SHORT: Final[Mapping[str, tuple[str, int]]] = {
    "layers": ("num_hidden_layers", LAYER_LIMIT),
    "hidden": ("hidden_size", 1_000_000),
    "q_heads": ("num_attention_heads", 100_000),
    "kv_heads": ("num_key_value_heads", 100_000),
    "head_dim": ("head_dim", 65_536),
    "intermediate": ("intermediate_size", 1_000_000),
    "vocab": ("vocab_size", VOCAB_LIMIT),
    "window": ("sliding_window", TOKEN_LIMIT),
    "full_every": ("sliding_window_pattern", LAYER_LIMIT),
    "experts": ("num_experts", 1_000_000),
    "experts_per_token": ("num_experts_per_tok", 1_000_000),
    "moe_intermediate": ("moe_intermediate_size", 1_000_000),
    "shared_experts": ("n_shared_experts", 1_000_000),
    "latent_dim": ("kv_lora_rank", 65_536),
    "rope_dim": ("qk_rope_head_dim", 65_536),
    "nope_dim": ("qk_nope_head_dim", 65_536),
    "v_head_dim": ("v_head_dim", 65_536),
    "q_lora_rank": ("q_lora_rank", 65_536),
    "positions": ("max_position_embeddings", TOKEN_LIMIT),
}
_REQUIRED: Final = ("layers", "hidden", "q_heads", "vocab")
_GROUPED: Final = ("kv_heads", "head_dim")
_LATENT: Final = ("latent_dim", "rope_dim", "nope_dim", "v_head_dim")
_MOE: Final = ("experts_per_token", "moe_intermediate")


def read_inline(mapping: Mapping[str, Any], *, where: str) -> ModelShape:
    """The shape of a model given by its sizes.

    With `model_type` or `num_hidden_layers` it is read as a config.json; otherwise only the
    short keys are known, and those that an attention or FFN kind needs are required: no size is
    guessed. `window` with `full_every: n` leaves every n-th layer full; alone it holds for all.
    """
    if not isinstance(mapping, Mapping):
        raise InputError.one(where, "model", given=mapping, expected="a mapping of model sizes")
    name = mapping.get("name", "inline model")
    if "model_type" in mapping or "num_hidden_layers" in mapping:
        return read_config(mapping, name=str(name)[:100], where=where)
    faults: list[Fault] = []
    for key in mapping:
        if key not in SHORT and key not in {"name", "tied_embeddings"}:
            hint = nearest(str(key), [*SHORT, "tied_embeddings"])
            known = hint or "one of " + ", ".join([*SHORT, "tied_embeddings"])
            faults.append(
                Fault(
                    where=where, key=shown(str(key))[1:-1], given="an unknown key", expected=known
                )
            )
    keys = Keys(mapping, where=where)
    keys.faults = faults
    latent, moe = keys.has("latent_dim"), keys.has("experts")
    needed = (*_REQUIRED, *(_LATENT if latent else _GROUPED), *(_MOE if moe else ("intermediate",)))
    for key in needed:
        if not keys.has(key):
            keys.fault(key, "nothing", f"a whole number from 1 to {SHORT[key][1]:,}")
    if latent and keys.has("window"):
        keys.fault("window", mapping["window"], "no window beside latent_dim")
    if keys.has("full_every") and not keys.has("window"):
        keys.fault("full_every", mapping["full_every"], "a window beside it")
    if not isinstance(name, str):
        keys.fault("name", name, "text")
    config: dict[str, Any] = {"model_type": "llama", "rope_theta": 10000.0}
    for key, (config_key, limit) in SHORT.items():
        low = 0 if key in {"rope_dim", "shared_experts"} else 1
        value = keys.maybe_count(key, low=low, high=limit)
        if value is not None:
            config[config_key] = value
    config["tie_word_embeddings"] = bool(keys.flag("tied_embeddings"))
    keys.settle()
    if keys.has("window"):
        config["layer_types"] = _layer_types(keys, config["num_hidden_layers"])
        config.pop("sliding_window_pattern", None)
    return read_config(config, name=str(name)[:100], where=where)


def _layer_types(keys: Keys, layers: int) -> list[str]:
    every = keys.maybe_count("full_every", high=LAYER_LIMIT)
    return [
        "full_attention" if every and (i + 1) % every == 0 else "sliding_attention"
        for i in range(layers)
    ]
