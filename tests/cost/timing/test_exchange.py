from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lcprof.cost.layer import reached_ranks
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.exchange import EXCHANGE, ExchangeCall, expert_sms

H100 = Ceilings(
    bandwidth_bytes_per_s=3.35e12,
    peak_flops={"bf16": 989e12},
    sm_count=132.0,
    link_bytes_per_s=450e9,
    l2_bytes=50 * 2.0**20,
    clock_hz=1.98e9,
)
START = {name: parameter.start for name, parameter in EXCHANGE.parameters.items()}
DISPATCH = ExchangeCall(tokens=4096.0, hidden=7168.0, copies=5.25, sms=20.0, element_bytes=1.0)


def test_a_token_reaches_at_most_as_many_gpus_as_it_has_experts() -> None:
    assert reached_ranks(1, 128, 8) == pytest.approx(1.0)
    assert reached_ranks(2, 8, 8) == pytest.approx(2.0)
    assert reached_ranks(8, 8, 8) == pytest.approx(8.0)
    # Two experts out of 16, two a GPU: the second is on the first one's GPU once in 15.
    assert reached_ranks(2, 16, 8) == pytest.approx(2.0 - 1.0 / 15.0)


def test_a_low_latency_kernel_seats_its_experts_evenly() -> None:
    assert expert_sms(8, 132) == 8.0
    assert expert_sms(128, 132) == 128.0
    assert expert_sms(256, 132) == 128.0
    assert expert_sms(384, 132) == 128.0


@given(st.integers(1, 100_000).map(float), st.integers(256, 16_384).map(float))
def test_one_call_and_an_array_of_them_agree_to_the_last_bit(tokens: float, hidden: float) -> None:
    call = replace(DISPATCH, tokens=tokens, hidden=hidden, polled=256.0)
    many = replace(call, tokens=np.array([tokens, 1.0]), hidden=np.array([hidden, 2048.0]))
    one = EXCHANGE.seconds(call, H100, START)
    assert one > 0
    assert EXCHANGE.seconds(many, H100, START)[0] == one


def test_few_sms_are_bound_by_copying_and_many_by_the_link() -> None:
    few = EXCHANGE.seconds(replace(DISPATCH, sms=4.0), H100, START)
    assert EXCHANGE.seconds(replace(DISPATCH, sms=2.0), H100, START) == pytest.approx(
        2 * few, rel=0.1
    )
    link = 4096 * 5.25 * 7168 / (START["link"] * 450e9)
    many = EXCHANGE.seconds(replace(DISPATCH, sms=1e6), H100, START)
    assert many == pytest.approx(link, rel=0.06)


def test_time_grows_with_tokens_and_bytes() -> None:
    times = EXCHANGE.seconds(replace(DISPATCH, tokens=2.0 ** np.arange(16)), H100, START)
    assert np.all(np.diff(times) > 0)
    wider = EXCHANGE.seconds(replace(DISPATCH, element_bytes=2.0), H100, START)
    assert wider > EXCHANGE.seconds(DISPATCH, H100, START)
