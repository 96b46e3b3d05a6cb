"""Expected times of plans: against published ones, and what rows say of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

import lcprof
from lcprof.cost.expected.own import OWN
from lcprof.domain.deployment import STACKS
from lcprof.plan.row import Row, plan_cases
from lcprof.plan.times import BASES, OPERATIONS, named

BLOG = "vLLM blog, FP8 KV cache, v0.19.1 on one H100, Llama-3.1-8B"
PAPER = "arXiv:2411.01783, abstract; GPUs held to 800 of 989 TFLOP/s"


def plan(**keys: Any) -> Row:
    (row,) = lcprof.plan_scenario({"model": "llama-3.1-8b", "gpu": "h100-sxm", **keys})
    return row


def hypothetical(row: Row) -> Row:
    (found,) = plan_cases([replace(row.case, hypothetical=True)])
    return found


@pytest.mark.parametrize(
    ("kv", "context", "ttft_s", "source"),
    [
        ("bf16", 32_768, 1.31, BLOG),
        ("bf16", 65_536, 3.57, BLOG),
        ("bf16", 98_304, 6.75, BLOG),
        ("bf16", 131_072, 10.11, BLOG),
        ("fp8", 32_768, 1.28, BLOG),
        ("fp8", 65_536, 3.44, BLOG),
        ("fp8", 98_304, 6.50, BLOG),
        ("fp8", 131_072, 9.62, BLOG),
    ],
)
def test_time_to_first_token(kv: str, context: int, ttft_s: float, source: str) -> None:
    found = plan(kv=kv, context=context).columns()
    assert found["ttft_s"] == pytest.approx(ttft_s, rel=0.15), source
    assert found["ttft_low_s"] < ttft_s < found["ttft_high_s"]


@pytest.mark.parametrize(("kv", "slope_ms"), [("bf16", 4.37e-5), ("fp8", 2.37e-5)])
def test_slope_of_a_step_over_context(kv: str, slope_ms: float) -> None:
    near, far = (plan(kv=kv, context=tokens).columns()["tpot_s"] for tokens in (16_384, 131_072))
    assert 1e3 * (far - near) / (131_072 - 16_384) == pytest.approx(slope_ms, rel=0.15), BLOG


def test_a_million_tokens_on_128_gpus() -> None:
    row = plan(
        model="llama-3.1-405b",
        context=1_000_000,
        chunk=1_000_000,
        gpus=128,
        tp=8,
        cp=16,
        power_limit=500,
    )
    assert hypothetical(row).columns()["ttft_s"] == pytest.approx(77, rel=0.15), PAPER


def test_no_times_where_it_does_not_fit_unless_hypothetical() -> None:
    row = plan(context=1_000_000)
    assert not row.estimate.fits
    columns = row.columns()
    timed = [name for name in columns if name.startswith(("ttft", "tpot", "request"))]
    assert all(columns[name] is None for name in timed if name.endswith("_s"))
    assert columns["ttft_basis"] is None
    found = hypothetical(row).columns()
    assert found["ttft_s"] > found["ttft_floor_s"] > 0
    assert found["ttft_basis"] == "extrapolated"


def test_too_far_beyond_what_was_measured_is_not_vouched_for() -> None:
    found = hypothetical(plan(context=10_000_000)).columns()
    assert found["ttft_s"] is None
    assert found["ttft_basis"] == "not vouched for"
    assert found["ttft_distance"] > 64
    assert found["ttft_floor_s"] > 0


def test_an_answer_takes_the_mean_of_its_first_and_last_step() -> None:
    row = plan(context="64K", output=1025, concurrency=4)
    first = row.columns()
    last = plan(context=65_536 + 1024, concurrency=4).columns()
    steps = 1024 * (first["tpot_s"] + last["tpot_s"]) / 2
    assert first["request_s"] == pytest.approx(first["ttft_s"] + steps, rel=1e-6)
    assert first["output_tokens_per_s"] == pytest.approx(4 / first["tpot_s"])


def test_energy_and_money_follow_from_time() -> None:
    found = plan(context="64K", output=1025, concurrency=4, gpus=2, price=3.6).columns()
    joules = found["prefill_w_per_gpu"] * found["ttft_s"] * 2
    assert found["prefill_j"] == pytest.approx(joules)
    token = found["decode_w_per_gpu"] * found["tpot_s"] * 2 / 4
    assert found["output_token_j"] == pytest.approx(token)
    assert found["output_token_low_j"] < token < found["output_token_high_j"]
    # 3.6 dollars an hour are a thousandth of a dollar a second, here for two GPUs.
    cents = 0.002 * found["tpot_s"] / 4 * 1e6
    assert found["usd_per_million_output_tokens"] == pytest.approx(cents)
    decode_s = found["request_s"] - found["ttft_s"]
    assert found["request_usd"] == pytest.approx(0.002 * (found["ttft_s"] + decode_s / 4))
    assert found["power_basis"] == "measured"


def test_a_power_limit_slows_a_prefill_and_saves_watts() -> None:
    free, held = (plan(context="64K", power_limit=w).columns() for w in (700, 400))
    assert held["ttft_s"] > 1.1 * free["ttft_s"]
    assert held["prefill_w_per_gpu"] == 400
    assert held["tpot_s"] == pytest.approx(free["tpot_s"], rel=0.3)


def test_a_gpu_without_a_price_has_times_and_no_cost() -> None:
    inline = {
        "name": "mine",
        "memory_marketed": {"value": "80 GB"},
        "bandwidth": {"value": "3 TB/s"},
        "peak": {"bf16": {"value": "900 TFLOP/s"}},
    }
    found = plan(gpu=inline, context="32K").columns()
    assert found["ttft_basis"] == "transported"
    assert found["request_usd"] is None
    assert found["prefill_j"] is None
    assert found["power_basis"] is None


def test_stacks_differ() -> None:
    published = [stack for stack in STACKS if stack not in OWN]
    rows = [plan(gpu="h200-sxm", context="32K", stack=stack) for stack in published]
    assert len({row.columns()["tpot_s"] for row in rows}) == len(published)


@pytest.mark.parametrize("gpu", ["h100-sxm", "a100-80gb-sxm", "l40s", "b200"])
@pytest.mark.parametrize("stack", OWN)
def test_stacks_to_be_measured_plan_on_any_gpu(stack: str, gpu: str) -> None:
    for kv in ("bf16", "int8", "kivi", "quest:page=16,top=256", "window:tokens=4096"):
        found = plan(gpu=gpu, stack=stack, kv=kv, context="32K").columns()
        assert found["tpot_s"] > found["tpot_floor_s"]
        assert found["ttft_s"] > found["ttft_floor_s"]


def test_coded_columns_say_their_names() -> None:
    assert named("ttft_basis_code") == ("ttft_basis", BASES)
    assert named("tpot_uncertain_code") == ("tpot_uncertain", OPERATIONS)
    assert named("ttft_s") is None
    columns = plan(context="32K").columns()
    assert columns["ttft_basis"] in BASES
    assert columns["tpot_uncertain"] in OPERATIONS
    assert not any(isinstance(v, float) and math.isnan(v) for v in columns.values())
