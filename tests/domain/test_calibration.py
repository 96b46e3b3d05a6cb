from __future__ import annotations

import math

import numpy as np
import pytest

from lcprof.domain.calibration import Calibration, Fit, Residuals, spread

NARROW = Residuals(rows=90, median=0.02, p90=0.05, low=-0.05, high=0.04)
WIDE = Residuals(rows=30, median=0.1, p90=0.2, low=-0.3, high=0.2)
FIT = Fit(
    family="gemm",
    variant="bf16",
    parameters={"launch_s": 1e-6},
    box={"rows": (16.0, 1024.0), "prefix": (0.0, 0.0)},
    residuals={"large": NARROW, "small": WIDE},
    rows=120,
)


def test_distance_is_one_inside_the_box_and_the_ratio_to_its_end_outside() -> None:
    assert FIT.distance({"rows": 100.0, "prefix": 0.0}) == 1.0
    assert FIT.distance({"rows": 4096.0, "prefix": 0.0}) == 4.0
    assert FIT.distance({"rows": 2.0, "prefix": 0.0}) == 8.0
    assert FIT.distance({"rows": 100.0, "prefix": 5.0}) == 5.0
    assert FIT.distance({"unheard of": 1e9}) == 1.0
    found = FIT.distance({"rows": np.array([100.0, 4096.0])})
    assert found.tolist() == [1.0, 4.0]


def test_an_interval_is_that_of_the_kind_of_call_and_widens_with_distance() -> None:
    low, high = FIT.bounds("large", spread(1.0))
    assert (low, high) == (math.exp(-0.05), math.exp(0.04))
    assert FIT.bounds("small", 1.0) == (math.exp(-0.3), math.exp(0.2))
    far_low, far_high = FIT.bounds("large", spread(8.0))
    assert far_low < low
    assert far_high > high
    lows, highs = FIT.bounds("large", spread(np.array([1.0, 8.0])))
    assert (lows.tolist(), highs.tolist()) == ([low, far_low], [high, far_high])


def test_an_interval_holds_the_expected_value_even_of_a_biased_fit() -> None:
    biased = Residuals(rows=10, median=0.1, p90=0.1, low=0.05, high=0.2)
    fit = Fit(
        family="gemm", variant="x", parameters={}, box={}, residuals={"large": biased}, rows=10
    )
    low, high = fit.bounds("small", spread(1.0))
    assert low == 1.0
    assert high == pytest.approx(math.exp(0.2))


def test_a_calibration_finds_its_fits_by_family_and_variant() -> None:
    calibration = Calibration(
        gpu="h100-sxm", stack="vllm", source="s", licence="l", date="d", split="all", fits=(FIT,)
    )
    assert calibration.fit("gemm", "bf16") is FIT
    assert calibration.fit("gemm", "fp8") is None
    assert calibration.variants("gemm") == ("bf16",)
