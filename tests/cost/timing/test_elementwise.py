from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.elementwise import ELEMENTWISE, ElementwiseCall

A100 = Ceilings(
    bandwidth_bytes_per_s=2.039e12,
    peak_flops={"bf16": 312e12},
    sm_count=108.0,
    link_bytes_per_s=300e9,
    l2_bytes=40 * 2.0**20,
    clock_hz=1.41e9,
)
START = {name: parameter.start for name, parameter in ELEMENTWISE.parameters.items()}
NORM = ElementwiseCall(moved_bytes=4e9, row_bytes=32_768.0)


@given(st.integers(1, 10**12).map(float))
def test_one_call_and_an_array_of_them_agree_to_the_last_bit(moved: float) -> None:
    one = ELEMENTWISE.seconds(replace(NORM, moved_bytes=moved), A100, START)
    many = replace(NORM, moved_bytes=np.array([moved, 1.0]))
    assert one > 0
    assert ELEMENTWISE.seconds(many, A100, START)[0] == one


def test_large_buffers_move_at_memory_pace_and_cached_ones_faster() -> None:
    large = ELEMENTWISE.seconds(NORM, A100, START)
    assert large == pytest.approx(4e9 / (START["stream"] * 2.039e12), rel=0.01)
    fixed = START["launch_s"] + 32_768 / START["row_bytes_per_s"]
    cached = ELEMENTWISE.seconds(replace(NORM, moved_bytes=20e6), A100, START) - fixed
    assert cached == pytest.approx(START["cached"] * 20e6 / (START["stream"] * 2.039e12))


def test_time_grows_with_bytes() -> None:
    times = ELEMENTWISE.seconds(replace(NORM, moved_bytes=2.0 ** np.arange(40)), A100, START)
    assert np.all(np.diff(times) > 0)
