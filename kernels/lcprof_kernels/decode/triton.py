"""Split-KV decode attention: one block attends one chunk of one KV head's cache.

The rows of a tile are the query heads that share the KV head times the query tokens, so each byte
of the cache is read once whatever the group. Chunks are merged by a second kernel whose launch is
hidden behind the first (programmatic dependent launch). Flash-Decoding (Dao et al., 2023) gives
the split and merge; StreamingLLM (Xiao et al., 2023) the sinks and window.

A tile counts the tokens that are read, in order: under a window, those between the sinks and the
window are left out and `shift` says how many. Offsets that grow with the context are 64-bit.
"""

# Kernel code is a language of its own: capitals name compile-time constants, arguments are untyped.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lcprof_kernels.checks import interpreting

LN2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def _row_offsets(
    tile,
    stride_page,
    stride_n,
    table,
    tokens,
    sink_tokens,
    shift,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """64-bit element offsets of the tile's rows from the head's first element."""
    index = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    position = index
    if WINDOWED:
        position = tl.where(index < sink_tokens, index, index + shift)
    if PAGE == 0:
        return position.to(tl.int64) * stride_n
    page = tl.load(table + position // PAGE, mask=index < tokens, other=0)
    return page.to(tl.int64) * stride_page + (position % PAGE) * stride_n


@triton.jit
def _visible(
    index,
    row_token,
    tokens,
    length,
    sink_tokens,
    window_tokens,
    shift,
    ring_slots,
    QUERY_TOKENS: tl.constexpr,
    WINDOWED: tl.constexpr,
    RING: tl.constexpr,
):
    """Which keys each row may see: [rows, keys]."""
    if RING:
        newest = (length - 1 - sink_tokens) % ring_slots
        age = (newest - (index - sink_tokens) + ring_slots) % ring_slots
        position = tl.where(index < sink_tokens, index, length - 1 - age)
    elif WINDOWED:
        position = tl.where(index < sink_tokens, index, index + shift)
    else:
        position = index
    query = length - QUERY_TOKENS + row_token
    seen = (position[None, :] <= query[:, None]) & (index < tokens)[None, :]
    if RING or WINDOWED:
        recent = position[None, :] > query[:, None] - window_tokens
        seen = seen & (recent | (position < sink_tokens)[None, :])
    return seen


@triton.jit
def _attend(q, keys, values, acc, top, total, seen, scale_log2, MASKED: tl.constexpr):
    """Online softmax over one tile of keys; `top` is the running maximum of raw scores."""
    # The interpreter's dot reads bfloat16 as integers; what is compiled keeps the input type.
    operand = tl.float32 if INTERPRETED else values.dtype
    scores = tl.dot(q.to(operand), tl.trans(keys).to(operand))
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    anchor = new_top * scale_log2
    if MASKED:
        anchor = tl.where(new_top == float("-inf"), 0.0, anchor)
    p = tl.exp2(scores * scale_log2 - anchor[:, None])
    decay = tl.exp2(top * scale_log2 - anchor)
    total = total * decay + tl.sum(p, 1)
    acc = tl.dot(p.to(values.dtype).to(operand), values.to(operand), acc * decay[:, None])
    return acc, new_top, total


@triton.jit(
    do_not_specialize=["context_tokens", "kv_heads", "splits", "sink_tokens", "window_tokens"]
)
def decode_split(
    q,
    k,
    v,
    out,
    lse,
    part_out,
    part_lse,
    lengths,
    page_table,
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
    table_stride,
    context_tokens,
    kv_heads,
    splits,
    sink_tokens,
    window_tokens,
    GROUP: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    WINDOWED: tl.constexpr,
    RING: tl.constexpr,
    MASK_ALL: tl.constexpr,
    PARTIAL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (split x row tile, KV head, sequence). PARTIAL: leave results for `decode_merge`."""
    split = tl.program_id(0) // ROW_TILES
    row_tile = tl.program_id(0) % ROW_TILES
    head = tl.program_id(1)
    batch = tl.program_id(2)
    if PDL:
        gdc_launch_dependents()

    length = tl.full((), 0, tl.int32) + context_tokens
    step = tl.full((), BLOCK_N, tl.int64)
    if HAS_LENGTHS:
        length = tl.load(lengths + batch)
    shift = 0
    tokens = length
    if RING:
        tokens = tl.minimum(length, context_tokens)
    elif WINDOWED:
        shift = tl.maximum(length - QUERY_TOKENS + 1 - window_tokens - sink_tokens, 0)
        tokens = length - shift
    ring_slots = context_tokens - sink_tokens

    tiles = tl.cdiv(tokens, BLOCK_N)
    first = (tiles.to(tl.int64) * split // splits).to(tl.int32)
    last = (tiles.to(tl.int64) * (split + 1) // splits).to(tl.int32)
    if MASK_ALL:
        whole = first
    else:
        whole = tl.maximum(tokens - (QUERY_TOKENS - 1), 0) // BLOCK_N
        whole = tl.maximum(tl.minimum(whole, last), first)

    rows = row_tile * ROWS + tl.arange(0, ROWS)
    row_real = rows < GROUP * QUERY_TOKENS
    row_token = rows // GROUP
    row_head = head * GROUP + rows % GROUP
    offs_d = tl.arange(0, BLOCK_D)
    in_dim = offs_d < HEAD_DIM
    q_rows = batch.to(tl.int64) * q_stride_b + row_token * q_stride_t + row_head * q_stride_h
    q_tile = tl.load(
        q + q_rows[:, None] + offs_d[None, :],
        mask=row_real[:, None] & in_dim[None, :],
        other=0.0,
    )

    table = page_table + batch.to(tl.int64) * table_stride
    k_head = k + head.to(tl.int64) * k_stride_h
    v_head = v + head.to(tl.int64) * v_stride_h
    if PAGE == 0:
        k_head += batch.to(tl.int64) * k_stride_b
        v_head += batch.to(tl.int64) * v_stride_b
    offs_n = tl.arange(0, BLOCK_N)
    SCALAR_PAGE: tl.constexpr = PAGE != 0 and PAGE % BLOCK_N == 0 and not WINDOWED
    PER_PAGE: tl.constexpr = PAGE // BLOCK_N if SCALAR_PAGE else 1

    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    page = tl.full((), 0, tl.int32)
    if SCALAR_PAGE:
        page = tl.load(table + first // PER_PAGE, mask=first < whole, other=0)
    for tile in tl.range(first, whole, num_stages=STAGES):
        if SCALAR_PAGE:
            k_tile = k_head + page.to(tl.int64) * k_stride_b
            v_tile = v_head + page.to(tl.int64) * v_stride_b
            k_tile += (tile % PER_PAGE) * BLOCK_N * k_stride_n
            v_tile += (tile % PER_PAGE) * BLOCK_N * v_stride_n
            k_rows = offs_n * k_stride_n
            v_rows = offs_n * v_stride_n
        elif PAGE == 0 and not WINDOWED:
            k_tile = k_head + tile * step * k_stride_n
            v_tile = v_head + tile * step * v_stride_n
            k_rows = offs_n * k_stride_n
            v_rows = offs_n * v_stride_n
        else:
            k_tile = k_head
            v_tile = v_head
            k_rows = _row_offsets(
                tile, k_stride_b, k_stride_n, table, tokens, sink_tokens, shift,
                BLOCK_N, PAGE, WINDOWED,
            )  # fmt: skip
            v_rows = _row_offsets(
                tile, v_stride_b, v_stride_n, table, tokens, sink_tokens, shift,
                BLOCK_N, PAGE, WINDOWED,
            )  # fmt: skip
        if BLOCK_D == HEAD_DIM:
            keys = tl.load(k_tile + (k_rows[:, None] + offs_d[None, :]))
            values = tl.load(v_tile + (v_rows[:, None] + offs_d[None, :]))
        else:
            keys = tl.load(
                k_tile + (k_rows[:, None] + offs_d[None, :]), mask=in_dim[None, :], other=0.0
            )
            values = tl.load(
                v_tile + (v_rows[:, None] + offs_d[None, :]), mask=in_dim[None, :], other=0.0
            )
        if SCALAR_PAGE:
            following = tile + 1
            page = tl.load(table + following // PER_PAGE, mask=following < whole, other=0)
        acc, top, total = _attend(q_tile, keys, values, acc, top, total, None, scale_log2, False)

    for tile in tl.range(whole, last, num_stages=STAGES if MASK_ALL else 1):
        index = tile * BLOCK_N + offs_n
        k_rows = _row_offsets(
            tile, k_stride_b, k_stride_n, table, tokens, sink_tokens, shift,
            BLOCK_N, PAGE, WINDOWED,
        )  # fmt: skip
        v_rows = _row_offsets(
            tile, v_stride_b, v_stride_n, table, tokens, sink_tokens, shift,
            BLOCK_N, PAGE, WINDOWED,
        )  # fmt: skip
        present = (index < tokens)[:, None] & in_dim[None, :]
        keys = tl.load(k_head + (k_rows[:, None] + offs_d[None, :]), mask=present, other=0.0)
        values = tl.load(v_head + (v_rows[:, None] + offs_d[None, :]), mask=present, other=0.0)
        seen = _visible(
            index, row_token, tokens, length, sink_tokens, window_tokens, shift, ring_slots,
            QUERY_TOKENS, WINDOWED, RING,
        )  # fmt: skip
        acc, top, total = _attend(q_tile, keys, values, acc, top, total, seen, scale_log2, True)

    empty = total == 0.0
    result = acc / tl.where(empty, 1.0, total)[:, None]
    result_lse = tl.where(empty, float("-inf"), top * scale_log2 + tl.log2(total))

    out_row = (batch.to(tl.int64) * QUERY_TOKENS + row_token) * (kv_heads * GROUP) + row_head
    if not PARTIAL:
        tl.store(
            out + out_row[:, None] * HEAD_DIM + offs_d[None, :],
            result.to(out.dtype.element_ty),
            mask=row_real[:, None] & in_dim[None, :],
        )
        tl.store(lse + out_row, result_lse * LN2, mask=row_real)
    else:
        cell = (batch.to(tl.int64) * kv_heads + head) * ROW_TILES + row_tile
        local = tl.arange(0, ROWS)
        part_row = (cell * splits + split) * ROWS + local
        tl.store(
            part_out + part_row[:, None] * BLOCK_D + offs_d[None, :],
            result,
            mask=row_real[:, None],
        )
        tl.store(part_lse + part_row, result_lse, mask=row_real)


@triton.jit(do_not_specialize=["kv_heads", "splits"])
def decode_merge(
    out,
    lse,
    part_out,
    part_lse,
    kv_heads,
    splits,
    GROUP: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the splits of one query row: grid (row, KV head, sequence)."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2)
    row_head = head * GROUP + row % GROUP
    cell = (batch.to(tl.int64) * kv_heads + head) * ROW_TILES + row // ROWS
    offs_d = tl.arange(0, BLOCK_D)
    offs_s = tl.arange(0, BLOCK_S)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    if PDL:
        gdc_wait()
    for start in range(0, splits, BLOCK_S):
        real = start + offs_s < splits
        source = (cell * splits + start + offs_s) * ROWS + row % ROWS
        share = tl.load(part_lse + source, mask=real, other=float("-inf"))
        partial = tl.load(
            part_out + source[:, None] * BLOCK_D + offs_d[None, :], mask=real[:, None], other=0.0
        )
        new_top = tl.maximum(top, tl.max(share, 0))
        anchor = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(share - anchor)
        decay = tl.exp2(top - anchor)
        acc = acc * decay + tl.sum(partial * weight[:, None], 0)
        total = total * decay + tl.sum(weight, 0)
        top = new_top
    empty = total == 0.0
    out_row = (batch.to(tl.int64) * QUERY_TOKENS + row // GROUP) * (kv_heads * GROUP) + row_head
    tl.store(
        out + out_row * HEAD_DIM + offs_d,
        (acc / tl.where(empty, 1.0, total)).to(out.dtype.element_ty),
        mask=offs_d < HEAD_DIM,
    )
    tl.store(lse + out_row, tl.where(empty, float("-inf"), (top + tl.log2(total)) * LN2))
