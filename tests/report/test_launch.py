"""Launch lines: every part of a plan is a flag or is named as missing."""

from __future__ import annotations

import json
import shlex

import pytest
import yaml

from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import ENGINES
from lcprof.domain.kv import STRATEGIES, parse_kv
from lcprof.domain.workload import Workload
from lcprof.report.launch import Launch, launch_lines
from lcprof.scenario.engines import load_engine
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.models import load_model
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
    # 100,512 tokens over 40,960 positions.
    assert override["rope_parameters"]["factor"] == 3.0
    assert override["rope_parameters"]["original_max_position_embeddings"] == 40_960
    assert launch.notes


def test_rope_of_a_scaled_model_keeps_its_kind() -> None:
    launch = launched(case("llama-3.1-8b", context=262_144 - 512), "sglang")
    text = flag(launch, "--json-model-override-args")
    assert text is not None
    scaling = json.loads(text)["rope_scaling"]
    assert scaling["rope_type"] == "llama3"
    # 8 beyond 8,192 positions make 131,072; twice that is asked for.
    assert scaling["factor"] == 16.0
    assert scaling["high_freq_factor"] == 4.0


def test_rope_that_cannot_be_scaled_is_missing() -> None:
    # Multimodal rope, and a model whose few attention layers have none.
    for model in ("qwen3.5-27b", "jamba-large-1.5"):
        assert "context" in parts(launched(case(model, context=1_000_000), "vllm")), model


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
