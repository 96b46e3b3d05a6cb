from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from lcprof.cost.expected.draw import Drawn, drawn
from lcprof.cost.expected.task import Timed
from lcprof.cost.expected.whole import expected
from lcprof.cost.total import StageTotals
from lcprof.domain.power import PowerModel

# Idle 100 W, 100 W more while busy, 1 pJ a FLOP, 1 pJ a byte: round numbers to reckon with.
POWER = PowerModel(
    gpu="round",
    basis="measured",
    measured_on=("round",),
    idle_w=100.0,
    busy_w=100.0,
    limit_w=700.0,
    joules_per_flop={"bf16": 1e-12, "attention bf16": 2e-12},
    joules_per_hbm_byte=1e-12,
    clock_exponent=2.5,
    low=0.8,
    high=1.25,
)


def timed(operation: str, seconds: Any) -> Timed:
    return Timed(
        operation=operation,
        seconds=seconds,
        below_s=0.0 * seconds,
        above_s=0.0 * seconds,
        distance=1.0,
        away_s=0.0 * seconds,
    )


def work(flops: Any, moved_bytes: Any = 0.0) -> StageTotals[Any]:
    return StageTotals(
        compute_flops=(("bf16", flops), ("vector", 1e15)),
        read_bytes=moved_bytes,
        write_bytes=0.0 * moved_bytes,
        link_bytes=0.0 * moved_bytes,
        host_bytes=0.0 * moved_bytes,
    )


def prefill(flops: Any, seconds: Any, **keys: Any) -> Drawn:
    parts = [timed("attention", 0.75 * seconds), timed("collectives", 0.25 * seconds)]
    return drawn(expected(parts), work(flops), POWER, prompt=True, **keys)


def test_what_stays_below_the_limit_takes_no_longer() -> None:
    found = prefill(400e12, 1.0)
    assert found.expected.seconds == 1.0
    assert found.watts == pytest.approx(100 + 100 + 400)
    assert found.joules == pytest.approx(600)


def test_over_the_limit_the_bound_parts_stretch_and_the_others_do_not() -> None:
    found = prefill(900e12, 1.0)
    assert found.watts == pytest.approx(700)
    attention, collectives = found.expected.parts
    assert collectives.seconds == 0.25
    assert attention.seconds > 0.75
    assert attention.seconds + collectives.seconds == pytest.approx(found.expected.seconds)
    assert found.joules == pytest.approx(700 * found.expected.seconds)


def test_attention_counts_with_its_own_energy() -> None:
    assert prefill(300e12, 1.0, attention_flops=100e12).watts == pytest.approx(200 + 200 + 200)


def test_a_doubtful_power_makes_a_doubtful_time() -> None:
    # 1.25 times as hungry, 600 W become 725: only the high end is held back.
    near = prefill(400e12, 1.0).expected
    assert near.low_s == 1.0
    assert near.high_s > 1.0
    far = prefill(200e12, 1.0)
    assert (far.expected.low_s, far.expected.high_s) == (1.0, 1.0)
    assert far.joules_low == pytest.approx(100 + 0.8 * 300)
    assert far.joules_high == pytest.approx(100 + 1.25 * 300)


def test_a_decode_step_is_not_bound_by_the_clock() -> None:
    step = expected([timed("attention", 1.0)])
    found = drawn(step, work(100e12, 300e12), POWER, prompt=False)
    assert found.expected.seconds == 1.0
    assert found.watts == pytest.approx(100 + 100 + 100 + 300)


def test_without_a_power_model_there_is_a_time_and_no_energy() -> None:
    found = drawn(expected([timed("attention", 1.0)]), work(1e15), None, prompt=True)
    assert found.expected.seconds == 1.0
    assert np.isnan(found.joules)


def test_arrays_agree_with_scalars_to_the_bit() -> None:
    flops = np.array([100e12, 650e12, 900e12, 3e15])
    together = prefill(flops, 0.0 * flops + 1.0)
    for index, each in enumerate(flops.tolist()):
        alone = prefill(each, 1.0)
        assert together.expected.seconds[index] == alone.expected.seconds
        assert together.expected.high_s[index] == alone.expected.high_s
        assert together.joules_low[index] == alone.joules_low


def test_a_lower_limit_takes_longer() -> None:
    parts = [timed("attention", 1.0)]
    limits = (700.0, 500.0, 300.0)
    held = [
        drawn(expected(parts), work(600e12), replace(POWER, limit_w=w), prompt=True) for w in limits
    ]
    times = [one.expected.seconds for one in held]
    assert times == sorted(times)
    assert times[0] < times[-1]
