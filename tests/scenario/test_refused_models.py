"""Configs that are not read: attention that is not modelled, wrong values, hostile input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lcprof.domain.model import ModelShape
from lcprof.errors import InputError, UnsupportedModelError
from lcprof.scenario.models import read_config, read_inline

CONFIGS = Path(__file__).resolve().parent.parent / "fixtures" / "hf-configs"

PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


def read(**changes: Any) -> ModelShape:
    config = {key: value for key, value in (PLAIN | changes).items() if value != "absent"}
    return read_config(config, name="test", where="config.json")


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "rwkv"}, "model_type"),
    ({"model_type": "retnet"}, "model_type"),
    ({"model_type": "recurrent_gemma"}, "model_type"),
    ({"model_type": "t5", "is_encoder_decoder": True}, "model_type"),
    ({"model_type": "bert"}, "model_type"),
    ({"model_type": "mllama"}, "model_type"),
    ({"model_type": "zamba2"}, "model_type"),
    ({"model_type": "phi3small"}, "model_type"),
    ({"model_type": "new", "is_encoder_decoder": True}, "is_encoder_decoder"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"cross_attention_layers": [3, 8]}, "cross_attention_layers"),
    ({"layer_types": ["ring_attention"] * 32}, "layer_types"),
    ({"model_type": "new", "sliding_window": 4096}, "sliding_window"),
    ({"linear_attention_heads": 4}, "linear_attention_heads"),
    ({"ssm_state": 16}, "ssm_state"),
    ({"attention_type": "based"}, "attention_type"),
    ({"attn_type": "performer"}, "attn_type"),
    ({"blocksparse_num_local_blocks": 16}, "blocksparse_num_local_blocks"),
    ({"kv_share_every": 2}, "kv_share_every"),
    ({"shared_kv_layers": [1, 2]}, "shared_kv_layers"),
    ({"num_kv_sharing_groups": 2}, "num_kv_sharing_groups"),
    ({"compress_block_size": 32}, "compress_block_size"),
    ({"window_sizes": [128, 256]}, "window_sizes"),
    ({"total_ut_steps": 4}, "total_ut_steps"),
    ({"num_loops": 3}, "num_loops"),
    ({"num_recursions": 3}, "num_recursions"),
    ({"kv_reuse_every_i_layer": 2}, "kv_reuse_every_i_layer"),
    ({"sparse_config": {"block_size": 64, "topk": 64, "dense_len": 8192}}, "sparse_config"),
    ({"moba_chunk_size": 4096, "moba_topk": 12}, "moba_chunk_size"),
    ({"nsa_config": {"compress_block": 32, "window": 512}}, "nsa_config"),
    ({"mixer_types": ["lightning", "full"] * 16}, "mixer_types"),
    ({"attention_projection_size": 4096}, "attention_projection_size"),
    ({"use_moe": True}, "use_moe"),
    ({"moe_config": {"moe_num_experts": 32, "moe_top_k": 2}}, "moe_config"),
    ({"parallel_attn_mlp_res": True, "num_local_experts": 128, "num_experts_per_tok": 2},
     "parallel_attn_mlp_res"),
    ({"model_type": "jetmoe"}, "model_type"),
    ({"attention_lora_rank": 64}, "attention_lora_rank"),
    ({"mamba_d_state": 16, "model_type": "llama"}, "mamba_d_state"),
    ({"model_type": "minimax_m3", "sparse_attention_config": {
        "use_sparse_attention": True, "sparse_attention_freq": [1] * 32, "sparse_block_size": 128,
        "sparse_topk_blocks": 16, "sparse_num_index_heads": 4, "sparse_index_dim": 128,
        "sparse_init_block": 2}}, "sparse_attention_config.sparse_init_block"),
    ({"model_type": "nemotron_h", "hybrid_override_pattern": "M*X-" * 8},
     "hybrid_override_pattern"),
    ({"model_type": "mpt", "d_model": 64, "attn_config": {"sliding_window_size": 128}},
     "attn_config.sliding_window_size"),
    ({"model_type": "nemotron-nas", "block_configs": [
        {"attention": {"replace_with_linear": True}, "ffn": {"ffn_mult": 2.0}}] * 32},
     "block_configs[0].attention.replace_with_linear"),
    ({"quantization_config": {"quant_method": "vptq"}}, "quantization_config.quant_method"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "key"), UNSUPPORTED, ids=[f"{key}-{i}" for i, (_, key) in enumerate(UNSUPPORTED)]
)
def test_unmodelled_attention_is_refused_by_name(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(**changes)
    assert key in [fault.key for fault in caught.value.faults]
    assert all(fault.expected and fault.given for fault in caught.value.faults)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": None},
        {"sliding_window": 4096},  # the llama code ignores it
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True,
         "max_window_layers": 32},
        {"model_type": "phi3", "sliding_window": 262144},
        {"model_type": "new", "sliding_window": 131072},
        {"attention_type": None, "cross_attention_hidden_size": None, "linear_attn": False},
        {"use_cache": True, "attention_dropout": 0.0, "pretraining_tp": 1},
        {"layer_types": ["full_attention"] * 32, "sliding_window": 4096},
        {"num_local_experts": 0},
        {"num_experts": 1, "num_experts_per_tok": 1},
    ],
)  # fmt: skip
def test_keys_that_change_nothing(changes: dict[str, Any]) -> None:
    groups = read(**changes).groups
    assert [group.name for group in groups] == ["full"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": "absent"}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": -4096}, "hidden_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": 4096.5}, "hidden_size"),
    ({"hidden_size": float("nan")}, "hidden_size"),
    ({"hidden_size": float("inf")}, "hidden_size"),
    ({"hidden_size": "4096"}, "hidden_size"),
    ({"hidden_size": [4096]}, "hidden_size"),
    ({"hidden_size": 10**7}, "hidden_size"),
    ({"hidden_size": 10**400}, "hidden_size"),
    ({"num_hidden_layers": 10_001}, "num_hidden_layers"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"vocab_size": 10**9}, "vocab_size"),
    ({"vocab_size": "absent"}, "vocab_size"),
    ({"intermediate_size": "absent"}, "intermediate_size"),
    ({"num_attention_heads": "absent"}, "num_attention_heads"),
    ({"num_key_value_heads": 7}, "num_key_value_heads"),
    ({"num_key_value_heads": 64}, "num_key_value_heads"),
    ({"num_key_value_heads": {"a": 1}}, "num_key_value_heads"),
    ({"num_attention_heads": 33}, "num_attention_heads"),
    ({"head_dim": -1}, "head_dim"),
    ({"layer_types": ["full_attention"] * 31}, "layer_types"),
    ({"layer_types": [7] * 32}, "layer_types"),
    ({"layer_types": "full_attention"}, "layer_types"),
    ({"layer_types": ["sliding_attention"] * 32}, "sliding_window"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"rope_theta": -1}, "rope_theta"),
    ({"rope_scaling": "yarn"}, "rope_scaling"),
    ({"rope_scaling": {"type": "yarn", "factor": "8"}}, "rope_scaling.factor"),
    ({"max_position_embeddings": -5}, "max_position_embeddings"),
    ({"num_local_experts": 8}, "num_experts_per_tok"),
    ({"num_local_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok"),
    ({"kv_lora_rank": 512}, "qk_nope_head_dim"),
    ({"quantization_config": [4]}, "quantization_config"),
    ({"quantization_config": {"quant_method": "compressed-tensors", "ignore": ["re:(a+)+$"],
      "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8}}}}},
     "quantization_config.ignore"),
    ({"model_type": 3}, "model_type"),
    ({"model_type": "kimi_linear", "kv_lora_rank": 512, "qk_nope_head_dim": 128,
      "qk_rope_head_dim": 64,
      "linear_attn_config": {"kda_layers": [0, 1], "full_attn_layers": [2]}},
     "linear_attn_config.kda_layers"),
    ({"model_type": "gemma4_text", "num_kv_shared_layers": 32}, "num_kv_shared_layers"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "key"), WRONG, ids=[f"{key}-{i}" for i, (_, key) in enumerate(WRONG)]
)
def test_wrong_values_are_faults_at_their_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        read(**changes)
    assert key in [fault.key for fault in caught.value.faults]
    assert not isinstance(caught.value, UnsupportedModelError)
    assert all("\n" not in str(fault) and len(str(fault)) < 400 for fault in caught.value.faults)


def test_every_fault_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        read(hidden_size=-1, num_hidden_layers="many", vocab_size=None)
    assert [fault.key for fault in caught.value.faults] == [
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
    ]


def test_whole_floats_are_counts() -> None:
    assert read(hidden_size=4096.0).hidden == 4096


@pytest.mark.parametrize("config", [None, [], "text", 3, {}, {"a": 1}, {3: 4}, {"text_config": {}}])
def test_what_is_no_config(config: Any) -> None:
    with pytest.raises(InputError):
        read_config(config, name="x", where="x")


# -- fuzzing --------------------------------------------------------------------------------

FILES = sorted(CONFIGS.glob("*.json"))
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**3), 10**3),
    st.sampled_from([0, -1, 1, 2, 3, 10**9, 10**30, 10**400, 1e308]),
    st.sampled_from([float("nan"), float("inf"), -0.0, 0.5]),
    st.text(max_size=5),
    st.lists(st.integers(-2, 200), max_size=4),
    st.lists(st.lists(st.none(), max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just({}),
    st.sampled_from(["full_attention", "auto", "none", "yarn", "L", "LLLG", "re:(", "*", "4,5,x"]),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in {"vision_config", "audio_config", "id2label", "label2id"}:
                found += places(inner, (*path, key))
    elif isinstance(value, list) and len(value) <= 200:
        for index in {0, len(value) - 1} if value else ():
            found += places(value[index], (*path, index))
    return found


def try_reading(config: dict[str, Any]) -> ModelShape | None:
    """The shape, or None where an InputError says what is wrong; nothing else may be raised."""
    try:
        return read_config(config, name="fuzz", where="fuzz")
    except InputError:
        return None


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_configs_read_or_are_refused(data: st.DataObject) -> None:
    config = json.loads(data.draw(st.sampled_from(FILES)).read_text())
    for _ in range(data.draw(st.integers(1, 4))):
        spots = places(config)
        if not spots:
            break
        *way, last = data.draw(st.sampled_from(spots))
        holder = config
        for step in way:
            holder = holder[step]
        action = data.draw(st.sampled_from(["drop", "replace", "replace", "repeat", "wrap"]))
        if action == "drop":
            del holder[last]
        elif action == "replace":
            holder[last] = data.draw(ODD)
        elif action == "repeat" and isinstance(holder[last], list):
            holder[last] = holder[last] * 2
        else:
            holder[last] = [copy.deepcopy(holder[last])]
    shape = try_reading(config)
    if shape is not None:
        assert shape.layers == len(shape.order) > 0
        assert shape.params >= shape.active_params > 0
        assert shape.group_counts() == tuple(
            shape.order.count(index) for index in range(len(shape.groups))
        )


KEYS = sorted(
    {
        key
        for file in FILES
        for config in [json.loads(file.read_text())]
        for part in (config, config.get("text_config") or {})
        for key in part
        if "token" not in key
    }
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(KEYS), ODD, max_size=6))
@example({"num_attention_heads": [4, -4]})
@example({"block_configs": [{}] * 32})
def test_foreign_keys_read_or_are_refused(changes: dict[str, Any]) -> None:
    shape = try_reading(PLAIN | changes)
    assert shape is None or shape.params > 0


# -- written out in a scenario --------------------------------------------------------------

SHORT: dict[str, Any] = {
    "layers": 32,
    "hidden": 4096,
    "q_heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "intermediate": 14336,
    "vocab": 128256,
}


def test_short_keys_give_llama() -> None:
    shape = read_inline(SHORT | {"positions": 131072}, where="scenario")
    assert shape.params == 8_030_261_248  # Llama-3.1-8B, model card
    assert shape.positions == 131072
    assert not shape.tied_embeddings


def test_short_keys_with_windows() -> None:
    shape = read_inline(SHORT | {"window": 1024, "full_every": 6}, where="scenario")
    assert dict(zip([g.name for g in shape.groups], shape.group_counts(), strict=True)) == {
        "window 1024": 27,
        "full": 5,
    }
    assert read_inline(SHORT | {"window": 1024}, where="s").groups[0].name == "window 1024"


def test_short_keys_with_experts_and_latents() -> None:
    shape = read_inline(
        {
            "layers": 61, "hidden": 7168, "q_heads": 64, "vocab": 163840, "latent_dim": 512,
            "rope_dim": 64, "nope_dim": 128, "v_head_dim": 128, "q_lora_rank": 1536,
            "experts": 384, "experts_per_token": 8, "moe_intermediate": 2048, "shared_experts": 1,
        },
        where="scenario",
    )  # fmt: skip
    assert [group.name for group in shape.groups] == ["mla + moe"]
    assert shape.params == pytest.approx(1.043e12, rel=0.01)


def test_huggingface_keys_are_read_as_a_config() -> None:
    assert read_inline(PLAIN, where="scenario").params == 8_030_261_248


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"kv_head": 8}, "kv_head", "kv_heads"),
        ({"colour": 1}, "colour", "layers"),
        ({"layers": None}, "layers", "whole number"),
        ({"head_dim": None}, "head_dim", "whole number"),
        ({"experts": 8}, "experts_per_token", "whole number"),
        ({"full_every": 6}, "full_every", "window"),
        ({"hidden": True}, "hidden", "whole number"),
        ({"kv_heads": 7}, "num_key_value_heads", "divisor"),
        ({"tied_embeddings": 1}, "tied_embeddings", "true or false"),
    ],
)
def test_short_keys_are_strict(changes: dict[str, Any], key: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        read_inline(SHORT | changes, where="scenario")
    assert any(f.key == key and hint in f.expected for f in caught.value.faults)
