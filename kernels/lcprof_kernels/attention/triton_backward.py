"""FlashAttention backward: scores are computed again from q, k and the log-sum-exp.

Three kernels (Dao, FlashAttention-2, 2023, algorithm 2, with the loops for dQ and for dK and dV
apart): `prepare` forms D = rowsum(dO * O), `backward_keys` gives dK and dV of one key tile, adding
up the query heads of a group inside the block, and `backward_queries` gives dQ of one query tile.
No atomics, so gradients are the same on every run. `backward_keys` masks every tile
of a causal pass: two loops cost more registers than the comparisons cost time.

With P = exp(S - lse): dV = P^T dO, dP = dO V^T, dS = P * (dP - D), dQ = scale dS K,
dK = scale dS^T Q. A gradient of the log-sum-exp adds P to dS, so it is subtracted from D.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads signatures, not annotations: compile-time arguments are upper case.

from __future__ import annotations

import triton
import triton.language as tl

from .triton import bounds, compiled_once, dot, key_ranges, load_tile, place, visible

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def prepare(
    out,
    d_out,
    lse,
    d_lse,
    lse_log2,
    delta,
    query_tokens,
    padded_tokens,
    q_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HAS_D_LSE: tl.constexpr,
):
    """`delta` and `lse_log2`, [batch, q_heads, padded_tokens], of `BLOCK_M` rows of one head.

    Rows that saw no key, or that are padding, get plus infinity and so probabilities of zero.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1)
    batch64 = tl.program_id(2).to(tl.int64)
    real = rows < query_tokens
    columns = tl.arange(0, BLOCK_D)
    source = (batch64 * query_tokens + rows) * q_heads + head
    cells = source[:, None] * HEAD_DIM + columns[None, :]
    present = real[:, None] & (columns < HEAD_DIM)[None, :]
    results = tl.load(out + cells, mask=present, other=0.0).to(tl.float32)
    gradients = tl.load(d_out + cells, mask=present, other=0.0).to(tl.float32)
    row_lse = tl.load(lse + source, mask=real, other=0.0)
    row_delta = tl.sum(results * gradients, 1)
    if HAS_D_LSE:
        row_delta -= tl.load(d_lse + source, mask=real, other=0.0)
    empty = (row_lse == float("-inf")) | (rows >= query_tokens)
    target = (batch64 * q_heads + head) * padded_tokens + rows
    tl.store(delta + target, tl.where(empty, 0.0, row_delta), mask=rows < padded_tokens)
    row_lse = tl.where(empty, float("inf"), row_lse * LOG2E)
    tl.store(lse_log2 + target, row_lse, mask=rows < padded_tokens)


@triton.jit
def query_range(
    first_key,
    last_key,
    queries,
    offset,
    window_tokens,
    sink_tokens,
    BLOCK_M: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """The first and the end of the query tiles that see keys `first_key` to `last_key`."""
    end = tl.cdiv(queries, BLOCK_M)
    first = 0
    if CAUSAL:
        first = tl.minimum(tl.maximum(first_key - offset, 0) // BLOCK_M, end)
    if WINDOWED:
        last_seen = tl.cdiv(tl.maximum(last_key + window_tokens - offset, 0), BLOCK_M)
        last_seen = tl.where(first_key < sink_tokens, end, last_seen)
        end = tl.minimum(end, tl.maximum(last_seen, first))
    return first, end


@triton.jit
def step_keys(
    k0,
    k1,
    v0,
    v1,
    dk0,
    dk1,
    dv0,
    dv1,
    q_head,
    do_head,
    q_tiles0,
    q_tiles1,
    do_tiles0,
    do_tiles1,
    lse_tiles,
    delta_tiles,
    lse_log2,
    delta,
    cell,
    batch,
    head,
    query_start,
    start,
    queries,
    offset,
    index,
    window_tokens,
    sink_tokens,
    scale_log2,
    q_stride_t,
    do_stride_t,
    D0: tl.constexpr,
    D1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WINDOWED: tl.constexpr,
    VARLEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add to dK and dV what the query rows from `start` on give."""
    rows = start + tl.arange(0, BLOCK_M)
    if VARLEN:
        row_lse = tl.load(lse_log2 + rows, mask=rows < queries, other=float("inf"))
        row_delta = tl.load(delta + rows, mask=rows < queries, other=0.0)
    elif DESCRIPTORS:
        row_lse = lse_tiles.load([cell, start]).reshape(BLOCK_M)
        row_delta = delta_tiles.load([cell, start]).reshape(BLOCK_M)
    else:
        row_lse = tl.load(lse_log2 + rows)
        row_delta = tl.load(delta + rows)
    q0 = load_rows(
        q_head, q_tiles0, batch, head, query_start, start, queries, q_stride_t,
        0, D0, BLOCK_M, DESCRIPTORS,
    )  # fmt: skip
    scores = dot(k0, q0.T)
    q1 = q0
    if D1 > 0:
        q1 = load_rows(
            q_head, q_tiles1, batch, head, query_start, start, queries, q_stride_t,
            D0, D1, BLOCK_M, DESCRIPTORS,
        )  # fmt: skip
        scores = dot(k1, q1.T, scores)
    weights = tl.exp2(scores * scale_log2 - row_lse[None, :])
    if MASKED:
        position = rows + offset
        window_start = position - window_tokens + 1
        seen = visible(
            position[None, :], index[:, None], window_start[None, :], sink_tokens, WINDOWED
        )
        weights = tl.where(seen, weights, 0.0)
    do0 = load_rows(
        do_head, do_tiles0, batch, head, query_start, start, queries, do_stride_t,
        0, V0, BLOCK_M, DESCRIPTORS,
    )  # fmt: skip
    low = weights.to(k0.dtype)
    dv0 = dot(low, do0, dv0)
    d_weights = dot(v0, do0.T)
    if V1 > 0:
        do1 = load_rows(
            do_head, do_tiles1, batch, head, query_start, start, queries, do_stride_t,
            V0, V1, BLOCK_M, DESCRIPTORS,
        )  # fmt: skip
        dv1 = dot(low, do1, dv1)
        d_weights = dot(v1, do1.T, d_weights)
    d_scores = (weights * (d_weights - row_delta[None, :])).to(k0.dtype)
    dk0 = dot(d_scores, q0, dk0)
    if D1 > 0:
        dk1 = dot(d_scores, q1, dk1)
    return dk0, dk1, dv0, dv1


@triton.jit
def load_rows(
    base,
    tiles,
    batch,
    head,
    first,
    start,
    count,
    stride_t,
    AT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """`BLOCK_M` query rows from `start` on, dimensions AT to AT + D; zero from `count` on."""
    if DESCRIPTORS:
        return tiles.load([batch, first + start, head, AT]).reshape(BLOCK_M, D)
    offs_m = tl.arange(0, BLOCK_M)
    tile = base + tl.full((), start, tl.int64) * stride_t
    return tl.load(
        tile + offs_m[:, None] * stride_t + (AT + tl.arange(0, D))[None, :],
        mask=(start + offs_m < count)[:, None],
        other=0.0,
    )


@triton.jit
def store_tile(
    base, value, start, count, stride_n, AT: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr
):
    """Write dimensions AT to AT + D of the rows from `start` on that lie before `count`."""
    offs = tl.arange(0, BLOCK)
    tile = base + tl.full((), start, tl.int64) * stride_n
    tl.store(
        tile + offs[:, None] * stride_n + (AT + tl.arange(0, D))[None, :],
        value.to(base.dtype.element_ty),
        mask=(start + offs < count)[:, None],
    )


@compiled_once
def backward_keys(
    q,
    k,
    v,
    d_out,
    q_tiles0,
    q_tiles1,
    k_tiles0,
    k_tiles1,
    v_tiles0,
    v_tiles1,
    do_tiles0,
    do_tiles1,
    lse_tiles,
    delta_tiles,
    lse_log2,
    delta,
    dk,
    dv,
    cu_query_tokens,
    cu_context_tokens,
    scale,
    scale_log2,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    dk_stride_b,
    dk_stride_h,
    dk_stride_n,
    dv_stride_b,
    dv_stride_h,
    dv_stride_n,
    query_tokens,
    padded_tokens,
    context_tokens,
    kv_heads,
    key_tiles,
    chunk,
    window_tokens,
    sink_tokens,
    GROUP: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    VARLEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dK and dV of one key tile of one KV head, over every query head of its group.

    The first key tiles are seen by the most queries and start first. d_out is dense.
    """
    tile, kv_head, sequence = place(tl.program_id(0), key_tiles, kv_heads, chunk, 1, False)
    query_start, queries, context_start, context = bounds(
        cu_query_tokens, cu_context_tokens, sequence, query_tokens, context_tokens, VARLEN
    )
    first_key = tile * BLOCK_N
    if VARLEN and first_key >= context:
        return
    batch = 0 if VARLEN else sequence
    batch64 = tl.full((), batch, tl.int64)
    head64 = tl.full((), kv_head, tl.int64)
    n64 = tl.full((), context_start, tl.int64)
    m64 = tl.full((), query_start, tl.int64)
    q_heads = kv_heads * GROUP
    k_head = k + batch64 * k_stride_b + head64 * k_stride_h + n64 * k_stride_n
    v_head = v + batch64 * v_stride_b + head64 * v_stride_h + n64 * v_stride_n
    k0 = load_tile(
        k_head,
        k_tiles0,
        batch,
        kv_head,
        context_start,
        first_key,
        context,
        k_stride_n,
        1,
        0,
        D0,
        BLOCK_N,
        DESCRIPTORS,
        True,
    )
    v0 = load_tile(
        v_head,
        v_tiles0,
        batch,
        kv_head,
        context_start,
        first_key,
        context,
        v_stride_n,
        1,
        0,
        V0,
        BLOCK_N,
        DESCRIPTORS,
        True,
    )
    k1 = k0
    v1 = v0
    if D1 > 0:
        k1 = load_tile(
            k_head,
            k_tiles1,
            batch,
            kv_head,
            context_start,
            first_key,
            context,
            k_stride_n,
            1,
            D0,
            D1,
            BLOCK_N,
            DESCRIPTORS,
            True,
        )
    if V1 > 0:
        v1 = load_tile(
            v_head,
            v_tiles1,
            batch,
            kv_head,
            context_start,
            first_key,
            context,
            v_stride_n,
            1,
            V0,
            V1,
            BLOCK_N,
            DESCRIPTORS,
            True,
        )
    dk0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dv0 = tl.zeros((BLOCK_N, V0), tl.float32)
    dk1 = tl.zeros((BLOCK_N, D1 if D1 > 0 else 16), tl.float32)
    dv1 = tl.zeros((BLOCK_N, V1 if V1 > 0 else 16), tl.float32)
    offset = context - queries
    last_key = tl.minimum(first_key + BLOCK_N, context) - 1
    first, end = query_range(
        first_key, last_key, queries, offset, window_tokens, sink_tokens, BLOCK_M, CAUSAL, WINDOWED
    )
    index = first_key + tl.arange(0, BLOCK_N)
    do_stride_t = q_heads * (V0 + V1)
    for member in tl.range(0, GROUP, num_stages=1):
        head = kv_head * GROUP + member
        q_head = q + batch64 * q_stride_b + m64 * q_stride_t + head * q_stride_h
        do_row = batch64 * query_tokens + m64
        do_head = d_out + (do_row * q_heads + head) * (V0 + V1)
        cell = batch * q_heads + head
        statistics = (batch64 * q_heads + head) * padded_tokens + m64
        row_lse = lse_log2 + statistics
        row_delta = delta + statistics
        for step in tl.range(first, end, num_stages=STAGES):
            dk0, dk1, dv0, dv1 = step_keys(
                k0, k1, v0, v1, dk0, dk1, dv0, dv1, q_head, do_head, q_tiles0, q_tiles1,
                do_tiles0, do_tiles1, lse_tiles, delta_tiles, row_lse, row_delta, cell, batch,
                head, query_start, step * BLOCK_M, queries, offset, index, window_tokens,
                sink_tokens, scale_log2, q_stride_t, do_stride_t, D0, D1, V0, V1, BLOCK_M,
                WINDOWED, VARLEN, DESCRIPTORS and not VARLEN, CAUSAL,
            )  # fmt: skip
    dk_head = dk + batch64 * dk_stride_b + head64 * dk_stride_h + n64 * dk_stride_n
    dv_head = dv + batch64 * dv_stride_b + head64 * dv_stride_h + n64 * dv_stride_n
    store_tile(dk_head, dk0 * scale, first_key, context, dk_stride_n, 0, D0, BLOCK_N)
    store_tile(dv_head, dv0, first_key, context, dv_stride_n, 0, V0, BLOCK_N)
    if D1 > 0:
        store_tile(dk_head, dk1 * scale, first_key, context, dk_stride_n, D0, D1, BLOCK_N)
    if V1 > 0:
        store_tile(dv_head, dv1, first_key, context, dv_stride_n, V0, V1, BLOCK_N)


@triton.jit
def step_queries(
    q0,
    q1,
    do0,
    do1,
    dq0,
    dq1,
    row_lse,
    row_delta,
    k_head,
    v_head,
    k_tiles0,
    k_tiles1,
    v_tiles0,
    v_tiles1,
    batch,
    kv_head,
    context_start,
    start,
    context,
    limit,
    window_start,
    sink_tokens,
    scale_log2,
    k_stride_n,
    v_stride_n,
    D0: tl.constexpr,
    D1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add to dQ what the key tile at `start` gives."""
    k0 = load_tile(
        k_head, k_tiles0, batch, kv_head, context_start, start, context, k_stride_n, 1,
        0, D0, BLOCK_N, DESCRIPTORS, MASKED,
    )  # fmt: skip
    scores = dot(q0, k0.T)
    k1 = k0
    if D1 > 0:
        k1 = load_tile(
            k_head, k_tiles1, batch, kv_head, context_start, start, context, k_stride_n, 1,
            D0, D1, BLOCK_N, DESCRIPTORS, MASKED,
        )  # fmt: skip
        scores = dot(q1, k1.T, scores)
    v0 = load_tile(
        v_head, v_tiles0, batch, kv_head, context_start, start, context, v_stride_n, 1,
        0, V0, BLOCK_N, DESCRIPTORS, MASKED,
    )  # fmt: skip
    d_weights = dot(do0, v0.T)
    if V1 > 0:
        v1 = load_tile(
            v_head, v_tiles1, batch, kv_head, context_start, start, context, v_stride_n, 1,
            V0, V1, BLOCK_N, DESCRIPTORS, MASKED,
        )  # fmt: skip
        d_weights = dot(do1, v1.T, d_weights)
    weights = tl.exp2(scores * scale_log2 - row_lse[:, None])
    if MASKED:
        index = (start + tl.arange(0, BLOCK_N))[None, :]
        seen = visible(limit[:, None], index, window_start[:, None], sink_tokens, WINDOWED)
        weights = tl.where(seen, weights, 0.0)
    d_scores = (weights * (d_weights - row_delta[:, None])).to(k0.dtype)
    dq0 = dot(d_scores, k0, dq0)
    if D1 > 0:
        dq1 = dot(d_scores, k1, dq1)
    return dq0, dq1


@compiled_once
def backward_queries(
    q,
    k,
    v,
    d_out,
    q_tiles0,
    q_tiles1,
    k_tiles0,
    k_tiles1,
    v_tiles0,
    v_tiles1,
    do_tiles0,
    do_tiles1,
    lse_log2,
    delta,
    dq,
    cu_query_tokens,
    cu_context_tokens,
    scale,
    scale_log2,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    query_tokens,
    padded_tokens,
    context_tokens,
    q_heads,
    kv_heads,
    query_tiles,
    chunk,
    window_tokens,
    sink_tokens,
    GROUP: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    VARLEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dQ of one query tile of one head. d_out and dq are dense."""
    tile, head, sequence = place(tl.program_id(0), query_tiles, kv_heads, chunk, GROUP, CAUSAL)
    query_start, queries, context_start, context = bounds(
        cu_query_tokens, cu_context_tokens, sequence, query_tokens, context_tokens, VARLEN
    )
    first_row = tile * BLOCK_M
    if VARLEN and first_row >= queries:
        return
    kv_head = head // GROUP
    batch = 0 if VARLEN else sequence
    batch64 = tl.full((), batch, tl.int64)
    head64 = tl.full((), kv_head, tl.int64)
    n64 = tl.full((), context_start, tl.int64)
    m64 = tl.full((), query_start, tl.int64)
    do_stride_t = q_heads * (V0 + V1)
    q_head = q + batch64 * q_stride_b + m64 * q_stride_t + head * q_stride_h
    row64 = batch64 * query_tokens + m64
    do_head = d_out + (row64 * q_heads + head) * (V0 + V1)
    k_head = k + batch64 * k_stride_b + head64 * k_stride_h + n64 * k_stride_n
    v_head = v + batch64 * v_stride_b + head64 * v_stride_h + n64 * v_stride_n
    q0 = load_rows(
        q_head,
        q_tiles0,
        batch,
        head,
        query_start,
        first_row,
        queries,
        q_stride_t,
        0,
        D0,
        BLOCK_M,
        DESCRIPTORS and not VARLEN,
    )
    do0 = load_rows(
        do_head,
        do_tiles0,
        batch,
        head,
        query_start,
        first_row,
        queries,
        do_stride_t,
        0,
        V0,
        BLOCK_M,
        DESCRIPTORS and not VARLEN,
    )
    q1 = q0
    do1 = do0
    if D1 > 0:
        q1 = load_rows(
            q_head,
            q_tiles1,
            batch,
            head,
            query_start,
            first_row,
            queries,
            q_stride_t,
            D0,
            D1,
            BLOCK_M,
            DESCRIPTORS and not VARLEN,
        )
    if V1 > 0:
        do1 = load_rows(
            do_head,
            do_tiles1,
            batch,
            head,
            query_start,
            first_row,
            queries,
            do_stride_t,
            V0,
            V1,
            BLOCK_M,
            DESCRIPTORS and not VARLEN,
        )
    rows = first_row + tl.arange(0, BLOCK_M)
    statistics = (batch64 * q_heads + head) * padded_tokens + m64
    row_lse = tl.load(lse_log2 + statistics + rows, mask=rows < queries, other=float("inf"))
    row_delta = tl.load(delta + statistics + rows, mask=rows < queries, other=0.0)
    dq0 = tl.zeros((BLOCK_M, D0), tl.float32)
    dq1 = tl.zeros((BLOCK_M, D1 if D1 > 0 else 16), tl.float32)
    offset = context - queries
    last_row = tl.minimum(first_row + BLOCK_M, queries) - 1
    sinks, left, whole, right, end = key_ranges(
        first_row + offset,
        last_row + offset,
        context,
        window_tokens,
        sink_tokens,
        BLOCK_N,
        CAUSAL,
        WINDOWED,
    )
    position = rows + offset
    limit = tl.zeros((BLOCK_M,), tl.int32) + (context - 1)
    if CAUSAL:
        limit = tl.minimum(position, limit)
    window_start = position - window_tokens + 1
    if WINDOWED:
        for step in tl.range(0, sinks + whole - left, num_stages=STAGES):
            start = tl.where(step < sinks, step, step - sinks + left) * BLOCK_N
            dq0, dq1 = step_queries(
                q0, q1, do0, do1, dq0, dq1, row_lse, row_delta, k_head, v_head, k_tiles0, k_tiles1,
                v_tiles0, v_tiles1, batch, kv_head, context_start, start, context, limit,
                window_start, sink_tokens, scale_log2, k_stride_n, v_stride_n,
                D0, D1, V0, V1, BLOCK_N, WINDOWED, DESCRIPTORS and not VARLEN, True,
            )  # fmt: skip
    for step in tl.range(whole, right, num_stages=STAGES):
        dq0, dq1 = step_queries(
            q0, q1, do0, do1, dq0, dq1, row_lse, row_delta, k_head, v_head, k_tiles0, k_tiles1,
            v_tiles0, v_tiles1, batch, kv_head, context_start, step * BLOCK_N, context, limit,
            window_start, sink_tokens, scale_log2, k_stride_n, v_stride_n,
            D0, D1, V0, V1, BLOCK_N, WINDOWED, DESCRIPTORS, False,
        )  # fmt: skip
    for step in tl.range(right, end, num_stages=STAGES):
        dq0, dq1 = step_queries(
            q0, q1, do0, do1, dq0, dq1, row_lse, row_delta, k_head, v_head, k_tiles0, k_tiles1,
            v_tiles0, v_tiles1, batch, kv_head, context_start, step * BLOCK_N, context, limit,
            window_start, sink_tokens, scale_log2, k_stride_n, v_stride_n,
            D0, D1, V0, V1, BLOCK_N, WINDOWED, DESCRIPTORS and not VARLEN, True,
        )  # fmt: skip
    dq_head = dq + (row64 * q_heads + head) * (D0 + D1)
    dq_stride_t = q_heads * (D0 + D1)
    store_tile(dq_head, dq0 * scale, first_row, queries, dq_stride_t, 0, D0, BLOCK_M)
    if D1 > 0:
        store_tile(dq_head, dq1 * scale, first_row, queries, dq_stride_t, D0, D1, BLOCK_M)
