from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.gemm import GEMM, GemmCall, streamed_bytes, waves
from lcprof.num import Array

H200 = Ceilings(
    bandwidth_bytes_per_s=4.8e12,
    peak_flops={"bf16": 989e12, "fp8": 1979e12},
    sm_count=132.0,
    link_bytes_per_s=450e9,
    l2_bytes=50 * 2.0**20,
    clock_hz=1.98e9,
)
START = {name: parameter.start for name, parameter in GEMM.parameters.items()}
BF16 = GemmCall(rows=1.0, columns=8192.0, depth=8192.0, weight_bytes=2.0, activation_bytes=2.0)

rows = st.integers(1, 1_000_000).map(float)
sides = st.integers(64, 131_072).map(float)


@given(rows, sides, sides, st.sampled_from(["best", "rows"]), st.booleans(), st.booleans())
def test_one_call_and_an_array_of_them_agree_to_the_last_bit(
    m: float, n: float, k: float, dispatch: str, quantised: bool, eager: bool
) -> None:
    call = replace(
        BF16, rows=m, columns=n, depth=k, dispatch=dispatch, quantised=quantised, eager=eager
    )
    many = replace(call, rows=np.array([m, 7.0]), columns=np.array([n, 64.0]))
    one = GEMM.seconds(call, H200, START)
    assert one > 0
    assert GEMM.seconds(many, H200, START)[0] == one
    assert GEMM.large(many)[0] == GEMM.large(call)


@given(rows, sides, sides)
def test_no_call_beats_the_ceilings_it_was_given(m: float, n: float, k: float) -> None:
    parameters = START | {"stream": 1.0, "compute": 1.0}
    seconds = GEMM.seconds(replace(BF16, rows=m, columns=n, depth=k), H200, parameters)
    assert seconds > 2.0 * (n * k + m * k + m * n) / 4.8e12
    assert seconds > 2.0 * m * n * k / 989e12


def test_a_single_row_costs_streaming_the_weights() -> None:
    seconds = GEMM.seconds(BF16, H200, START | {"serial": 0.005})
    streaming = 8192 * 8192 * 2 / (START["stream"] * 4.8e12)
    assert seconds == pytest.approx(streaming + START["launch_s"], rel=0.02)


def test_many_rows_cost_the_flops() -> None:
    call = replace(BF16, rows=65_536.0)
    plain = START | {"hot": 0.001, "epilogue": 0.01, "edge": 0.05, "serial": 0.005}
    computing = 2 * 65_536 * 8192 * 8192 / (START["compute"] * 989e12)
    assert GEMM.seconds(call, H200, plain) == pytest.approx(computing, rel=0.03)


def test_time_grows_with_rows() -> None:
    times: Array = GEMM.seconds(replace(BF16, rows=2.0 ** np.arange(20)), H200, START)
    assert np.all(np.diff(times) > -1e-12)


def test_a_wave_holds_one_tile_an_sm_and_the_last_is_paid_by_its_tail() -> None:
    assert waves(132.0, 132.0, 1.0) == 1.0
    assert waves(133.0, 132.0, 1.0) == 2.0
    assert waves(133.0, 132.0, 0.0) == 133.0 / 132.0
    assert waves(33.0, 132.0, 0.0) == 1.0


def test_operands_are_read_again_only_past_l2() -> None:
    small = replace(BF16, rows=1024.0, columns=65_536.0, depth=4096.0)
    huge = replace(small, rows=32_768.0)
    for call, more in ((small, False), (huge, True)):
        once = streamed_bytes(call, H200, 0.0)
        assert once == 2.0 * (
            call.rows * call.depth + call.columns * call.depth + call.rows * call.columns
        )
        assert (streamed_bytes(call, H200, 1.0) > once) == more


def test_fewer_bytes_of_weights_are_read_sooner() -> None:
    narrow = replace(BF16, weight_bytes=0.5)
    assert GEMM.seconds(narrow, H200, START) < GEMM.seconds(BF16, H200, START) / 2


def test_a_call_without_cuda_graphs_waits_for_the_host() -> None:
    tiny = replace(BF16, columns=64.0, depth=64.0)
    assert GEMM.seconds(replace(tiny, eager=True), H200, START) == START["floor_s"]
    assert GEMM.seconds(tiny, H200, START) < START["floor_s"]
