"""Launch lines: every part of a plan is a flag or is named as missing."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import ENGINES
from lcprof.domain.kv import STRATEGIES, parse_kv
from lcprof.domain.workload import Workload
from lcprof.report.launch import Launch, launch_lines
from lcprof.scenario.engines import load_engine
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.models import load_model, read_inline
from lcprof.scenario.weights import parse_weights

H100 = load_gpu("h100-sxm", where="test")


def case(
    model: str,
    kv: str = "bf16",
    *,
    context: float = 32_256,
    users: float = 4,
    prefix: float = 0,
    weights: str = "checkpoint",
    **layout: object,
) -> Case:
    deployment = Deployment(
        gpu=H100,
        weights=parse_weights(weights, where="test"),
        **layout,  # type: ignore[arg-type]
    )
    return Case(
        model=load_model(model, where="test"),
        deployment=deployment,
        kv=parse_kv(kv, where="test"),
        kv_spec=kv,
        workload=Workload(
            context_tokens=context, concurrency=users, output_tokens=512.0, prefix_tokens=prefix
        ),
    )


def launched(given: Case, engine: str) -> Launch:
    return launch_lines(given, load_engine(engine))


def flag(launch: Launch, name: str) -> str | None:
    arguments = list(launch.arguments)
    return arguments[arguments.index(name) + 1] if name in arguments else None


def parts(launch: Launch) -> str:
    return "; ".join(gap.part for gap in launch.missing)


def test_vllm_flags_say_the_plan() -> None:
    launch = launched(
        case("deepseek-v3", "fp8", users=64, prefix=1024, gpus=16, tp=8, dp=2, ep=16, dcp=8), "vllm"
    )
    assert launch.arguments[:3] == ("vllm", "serve", "deepseek-ai/DeepSeek-V3")
    assert flag(launch, "--max-model-len") == "32768"
    assert flag(launch, "--tensor-parallel-size") == "8"
    assert flag(launch, "--data-parallel-size") == "2"
    assert flag(launch, "--decode-context-parallel-size") == "8"
    assert "--enable-expert-parallel" in launch.arguments
    assert flag(launch, "--kv-cache-dtype") == "fp8"
    assert flag(launch, "--max-num-batched-tokens") == "8192"
    assert flag(launch, "--max-num-seqs") == "32"
    assert flag(launch, "--gpu-memory-utilization") == "0.9"
    assert flag(launch, "--block-size") == "16"
    assert "--enable-prefix-caching" in launch.arguments
    assert launch.missing == ()


def test_a_command_survives_the_shell() -> None:
    launch = launched(case("qwen3-8b", context=100_000), "vllm")
    words = shlex.split(launch.command)
    assert words[0] == "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"
    override = json.loads(words[words.index("--hf-overrides") + 1])
    assert override["rope_parameters"]["rope_type"] == "yarn"
    assert launch.notes


# -- rope: what a length beyond the model's positions asks of each engine -----------------------

# The rope entries of the published config.json files, and the length that each counts from.
LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
SCOUT = {**LLAMA31, "factor": 16.0, "high_freq_factor": 1.0}
DEEPSEEK = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn"}  # fmt: skip
OSS = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
       "original_max_position_embeddings": 4096, "truncate": False}  # fmt: skip
# Qwen3-8B has no block: the card's own YaRN, over the 32,768 that it was trained on.
QWEN3 = {"rope_type": "yarn", "original_max_position_embeddings": 32768}
ROPES = {
    "llama-3.1-8b": (131_072, LLAMA31, 500000.0, 131_072 / 8.0),
    "deepseek-v3": (163_840, DEEPSEEK, 10000, 4096.0),
    "gpt-oss-120b": (131_072, OSS, 150000, 4096.0),
    "qwen3-8b": (40_960, QWEN3, 1000000, 32768.0),
    "llama-4-scout": (10_485_760, SCOUT, 500000.0, 10_485_760 / 16.0),
}
# SGLang serves prompt + output up to context_len - 2 and prompts up to context_len - 7.
KEPT = {"vllm": 0, "sglang": 6, "trtllm": 0}
LENGTHS = {"vllm": "--max-model-len", "sglang": "--context-length", "trtllm": "--max_seq_len"}


def one_token(model: str, context: int) -> Case:
    given = case(model, context=context)
    return replace(given, workload=replace(given.workload, output_tokens=1.0))


def override(launch: Launch) -> dict[str, Any] | None:
    """What the engine is told of the config, whichever way it is told."""
    found: dict[str, Any] | None
    if launch.engine == "trtllm":
        found = yaml.safe_load(launch.config).get("model_kwargs")
        return found
    name = {"vllm": "--hf-overrides", "sglang": "--json-model-override-args"}[launch.engine]
    text = flag(launch, name)
    found = None if text is None else json.loads(text)
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", [*ROPES, "gemma-3-27b"])
def test_the_last_output_token_scales_no_rope(model: str, engine: str) -> None:
    """A prompt of all positions and one token of output: the output is never fed back."""
    positions = 131_072 if model == "gemma-3-27b" else ROPES[model][0]
    launch = launched(one_token(model, positions), engine)
    assert flag(launch, LENGTHS[engine]) == str(positions)
    assert override(launch) is None
    assert launch.environment == ()
    assert launch.missing == ()
    assert f"{positions - 1 - KEPT[engine]:,} tokens" in launch.notes[0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("over", ["one over", "twice"])
@pytest.mark.parametrize("model", ROPES)
def test_a_rope_grows_by_what_is_needed_and_stays_whole(model: str, over: str, engine: str) -> None:
    positions, block, theta, unit = ROPES[model]
    context = positions + 1 if over == "one over" else 2 * positions
    launch = launched(one_token(model, context), engine)
    length = context + 1 + KEPT[engine]
    assert flag(launch, LENGTHS[engine]) == str(length)
    told = override(launch)
    assert told is not None
    if model == "llama-4-scout":
        assert list(told) == ["text_config"]
        told = told["text_config"]
    key = "rope_parameters" if engine == "vllm" else "rope_scaling"
    assert set(told) == {"max_position_embeddings", key}
    assert told["max_position_embeddings"] == length
    rope = dict(told[key])
    factor = rope.pop("factor")
    # What the length needs, rounded up to four decimals.
    assert length / unit <= factor <= length / unit + 1e-4
    kept = {**block, "rope_theta": theta}
    kept.pop("factor", None)
    if engine == "vllm" and "type" in kept:
        kept["rope_type"] = kept.pop("type")
    assert rope == kept
    assert launch.missing == ()


@pytest.mark.parametrize("engine", ENGINES)
def test_ropes_by_layer_type_are_missing(engine: str) -> None:
    # Gemma-3's flat block scales its global layers alone: local ones have rope_local_base_freq.
    for context in (131_073, 262_144):
        launch = launched(one_token("gemma-3-27b", context), engine)
        assert override(launch) is None
        assert f"context of {context + 1:,} tokens" in parts(launch)
        assert "layer types" in launch.missing[0].reason
        # What can be started reads what the model can.
        assert flag(launch, LENGTHS[engine]) == "131072"


def test_a_multimodal_rope_keeps_its_sections() -> None:
    # Qwen3.5's config.json, with the YaRN of its card: rope_parameters in the text part.
    whole = {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "rope_type": "yarn",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "original_max_position_embeddings": 262144,
    }
    for engine in ("vllm", "sglang"):
        told = override(launched(one_token("qwen3.5-27b", 524_288), engine))
        assert told is not None
        rope = told["text_config"]["rope_parameters"]
        # 524,288 and one of output over 262,144.
        assert rope.pop("factor") == pytest.approx(2.0, rel=1e-4)
        assert rope == whole
    trtllm = launched(one_token("qwen3.5-27b", 524_288), "trtllm")
    assert "multimodal" in trtllm.missing[0].reason


def test_rope_that_cannot_be_scaled_is_missing() -> None:
    # Factors of its own, sections or bands that the config does not state, and no rope at all.
    for model in ("phi-3.5-mini", "qwen3-vl-2b", "deepseek-v2", "jamba-large-1.5"):
        assert "context" in parts(launched(case(model, context=1_000_000), "vllm")), model


def test_an_inline_config_keeps_its_rope() -> None:
    sizes = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
             "intermediate_size": 128, "max_position_embeddings": 32768}  # fmt: skip
    block = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192,
             "beta_fast": 16.0}  # fmt: skip
    given = one_token("llama-3.1-8b", 65_535)
    scaled = read_inline({**sizes, "rope_scaling": block}, where="t")
    told = override(launched(replace(given, model=scaled), "vllm"))
    # 65,536 / 8,192; llama's own rope_theta where the config leaves it out.
    assert told == {
        "max_position_embeddings": 65_536,
        "rope_parameters": {**block, "factor": 8.0, "rope_theta": 10000.0},
    }
    strange = read_inline({**sizes, "rope_scaling": {"type": "spiral", "factor": 4.0}}, where="t")
    assert "not known" in launched(replace(given, model=strange), "vllm").missing[0].reason
    linear = read_inline({**sizes, "rope_scaling": {"type": "linear", "factor": 4.0}}, where="t")
    assert "context" in parts(launched(replace(given, model=linear), "vllm"))
    # Dynamic NTK measures from max_position_embeddings, which stays: 65,536 / 32,768.
    ntk = read_inline({**sizes, "rope_scaling": {"type": "dynamic", "factor": 1.5}}, where="t")
    told = override(launched(replace(given, model=ntk), "vllm"))
    assert told == {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    }


def test_a_written_out_attention_factor_follows() -> None:
    # OLMo 3: 0.1 ln 8 + 1 = 1.2079 written out; twice 65,536 needs 131,073 / 8,192 = 16.0002.
    told = override(launched(one_token("olmo-3-7b", 131_072), "vllm"))
    assert told is not None
    rope = told["rope_parameters"]
    assert rope["attention_factor"] == pytest.approx(0.1 * math.log(16.0002) + 1.0, rel=1e-6)


def test_sglang_cuts_all_ranks_and_shares_attention() -> None:
    launch = launched(case("deepseek-v3", "fp8", users=64, gpus=16, tp=8, dp=2, ep=16), "sglang")
    assert flag(launch, "--tp-size") == "16"
    assert flag(launch, "--dp-size") == "2"
    assert "--enable-dp-attention" in launch.arguments
    assert flag(launch, "--kv-cache-dtype") == "fp8_e4m3"
    assert flag(launch, "--max-running-requests") == "64"


def test_memory_shares_keep_the_plans_utilisation() -> None:
    given = case("llama-3.1-8b", users=4)
    sglang = flag(launched(given, "sglang"), "--mem-fraction-static")
    assert sglang is not None
    # Activations come off 0.9 of the card, libraries off both.
    assert 0.8 < float(sglang) < 0.9
    config = yaml.safe_load(launched(given, "trtllm").config)
    assert 0.8 < config["kv_cache_config"]["free_gpu_memory_fraction"] < 0.9


def test_trtllm_configuration_is_yaml() -> None:
    launch = launched(case("llama-3.1-70b", "fp8", users=8, gpus=8, tp=8, page_tokens=32), "trtllm")
    config = yaml.safe_load(launch.config)
    assert config["kv_cache_config"]["dtype"] == "fp8"
    assert config["kv_cache_config"]["tokens_per_block"] == 32
    assert flag(launch, "--max_seq_len") == "32768"
    assert flag(launch, "--tp_size") == "8"
    assert launch.lines[0].startswith("cat > trtllm.yaml")
    assert launch.lines[-1] == launch.command


SPECS = ["int8", "int4", "kivi:bits=4", "h2o", "snapkv", "quest", "topk", "share:kv_heads=2",
         "offload:fraction=0.5", "window:tokens=4096,sinks=4"]  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_strategy_without_a_flag_is_named_with_a_reason(spec: str, engine: str) -> None:
    launch = launched(case("llama-3.1-8b", spec), engine)
    assert launch.missing
    assert all(gap.reason for gap in launch.missing)
    assert any(line.startswith("# missing: ") for line in launch.lines)


def test_every_strategy_is_a_flag_or_a_gap() -> None:
    named = {spec.partition(":")[0] for spec in SPECS} | {"bf16", "fp8"}
    assert {strategy.kind for strategy in STRATEGIES} == named


@pytest.mark.parametrize(
    ("engine", "layout", "part"),
    [
        ("sglang", {"gpus": 2, "cp": 2}, "cp 2"),
        ("trtllm", {"gpus": 2, "cp": 2}, "cp 2"),
        ("sglang", {"gpus": 8, "tp": 8, "dcp": 8}, "dcp 8"),
        ("trtllm", {"gpus": 8, "tp": 8, "dcp": 8}, "dcp 8"),
        ("trtllm", {"gpus": 4, "tp": 2, "dp": 2}, "dp 2"),
        ("vllm", {"gpus": 8, "tp": 8, "ep": 4}, "experts over 4 ranks"),
        ("vllm", {"page_tokens": 8}, "pages of 8 tokens"),
        ("vllm", {"weights": "nvfp4"}, "nvfp4 weights"),
        ("trtllm", {"weights": "fp8"}, "fp8 weights"),
    ],
)
def test_a_layout_without_a_flag_is_named(
    engine: str, layout: dict[str, object], part: str
) -> None:
    launch = launched(case("deepseek-v2-lite", **layout), engine)  # type: ignore[arg-type]
    assert part in parts(launch)


def test_offload_sizes_the_host_cache() -> None:
    given = case("llama-3.1-8b", "offload:fraction=0.5", context=131_072 - 512, users=2)
    # Half of 2 x 16 GiB.
    assert flag(launched(given, "vllm"), "--kv-offloading-size") == "16"
    assert flag(launched(given, "sglang"), "--hicache-size") == "17"
    config = yaml.safe_load(launched(given, "trtllm").config)
    assert config["kv_cache_config"]["host_cache_size"] == pytest.approx(16 * 2**30, rel=1e-3)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_weights_that_are_quantised_on_loading(engine: str) -> None:
    launch = launched(case("llama-3.1-8b", weights="fp8"), engine)
    assert flag(launch, "--quantization") == "fp8"
    wide = launched(case("llama-3.1-8b", "fp32", weights="fp32"), engine)
    assert flag(wide, "--dtype") == "float32"
