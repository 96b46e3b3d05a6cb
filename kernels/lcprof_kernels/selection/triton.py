"""Kernels that bound pages, score pages and score tokens."""

# Capital names are compile-time constants; arguments of kernels have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from lcprof_kernels.mla.triton import product, widen


@triton.jit(do_not_specialize=["new_tokens"])
def bound_pages(
    k_ptr, table_ptr, lengths_ptr, bounds_ptr, new_tokens,
    stride_page, stride_head, stride_token, stride_table, kv_heads,
    PAGE: tl.constexpr, DIM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (pages to bound, kv_heads, batch): least and greatest of each channel.

    Only the pages that hold any of the newest `new_tokens` tokens.
    Bounds [pages, kv_heads, 2, DIM].
    """
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + batch)
    slot = tl.maximum(length - new_tokens, 0) // PAGE + tl.program_id(0)
    if slot * PAGE < length:
        page = tl.load(table_ptr + batch * stride_table + slot).to(tl.int64)
        p = tl.arange(0, BLOCK_P)
        d = tl.arange(0, BLOCK_D)
        held = ((p < PAGE) & (slot * PAGE + p < length))[:, None] & (d < DIM)[None, :]
        keys = tl.load(
            k_ptr
            + page * stride_page
            + head * stride_head
            + p[:, None] * stride_token
            + d[None, :],
            mask=held,
            other=0.0,
        ).to(tl.float32)
        least = tl.min(tl.where(held, keys, float("inf")), 0)
        most = tl.max(tl.where(held, keys, float("-inf")), 0)
        place = bounds_ptr + (page * kv_heads + head) * 2 * DIM + d
        kind = bounds_ptr.dtype.element_ty
        tl.store(place, least.to(kind), mask=d < DIM)
        tl.store(place + DIM, most.to(kind), mask=d < DIM)


@triton.jit(do_not_specialize=["max_pages"])
def score_page_tiles(
    q_ptr, bounds_ptr, table_ptr, lengths_ptr, scores_ptr,
    stride_q_batch, stride_q_token, stride_q_head, stride_table, max_pages, kv_heads,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (page tiles, kv_heads, batch). Scores [batch, kv_heads, max_pages], -inf past the end.

    max(q lo, q hi) is q hi where q > 0 and q lo where q < 0: two products of matrices.
    """
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    used = tl.cdiv(tl.load(lengths_ptr + batch), PAGE)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    page = tl.load(table_ptr + batch * stride_table + n, mask=n < used, other=0).to(tl.int64)
    place = bounds_ptr + (page[:, None] * kv_heads + head) * 2 * DIM + d[None, :]
    held = (n < used)[:, None] & (d < DIM)[None, :]
    low = tl.load(place, mask=held, other=0.0)
    high = tl.load(place + DIM, mask=held, other=0.0)
    q = tl.load(
        q_ptr + batch * stride_q_batch + (r // GROUP)[:, None] * stride_q_token
        + (head * GROUP + r % GROUP)[:, None] * stride_q_head + d[None, :],
        mask=(r < ROWS)[:, None] & (d < DIM)[None, :],
        other=0.0,
    )  # fmt: skip
    zero = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    score = product(tl.where(q > 0, q, 0.0).to(q.dtype), tl.trans(high), zero)
    score = product(tl.where(q > 0, 0.0, q).to(q.dtype), tl.trans(low), score)
    best = tl.max(tl.where((r < ROWS)[:, None], score, float("-inf")), 0)
    out = scores_ptr + (batch * kv_heads + head) * max_pages + n
    tl.store(out, tl.where(n < used, best, float("-inf")), mask=n < max_pages)


@triton.jit(do_not_specialize=["context_tokens", "query_tokens"])
def score_token_tiles(
    q_ptr, weights_ptr, k_ptr, scale_ptr, table_ptr, lengths_ptr, scores_ptr,
    context_tokens, query_tokens,
    stride_q_batch, stride_q_token, stride_q_head, stride_slot, stride_token, stride_scale,
    stride_table,
    PAGE: tl.constexpr, FP8: tl.constexpr, NATIVE: tl.constexpr, HEADS: tl.constexpr,
    BLOCK_H: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (token tiles, query_tokens, batch). Scores [batch, query_tokens, context_tokens]."""
    token = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + batch)
    visible = length - (query_tokens - 1 - token)
    first = tl.program_id(0) * BLOCK_N
    n = first + tl.arange(0, BLOCK_N)
    out = scores_ptr + (batch * query_tokens + token) * context_tokens + n
    if first < visible:
        seen = n < visible
        h = tl.arange(0, BLOCK_H)
        d = tl.arange(0, DIM)
        some = h < HEADS
        q = tl.load(
            q_ptr + batch * stride_q_batch + token * stride_q_token
            + h[:, None] * stride_q_head + d[None, :],
            mask=some[:, None],
            other=0.0,
        )  # fmt: skip
        weight = tl.load(
            weights_ptr + (batch * query_tokens + token) * HEADS + h, mask=some, other=0.0
        )
        if PAGE == 0:
            slot = batch + tl.zeros([BLOCK_N], tl.int64)
            inside = n
        else:
            slot = tl.load(table_ptr + batch * stride_table + n // PAGE, mask=seen, other=0)
            slot = slot.to(tl.int64)
            inside = n % PAGE
        key = tl.load(
            k_ptr + (slot * stride_slot + inside * stride_token)[:, None] + d[None, :],
            mask=seen[:, None],
            other=0,
        )
        if FP8:
            key = widen(key, NATIVE).to(tl.bfloat16)
        zero = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
        hit = tl.maximum(product(q, tl.trans(key), zero), 0.0, propagate_nan=tl.PropagateNan.ALL)
        score = tl.sum(hit * weight[:, None], 0)
        if FP8:
            score *= tl.load(scale_ptr + slot * stride_scale + inside, mask=seen, other=0.0)
        tl.store(out, tl.where(seen, score, float("-inf")), mask=n < context_tokens)
    else:
        tl.store(out, tl.full([BLOCK_N], float("-inf"), tl.float32), mask=n < context_tokens)
