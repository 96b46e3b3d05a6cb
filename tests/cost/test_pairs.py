"""Pair counts against counting them one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import deepseek_v3, grouped

from lcprof.cost.pairs import (
    capped_pairs,
    causal_pairs,
    chunk_ends,
    chunked_pairs,
    compressed_pairs,
    index_pair_flops,
    pair_flops,
)

starts = st.integers(0, 60)
counts = st.integers(0, 60)


def positions(start: int, tokens: int) -> range:
    """1-based positions of the new tokens."""
    return range(start + 1, start + tokens + 1)


def test_flops_of_a_pair() -> None:
    # DeepSeek-V3: 128 heads of 192 + 128 elements, or of 576 + 512 absorbed (arXiv:2405.04434).
    mla = deepseek_v3().groups[0].mixer
    assert pair_flops(mla) == 2 * 128 * (192 + 128)
    assert pair_flops(mla, absorbed=True) == 2 * 128 * (576 + 512)
    assert index_pair_flops(mla) == 0
    # 32 heads of 128: 4·heads·head_dim, absorbed or not.
    assert pair_flops(grouped(4096, 32, 8, 128)) == 4 * 32 * 128
    assert pair_flops(grouped(4096, 32, 8, 128), absorbed=True) == 4 * 32 * 128
    assert pair_flops(None) == 0


@given(starts, counts)
def test_causal(start: int, tokens: int) -> None:
    assert causal_pairs(float(start), float(tokens)) == sum(positions(start, tokens))


@given(starts, counts, st.integers(1, 80))
def test_capped(start: int, tokens: int, cap: int) -> None:
    expected = sum(min(i, cap) for i in positions(start, tokens))
    assert capped_pairs(float(start), float(tokens), float(cap)) == expected


@given(starts, counts, st.integers(1, 20))
def test_chunked(start: int, tokens: int, chunk: int) -> None:
    expected = sum((i - 1) % chunk + 1 for i in positions(start, tokens))
    assert chunked_pairs(float(start), float(tokens), float(chunk)) == expected


@given(starts, counts, st.integers(1, 12), st.one_of(st.none(), st.integers(1, 8)))
def test_compressed(start: int, tokens: int, ratio: int, cap: int | None) -> None:
    expected = sum(min(i // ratio, cap or i) for i in positions(start, tokens))
    limit = None if cap is None else float(cap)
    assert compressed_pairs(float(start), float(tokens), float(ratio), limit) == expected


@given(starts, st.integers(1, 60), st.integers(1, 20))
def test_chunk_ends_without_a_cap(start: int, tokens: int, chunk: int) -> None:
    ends = [start + min(done + chunk, tokens) for done in range(0, tokens, chunk)]
    assert chunk_ends(float(start), float(tokens), float(chunk), None) == sum(ends)


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 100))
def test_chunk_ends_with_a_cap_stay_near_the_count(tokens: int, chunk: int, cap: int) -> None:
    ends = [min(done + chunk, tokens, cap + chunk) for done in range(0, tokens, chunk)]
    counted = chunk_ends(0.0, float(tokens), float(chunk), float(cap))
    assert abs(counted - sum(ends)) <= 2 * chunk


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.integers(1, 10**5))
def test_pairs_add_up_over_chunks(chunks: list[int], cap: int) -> None:
    whole = float(sum(chunks))
    start = 0.0
    causal, capped = 0.0, 0.0
    for chunk in map(float, chunks):
        causal += causal_pairs(start, chunk)
        capped += capped_pairs(start, chunk, float(cap))
        start += chunk
    assert causal == causal_pairs(0.0, whole)
    assert capped == capped_pairs(0.0, whole, float(cap))


def test_ten_million_tokens_are_exact() -> None:
    assert causal_pairs(0.0, 1e7) == 10**7 * (10**7 + 1) // 2


@pytest.mark.parametrize("tokens", [0.0, 1.0])
def test_edges(tokens: float) -> None:
    assert causal_pairs(5.0, tokens) == tokens * 6
