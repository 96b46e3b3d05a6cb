from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from lcprof.cost.timing import decode_attention, prefill_attention
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.decode_attention import DECODE_ATTENTION, DecodeAttentionCall
from lcprof.cost.timing.prefill_attention import (
    KERNELS,
    PREFILL_ATTENTION,
    PrefillAttentionCall,
    flops,
    key_splits,
    pairs,
)

H200 = Ceilings(
    bandwidth_bytes_per_s=4.8e12,
    peak_flops={"bf16": 989e12, "fp8": 1979e12},
    sm_count=132.0,
    link_bytes_per_s=450e9,
    l2_bytes=50 * 2.0**20,
    clock_hz=1.98e9,
)
PREFILL = {name: parameter.start for name, parameter in PREFILL_ATTENTION.parameters.items()}
DECODE = {name: parameter.start for name, parameter in DECODE_ATTENTION.parameters.items()}
PROMPT = PrefillAttentionCall(
    batch=1.0,
    q_heads=32.0,
    kv_heads=8.0,
    qk_dim=128.0,
    v_dim=128.0,
    query_tokens=8192.0,
    prefix_tokens=0.0,
    window_tokens=0.0,
    causal=1.0,
    compute="bf16",
    kernel="fa3",
    kv_bytes_per_element=2.0,
)
STEP = DecodeAttentionCall(
    batch=1.0,
    q_heads=32.0,
    kv_heads=8.0,
    head_dim=128.0,
    context_tokens=131_072.0,
    window_tokens=0.0,
    kv_bytes_per_element=2.0,
)


def many(call: Any, copies: int = 2) -> Any:
    """The call as arrays of itself."""
    numbers = {f.name: getattr(call, f.name) for f in fields(call)}
    return replace(
        call, **{k: np.full(copies, v) for k, v in numbers.items() if isinstance(v, float)}
    )


def brute_force_pairs(queries: int, prefix: int, window: int, causal: bool) -> int:
    count = 0
    for query in range(prefix, prefix + queries):
        last = query if causal else prefix + queries - 1
        first = max(0, query - window + 1) if window else 0
        count += last - first + 1
    return count


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 60), st.booleans())
def test_pairs_are_those_that_a_mask_shows(
    queries: int, prefix: int, window: int, causal: bool
) -> None:
    window = window if causal else 0
    call = replace(
        PROMPT,
        query_tokens=float(queries),
        prefix_tokens=float(prefix),
        window_tokens=float(window),
        causal=float(causal),
    )
    assert pairs(call) == brute_force_pairs(queries, prefix, window, causal)


@settings(deadline=None)
@given(
    st.integers(1, 2_000_000).map(float),
    st.sampled_from([0.0, 1.0, 5000.0]),
    st.sampled_from([0.0, 128.0, 4096.0]),
    st.sampled_from([64.0, 72.0, 128.0, 192.0, 256.0]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(sorted(KERNELS)),
)
def test_one_prompt_and_an_array_of_them_agree_to_the_last_bit(
    queries: float, prefix: float, window: float, dim: float, causal: float, kernel: str
) -> None:
    call = replace(
        PROMPT,
        query_tokens=queries,
        prefix_tokens=prefix,
        window_tokens=window,
        qk_dim=dim,
        causal=causal,
        kernel=kernel,
    )
    one = PREFILL_ATTENTION.seconds(call, H200, PREFILL)
    assert one > 0
    assert PREFILL_ATTENTION.seconds(many(call), H200, PREFILL).tolist() == [one, one]


@settings(deadline=None)
@given(
    st.integers(1, 10_000_000).map(float),
    st.integers(1, 512).map(float),
    st.sampled_from([0.0, 1024.0]),
    st.sampled_from([1.0, 2.0]),
)
def test_one_step_and_an_array_of_them_agree_to_the_last_bit(
    context: float, batch: float, window: float, element: float
) -> None:
    call = replace(
        STEP,
        context_tokens=context,
        batch=batch,
        window_tokens=window,
        kv_bytes_per_element=element,
    )
    one = DECODE_ATTENTION.seconds(call, H200, DECODE)
    assert one > 0
    assert DECODE_ATTENTION.seconds(many(call), H200, DECODE).tolist() == [one, one]


def test_a_long_prompt_takes_its_products_at_the_achieved_rate() -> None:
    long = replace(PROMPT, query_tokens=1_048_576.0)
    bare = PREFILL | {"softmax": 1e-9, "tile_start_s": 1e-12}
    expected = flops(long) / (bare["compute"] * 989e12)
    assert PREFILL_ATTENTION.seconds(long, H200, bare) == pytest.approx(expected, rel=0.02)


def test_a_window_makes_a_prompts_time_linear() -> None:
    windowed = replace(PROMPT, window_tokens=4096.0)
    times = [
        PREFILL_ATTENTION.seconds(replace(windowed, query_tokens=n), H200, PREFILL)
        for n in (262_144.0, 524_288.0)
    ]
    assert times[1] / times[0] == pytest.approx(2.0, rel=0.02)


def test_prompts_take_longer_the_longer_they_are() -> None:
    lengths = 2.0 ** np.arange(7, 24)
    call = replace(many(PROMPT, len(lengths)), query_tokens=lengths)
    assert np.all(np.diff(PREFILL_ATTENTION.seconds(call, H200, PREFILL)) > 0)


def test_few_tiles_are_split_into_the_fewest_parts_that_fill_the_sms() -> None:
    assert key_splits(64.0, 132.0) == 2.0
    assert key_splits(43.0, 132.0) == 3.0
    assert key_splits(54.0, 132.0) == 7.0
    assert key_splits(106.0, 132.0) == 1.0


def test_a_large_cache_is_read_at_the_achieved_bandwidth() -> None:
    large = replace(STEP, batch=64.0)
    read = 64 * 131_072 * 2 * 8 * 128 * 2
    assert decode_attention.kv_bytes(large) == read
    expected = read / (DECODE["stream"] * 4.8e12)
    quiet = DECODE | {"serial": 0.005, "cta_bytes_per_s": 4e11, "token_s": 1e-12}
    assert DECODE_ATTENTION.seconds(large, H200, quiet) == pytest.approx(expected, rel=0.02)


def test_a_cache_that_the_l2_could_hold_is_cold_between_other_layers() -> None:
    small = replace(STEP, batch=1.0, context_tokens=256.0)  # 1 MiB of an L2 of 50
    alone = DECODE_ATTENTION.seconds(small, H200, DECODE)
    between = DECODE_ATTENTION.seconds(replace(small, cold=1.0), H200, DECODE)
    assert between - alone == pytest.approx(DECODE["cold_s"] * np.exp(-1 / 50), rel=1e-6)


def test_a_step_takes_longer_the_more_it_reads() -> None:
    contexts = 2.0 ** np.arange(8, 24)
    call = replace(many(STEP, len(contexts)), context_tokens=contexts)
    assert np.all(np.diff(DECODE_ATTENTION.seconds(call, H200, DECODE)) > 0)
    half = replace(call, kv_bytes_per_element=np.full(len(contexts), 1.0))
    whole_s = DECODE_ATTENTION.seconds(call, H200, DECODE)
    assert np.all(DECODE_ATTENTION.seconds(half, H200, DECODE) <= whole_s)


def test_a_window_bounds_what_a_step_reads() -> None:
    windowed = replace(STEP, window_tokens=1024.0)
    further = replace(windowed, context_tokens=1e7)
    assert decode_attention.read_tokens(windowed) == 1024.0
    assert DECODE_ATTENTION.seconds(further, H200, DECODE) == DECODE_ATTENTION.seconds(
        windowed, H200, DECODE
    )


def test_large_calls_are_those_with_much_to_do() -> None:
    assert decode_attention.large(STEP)
    assert not decode_attention.large(replace(STEP, context_tokens=1024.0))
    assert prefill_attention.large(PROMPT)
    assert not prefill_attention.large(replace(PROMPT, query_tokens=128.0))
