"""What engines reserve, against what they printed at start-up and against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcprof.calibrate.published.startup import (
    Declined,
    compare,
    fit_startup,
    fitted_groups,
    named_model,
    plain_names,
    read_rows,
    score_startup,
    server,
    weight_scheme,
)
from lcprof.cost.engine.pages import page_layout
from lcprof.cost.engine.reserve import Reserved, reserve, static_fraction
from lcprof.cost.engine.weights import allocated_bytes, rope_bytes
from lcprof.cost.engine.working import visible_bytes
from lcprof.cost.sharding import stages
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import CONSTANTS, ENGINES, Checkpoint, EngineFlags
from lcprof.errors import InputError
from lcprof.scenario.engines import FOLDER, load_engine, parse_version, read_checkpoint, read_engine
from lcprof.scenario.files import read_yaml
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.models import load_model

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "engine_startup.csv"
ROWS = {row["record_id"]: row for row in read_rows(FIXTURE)}
MIB = 2**20
GIB = 2**30
H100 = load_gpu("h100-sxm", where="test")
VLLM = load_engine("vllm")


def started(name: str, *, tp: int = 1, engine: str = "vllm", **flags: object) -> Reserved:
    given = EngineFlags(**{"version": (0, 19, 0), "memory_fraction": 0.95, **flags})  # type: ignore[arg-type]
    return reserve(
        load_model(name, where="test"),
        Deployment(gpu=H100, gpus=tp, tp=tp),
        read_checkpoint(name),
        given,
        load_engine(engine),
    )


# -- against start-up logs --------------------------------------------------------------------


def test_scores_of_models_that_no_constant_was_fitted_on_stay_within_the_bars() -> None:
    found = score_startup(FIXTURE, without=fitted_groups())
    scores = {one["table"].partition(".")[2]: one for one in found if one["device"] == "all"}
    bars = {
        "kv_tokens": (0.04, 0.12),
        "kv_tokens_given_log": (0.007, 0.02),
        "weights_bf16": (0.005, 0.01),
        "kv_bytes_per_token": (0.002, 0.01),
    }
    for table, (median, p90) in bars.items():
        assert scores[table]["rows"] >= 4, table
        assert scores[table]["median"] <= median, table
        assert scores[table]["p90"] <= p90, table


def test_quantised_weights_stay_within_their_bar() -> None:
    found = score_startup(FIXTURE)
    (score,) = (
        one
        for one in found
        if one["table"].endswith("weights_quantised") and one["device"] == "all"
    )
    assert score["median"] <= 0.02
    assert score["p90"] <= 0.04


def test_nine_intervals_in_ten_hold_the_printed_tokens() -> None:
    compared, _ = compare(list(ROWS.values()))
    inside = [one.low <= one.measured <= one.high for one in compared if "kv_tokens" in one.table]
    assert sum(inside) / len(inside) >= 0.9


def test_the_file_holds_what_the_fit_says() -> None:
    rows = [row for row in ROWS.values() if row["base_model"] in fitted_groups()]
    fitted = fit_startup(rows)
    for name, allowed in [("sampler_bytes", 0.05), ("context_bytes", 0.05), ("tensor_bytes", 0.1)]:
        assert VLLM.constant(name, (0, 19)) == pytest.approx(fitted[name], rel=allowed), name


@pytest.mark.parametrize(
    ("record", "groups", "layers", "block_tokens"),
    [
        # 52 window layers and 10 full ones: 7 groups of 10.
        ("M010", 7, 10, 16),
        # 29 and 5: 7 groups of 5.
        ("M011", 7, 5, 16),
        # 36 chunked and 12 full: 4 groups of 12.
        ("M031", 4, 12, 16),
        # 16 full and 48 delta-net layers at tp 4: a state of 801,792 B in pages of 1,024 B a token.
        ("M099", 4, 16, 784),
        # An MTP layer joins 16 full ones, and 48 states are padded to 51; three drafted tokens
        # lengthen the convolution.
        ("M147", 4, 17, 800),
        # The same with an fp8 cache.
        ("M148", 4, 17, 1600),
        # 7 latent and 20 KDA layers; blocks of the latent kernels are multiples of 64.
        ("M159", 4, 7, 960),
    ],
)
def test_hybrid_pages(record: str, groups: int, layers: int, block_tokens: int) -> None:
    made = server(ROWS[record])
    assert not isinstance(made, Declined)
    stage = stages(made.model, 1)[0]
    layout = page_layout(stage, made.deployment, made.flags, VLLM)
    assert len(layout.groups) == groups
    assert {group.layers for group in layout.groups} == {layers}
    assert layout.block_tokens == block_tokens


@pytest.mark.parametrize("record", ["M008", "M010", "M011", "M031", "M142", "M148"])
def test_requests_that_a_hybrid_holds(record: str) -> None:
    """Printed concurrency from printed blocks: KV bytes over block bytes, over blocks a request."""
    row = ROWS[record]
    made = server(row)
    assert not isinstance(made, Declined)
    result = made.predict()
    length = int(float(row["max_model_len"]))
    batched = int(float(row["max_num_batched_tokens"] or 2048))
    needed = result.layout.request_blocks(length, batched, made.flags.drafted_tokens)
    blocks = result.layout.blocks(float(row["available_kv_gib_per_gpu"]) * GIB)
    if row["num_gpu_blocks"]:
        assert blocks == pytest.approx(float(row["num_gpu_blocks"]), rel=1e-3)
    assert blocks / needed == pytest.approx(float(row["max_concurrency"]), rel=2e-3)


def test_rows_without_a_gpu_or_a_model_are_declined_with_a_reason() -> None:
    ascend = server(ROWS["M121"])
    assert isinstance(ascend, Declined)
    assert ascend.reason == "not a GPU"
    nameless = {**ROWS["M018"], "model": "somebody/novel-9b", "base_model": "novel-9b"}
    declined = server(nameless)
    assert isinstance(declined, Declined)
    assert "catalog" in declined.reason


@pytest.mark.parametrize(
    ("model", "catalog", "scheme"),
    [
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "llama-3.3-70b", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "llama-3.1-8b", "int4-g128"),
        ("nm-testing/Qwen2.5-7B-Instruct-quantized.w8a8", "qwen2.5-7b", "int8"),
        ("Qwen/Qwen3-30B-A3B-FP8", "qwen3-30b-a3b", "fp8-block"),
        ("someone/Qwen3-14B-AWQ", "qwen3-14b", "int4-g128"),
        ("nvidia/Llama-3.1-70B-Instruct-NVFP4", "llama-3.1-70b", "nvfp4"),
        ("Qwen/Qwen3-8B", "qwen3-8b", None),
        ("Mistral-7B-Instruct-v0.2-AWQ", "mistral-7b-v0.2", "int4-g128"),
        ("DeepSeek-R1-Distill-Qwen-7B", "qwen2.5-7b", None),
    ],
)
def test_names_of_re_uploads(model: str, catalog: str, scheme: str | None) -> None:
    row = {**ROWS["M018"], "model": model, "base_model": "", "quantization": ""}
    shape = named_model(row)
    assert shape is not None
    assert shape.name == catalog
    form = weight_scheme(row)
    assert (form.name if form else None) == scheme


def test_a_table_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("record_id,model\nA,b\n")
    with pytest.raises(InputError, match="kv_tokens"):
        read_rows(path)
    path.write_text(FIXTURE.read_text().replace(",79.19,29.43,", ",79.19,-29.43,"))
    with pytest.raises(InputError, match=r"M002: weights_gib_per_gpu: given '-29\.43'"):
        read_rows(path)


def test_endings_come_off_one_by_one() -> None:
    names = plain_names("RedHatAI/Mistral-Small-3.1-24B-Instruct-2503-quantized.w8a8")
    assert names[-1] == "mistral-small-3.1-24b"
    assert plain_names("deepseek-ai/DeepSeek-V4-Pro (FP8)")[0] == "deepseek-ai/deepseek-v4-pro"


# -- rules, by hand ---------------------------------------------------------------------------


def test_the_allocator_keeps_small_remainders() -> None:
    assert allocated_bytes(9.5 * MIB) == 9.5 * MIB
    assert allocated_bytes(17.5 * MIB) == 18 * MIB
    assert allocated_bytes(135 * MIB) == 136 * MIB
    # 1.5 MiB are left of a segment: too much to keep with the tensor.
    assert allocated_bytes(12.5 * MIB) == 12.5 * MIB


def test_rope_tables() -> None:
    def tables(name: str) -> float:
        return rope_bytes(load_model(name, where="test"), read_checkpoint(name), EngineFlags())

    assert tables("llama-3.1-8b") == 131_072 * 128 * 2
    assert tables("llama-4-scout") == 10_485_760 * 128 * 2
    # Linear scaling multiplies the rows of the full layers' table; windows keep one of their own.
    assert tables("gemma-3-27b") == (8 + 1) * 131_072 * 128 * 2
    # A quarter of a head of 256, for four times the positions.
    assert tables("qwen3.5-27b") == 4 * 262_144 * 64 * 2


def test_latents_lie_on_every_tensor_rank() -> None:
    one, eight = started("deepseek-v2-lite"), started("deepseek-v2-lite", tp=8)
    assert one.layout.block_bytes == eight.layout.block_bytes == 27 * 576 * 2 * 16


def test_kv_heads_are_copied_beyond_their_number() -> None:
    model = load_model("qwen2.5-7b", where="test")
    flags = EngineFlags(version=(0, 19))
    stage = stages(model, 1)[0]
    one, two, four, twenty_eight = (
        page_layout(stage, Deployment(gpu=H100, gpus=tp, tp=tp), flags, VLLM).block_bytes
        for tp in (1, 2, 4, 28)
    )
    assert one == 2 * two == 4 * four
    assert twenty_eight == four


def test_indexer_keys_add_to_the_page() -> None:
    model = load_model("deepseek-v3.2", where="test")
    deployment = Deployment(gpu=H100, gpus=8, tp=8)
    wide = page_layout(stages(model, 1)[0], deployment, EngineFlags(), VLLM)
    assert wide.block_bytes == 16 * 61 * (576 * 2 + 132)
    narrow = EngineFlags(kv_element_bytes=1.0)
    assert page_layout(stages(model, 1)[0], deployment, narrow, VLLM).block_bytes == 16 * 61 * (
        656 + 132
    )


def test_without_the_hybrid_manager_windows_are_charged_at_full_length() -> None:
    off = started("gemma-3-27b", hybrid_manager=False)
    assert len(off.layout.groups) == 1
    assert off.layout.block_bytes == 16 * 62 * 2 * 16 * 128 * 2
    old = started("gemma-3-27b", version=(0, 8, 5))
    assert old.layout.block_bytes == off.layout.block_bytes


def test_graphs_leave_the_budget_from_0_21_on() -> None:
    before, after = (started("llama-3.1-8b", version=v) for v in ((0, 20, 1), (0, 21, 0)))
    assert before.graph_bytes == 0
    assert after.graph_bytes > 0.3 * GIB
    assert after.kv_bytes == pytest.approx(before.kv_bytes - after.graph_bytes)
    assert started("llama-3.1-8b", version=(0, 21, 0), eager=True).graph_bytes == 0


def test_the_sampler_weighs_what_the_release_makes_it() -> None:
    old, new = (started("qwen3-14b", version=v).activation_bytes for v in ((0, 16), (0, 17)))
    logits = 1024 * 151_936
    assert old - new == pytest.approx((36.4 - 13) * logits, rel=1e-6)


def test_more_tokens_a_step_leave_no_more_kv() -> None:
    kv = [started("llama-3.1-8b", batched_tokens=n).kv_bytes for n in (1024, 8192, 65_536)]
    assert kv[0] >= kv[1] > kv[2]


def test_a_server_that_cannot_hold_one_request_does_not_start() -> None:
    heavy = started("llama-3.1-70b")
    assert not heavy.starts
    assert "no memory left" in heavy.reason
    assert heavy.kv_tokens == 0
    long = started("llama-3.1-8b", max_model_len=2_000_000)
    assert not long.starts
    assert "2,000,000 tokens" in long.reason
    assert started("llama-3.1-8b", max_model_len=131_072).starts


def test_sglang_takes_its_share_of_what_is_free() -> None:
    given = started("llama-3.1-8b", engine="sglang", memory_fraction=0.88)
    free = given.visible_bytes - given.non_torch_bytes
    assert given.kv_bytes == pytest.approx(0.88 * free - given.weights_bytes)
    deployment = Deployment(gpu=H100)
    visible = visible_bytes(deployment, EngineFlags(), load_engine("sglang"))
    share = static_fraction(deployment, EngineFlags(), visible=visible)
    # 512 + 8192 x 1.5 + 256 x 2 + 128 MiB of 81,088 MiB.
    assert share == pytest.approx(1 - 13_440 / (visible / MIB), abs=6e-4)
    assert started("llama-3.1-8b", engine="sglang", memory_fraction=None).kv_bytes > 0


def test_tensorrt_llm_takes_its_share_of_what_is_left() -> None:
    given = started("llama-3.1-8b", engine="trtllm", memory_fraction=0.8)
    used = given.weights_bytes + given.activation_bytes + given.non_torch_bytes
    assert given.kv_bytes == pytest.approx(0.8 * (given.visible_bytes - used))
    assert given.layout.block_tokens == 32


def test_decode_context_parallel_ranks_share_a_sequence() -> None:
    model = load_model("deepseek-v2-lite", where="test")
    flags = EngineFlags(version=(0, 19), max_model_len=8192)
    one, four = (
        reserve(
            model, Deployment(gpu=H100, gpus=4, tp=4, dcp=dcp), Checkpoint(), flags, VLLM
        ).kv_tokens
        for dcp in (1, 4)
    )
    assert four == 4 * one


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_every_constant_with_a_source(name: str) -> None:
    engine = load_engine(name)
    assert set(engine.constants) == set(CONSTANTS)
    assert all(step.source for steps in engine.constants.values() for step in steps)


def test_a_damaged_engine_file_is_refused_with_every_fault() -> None:
    data = read_yaml(FOLDER / "vllm.yaml")
    del data["constants"]["sampler_bytes"]
    data["constants"]["samplr"] = [{"since": "0", "value": 1, "source": "x"}]
    data["constants"]["utilisation"].reverse()
    with pytest.raises(InputError) as caught:
        read_engine(data, where="test")
    assert {fault.key for fault in caught.value.faults} == {
        "sampler_bytes",
        "samplr",
        "utilisation",
    }
    with pytest.raises(InputError, match="one of vllm, sglang, trtllm"):
        load_engine("vlm")


def test_releases() -> None:
    assert parse_version("v0.6.3.post1", where="test") == (0, 6, 3)
    with pytest.raises(InputError, match="release"):
        parse_version("latest", where="test")
    assert VLLM.constant("graphs_counted", None) == 1
    assert VLLM.constant("graphs_counted", (0, 20, 9)) == 0
