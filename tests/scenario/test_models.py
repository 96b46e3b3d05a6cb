"""Published configs, read and compared with published facts; and the catalog made of them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kv_by_hand import kv_by_hand
from msgspec.structs import fields

from lcprof.domain.model import GroupedAttention, LatentAttention, ModelShape, RecurrentState
from lcprof.errors import InputError
from lcprof.scenario.models import load_model, model_card, model_names, read_config

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"

with (FIXTURES / "models.csv").open() as file:
    ROWS = list(csv.DictReader(file))

INDEXER = "the reference count leaves out the sparse-attention indexer"
# Where the reference count (billions, total or active) is not what the config adds up to.
APART = {
    ("deepseek-ai/DeepSeek-V3.2-Exp", "total"): (671.88, INDEXER),
    ("deepseek-ai/DeepSeek-V3.2-Exp", "active"): (38.40, INDEXER),
    ("zai-org/GLM-5", "active"): (41.785, INDEXER),
    ("zai-org/GLM-5.2", "active"): (41.25, INDEXER),
    ("MiniMaxAI/MiniMax-M3", "active"): (25.96, INDEXER),
    ("moonshotai/Kimi-K3", "active"): (105.36, "the reference leaves out the MLA output gate"),
    ("moonshotai/Kimi-Linear-48B-A3B-Instruct", "active"): (
        3.484,
        "the reference leaves out a low-rank projection of the KDA layers",
    ),
    ("ibm-granite/granite-4.0-h-tiny", "active"): (1.465, "the reference rounds 1.465 down"),
    # No reference count: the vendor's total is a rounded name.
    ("deepseek-ai/DeepSeek-V4-Pro", "total"): (1573.0, "published as 1.6T"),
    ("deepseek-ai/DeepSeek-V4-Pro", "active"): (49.78, "published as 49B"),
    ("deepseek-ai/DeepSeek-V4-Flash", "active"): (13.80, "published as 13B, without embeddings"),
    ("nvidia/Gemma-4-31B-IT-NVFP4", "total"): (30.70, "published as 31B, 30.7B on the model card"),
    ("nvidia/Gemma-4-31B-IT-NVFP4", "active"): (30.70, "published as 31B"),
    ("nvidia/Nemotron-H-56B-Base-8K", "total"): (56.32, "published as 56B"),
    ("nvidia/Nemotron-H-56B-Base-8K", "active"): (56.32, "published as 56B"),
    ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "active"): (
        3.58,
        "published as 3.2B without and 3.6B with embeddings",
    ),
    ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", "active"): (56.06, "published as 55B"),
}


def read(name: str) -> ModelShape:
    config = json.loads((FIXTURES / "hf-configs" / name).read_text())
    return read_config(config, name=name, where=name)


@pytest.mark.parametrize("row", ROWS, ids=[row["model_id"] for row in ROWS])
def test_cache_bytes_of_published_configs(row: dict[str, str]) -> None:
    shape = read(row["config_file"])
    assert kv_by_hand(shape) == (
        float(row["kv_bytes_per_token_bf16_growing"]),
        float(row["kv_bytes_per_token_bf16_all_layers"]),
        int(row["fixed_state_bytes_per_seq"] or 0),
    )


@pytest.mark.parametrize("row", ROWS, ids=[row["model_id"] for row in ROWS])
@pytest.mark.parametrize("kind", ["total", "active"])
def test_parameters_of_published_configs(row: dict[str, str], kind: str) -> None:
    shape = read(row["config_file"])
    counted = (shape.params if kind == "total" else shape.active_params) / 1e9
    if (row["model_id"], kind) in APART:
        expected = APART[row["model_id"], kind][0]
    else:
        expected = float(row[f"params_{kind}_b_computed"] or row[f"params_{kind}_b"] or 0)
        if not expected:
            pytest.skip("no published total")
    assert counted == pytest.approx(expected, rel=0.0015, abs=0.0051)


@pytest.mark.parametrize("row", ROWS, ids=[row["model_id"] for row in ROWS])
def test_layer_kinds_of_published_configs(row: dict[str, str]) -> None:
    shape = read(row["config_file"])
    assert shape.layers == int(row["layers"])
    mixers = [shape.groups[index].mixer for index in shape.order]
    spans = [
        mixer.window_tokens or mixer.chunk_tokens
        for mixer in mixers
        if isinstance(mixer, GroupedAttention)
    ]
    latent = sum(isinstance(mixer, LatentAttention) for mixer in mixers)
    if not row["model_id"].startswith("deepseek-ai/DeepSeek-V4"):
        assert sum(span is None for span in spans) + latent == int(row["n_full_attn_layers"])
        assert sum(span is not None for span in spans) == int(row["n_window_layers"])
    assert {span for span in spans if span} <= {int(row["window"] or 0)}
    assert sum(isinstance(m, RecurrentState) for m in mixers) == int(row["n_linear_layers"])
    assert shape.vocab == int(row["vocab"])
    if row["tie_embeddings"]:
        assert shape.tied_embeddings == (row["tie_embeddings"] == "True")
    claimed = row["model_max_length"] or row["max_position"]
    assert shape.positions == (int(claimed) if claimed else None) or shape.rope.kind == "yarn"


@pytest.mark.parametrize("row", ROWS, ids=[row["model_id"] for row in ROWS])
def test_shapes_can_be_sharded(row: dict[str, str]) -> None:
    for group in read(row["config_file"]).groups:
        matrices = [*group.mixer.matrices] if group.mixer else []
        if group.ffn:
            matrices += [*group.ffn.matrices, *group.ffn.expert]
            assert all(matrix.split == "width" for matrix in group.ffn.expert)
        for matrix in matrices:
            assert (matrix.split == "none") == (matrix.split_count == 0), matrix.name
            if matrix.split_count:
                assert (
                    matrix.inputs % matrix.split_count == 0
                    or matrix.outputs % matrix.split_count == 0
                ), matrix.name
        names = [matrix.name for matrix in matrices if group.mixer]
        assert len(names) == len(set(names)) or group.ffn is not None


def test_order_is_depth_order() -> None:
    shape = read("google__gemma-3-4b-it.json")
    kinds = [shape.groups[index].name for index in shape.order]
    assert kinds[:7] == ["window 1024"] * 5 + ["full", "window 1024"]


@pytest.mark.parametrize(
    ("file", "kind", "theta", "factor", "original"),
    [
        ("meta-llama__Meta-Llama-3.1-8B.json", "llama3", 500000.0, 8.0, 8192),
        ("microsoft__Phi-3.5-mini-instruct.json", "longrope", 10000.0, 32.0, 4096),
        ("deepseek-ai__DeepSeek-V3.json", "yarn", 10000.0, 40.0, 4096),
        ("google__gemma-3-27b-it.json", "linear", 1000000.0, 8.0, None),
        ("Qwen__Qwen2.5-7B-Instruct-1M.json", "dual-chunk", 10000000.0, 1.0, 262144),
        ("Qwen__Qwen3.5-27B.json", "mrope", 10000000.0, 1.0, None),
        ("nvidia__Gemma-4-31B-IT-NVFP4.json", "proportional", 1000000.0, 1.0, None),
        ("ibm-granite__granite-4.0-h-micro.json", "none", None, 1.0, None),
        # The card: 32,768 natively; config.json adds 8,192 for the answer.
        ("Qwen__Qwen3-8B.json", "default", 1000000.0, 1.0, 32768),
    ],
)
def test_rope_kinds(
    file: str, kind: str, theta: float, factor: float, original: int | None
) -> None:
    rope = read(file).rope
    assert (rope.kind, rope.theta, rope.factor, rope.original_positions) == (
        kind,
        theta,
        factor,
        original,
    )


def formats(shape: ModelShape) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for group in shape.groups:
        for matrix in group.mixer.matrices if group.mixer else ():
            found.setdefault(f"mixer.{matrix.name}", set()).add(matrix.format.name)
        for matrix in group.ffn.matrices if group.ffn else ():
            found.setdefault(f"ffn.{matrix.name}", set()).add(matrix.format.name)
        for matrix in group.ffn.expert if group.ffn else ():
            found.setdefault(f"expert.{matrix.name}", set()).add(matrix.format.name)
    return found


def test_fp8_blocks_spare_the_router() -> None:
    found = formats(read("deepseek-ai__DeepSeek-V3.json"))
    assert found.pop("ffn.router") == {"bf16"}
    assert set().union(*found.values()) == {"fp8-block"}


def test_gpt_oss_stores_experts_alone_in_mxfp4() -> None:
    found = formats(read("openai__gpt-oss-120b.json"))
    assert {name for name, stored in found.items() if "mxfp4" in stored} == {
        "expert.gate",
        "expert.up",
        "expert.down",
    }


def test_nvfp4_ignores_named_layers() -> None:
    found = formats(read("nvidia__Kimi-K2.6-NVFP4.json"))
    assert found["expert.up"] == {"nvfp4"}
    assert found["mixer.o"] == found["ffn.shared_up"] == found["ffn.up"] == {"bf16"}


def test_mixed_precision_names_each_module() -> None:
    found = formats(read("nvidia__Qwen3.6-35B-A3B-NVFP4.json"))
    assert found["mixer.q"] == found["mixer.o"] == found["mixer.out"] == {"fp8"}
    assert found["mixer.beta"] == {"bf16"}
    assert found["expert.down"] == found["ffn.shared_down"] == {"nvfp4"}


def test_expert_dtype_overrides_fp8() -> None:
    found = formats(read("deepseek-ai__DeepSeek-V4-Pro.json"))
    assert found["expert.gate"] == {"mxfp4"}
    assert found["mixer.q_up"] == found["ffn.shared_up"] == {"fp8-block"}


def with_quantisation(**quantization: Any) -> ModelShape:
    config = json.loads((FIXTURES / "hf-configs" / "Qwen__Qwen3-8B.json").read_text())
    config["quantization_config"] = quantization
    return read_config(config, name="q", where="q")


@pytest.mark.parametrize(
    ("config", "name", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "int4-g64", 4),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4-g128", 4),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8-g0", 8),
        ({"quant_method": "fp8"}, "fp8", 8),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, "fp8", 8),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4", 4),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}},
            "mxfp4",
            4,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 4, "type": "int", "group_size": 32},
                    }
                },
            },
            "int4-g32",
            4,
        ),
    ],
)
def test_quantisation_methods(config: dict[str, Any], name: str, bits: int) -> None:
    shape = with_quantisation(**config)
    assert formats(shape)["mixer.q"] == {name}
    mixer = shape.groups[0].mixer
    assert mixer is not None
    assert {matrix.format.bits for matrix in mixer.matrices} == {bits}


def test_plain_names_match_whole_parts() -> None:
    found = formats(
        with_quantisation(
            quant_method="fp8",
            modules_to_not_convert=["mlp.gate", "model.layers.0.self_attn", "re:.*up"],
        )
    )
    assert found["ffn.gate"] == {"fp8"}
    assert found["mixer.q"] == {"fp8", "bf16"}
    assert found["ffn.up"] == {"bf16"}


def test_unknown_quantisation_is_refused() -> None:
    with pytest.raises(InputError, match="quant_method"):
        with_quantisation(quant_method="exl9")


# -- the catalog ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_names())
def test_catalog_models_read_and_agree_with_their_card(name: str) -> None:
    shape, card = load_model(name, where="test"), model_card(name)
    assert shape.name == card.name == name
    assert card.status in {"verbatim", "copy", "reconstructed"}
    assert card.source
    assert "/" in card.hub_id
    if card.published_params_b and name not in {"gemma-3-4b", "qwen3-vl-2b"}:  # vision included
        assert shape.params / 1e9 == pytest.approx(card.published_params_b, rel=0.05)


def test_catalog_holds_ninety_models() -> None:
    assert len(model_names()) >= 90


def same(one: ModelShape, other: ModelShape) -> bool:
    skipped = {"name", "assumptions"}
    return all(
        getattr(one, field.name) == getattr(other, field.name)
        for field in fields(one)
        if field.name not in skipped
    )


CARDS = {model_card(name).hub_id: name for name in model_names()}
SHORTENED = [row for row in ROWS if row["model_id"] in CARDS]


@pytest.mark.parametrize("row", SHORTENED, ids=[row["model_id"] for row in SHORTENED])
def test_shortened_configs_say_what_the_published_ones_say(row: dict[str, str]) -> None:
    assert same(load_model(CARDS[row["model_id"]], where="t"), read(row["config_file"]))


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("LLaMA-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
        ("Qwen/Qwen2.5-7B-Instruct-1M", "qwen2.5-7b-1m"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("command-r", "command-r-08-2024"),
    ],
)
def test_names_and_hub_ids_find_their_file(ref: str, name: str) -> None:
    assert load_model(ref, where="test").name == name


def test_every_alias_leads_to_its_file() -> None:
    for name in model_names():
        card = model_card(name)
        for hub_id in (card.hub_id, *card.aliases):
            assert load_model(hub_id, where="test").name == name, hub_id


def test_a_stranger_with_a_known_name_is_not_the_catalog_model() -> None:
    with pytest.raises(InputError, match="did you mean"):
        load_model("somebody/Qwen3-8B", where="scenario")


@pytest.mark.parametrize(
    "ref", ["lama-3.1-8b", "qwen3-9b", "", "../../etc/passwd", "a\0b", "x" * 5000]
)
def test_unknown_names_name_the_nearest(ref: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(ref, where="scenario.yaml")
    assert len(caught.value.faults) == 1
    if ref == "lama-3.1-8b":
        assert "llama-3.1-8b" in str(caught.value)


def test_unknown_card_is_refused() -> None:
    with pytest.raises(InputError, match="qwen3-8b"):
        model_card("qwen3-8c")


def test_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    text = (FIXTURES / "hf-configs" / "Qwen__Qwen3-8B.json").read_text()
    (folder / "config.json").write_text(text)
    wanted = load_model("qwen3-8b", where="t")
    for ref in (str(folder), str(folder / "config.json"), "my-model", "./my-model/config.json"):
        shape = load_model(ref, where="t", base=tmp_path)
        assert same(shape, wanted)
        assert shape.name == "my-model"
    with pytest.raises(InputError, match="no such file"):
        load_model("other.json", where="t", base=tmp_path)


def test_infinity_is_read_where_it_does_not_count(tmp_path: Path) -> None:
    file = FIXTURES / "hf-configs" / "nvidia__Nemotron-H-56B-Base-8K.json"
    assert "Infinity" in file.read_text()
    assert load_model(str(file), where="t").layers == 118
    bad = tmp_path / "config.json"
    bad.write_text(file.read_text().replace('"vocab_size": 131072', '"vocab_size": Infinity'))
    with pytest.raises(InputError, match="vocab_size"):
        load_model(str(bad), where="t")


def test_a_download_that_fails_is_one_clear_fault(tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text(
        "def hf_hub_download(*_, **__):\n    raise OSError('no network')\n"
    )
    code = (
        "from lcprof.errors import InputError\nfrom lcprof.scenario.models import load_model\n"
        "try:\n    load_model('nobody/qwen3-9b', where='w')\nexcept InputError as error:\n"
        "    print(error)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "downloading its config.json failed (OSError)" in done.stdout
    assert "qwen3-8b" in done.stdout


def test_a_lookup_parses_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from lcprof.scenario.models import catalog

    opened: list[str] = []
    real = catalog.files.read_yaml

    def spy(path: Path) -> Any:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(catalog.files, "read_yaml", spy)
    monkeypatch.setattr(catalog, "_ENTRIES", {})
    load_model("Qwen/Qwen3-32B", where="t")
    assert opened == ["qwen3-32b.yaml"]
