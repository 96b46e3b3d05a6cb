from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.moe import MOE, MoeCall, balanced, touched_bytes

H200 = Ceilings(
    bandwidth_bytes_per_s=4.8e12,
    peak_flops={"bf16": 989e12, "fp8": 1979e12},
    sm_count=132.0,
    link_bytes_per_s=450e9,
    l2_bytes=50 * 2.0**20,
    clock_hz=1.98e9,
)
START = {name: parameter.start for name, parameter in MOE.parameters.items()}


def call_of(tokens: float, local_experts: float = 128.0, inter: float = 1536.0) -> MoeCall:
    """Qwen3-235B-A22B's experts: 128 of them, eight a token."""
    spread = balanced(tokens, 8.0, 128.0, local_experts)
    return MoeCall(
        tokens=tokens, top_k=8.0, hidden=4096.0, inter=inter, weight_bytes=2.0, **asdict(spread)
    )


def test_an_even_spread_touches_an_expert_per_assignment_until_none_is_left() -> None:
    assert balanced(1.0, 8.0, 128.0, 128.0).touched == 8.0
    assert balanced(1000.0, 8.0, 128.0, 128.0).touched == 128.0
    assert balanced(1.0, 8.0, 128.0, 8.0).touched == 1.0
    full = balanced(8192.0, 8.0, 128.0, 16.0)
    assert (full.assignments, full.touched) == (8192.0, 16.0)
    assert (full.tiles_16, full.tiles_64, full.tiles_128, full.filled_128) == (512, 128, 64, 64)


def test_a_tile_of_128_rows_counts_as_filled_from_half() -> None:
    assert balanced(1023.0, 8.0, 128.0, 128.0).filled_128 == 0.0
    assert balanced(1024.0, 8.0, 128.0, 128.0).filled_128 == 128.0
    assert balanced(1024.0, 8.0, 128.0, 128.0).tiles_128 == 128.0


@given(st.integers(1, 100_000).map(float), st.sampled_from([8.0, 16.0, 128.0]))
def test_one_call_and_an_array_of_them_agree_to_the_last_bit(tokens: float, local: float) -> None:
    many: dict[str, Any] = {
        name: np.array([getattr(call_of(t, local), name) for t in (tokens, 5.0)])
        for name in ("tokens", *asdict(balanced(tokens, 8.0, 128.0, local)))
    }
    for kernel in ("best", "wide"):
        single = replace(call_of(tokens, local), kernel=kernel)
        one = MOE.seconds(single, H200, START)
        assert one > 0
        assert MOE.seconds(replace(single, **many), H200, START)[0] == one


@given(st.integers(1, 1_000_000).map(float))
def test_no_call_beats_the_ceilings_it_was_given(tokens: float) -> None:
    call = call_of(tokens)
    seconds = MOE.seconds(call, H200, START | {"stream": 1.0, "compute": 1.0})
    assert seconds > touched_bytes(call) / 4.8e12
    assert seconds > 8 * tokens * 6 * 4096 * 1536 / 989e12


def test_a_decode_batch_costs_streaming_the_experts_it_touches() -> None:
    call = call_of(16.0)
    assert touched_bytes(call) == 128 * 3 * 4096 * 1536 * 2
    streaming = touched_bytes(call) / (START["stream"] * 4.8e12)
    quiet = START | {"serial": 0.005, "rows": 0.02}
    assert MOE.seconds(call, H200, quiet) == pytest.approx(streaming + 2.5e-5, rel=0.02)


def test_half_the_experts_or_half_their_width_take_about_half_the_time() -> None:
    whole = MOE.seconds(call_of(64.0), H200, START)
    assert MOE.seconds(call_of(64.0, local_experts=64.0), H200, START) < 0.6 * whole
    assert MOE.seconds(call_of(64.0, inter=768.0), H200, START) < 0.6 * whole


def test_time_grows_with_tokens() -> None:
    times = [MOE.seconds(call_of(2.0**power), H200, START) for power in range(18)]
    assert times == sorted(times)
