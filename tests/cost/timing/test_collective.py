from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.collective import COLLECTIVE, CollectiveCall, narrow_limit

H100 = Ceilings(
    bandwidth_bytes_per_s=3.35e12,
    peak_flops={"bf16": 989e12},
    sm_count=132.0,
    link_bytes_per_s=450e9,
    l2_bytes=50 * 2.0**20,
    clock_hz=1.98e9,
)
START = {name: parameter.start for name, parameter in COLLECTIVE.parameters.items()}
REDUCE = CollectiveCall(buffer_bytes=2.0**30, ranks=4.0, passes=2.0)
OWN = replace(REDUCE, own_limit_bytes=8.0 * 2**20, one_shot_bytes=2.0**19)


@given(
    st.integers(1, 2**34).map(float),
    st.sampled_from([2.0, 4.0, 8.0]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([0.0, 1.0]),
    st.booleans(),
)
def test_one_call_and_an_array_of_them_agree_to_the_last_bit(
    buffer: float, ranks: float, passes: float, switched: float, eager: bool
) -> None:
    call = replace(
        OWN, buffer_bytes=buffer, ranks=ranks, passes=passes, in_switch=switched, eager=eager
    )
    many = replace(
        call, buffer_bytes=np.array([buffer, 4096.0]), in_switch=np.array([switched, 0.0])
    )
    one = COLLECTIVE.seconds(call, H100, START)
    assert one > 0
    assert COLLECTIVE.seconds(many, H100, START)[0] == one


def test_a_large_all_reduce_takes_its_share_of_the_ring_twice() -> None:
    wire = 2 * 3 / 4 * 2**30 / (START["link"] * 450e9)
    local = 2**30 / 4 / (START["local"] * 450e9)
    found = COLLECTIVE.seconds(REDUCE, H100, START)
    assert found == pytest.approx(wire + local + START["ramp_s"], rel=0.01)
    gathered = COLLECTIVE.seconds(replace(REDUCE, passes=1.0), H100, START)
    assert gathered == pytest.approx(wire / 2 + local + START["ramp_s"], rel=0.01)


def test_a_switch_that_reduces_takes_the_buffer_once() -> None:
    eight = replace(REDUCE, ranks=8.0)
    ring = COLLECTIVE.seconds(eight, H100, START)
    switched = COLLECTIVE.seconds(replace(eight, in_switch=1.0), H100, START)
    assert switched == pytest.approx(2**30 / (START["switch"] * 450e9), rel=0.03)
    assert switched < ring


def test_between_nodes_the_network_carries_what_one_node_sends() -> None:
    """Two nodes of eight reduce 1 GiB: each sends half of it twice, and a rank touches 1/16."""
    far = replace(REDUCE, ranks=16.0, nodes=2.0)
    network = {**START, "link": 0.05}
    rate = 0.05 * 450e9
    fixed = START["launch_s"] + START["ramp_s"] + 30 * START["hop_s"]
    local = 2**30 / 16 / (START["local"] * 450e9)
    found = COLLECTIVE.seconds(far, H100, network)
    assert found == pytest.approx(2**30 / rate + local + fixed, rel=1e-3)
    narrow = COLLECTIVE.seconds(replace(far, narrow_bytes=2.0**30), H100, network)
    assert narrow - found == pytest.approx(2**30 / rate)
    four = COLLECTIVE.seconds(replace(far, nodes=4.0), H100, network)
    assert four - found == pytest.approx(2**29 / rate, rel=1e-3)


def test_a_flagged_protocol_ends_where_it_was_measured_to() -> None:
    """A100s: time fell from 2.02 to 1.40 ms from 8.2 to 9.6 MB on two nodes of two, and per byte
    by half from 11 to 22 MB on two nodes of eight."""
    assert 8159232 < narrow_limit(4.0, 2.0) < 9568256
    assert 10977280 < narrow_limit(16.0, 2.0) < 21757952


def test_a_tiny_call_costs_its_launch_and_hops() -> None:
    tiny = replace(REDUCE, buffer_bytes=2.0)
    assert COLLECTIVE.seconds(tiny, H100, START) == pytest.approx(
        START["launch_s"] + 6 * START["hop_s"], rel=1e-3
    )


def test_an_engines_own_kernel_takes_small_buffers_whole_then_by_parts() -> None:
    rate = START["own_link"] * 450e9
    fixed = START["own_launch_s"] + 3 * START["own_hop_s"]
    once = COLLECTIVE.seconds(replace(OWN, buffer_bytes=2.0**19), H100, START)
    assert once == pytest.approx(fixed + 3 * 2**19 / rate)
    twice = COLLECTIVE.seconds(replace(OWN, buffer_bytes=2.0**23), H100, START)
    assert twice == pytest.approx(fixed + START["two_shot_s"] + 1.5 * 2**23 / rate)
    past = replace(OWN, buffer_bytes=2.0**23 + 1)
    assert COLLECTIVE.seconds(past, H100, START) == COLLECTIVE.seconds(
        replace(past, own_limit_bytes=0.0), H100, START
    )


def test_an_eager_call_copies_and_waits_for_the_host() -> None:
    assert COLLECTIVE.seconds(
        replace(OWN, buffer_bytes=512.0, eager=True), H100, START
    ) == pytest.approx(START["floor_s"])
    copied = COLLECTIVE.seconds(replace(REDUCE, eager=True), H100, START)
    plain = COLLECTIVE.seconds(REDUCE, H100, START)
    assert copied - plain == pytest.approx(START["copy"] * 2**31 / 3.35e12)


def test_time_grows_with_the_buffer() -> None:
    sizes = 2.0 ** np.arange(4, 34)
    times = COLLECTIVE.seconds(replace(REDUCE, buffer_bytes=sizes), H100, START)
    assert np.all(np.diff(times) > 0)
