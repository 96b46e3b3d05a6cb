"""Power, clocks and energy: published measurements, and what must hold of any model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lcprof.cost.power import Sustained, burst_w, clock_at, sustained
from lcprof.domain.power import PowerModel
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.power import power_model


def model_of(name: str, limit_w: float | None = None) -> PowerModel:
    found = power_model(load_gpu(name, where=name), limit_w)
    assert found is not None
    return found


H200 = model_of("h200-sxm")
PLAIN = PowerModel(
    gpu="plain",
    basis="measured",
    measured_on=("plain",),
    idle_w=100.0,
    busy_w=100.0,
    limit_w=500.0,
    joules_per_flop={"bf16": 1e-12, "fp8": 0.5e-12},
    joules_per_hbm_byte=1e-10,
    clock_exponent=2.0,
    low=0.8,
    high=1.2,
)

ATTENTION = "attention bf16"


def run(
    model: PowerModel,
    seconds: float,
    compute: float,
    tflops: float,
    tbytes: float,
    kind: str = "bf16",
) -> Sustained[float]:
    """Work that does `tflops` TFLOP/s of a kind and `tbytes` TB/s while it runs at boost clock."""
    work = {kind: tflops * 1e12 * seconds}
    return sustained(model, seconds, compute, work, tbytes * 1e12 * seconds)


def test_power_by_hand() -> None:
    # 100 idle + 100 busy + 200 TFLOP/s x 1 pJ + 100 TFLOP/s x 0.5 pJ + 1 TB/s x 100 pJ.
    work = {"bf16": 400e12, "fp8": 200e12}
    assert burst_w(PLAIN, 2.0, work, 2e12) == pytest.approx(550.0)
    # A dtype the model has no figure for runs as bf16.
    assert burst_w(PLAIN, 1.0, {"int4": 100e12}, 0.0) == pytest.approx(300.0)


def test_the_clock_by_hand() -> None:
    # Exponent 2: v = 1/2, power at half the clock is 0.5 x 0.75^2 = 0.28125 of full.
    assert clock_at(PLAIN, 0.28125) == pytest.approx(0.5, abs=1e-12)
    # 900 TFLOP/s ask 1,100 W where 500 are allowed: the SMs get 400 of their 1,000 W.
    found = run(PLAIN, 1.0, 1.0, 900.0, 0.0)
    volts = 0.5 + 0.5 * found.clock
    assert found.clock * volts**2 == pytest.approx(0.4)
    assert found.seconds == pytest.approx(1.0 / found.clock)
    assert found.watts == pytest.approx(500.0)
    assert found.joules == pytest.approx(500.0 / found.clock)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("exponent", [1.5, 2.0, 2.5, 3.0])
def test_the_clock_solves_its_equation(share: float, exponent: float) -> None:
    model = replace(PLAIN, clock_exponent=exponent)
    clock = clock_at(model, share)
    volts = model.voltage_floor + (1.0 - model.voltage_floor) * clock
    assert clock * volts**2 == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize(
    ("gpu", "kind", "burst", "tbytes", "limit", "measured", "within"),
    [
        # One H200, 2026-11-23: causal prefill D128 at 666 TFLOP/s briefly, 563 in a long run.
        ("h200-sxm", ATTENTION, 666.0, 0.05, 700.0, 563.0, 0.03),
        # The same card, 8192^3 in bf16: 802 between memory copies, 691 at the limit.
        ("h200-sxm", "bf16", 802.0, 0.3, 700.0, 691.0, 0.07),
        # flashinfer-ai/flashinfer PR 2899: 1,450 falling to 1,237 TFLOP/s.
        ("b200", ATTENTION, 1450.0, 0.05, 1000.0, 1237.0, 0.04),
        # thonking.ai/p/strangely-matrix-multiplications: 257 on random data at 400 W; the fastest
        # product of that size published for the card runs at 294.
        ("a100-80gb-sxm", "bf16", 294.0, 0.1, 400.0, 257.0, 0.03),
    ],
)
def test_rates_at_the_limit(
    gpu: str, kind: str, burst: float, tbytes: float, limit: float, measured: float, within: float
) -> None:
    found = run(model_of(gpu), 1.0, 1.0, burst, tbytes, kind)
    assert found.watts == pytest.approx(limit, rel=1e-9)
    assert burst / found.seconds == pytest.approx(measured, rel=within)


@pytest.mark.parametrize(
    ("rates", "milliseconds", "measured", "within"),
    [
        # reports/kernels-h200/attention.csv, loops that outlast the sensor's window of a second:
        # Triton, FA2 and cuDNN in turn; their burst TFLOP/s (16K, 64K), their times, the mean of
        # the power read.
        ((531.0, 332.0, 657.0), (71.6, 105.9, 53.5), 684.0, 0.06),
        ((531.0, 334.0, 657.0), (283.3, 421.3, 248.9), 691.0, 0.06),
        # Backward, 8/2 heads, 64K.
        ((472.0, 299.0, 596.0), (90.0, 134.0, 67.5), 634.0, 0.06),
    ],
)
def test_attention_on_an_h200(
    rates: tuple[float, ...], milliseconds: tuple[float, ...], measured: float, within: float
) -> None:
    watts = [run(H200, 1.0, 1.0, rate, 0.05, ATTENTION).watts for rate in rates]
    mean = sum(w * t for w, t in zip(watts, milliseconds, strict=True)) / sum(milliseconds)
    assert mean == pytest.approx(measured, rel=within)


def test_flash_attention_2_does_not_slow_down() -> None:
    # attention.csv: 332 TFLOP/s at 64K, 334 at 128K, cuDNN beside it 657 and 565.
    assert run(H200, 1.0, 1.0, 334.0, 0.02, ATTENTION).seconds == 1.0
    held = run(H200, 1.0, 1.0, 657.0, 0.02, ATTENTION)
    assert 657.0 / held.seconds == pytest.approx(565.0, rel=0.05)


@pytest.mark.parametrize(
    ("tflops", "tbytes", "measured"),
    [
        # ML.ENERGY Benchmark v3, one H100, vLLM: Llama-3.1-8B, 8 sequences, 1,070 tokens/s, 486 W;
        # 133 steps/s x 15 GB of weights and 0.5 GB of KV.
        (16.0 * 1.5, 2.1, 486.0),
        # Qwen3-32B, 8 sequences, 312 tokens/s, 538 W; 39 steps/s x 64 GB.
        (26.0, 2.57, 538.0),
        # Llama-3.1-70B on four, 128 sequences, 3,876 tokens/s, 546 W each; 30.3 x 139 GB.
        (210.0, 1.18, 546.0),
    ],
)
def test_servers_on_an_h100(tflops: float, tbytes: float, measured: float) -> None:
    model = model_of("h100-sxm")
    assert run(model, 1.0, 0.1, tflops, tbytes).watts == pytest.approx(measured, rel=0.12)
    ends = [run(model.scaled(f), 1.0, 0.1, tflops, tbytes).watts for f in (model.low, model.high)]
    assert ends[0] < measured < ends[1]


def test_decode_at_half_the_limit_does_not_slow_down() -> None:
    # Splitwise (ISCA 2024, figure 9): token generation on an H100 hardly changes from 700 to 350 W.
    found = run(model_of("h100-sxm", 350.0), 1.0, 0.1, 25.0, 2.1)
    assert found.watts == pytest.approx(350.0)
    assert found.seconds < 1.08


seconds = st.floats(1e-5, 1e3)
share = st.floats(0.0, 1.0)
tflops = st.floats(0.0, 1000.0)
tbytes = st.floats(0.0, 5.0)
limit = st.floats(120.0, 700.0)


@given(seconds, share, tflops, tbytes, limit)
def test_what_must_hold(s: float, part: float, f: float, b: float, watts: float) -> None:
    found = run(H200.held_to(watts), s, part * s, f, b)
    assert found.watts <= watts * (1 + 1e-12)
    assert found.seconds >= s * (1 - 1e-12)
    assert found.joules >= H200.idle_w * found.seconds * (1 - 1e-12)
    assert found.joules == found.watts * found.seconds
    assert 0.0 < found.clock <= 1.0
    free = burst_w(H200, s, {"bf16": f * 1e12 * s}, b * 1e12 * s)
    if free <= watts:
        assert found.seconds == s
        assert found.clock == 1.0
        assert found.watts == pytest.approx(free)


@given(seconds, share, tflops, tbytes, limit, limit)
def test_a_higher_limit_is_never_slower(
    s: float, part: float, f: float, b: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    slow, fast = (run(H200.held_to(watts), s, part * s, f, b) for watts in (low, high))
    assert fast.seconds <= slow.seconds * (1 + 1e-9)
    assert fast.watts >= slow.watts * (1 - 1e-9)
    assert fast.clock >= slow.clock * (1 - 1e-9)


@given(st.lists(st.tuples(seconds, share, tflops, tbytes), min_size=1, max_size=20), limit)
def test_arrays_agree_with_numbers_to_the_bit(
    rows: list[tuple[float, float, float, float]], watts: float
) -> None:
    model = H200.held_to(watts)
    s, part, f, b = (np.array(column) for column in zip(*rows, strict=True))
    work: Mapping[str, object] = {"bf16": f * 1e12 * s, "vector": f * 1e9 * s}
    many = sustained(model, s, part * s, work, b * 1e12 * s)  # type: ignore[arg-type,misc]
    for index, (s1, part1, f1, b1) in enumerate(rows):
        one = sustained(
            model, s1, part1 * s1, {"bf16": f1 * 1e12 * s1, "vector": f1 * 1e9 * s1}, b1 * 1e12 * s1
        )
        for name in ("seconds", "watts", "joules", "clock"):
            assert getattr(many, name)[index] == getattr(one, name), name


@given(seconds, share, st.floats(1.2, 3.0))
def test_no_cap_no_stretch(s: float, part: float, exponent: float) -> None:
    found = run(replace(PLAIN, clock_exponent=exponent), s, part * s, 100.0, 1.0)
    assert (found.seconds, found.clock) == (s, 1.0)
    assert found.watts == pytest.approx(400.0)


def test_only_what_the_clock_binds_stretches() -> None:
    whole, tenth = (run(H200, 1.0, part, 700.0, 1.0) for part in (1.0, 0.1))
    assert whole.clock == tenth.clock
    assert tenth.seconds - 1.0 == pytest.approx(0.1 * (whole.seconds - 1.0))
    assert run(H200, 1.0, 5.0, 700.0, 1.0).seconds == whole.seconds


def test_memory_alone_over_the_limit_waits() -> None:
    # 5 TB/s ask 500 W above idle where 400 are allowed: at least 5/4 of the time.
    found = run(PLAIN, 1.0, 0.0, 0.0, 5.0)
    assert found.watts == 500.0
    assert 1.25 < found.seconds < 1.35


def test_nothing_is_done_in_no_time() -> None:
    found = sustained(H200, 0.0, 0.0, {"bf16": 0.0}, 0.0)
    assert found.seconds == pytest.approx(0.0, abs=1e-9)
    assert found.joules == pytest.approx(0.0, abs=1e-6)
