from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from msgspec import Struct
from msgspec.structs import replace

from lcprof.calibrate.fit import (
    Samples,
    fit_parameters,
    fit_variant,
    joined,
    out_of_fold,
    summary,
    taken,
)
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter

GPU = Ceilings(
    bandwidth_bytes_per_s=1e12,
    peak_flops={"bf16": 1e14},
    sm_count=100.0,
    link_bytes_per_s=0.0,
    l2_bytes=1e7,
    clock_hz=1e9,
)


class Inner(Struct, frozen=True, kw_only=True):
    depth: Any


class Copy(Struct, frozen=True, kw_only=True):
    moved: Any
    inner: Inner
    kind: str = "plain"


def seconds(call: Copy, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    rate = ceilings.bandwidth_bytes_per_s * parameters["stream"]
    return parameters["launch_s"] + call.moved / rate


COPY = Family(
    name="copy",
    parameters={
        "launch_s": Parameter(meaning="fixed", start=1e-5, low=1e-7, high=1e-3),
        "stream": Parameter(meaning="part of bandwidth", start=0.5, low=0.05, high=1.0),
        "idle": Parameter(meaning="nothing depends on it", start=0.3, low=0.1, high=1.0),
    },
    seconds=seconds,
    features=lambda call: {"moved": call.moved},
    large=lambda call: call.moved > 1e7,
)
TRUE = {"launch_s": 4e-6, "stream": 0.8, "idle": 0.3}


def drawn(rows: int = 80, noise: float = 0.02) -> Samples:
    rng = np.random.default_rng(7)
    moved = 10.0 ** rng.uniform(4, 10, rows)
    call = Copy(moved=moved, inner=Inner(depth=moved))
    measured = seconds(call, GPU, TRUE) * np.exp(rng.normal(0, noise, rows))
    groups = np.array([f"shape {i % 12}" for i in range(rows)])
    return Samples(family=COPY, variant="v", call=call, measured_s=measured, groups=groups)


def test_a_fit_finds_the_parameters_that_made_the_times() -> None:
    found = fit_parameters(drawn(), GPU)
    assert found["launch_s"] == pytest.approx(4e-6, rel=0.05)
    assert found["stream"] == pytest.approx(0.8, rel=0.02)


def test_a_parameter_that_nothing_determines_stays_at_its_start() -> None:
    assert fit_parameters(drawn(), GPU)["idle"] == pytest.approx(0.3, rel=0.05)


def test_a_few_absurd_rows_do_not_steer_a_fit() -> None:
    clean = drawn()
    odd = clean.measured_s.copy()
    odd[::20] *= 30
    found = fit_parameters(replace(clean, measured_s=odd), GPU)
    assert found["stream"] == pytest.approx(0.8, rel=0.05)


def test_a_fit_is_the_same_every_time() -> None:
    assert fit_variant(drawn(), GPU) == fit_variant(drawn(), GPU)


def test_a_fit_tells_its_box_its_rows_and_its_errors_on_groups_left_out() -> None:
    found = fit_variant(drawn(), GPU)
    moved = drawn().call.moved
    assert found.box == {"moved": (moved.min(), moved.max())}
    assert sum(kind.rows for kind in found.residuals.values()) == found.rows == 80
    assert 0.005 < found.residuals["large"].median < 0.03
    assert found.residuals["large"].low < -0.02 < 0.02 < found.residuals["large"].high


def test_a_group_left_out_does_not_help_to_predict_itself() -> None:
    one = drawn(noise=0.0)
    strange = one.groups == "shape 3"
    times = np.where(strange, one.measured_s * 1.5, one.measured_s)
    errors = out_of_fold(replace(one, measured_s=times), GPU, TRUE)
    assert np.exp(errors[strange]) == pytest.approx(1.5, rel=0.02)


def test_few_groups_and_few_rows_make_intervals_wider() -> None:
    errors = np.linspace(-0.1, 0.1, 101)
    many, few = summary(errors, 40), summary(errors, 2)
    # 95 % of 102 is rank 96.9, between 0.09 and 0.092.
    assert few.high == pytest.approx((1 + 3 / 2 + 2 / 101) * 0.0918, rel=0.001)
    assert many.high < few.high
    assert many.median == few.median == pytest.approx(0.05, rel=0.05)
    short = summary(np.linspace(-0.1, 0.1, 11), 40)
    assert short.high == pytest.approx((1 + 3 / 40 + 2 / 11) * 0.1, rel=0.001)


def test_few_rows_do_not_tell_on_which_side_errors_fall() -> None:
    five, twenty = (summary(np.linspace(0.0, 0.1, rows), 50) for rows in (5, 20))
    assert five.low == -five.high < -0.1
    assert twenty.low == pytest.approx(-0.5 * twenty.high, rel=0.001)
    right = summary(-np.linspace(0.0, 0.1, 5), 50)
    assert (right.low, right.high) == (five.low, five.high)


@pytest.mark.parametrize("rows", [6, 12, 40])
def test_nine_in_ten_further_draws_fall_in_an_interval_of_few_rows(rows: int) -> None:
    rng = np.random.default_rng(rows)
    inside = []
    for _ in range(300):
        found = summary(rng.normal(0, 0.1, rows), rows)
        further = rng.normal(0, 0.1, 50)
        inside.append(np.mean((further >= found.low) & (further <= found.high)))
    assert 0.9 <= np.mean(inside) <= 0.99


def test_rows_are_taken_and_joined_through_calls_within_calls() -> None:
    call = Copy(moved=np.arange(4.0), inner=Inner(depth=np.arange(4.0) * 10))
    part = taken(call, np.array([1, 3]))
    assert (part.moved.tolist(), part.inner.depth.tolist()) == ([1, 3], [10, 30])
    assert part.kind == "plain"
    whole = joined([part, call])
    assert whole.inner.depth.tolist() == [10, 30, 0, 10, 20, 30]
