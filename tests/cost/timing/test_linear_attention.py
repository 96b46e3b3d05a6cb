from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.linear_attention import (
    LINEAR_ATTENTION,
    LinearAttentionCall,
    convolution,
    convolution_step,
    recurrent_step,
    scan,
)

H100 = Ceilings(
    bandwidth_bytes_per_s=3.35e12,
    peak_flops={"bf16": 989e12},
    sm_count=132.0,
    link_bytes_per_s=450e9,
    l2_bytes=50 * 2.0**20,
    clock_hz=1.98e9,
)
START = {name: parameter.start for name, parameter in LINEAR_ATTENTION.parameters.items()}


def seconds(call: LinearAttentionCall) -> float:
    return float(LINEAR_ATTENTION.seconds(call, H100, START))


def walk(tokens: float, batch: float = 1.0) -> LinearAttentionCall:
    """Qwen3.5-35B-A3B's gated delta net: 16 key heads and 32 value heads of 128."""
    return scan(batch=batch, tokens=tokens, k_heads=16.0, v_heads=32.0, k_dim=128.0, v_dim=128.0)


@given(st.integers(1, 1_000_000).map(float), st.integers(1, 300).map(float))
def test_one_call_and_an_array_of_them_agree_to_the_last_bit(tokens: float, batch: float) -> None:
    for call in (
        walk(tokens, batch),
        convolution(tokens=tokens * batch, channels=8192.0),
        convolution_step(batch=batch, channels=8192.0, width=4.0),
        recurrent_step(batch=batch, heads=32.0, k_dim=128.0, v_dim=128.0),
    ):
        numbers = {f.name: np.full(2, getattr(call, f.name)) for f in fields(call)}
        one = seconds(call)
        assert one > 0
        found = LINEAR_ATTENTION.seconds(replace(call, **numbers), H100, START)
        assert found.tolist() == [one, one]


def test_bytes_are_those_of_the_operations() -> None:
    assert convolution(tokens=100.0, channels=8192.0).moved_bytes == 2 * 100 * 8192 * 2
    assert convolution_step(batch=3.0, channels=8192.0, width=4.0).moved_bytes == 2 * 3 * 8192 * 8
    step = recurrent_step(batch=3.0, heads=32.0, k_dim=128.0, v_dim=128.0)
    assert step.moved_bytes == 2 * 3 * 32 * 128 * 128 * 4
    assert walk(10.0).moved_bytes == 10 * (2 * 16 + 2 * 32) * 128 * 2


def test_a_scan_lasts_as_long_as_one_heads_walk_until_heads_fill_the_sms() -> None:
    quick = START | {"stream": 1.3}
    one, four, eight = (
        LINEAR_ATTENTION.seconds(walk(32_768.0, batch), H100, quick) for batch in (1.0, 4.0, 8.0)
    )
    assert one == pytest.approx(32_768 * START["token_s"], rel=0.02)
    assert four == pytest.approx(one, rel=0.03)
    assert eight == pytest.approx(2 * one, rel=0.05)


def test_a_state_that_stays_in_l2_is_cheaper_by_what_that_saves() -> None:
    small = recurrent_step(batch=4.0, heads=32.0, k_dim=128.0, v_dim=128.0)
    large = recurrent_step(batch=256.0, heads=32.0, k_dim=128.0, v_dim=128.0)
    rates = [call.moved_bytes / (seconds(call) - START["launch_s"]) for call in (small, large)]
    assert rates[1] == pytest.approx(START["stream"] * 3.35e12)
    assert rates[0] == pytest.approx(rates[1] / (1 - START["cached"]), rel=0.05)
