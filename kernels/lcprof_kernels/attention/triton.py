"""FlashAttention forward: one block attends one tile of query rows, key tile by key tile.

The T x T scores never leave the chip: a running maximum and sum per row fold each tile into the
output (Dao et al., FlashAttention, 2022; FlashAttention-2, 2023). Key tiles that every row of the
block sees whole take a loop without masks; the tiles on the diagonal, at the edges of a window and
of the sinks, and at the end of the keys take another. The scale of the softmax is folded into the
exponent's one multiply-add, in base 2.

Blocks run longest first, the query heads that share a KV head next to each other, so that a causal
grid ends evenly and a key tile is read from the L2 by the whole group.

Head dimensions that are no power of two are cut in two (96 = 64 + 32, 192 = 128 + 64): each part
has its own tensors below, of which the second (`k1`, `v1`, `acc1`) may be empty.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads signatures, not annotations: compile-time arguments are upper case.

from __future__ import annotations

import triton
import triton.language as tl

from lcprof_kernels.checks import interpreting

LN2 = tl.constexpr(0.6931471805599453)
NEVER = tl.constexpr(float("-inf"))
INTERPRETED = tl.constexpr(interpreting())
ANY_VALUE = (
    "query_tokens", "context_tokens", "q_heads", "kv_heads", "query_tiles", "key_tiles", "chunk",
    "window_tokens", "sink_tokens",
)  # fmt: skip
"""Arguments whose values do not select another compilation."""


def compiled_once(function):
    """`triton.jit` that compiles once for all values of the arguments in ANY_VALUE."""
    names = [name for name in ANY_VALUE if name in function.__code__.co_varnames]
    return triton.jit(function, do_not_specialize=names)


@triton.jit
def dot(a, b, acc=None):
    """a @ b + acc. The CPU interpreter multiplies bfloat16 and fp8 only after widening."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def bounds(
    cu_query_tokens, cu_context_tokens, sequence, query_tokens, context_tokens, VARLEN: tl.constexpr
):
    """First query row, query tokens, first key row and context tokens of one sequence."""
    if VARLEN:
        query_start = tl.load(cu_query_tokens + sequence)
        query_end = tl.load(cu_query_tokens + sequence + 1)
        context_start = tl.load(cu_context_tokens + sequence)
        context_end = tl.load(cu_context_tokens + sequence + 1)
        return query_start, query_end - query_start, context_start, context_end - context_start
    return 0, query_tokens, 0, context_tokens


@triton.jit
def key_ranges(
    first_position,
    last_position,
    context,
    window_tokens,
    sink_tokens,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """The key tiles that rows at `first_position` to `last_position` see, in four runs.

    Tiles [0, sinks) hold sinks and end before the window; [left, whole) are masked at the window's
    start; [whole, right) are seen whole by every row; [right, end) are masked at the diagonal or
    at the last key. Returns sinks, left, whole, right, end.
    """
    if CAUSAL:
        visible = tl.maximum(tl.minimum(context, last_position + 1), 0)
        right = tl.maximum(tl.minimum(context, first_position + 1), 0) // BLOCK_N
    else:
        visible = context
        right = context // BLOCK_N
    end = tl.cdiv(visible, BLOCK_N)
    sinks = 0
    left = 0
    whole = 0
    if WINDOWED:
        left = tl.maximum(first_position - window_tokens + 1, 0) // BLOCK_N
        left = tl.minimum(left, end)
        sinks = tl.minimum(tl.cdiv(sink_tokens, BLOCK_N), left)
        whole = tl.cdiv(tl.maximum(last_position - window_tokens + 1, 0), BLOCK_N)
        whole = tl.minimum(tl.maximum(whole, left), end)
    right = tl.minimum(tl.maximum(right, whole), end)
    return sinks, left, whole, right, end


@triton.jit
def visible(limit, index, window_start, sink_tokens, WINDOWED: tl.constexpr):
    """Whether rows that see keys up to `limit` see keys at `index`; the two broadcast."""
    seen = index <= limit
    if WINDOWED:
        seen = seen & ((index >= window_start) | (index < sink_tokens))
    return seen


@triton.jit
def load_tile(
    base,
    tiles,
    batch,
    head,
    first,
    start,
    context,
    stride_n,
    stride_d,
    AT: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """`BLOCK_N` rows from `start` on, dimensions AT to AT + D, as [BLOCK_N, D].

    `base` points to the sequence's first row, which is row `first` of `tiles`. With MASKED, rows
    from `context` on are zero.
    """
    if DESCRIPTORS:
        return tiles.load([batch, head, first + start, AT]).reshape(BLOCK_N, D)
    offs_n = tl.arange(0, BLOCK_N)
    tile = base + tl.full((), start, tl.int64) * stride_n
    pointers = tile + offs_n[:, None] * stride_n + (AT + tl.arange(0, D))[None, :] * stride_d
    if MASKED:
        return tl.load(pointers, mask=(start + offs_n < context)[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def fold(
    scores,
    acc0,
    acc1,
    top,
    total,
    v0,
    v1,
    seen,
    scale_log2,
    MASKED: tl.constexpr,
    V1: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Fold one tile of raw scores into the running maximum, sum and output.

    `SHIFT` raises the probabilities by 2**SHIFT, so that fp8 keeps more of the small ones.
    """
    if MASKED:
        scores = tl.where(seen, scores, NEVER)
    new_top = tl.maximum(top, tl.max(scores, 1))
    anchor = new_top * scale_log2
    if MASKED:
        anchor = tl.where(new_top == NEVER, 0.0, anchor)
    weights = tl.exp2(scores * scale_log2 - (anchor - SHIFT)[:, None])
    decay = tl.exp2(top * scale_log2 - anchor)
    total = total * decay + tl.sum(weights, 1)
    weights = weights.to(v0.dtype)
    acc0 = dot(weights, v0, acc0 * decay[:, None])
    if V1:
        acc1 = dot(weights, v1, acc1 * decay[:, None])
    return acc0, acc1, new_top, total


@triton.jit
def place(pid, query_tiles, kv_heads, chunk, GROUP: tl.constexpr, LONGEST_FIRST: tl.constexpr):
    """Query tile, query head and sequence of a block.

    The heads of a group are neighbours; `chunk` KV heads share the card before the next begin.
    """
    wide = chunk * GROUP
    within = pid % (query_tiles * wide)
    tile = within // wide
    if LONGEST_FIRST:
        tile = query_tiles - 1 - tile
    cell = pid // (query_tiles * wide) * chunk + within % wide // GROUP
    head = cell % kv_heads * GROUP + within % GROUP
    return tile, head, cell // kv_heads


@triton.jit
def step_forward(
    q0,
    q1,
    k_head,
    v_head,
    k_tiles0,
    k_tiles1,
    v_tiles0,
    v_tiles1,
    acc0,
    acc1,
    top,
    total,
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
    v_stride_d,
    D0: tl.constexpr,
    D1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Attend the key tile at `start`."""
    k0 = load_tile(
        k_head, k_tiles0, batch, kv_head, context_start, start, context, k_stride_n, 1,
        0, D0, BLOCK_N, DESCRIPTORS, MASKED,
    )  # fmt: skip
    scores = dot(q0, k0.T)
    if D1 > 0:
        k1 = load_tile(
            k_head, k_tiles1, batch, kv_head, context_start, start, context, k_stride_n, 1,
            D0, D1, BLOCK_N, DESCRIPTORS, MASKED,
        )  # fmt: skip
        scores = dot(q1, k1.T, scores)
    v0 = load_tile(
        v_head, v_tiles0, batch, kv_head, context_start, start, context, v_stride_n, v_stride_d,
        0, V0, BLOCK_N, DESCRIPTORS, MASKED,
    )  # fmt: skip
    v1 = v0
    if V1 > 0:
        v1 = load_tile(
            v_head, v_tiles1, batch, kv_head, context_start, start, context, v_stride_n,
            v_stride_d, V0, V1, BLOCK_N, DESCRIPTORS, MASKED,
        )  # fmt: skip
    seen = None
    if MASKED:
        index = (start + tl.arange(0, BLOCK_N))[None, :]
        seen = visible(limit[:, None], index, window_start[:, None], sink_tokens, WINDOWED)
    return fold(scores, acc0, acc1, top, total, v0, v1, seen, scale_log2, MASKED, V1 > 0, SHIFT)


@compiled_once
def forward(
    q,
    k,
    v,
    q_tiles0,
    q_tiles1,
    k_tiles0,
    k_tiles1,
    v_tiles0,
    v_tiles1,
    out,
    lse,
    cu_query_tokens,
    cu_context_tokens,
    scale_log2,
    value_scale,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    v_stride_d,
    query_tokens,
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
    SHIFT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One query tile of one head: writes `out` [.., query_tokens, q_heads, D] and `lse`, dense.

    The `_tiles` are tensor descriptors of q, k and v with DESCRIPTORS, else unused. SHIFT is set
    for fp8, whose v is dense in its tokens: the one order in which fp8 matrix instructions take it.
    """
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

    in_tile = tl.arange(0, BLOCK_M)
    row_real = first_row + in_tile < queries
    row64 = query_start + tl.full((), first_row, tl.int64)
    if DESCRIPTORS:
        row = query_start + first_row
        q0 = q_tiles0.load([batch, row, head, 0]).reshape(BLOCK_M, D0)
        q1 = q0
        if D1 > 0:
            q1 = q_tiles1.load([batch, row, head, D0]).reshape(BLOCK_M, D1)
    else:
        q_tile = q + batch64 * q_stride_b + row64 * q_stride_t + head * q_stride_h
        q_rows = q_tile + in_tile[:, None] * q_stride_t
        q0 = tl.load(q_rows + tl.arange(0, D0)[None, :], mask=row_real[:, None], other=0.0)
        q1 = q0
        if D1 > 0:
            q1 = tl.load(
                q_rows + (D0 + tl.arange(0, D1))[None, :], mask=row_real[:, None], other=0.0
            )
    n64 = tl.full((), context_start, tl.int64)
    head64 = tl.full((), kv_head, tl.int64)
    k_head = k + batch64 * k_stride_b + head64 * k_stride_h + n64 * k_stride_n
    v_head = v + batch64 * v_stride_b + head64 * v_stride_h + n64 * v_stride_n

    acc0 = tl.zeros((BLOCK_M, V0), tl.float32)
    acc1 = tl.zeros((BLOCK_M, V1 if V1 > 0 else 16), tl.float32)
    top = tl.full((BLOCK_M,), NEVER, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
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
    position = first_row + in_tile + offset
    limit = tl.zeros((BLOCK_M,), tl.int32) + (context - 1)
    if CAUSAL:
        limit = tl.minimum(position, limit)
    window_start = position - window_tokens + 1

    if WINDOWED:
        for step in tl.range(0, sinks + whole - left, num_stages=STAGES):
            start = tl.where(step < sinks, step, step - sinks + left) * BLOCK_N
            acc0, acc1, top, total = step_forward(
                q0, q1, k_head, v_head, k_tiles0, k_tiles1, v_tiles0, v_tiles1,
                acc0, acc1, top, total, batch, kv_head, context_start, start, context, limit,
                window_start, sink_tokens, scale_log2, k_stride_n, v_stride_n, v_stride_d,
                D0, D1, V0, V1, BLOCK_N, WINDOWED, DESCRIPTORS and not VARLEN, True, SHIFT,
            )  # fmt: skip
    for step in tl.range(whole, right, num_stages=STAGES):
        acc0, acc1, top, total = step_forward(
            q0, q1, k_head, v_head, k_tiles0, k_tiles1, v_tiles0, v_tiles1,
            acc0, acc1, top, total, batch, kv_head, context_start, step * BLOCK_N, context, limit,
            window_start, sink_tokens, scale_log2, k_stride_n, v_stride_n, v_stride_d,
            D0, D1, V0, V1, BLOCK_N, WINDOWED, DESCRIPTORS, False, SHIFT,
        )  # fmt: skip
    for step in tl.range(right, end, num_stages=STAGES):
        acc0, acc1, top, total = step_forward(
            q0, q1, k_head, v_head, k_tiles0, k_tiles1, v_tiles0, v_tiles1,
            acc0, acc1, top, total, batch, kv_head, context_start, step * BLOCK_N, context, limit,
            window_start, sink_tokens, scale_log2, k_stride_n, v_stride_n, v_stride_d,
            D0, D1, V0, V1, BLOCK_N, WINDOWED, DESCRIPTORS and not VARLEN, True, SHIFT,
        )  # fmt: skip

    finish(
        out, lse, acc0, acc1, top, total, row_real, batch64 * query_tokens + row64, head, q_heads,
        scale_log2, value_scale, V0, V1, BLOCK_M, SHIFT,
    )  # fmt: skip


@triton.jit
def finish(
    out,
    lse,
    acc0,
    acc1,
    top,
    total,
    row_real,
    first_row,
    head,
    q_heads,
    scale_log2,
    value_scale,
    V0: tl.constexpr,
    V1: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """Divide by the sums and write; rows that saw no key get zeros and minus infinity."""
    empty = top == NEVER
    weight = value_scale / tl.where(empty, 1.0, total)
    row_lse = (top * scale_log2 + tl.log2(total) - SHIFT) * LN2
    out_row = (first_row + tl.arange(0, BLOCK_M)) * q_heads + head
    out_tile = out + out_row[:, None] * (V0 + V1)
    tl.store(
        out_tile + tl.arange(0, V0)[None, :],
        (acc0 * weight[:, None]).to(out.dtype.element_ty),
        mask=row_real[:, None],
    )
    if V1 > 0:
        tl.store(
            out_tile + (V0 + tl.arange(0, V1))[None, :],
            (acc1 * weight[:, None]).to(out.dtype.element_ty),
            mask=row_real[:, None],
        )
    tl.store(lse + out_row, tl.where(empty, NEVER, row_lse), mask=row_real)
