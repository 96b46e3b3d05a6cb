"""Decode over a compressed cache: one block attends one chunk of one KV head's tokens.

Keys are the left operand, `S^T = K Q^T` and `O^T = V^T P^T`: tokens and channels fill the 16 rows
of the matrix instruction and the few query rows its 8 columns, so each code is unpacked by one
lane of one warp. Scales never touch a code. A key's scale multiplies its score, a value's its
probability; scales by channel multiply Q, once a group. What `low` adds is a rank-one term of each.

Probabilities enter the second product in fp16. Times a value's scale they would leave its range, so
they are divided by the largest scale seen so far (kept beside the running maximum of the softmax)
and raised by 2**15: a weight 2**-39 below the largest still counts.

Blocks are merged as in the dense decode (Flash-Decoding, Dao et al., 2023).
"""

# Kernel code is a language of its own: arguments are untyped, and tuples grow in unrolled loops.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="assignment, unreachable, misc"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .unpack import unpack

LN2 = tl.constexpr(0.6931471805599453)
NEVER = tl.constexpr(-1e30)
"""A score not seen; running maxima start at a tenth of it: exp2 of the difference is 0."""
LIFT = tl.constexpr(2.0**15)


@triton.constexpr_function
def _plane_gain(plane, code):
    """What a plane's unpacked numbers must be multiplied by, relative to plane 0."""
    return 0.0625 if code == "int4" and plane % 2 == 1 else 1.0


@triton.jit
def _channels(plane: tl.constexpr, WORDS: tl.constexpr, PLANES: tl.constexpr):
    """The channels that plane `plane` of each word holds."""
    if PLANES == 4:
        return plane * WORDS + tl.arange(0, WORDS)
    return tl.arange(0, WORDS) * PLANES + plane


@triton.jit
def _load_token_scales(pointer, stride_g, offsets, real, GROUPS: tl.constexpr):
    loaded = ()
    for group in tl.static_range(GROUPS):
        if real is None:
            part = tl.load(pointer + group * stride_g + offsets)
        else:
            part = tl.load(pointer + group * stride_g + offsets, mask=real, other=0.0)
        loaded = loaded + (part.to(tl.float32),)
    return loaded


@triton.jit
def _load_channel_scales(pointer, real, WORDS: tl.constexpr, PLANES: tl.constexpr):
    loaded = ()
    for plane in tl.static_range(PLANES):
        channel = _channels(plane, WORDS, PLANES)
        part = tl.load(pointer + channel, mask=(channel >= 0) & real, other=0.0)
        loaded = loaded + (part.to(tl.float16),)
    return loaded


@triton.jit
def _load_scales(
    scale,
    low,
    stride_g,
    slot_offset,
    first_token,
    offsets,
    real,
    tile_real,
    MODE: tl.constexpr,
    HAS_LOW: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    PLANES: tl.constexpr,
):
    """(scales, lows) of one tile: by token, by channel, or none."""
    scales = ()
    lows = ()
    if MODE == "token":
        at = first_token + offsets
        scales = _load_token_scales(scale + slot_offset, stride_g, at, real, GROUPS)
        if HAS_LOW:
            lows = _load_token_scales(low + slot_offset, stride_g, at, real, GROUPS)
    elif MODE == "channel":
        row = slot_offset + (first_token // GROUP_TOKENS) * stride_g
        scales = _load_channel_scales(scale + row, tile_real, WORDS, PLANES)
        lows = _load_channel_scales(low + row, tile_real, WORDS, PLANES)
    return scales, lows


@triton.jit
def _eighths(x):
    """Sums of every eighth row, [8, columns]: the rows that one lane holds, so no exchange."""
    return tl.sum(tl.reshape(x, (x.shape[0] // 8, 8, x.shape[1])), 0)


@triton.jit
def _scores(
    keys,
    q,
    q_gained,
    q_sums,
    scales,
    lows,
    MODE: tl.constexpr,
    HAS_LOW: tl.constexpr,
    GROUPS: tl.constexpr,
    PLANES: tl.constexpr,
    UNIT: tl.constexpr,
    CODE: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Scores [tokens, rows] in units of 1 / UNIT, before the softmax scale."""
    if MODE == "channel":
        # The same low for every token: one row of products, repeated to a tile of 16.
        WORDS: tl.constexpr = keys[0].shape[1]
        if TOGETHER:
            scaled = ()
            rows = ()
            for plane in tl.static_range(PLANES):
                scale = (scales[plane] * _plane_gain(plane, CODE)).to(tl.float16)
                scaled = scaled + (q[plane] * scale[:, None],)
                rows = rows + (tl.broadcast_to(lows[plane][None, :], (16, WORDS)),)
            row = tl.dot(rows[0], q[0])
            for plane in tl.static_range(1, PLANES):
                row = tl.dot(rows[plane], q[plane], row)
            scores = tl.dot(keys[0], scaled[0])
            for plane in tl.static_range(1, PLANES):
                scores = tl.dot(keys[plane], scaled[plane], scores)
        else:
            row = tl.dot(tl.broadcast_to(lows[0][None, :], (16, WORDS)), q[0])
            scores = tl.dot(keys[0], q[0] * scales[0][:, None])
            for plane in tl.static_range(1, PLANES):
                row = tl.dot(tl.broadcast_to(lows[plane][None, :], (16, WORDS)), q[plane], row)
                scale = scales[plane] * _plane_gain(plane, CODE)
                scores = tl.dot(keys[plane], q[plane] * scale[:, None].to(tl.float16), scores)
        shape: tl.constexpr = (keys[0].shape[0] // 16, 16, q[0].shape[1])
        tiled = tl.reshape(scores, shape) + (row * UNIT)[None, :, :]
        scores = tl.reshape(tiled, scores.shape)
    elif MODE == "tensor":
        scores = tl.dot(keys[0], q_gained[0])
        for plane in tl.static_range(1, PLANES):
            scores = tl.dot(keys[plane], q_gained[plane], scores)
    else:
        PER_GROUP: tl.constexpr = PLANES // GROUPS
        for group in tl.static_range(GROUPS):
            part = tl.dot(keys[group * PER_GROUP], q_gained[group * PER_GROUP])
            for step in tl.static_range(1, PER_GROUP):
                part = tl.dot(
                    keys[group * PER_GROUP + step], q_gained[group * PER_GROUP + step], part
                )
            part = part * scales[group][:, None]
            if HAS_LOW:
                part += lows[group][:, None] * q_sums[group][None, :]
            scores = part if group == 0 else scores + part
    return scores


@triton.jit
def _store_part(
    part_out,
    part_lse,
    cell,
    split,
    splits,
    acc,
    shift,
    top,
    total,
    out_unit,
    column_log2,
    rows,
    row_real,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    PLANES: tl.constexpr,
    V_GROUPS: tl.constexpr,
    HAS_LOW: tl.constexpr,
    CODE: tl.constexpr,
):
    """Normalised partial output, float32, and its log2-sum-exp."""
    total = tl.sum(total, 0)
    empty = total == 0.0
    inverse = 1.0 / tl.where(empty, 1.0, total)
    at = (cell * splits + split) * ROWS + rows
    for plane in tl.static_range(PLANES):
        value = acc[plane] * (out_unit * _plane_gain(plane, CODE))
        if HAS_LOW:
            value += tl.sum(shift[plane * V_GROUPS // PLANES], 0)[None, :]
        tl.store(
            part_out + at[None, :] * HEAD_DIM + _channels(plane, WORDS, PLANES)[:, None],
            value * inverse[None, :],
            mask=row_real[None, :],
        )
    lse = top * column_log2 + tl.log2(tl.where(empty, 1.0, total))
    lse = tl.where(empty, float("-inf"), lse)
    tl.store(part_lse + at, lse, mask=row_real)


@triton.jit(do_not_specialize=["kv_heads", "splits", "split_tiles"])
def quantised_decode_split(
    q,
    k_codes,
    k_scale,
    k_low,
    v_codes,
    v_scale,
    v_low,
    residual_k,
    residual_v,
    part_out,
    part_lse,
    lengths,
    page_table,
    scale_log2,
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_s,
    k_stride_h,
    k_stride_n,
    ks_stride_s,
    ks_stride_h,
    ks_stride_g,
    v_stride_s,
    v_stride_h,
    v_stride_n,
    vs_stride_s,
    vs_stride_h,
    vs_stride_g,
    table_stride,
    kv_heads,
    splits,
    split_tiles,
    GROUP: tl.constexpr,
    QUERY_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_TILES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PAGE: tl.constexpr,
    CODE: tl.constexpr,
    K_MODE: tl.constexpr,
    V_MODE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_TOKENS: tl.constexpr,
    V_GROUPS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    NATIVE: tl.constexpr,
    PDL: tl.constexpr,
    K_ROW: tl.constexpr,
    V_ROW: tl.constexpr,
    LATE: tl.constexpr,
):
    """One (split, row tile) x KV head x sequence; a split is `split_tiles` tiles of BLOCK_N tokens.

    Code tensors are seen as 16-bit words, their strides counted in words. GROUP_TOKENS is 0 where
    there is no residual, PAGE 0 where the cache is contiguous.

    K_ROW and V_ROW are the words between two tokens where they are known when compiling, else 0:
    addresses then are one base and constants. Scales are loaded a tile ahead into registers; those
    by token with LATE beside their codes, through shared memory in the compiler's pipeline. That
    needs two neighbouring fp16 scales to a lane, the least that an asynchronous copy takes. Scales
    by channel stay a tile ahead; LATE then makes all their operands before the first product.
    """
    split = tl.program_id(0) // ROW_TILES
    row_tile = tl.program_id(0) % ROW_TILES
    head = tl.program_id(1)
    batch = tl.program_id(2)
    if PDL:
        gdc_launch_dependents()
    PLANES: tl.constexpr = 4 if CODE == "int4" else 2
    WORDS: tl.constexpr = HEAD_DIM // PLANES
    HAS_LOW: tl.constexpr = CODE == "int4"
    UNIT: tl.constexpr = 2.0**-24 if CODE == "int4" else 1.0

    length = tl.load(lengths + batch)
    tokens = length
    if GROUP_TOKENS > 0:
        tokens = length // GROUP_TOKENS * GROUP_TOKENS
    tiles = tl.cdiv(tokens, BLOCK_N)
    first = split * split_tiles
    last = tl.minimum(first + split_tiles, tiles)

    local = tl.arange(0, ROWS)
    rows = row_tile * ROWS + local
    row_real = rows < GROUP * QUERY_TOKENS
    row_head = head * GROUP + rows % GROUP
    limit = length - QUERY_TOKENS + 1 + rows // GROUP
    q_rows = batch.to(tl.int64) * q_stride_b + (rows // GROUP) * q_stride_t + row_head * q_stride_h
    offs_w = tl.arange(0, WORDS)
    offs_n = tl.arange(0, BLOCK_N)

    # Rows are divided by a power of two that brings their largest element to [1, 2): exact in fp16.
    raw = ()
    largest = tl.zeros((ROWS,), tl.float32)
    for plane in tl.static_range(PLANES):
        part = tl.load(
            q + q_rows[None, :] + _channels(plane, WORDS, PLANES)[:, None],
            mask=row_real[None, :],
            other=0.0,
        ).to(tl.float32)
        raw = raw + (part,)
        largest = tl.maximum(largest, tl.max(tl.abs(part), 0))
    bits = tl.maximum(largest, 1e-30).to(tl.int32, bitcast=True) & 0x7F800000
    row_unit = bits.to(tl.float32, bitcast=True)
    q_planes = ()
    q_gained = ()
    q_sums = ()
    for plane in tl.static_range(PLANES):
        scaled = raw[plane] / row_unit[None, :]
        q_planes = q_planes + (scaled.to(tl.float16),)
        q_gained = q_gained + ((scaled * _plane_gain(plane, CODE)).to(tl.float16),)
        if plane % (PLANES // GROUPS) == 0:
            group_sum = tl.sum(q_planes[plane].to(tl.float32), 0) * UNIT
        else:
            group_sum += tl.sum(q_planes[plane].to(tl.float32), 0) * UNIT
        if (plane + 1) % (PLANES // GROUPS) == 0:
            q_sums = q_sums + (group_sum,)
    column = row_unit * scale_log2 / UNIT
    if K_MODE == "tensor":
        column = column * tl.load(k_scale)

    acc = ()
    for _ in tl.static_range(PLANES):
        acc = acc + (tl.zeros((WORDS, ROWS), tl.float32),)
    shift = ()
    for _ in tl.static_range(V_GROUPS):
        shift = shift + (tl.zeros((8, ROWS), tl.float32),)
    top = tl.full((ROWS,), NEVER * 0.1, tl.float32)
    total = tl.zeros((8, ROWS), tl.float32)
    scale_top = 1e-30

    k_head = k_codes + head.to(tl.int64) * k_stride_h
    v_head = v_codes + head.to(tl.int64) * v_stride_h
    ks_head = head.to(tl.int64) * ks_stride_h
    vs_head = head.to(tl.int64) * vs_stride_h
    table = page_table + batch.to(tl.int64) * table_stride
    PER_PAGE: tl.constexpr = PAGE // BLOCK_N if PAGE > 0 else 1
    slot = batch
    slot_tile = first
    if PAGE > 0:
        slot = tl.load(table + first // PER_PAGE, mask=first < last, other=0)
        slot_tile = first % PER_PAGE
    K_LATE: tl.constexpr = LATE and K_MODE == "token"
    V_LATE: tl.constexpr = LATE and V_MODE == "token"
    real = first * BLOCK_N + offs_n < tokens
    if not K_LATE:
        k_scales, k_lows = _load_scales(
            k_scale, k_low, ks_stride_g, ks_head + slot.to(tl.int64) * ks_stride_s,
            slot_tile * BLOCK_N, offs_n, real, first < last,
            K_MODE, HAS_LOW, GROUPS, GROUP_TOKENS, WORDS, PLANES,
        )  # fmt: skip
    if not V_LATE:
        v_scales, v_lows = _load_scales(
            v_scale, v_low, vs_stride_g, vs_head + slot.to(tl.int64) * vs_stride_s,
            slot_tile * BLOCK_N, offs_n, real, first < last,
            V_MODE, HAS_LOW, V_GROUPS, GROUP_TOKENS, WORDS, PLANES,
        )  # fmt: skip

    # Tiles that every row sees whole, then the few that need masks.
    whole = tl.minimum(tokens, length - QUERY_TOKENS + 1) // BLOCK_N
    whole = tl.maximum(tl.minimum(whole, last), first)
    for edge in tl.static_range(2):
        begin = whole if edge else first
        end = last if edge else whole
        for tile in tl.range(begin, end, num_stages=1 if edge else STAGES):
            index = tile * BLOCK_N + offs_n
            real = index < tokens
            k_tile = k_head + slot.to(tl.int64) * k_stride_s
            v_tile = v_head + slot.to(tl.int64) * v_stride_s
            if K_ROW > 0:
                k_tile += slot_tile * (BLOCK_N * K_ROW)
                v_tile += slot_tile * (BLOCK_N * V_ROW)
                k_at = k_tile + ((offs_n * K_ROW)[:, None] + offs_w[None, :])
                v_at = v_tile + ((offs_n * V_ROW)[None, :] + offs_w[:, None])
            else:
                at = slot_tile * BLOCK_N + offs_n
                k_at = k_tile + (at * k_stride_n)[:, None] + offs_w[None, :]
                v_at = v_tile + (at * v_stride_n)[None, :] + offs_w[:, None]
            if edge:
                k_words = tl.load(k_at, mask=real[:, None], other=0)
                v_words = tl.load(v_at, mask=real[None, :], other=0)
            else:
                k_words = tl.load(k_at)
                v_words = tl.load(v_at)
            if K_LATE:
                k_scales, k_lows = _load_scales(
                    k_scale, k_low, ks_stride_g, ks_head + slot.to(tl.int64) * ks_stride_s,
                    slot_tile * BLOCK_N, offs_n, real if edge else None, True,
                    K_MODE, HAS_LOW, GROUPS, GROUP_TOKENS, WORDS, PLANES,
                )  # fmt: skip
            if V_LATE:
                v_scales, v_lows = _load_scales(
                    v_scale, v_low, vs_stride_g, vs_head + slot.to(tl.int64) * vs_stride_s,
                    slot_tile * BLOCK_N, offs_n, real if edge else None, True,
                    V_MODE, HAS_LOW, V_GROUPS, GROUP_TOKENS, WORDS, PLANES,
                )  # fmt: skip
            following = tile + 1
            slot_tile = following
            if PAGE > 0:
                slot = tl.load(table + following // PER_PAGE, mask=following < last, other=0)
                slot_tile = following % PER_PAGE
            next_real = following * BLOCK_N + offs_n < tokens
            if not K_LATE:
                next_k_scales, next_k_lows = _load_scales(
                    k_scale, k_low, ks_stride_g, ks_head + slot.to(tl.int64) * ks_stride_s,
                    slot_tile * BLOCK_N, offs_n, next_real, following < last,
                    K_MODE, HAS_LOW, GROUPS, GROUP_TOKENS, WORDS, PLANES,
                )  # fmt: skip
            if not V_LATE:
                next_v_scales, next_v_lows = _load_scales(
                    v_scale, v_low, vs_stride_g, vs_head + slot.to(tl.int64) * vs_stride_s,
                    slot_tile * BLOCK_N, offs_n, next_real, following < last,
                    V_MODE, HAS_LOW, V_GROUPS, GROUP_TOKENS, WORDS, PLANES,
                )  # fmt: skip

            scores = _scores(
                unpack(k_words, CODE, ASSEMBLY, NATIVE),
                q_planes, q_gained, q_sums, k_scales, k_lows,
                K_MODE, HAS_LOW, GROUPS, PLANES, UNIT, CODE, LATE,
            )  # fmt: skip
            if edge:
                scores = tl.where(index[:, None] < limit[None, :], scores, NEVER)
            new_top = tl.maximum(top, tl.max(scores, 0))
            p = tl.exp2(scores * column[None, :] - (new_top * column)[None, :])
            decay = tl.exp2((top - new_top) * column)
            top = new_top
            total = total * decay[None, :] + _eighths(p)

            acc_decay = decay
            if V_MODE == "token":
                largest_scale = v_scales[0]
                for group in tl.static_range(1, V_GROUPS):
                    largest_scale = tl.maximum(largest_scale, v_scales[group])
                new_scale_top = tl.maximum(scale_top, tl.max(largest_scale, 0))
                acc_decay = decay * (scale_top / new_scale_top)
                scale_top = new_scale_top
            values = unpack(v_words, CODE, ASSEMBLY, NATIVE)
            weights = ()
            new_shift = ()
            if V_MODE == "tensor":
                weights = weights + ((p * LIFT).to(tl.float16),)
            else:
                for group in tl.static_range(V_GROUPS):
                    factor = v_scales[group] * (LIFT / scale_top)
                    weights = weights + ((p * factor[:, None]).to(tl.float16),)
                    if HAS_LOW:
                        lift = _eighths(p * v_lows[group][:, None])
                        new_shift = new_shift + (shift[group] * decay[None, :] + lift,)
            if HAS_LOW:
                shift = new_shift
            new_acc = ()
            for plane in tl.static_range(PLANES):
                new_acc = new_acc + (
                    tl.dot(
                        values[plane],
                        weights[plane * V_GROUPS // PLANES],
                        acc[plane] * acc_decay[None, :],
                    ),
                )
            acc = new_acc
            if not K_LATE:
                k_scales = next_k_scales
                k_lows = next_k_lows
            if not V_LATE:
                v_scales = next_v_scales
                v_lows = next_v_lows

    if GROUP_TOKENS > 0:
        # The split that ends the codes also attends the residual (the first one, if it is empty).
        ends = tl.maximum(tl.cdiv(tiles, split_tiles), 1) - 1 == split
        newest = tl.where(ends, length - tokens, 0)
        base = (batch.to(tl.int64) * kv_heads + head) * (GROUP_TOKENS * HEAD_DIM)
        RESIDUAL_N: tl.constexpr = 16
        for start in tl.range(0, newest, RESIDUAL_N, num_stages=1):
            place = start + tl.arange(0, RESIDUAL_N)
            fresh = place < newest
            s = tl.zeros((RESIDUAL_N, ROWS), tl.float32)
            for plane in tl.static_range(PLANES):
                channel = _channels(plane, WORDS, PLANES)
                keys = tl.load(
                    residual_k + base + place[:, None] * HEAD_DIM + channel[None, :],
                    mask=fresh[:, None],
                    other=0.0,
                ).to(tl.float16)
                s = tl.dot(keys, q_planes[plane], s)
            s = tl.where((tokens + place)[:, None] < limit[None, :], s * UNIT, NEVER)
            peak = tl.maximum(top, tl.max(s, 0))
            r = tl.exp2(s * column[None, :] - (peak * column)[None, :])
            fade = tl.exp2((top - peak) * column)
            top = peak
            total = total * fade[None, :] + _eighths(r)
            decayed = ()
            for group in tl.static_range(V_GROUPS):
                decayed = decayed + (shift[group] * fade[None, :],)
            shift = decayed
            newest_weight = (r * LIFT).to(tl.float16)
            new_acc = ()
            for plane in tl.static_range(PLANES):
                channel = _channels(plane, WORDS, PLANES)
                newest_values = tl.load(
                    residual_v + base + place[None, :] * HEAD_DIM + channel[:, None],
                    mask=fresh[None, :],
                    other=0.0,
                ).to(tl.float16)
                added = tl.dot(newest_values, newest_weight)
                new_acc = new_acc + (
                    acc[plane] * fade[None, :]
                    + added * (UNIT / _plane_gain(plane, CODE) / scale_top),
                )
            acc = new_acc

    if V_MODE == "tensor":
        out_unit = tl.load(v_scale) / LIFT
    else:
        out_unit = scale_top / (LIFT * UNIT)
    cell = (batch.to(tl.int64) * kv_heads + head) * ROW_TILES + row_tile
    _store_part(
        part_out, part_lse, cell, split, splits, acc, shift, top, total, out_unit, column,
        local, row_real, HEAD_DIM, ROWS, WORDS, PLANES, V_GROUPS, HAS_LOW, CODE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["kv_heads", "splits"])
def merge_splits(
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
    """Merge BLOCK_D channels of one query row: grid (row x channel blocks, KV head, sequence).

    Blocks of one warp leave many splits; a narrow slice of all of them fits one block's registers.
    """
    CHUNKS: tl.constexpr = HEAD_DIM // BLOCK_D
    row = tl.program_id(0) // CHUNKS
    chunk = tl.program_id(0) % CHUNKS
    head = tl.program_id(1)
    batch = tl.program_id(2)
    row_head = head * GROUP + row % GROUP
    cell = (batch.to(tl.int64) * kv_heads + head) * ROW_TILES + row // ROWS
    offs_d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
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
            part_out + source[:, None] * HEAD_DIM + offs_d[None, :], mask=real[:, None], other=0.0
        )
        new_top = tl.maximum(top, tl.max(share, 0))
        anchor = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(share - anchor)
        decay = tl.exp2(top - anchor)
        acc = acc * decay + tl.sum(partial * weight[:, None], 0)
        total = total * decay + tl.sum(weight, 0)
        top = new_top
    empty = total == 0.0
    safe = tl.where(empty, 1.0, total)
    out_row = (batch.to(tl.int64) * QUERY_TOKENS + row // GROUP) * (kv_heads * GROUP) + row_head
    tl.store(out + out_row * HEAD_DIM + offs_d, (acc / safe).to(out.dtype.element_ty))
    if chunk == 0:
        tl.store(lse + out_row, tl.where(empty, float("-inf"), (top + tl.log2(safe)) * LN2))
