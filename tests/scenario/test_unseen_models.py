"""Families beyond the golden fixtures: cache bytes and parameter totals from public sources.

`unseen-configs.jsonl` holds sizes from each repository's config.json on the Hugging Face Hub.
Its `exact` totals are the parameter counts that the Hub shows for the repository's weights, the
others the totals of the vendor's model card, rounded (text part for multimodal models).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kv_by_hand import kv_by_hand

from lcprof.domain.model import GroupedAttention, ModelShape
from lcprof.errors import InputError
from lcprof.scenario.models import read_config

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
CASES: list[dict[str, Any]] = [
    json.loads(line) for line in (FIXTURES / "unseen-configs.jsonl").read_text().splitlines()
]

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}


def small(**changes: Any) -> ModelShape:
    return read_config(SMALL | changes, name="small", where="small")


def spans(shape: ModelShape) -> list[int | None]:
    mixers = [shape.groups[index].mixer for index in shape.order]
    return [m.window_tokens or m.chunk_tokens for m in mixers if isinstance(m, GroupedAttention)]


@pytest.mark.parametrize("case", CASES, ids=[case["hub_id"] for case in CASES])
def test_cache_bytes_and_parameters(case: dict[str, Any]) -> None:
    shape = read_config(case["config"], name="case", where=case["hub_id"])
    assert kv_by_hand(shape)[0] == case["growing"]
    if case["exact"]:
        assert shape.params == case["total"]
    else:
        assert shape.params == pytest.approx(case["total"], rel=0.01)
    if case["active"]:
        # Vendors round to whole billions, and some leave the embeddings out.
        embeddings = shape.vocab * shape.hidden * (1 if shape.tied_embeddings else 2)
        near = (shape.active_params, shape.active_params - embeddings)
        assert min(abs(count / case["active"] - 1) for count in near) < 0.09


def test_there_are_many_cases() -> None:
    assert len({case["config"]["model_type"] for case in CASES}) >= 45


# -- windows and chunks ---------------------------------------------------------------------


def test_qwen2_windows_start_at_max_window_layers() -> None:
    shape = small(
        model_type="qwen2", use_sliding_window=True, sliding_window=512, max_window_layers=4
    )
    assert spans(shape) == [None] * 4 + [512] * 2


def test_patterns_by_word_number_and_list() -> None:
    word = small(model_type="exaone4", sliding_window=512, sliding_window_pattern="LLG")
    assert spans(word) == [512, 512, None, 512, 512, None]
    number = small(model_type="cohere2", sliding_window=512, sliding_window_pattern=3)
    assert spans(number) == [512, 512, None, 512, 512, None]
    listed = small(model_type="mistral", sliding_window=[None, 512, 512])
    assert spans(listed) == [None, 512, 512, None, 512, 512]


def test_library_patterns() -> None:
    assert spans(small(model_type="gemma2", sliding_window=512)) == [512, None] * 3
    assert spans(small(model_type="gemma3_text", sliding_window=512)) == [512] * 5 + [None]
    assert spans(small(model_type="gpt_oss", sliding_window=128)) == [128, None] * 3
    assert spans(small(model_type="mistral", sliding_window=512)) == [512] * 6


def test_llama_4_chunks_all_but_every_fourth_layer() -> None:
    shape = small(model_type="llama4_text", attention_chunk_size=8192)
    assert spans(shape) == [8192] * 3 + [None] + [8192] * 2
    listed = small(model_type="llama4_text", no_rope_layers=[1, 0] * 3)
    assert spans(listed) == [8192, None] * 3
    assert spans(small(model_type="llama4_text", no_rope_layers=[])) == spans(shape)


def test_layer_lists_may_end_with_mtp_layers() -> None:
    kinds = ["full_attention", "sliding_attention"] * 3
    shape = small(
        layer_types=[*kinds, "full_attention"], num_nextn_predict_layers=1, sliding_window=64
    )
    assert spans(shape) == [None, 64] * 3
    with pytest.raises(InputError, match="7 entries"):
        small(layer_types=[*kinds, "full_attention"], sliding_window=64)


def test_both_spellings_of_layer_types() -> None:
    sizes = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
    old = small(model_type="granitemoehybrid", layer_types=["mamba", "attention"] * 3, **sizes)
    new = small(
        model_type="granitemoehybrid",
        layer_types=["linear_attention", "full_attention"] * 3,
        **sizes,
    )
    assert [g.name for g in old.groups] == ["mamba-2", "full"]
    assert old.groups == new.groups


# -- sharing, per-layer sizes ---------------------------------------------------------------


def test_cross_layer_sharing_stores_half() -> None:
    shape = small(model_type="hunyuan", use_cla=True, cla_share_factor=2)
    plain = small(model_type="hunyuan")
    assert kv_by_hand(shape)[0] * 2 == kv_by_hand(plain)[0]
    assert plain.params - shape.params == 3 * 2 * 64 * 2 * 16  # K and V of three layers


def test_blocks_of_llama_nemotron() -> None:
    # nvidia/Llama-3_3-Nemotron-Super-49B-v1: attention with 8 KV heads, none, FFN factors.
    blocks = [
        {"attention": {"n_heads_in_group": 8, "no_op": False}, "ffn": {"ffn_mult": 5.25}},
        {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
        {"attention": {"n_heads_in_group": 16}, "ffn": {"no_op": True}},
    ]
    shape = read_config(
        {
            "model_type": "nemotron-nas",
            "hidden_size": 8192,
            "num_hidden_layers": 3,
            "num_attention_heads": 64,
            "vocab_size": 128256,
            "block_configs": blocks,
        },
        name="nas",
        where="nas",
    )
    assert kv_by_hand(shape)[0] == 2 * (8 + 4) * 128 * 2
    widths = [group.ffn and group.ffn.matrices[1].outputs for group in shape.groups]
    assert widths == [28672, 5632, None]


def test_falcon_h1_has_two_mixers_in_a_layer() -> None:
    case = next(c for c in CASES if c["config"]["model_type"] == "falcon_h1")
    shape = read_config(case["config"], name="h1", where="h1")
    assert [g.name for g in shape.groups] == ["mamba-2", "full"]
    assert shape.order[:4] == (0, 1, 0, 1)


def test_gemma_3n_shares_the_last_layers() -> None:
    case = next(c for c in CASES if c["config"]["model_type"] == "gemma3n")
    shape = read_config(case["config"], name="3n", where="3n")
    shared = [getattr(shape.groups[i].mixer, "shares_cache", False) for i in shape.order]
    assert shared == [False] * 20 + [True] * 15


# -- what is assumed is said ----------------------------------------------------------------


def test_a_multimodal_config_may_leave_everything_to_the_library() -> None:
    config = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152},
    }
    shape = read_config(config, name="gemma-3-4b", where="x")
    assert kv_by_hand(shape) == (20480, 139264, 121634816)
    assert any("num_attention_heads = 8" in sentence for sentence in shape.assumptions)


def test_an_unknown_decoder_is_read_and_says_so() -> None:
    config = {
        key: value for key, value in SMALL.items() if key not in {"head_dim", "tie_word_embeddings"}
    }
    config |= {"model_type": "brand_new", "num_key_value_heads": None, "some_new_scale": 3.0}
    shape = read_config(config, name="new", where="new")
    said = " ".join(shape.assumptions)
    for part in (
        "'brand_new' is not known",
        "head_dim = 8",
        "kv_heads = 8",
        "not tied",
        "Gated FFN",
    ):
        assert part in said


def test_a_known_and_complete_config_assumes_nothing() -> None:
    assert small().assumptions == ()


def test_yarn_extends_the_claimed_length() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert small(rope_scaling=scaling, max_position_embeddings=40960).positions == 131072


def test_mtp_layers_are_not_counted() -> None:
    assert small(num_nextn_predict_layers=1).params == small().params
