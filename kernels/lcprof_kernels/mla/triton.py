"""Absorbed MLA decode: every tile of the cache is read once and serves both products.

A cached token is one row of 512 latent and 64 rotary elements; its latent part is also its value.
The cache's strides come in units of 16 bytes, so that the compiler knows every row as aligned.
"""

# Capital names are compile-time constants; arguments of kernels have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents

from lcprof_kernels.merge.triton import INTERPRETED, narrow
from lcprof_kernels.quantised_decode.unpack import unpack_fp8

LATENT = tl.constexpr(512)
ROPE = tl.constexpr(64)
SCALES = tl.constexpr(4)
LN2 = tl.constexpr(0.6931471805599453)
PLAIN = [
    "rows", "heads", "query_tokens", "splits", "stride_batch", "stride_page", "stride_token",
    "stride_table", "slot_tokens",
]  # fmt: skip
"""Numbers whose divisibility says nothing: one binary serves them all."""


@triton.jit
def token_rows(
    table_ptr, tile, last_token, batch, stride_batch, stride_page, stride_token, stride_table,
    PAGE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Where the tile's rows start: a common base and each row's offset from it, in 16-byte units.

    Rows past the last token repeat it, so that nothing stray (a NaN, say) is ever read.
    """
    first = tile * BLOCK_N + tl.zeros([], tl.int64)
    here = tl.minimum(tl.arange(0, BLOCK_N), last_token - tile * BLOCK_N)
    if PAGE == 0:
        base = batch.to(tl.int64) * stride_batch + first * stride_token
        offset = here * stride_token
    elif PAGE % BLOCK_N == 0:
        table = table_ptr + batch.to(tl.int64) * stride_table
        page = tl.load(table + first // PAGE).to(tl.int64)
        base = page * stride_page + (first % PAGE) * stride_token
        offset = here * stride_token
    else:
        n = here + tile * BLOCK_N
        page = tl.load(table_ptr + batch.to(tl.int64) * stride_table + n // PAGE).to(tl.int64)
        base = tl.zeros([], tl.int64)
        offset = page * stride_page + (n % PAGE) * stride_token
    return base, offset


@triton.jit
def widen(packed, NATIVE: tl.constexpr):
    """The fp32 value of e4m3 bytes. Below sm_89 no instruction converts them: bits are moved."""
    if NATIVE:
        value = packed.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    else:
        bits = packed.to(tl.int32)
        magnitude = bits & 0x7F
        moved = ((bits & 0x80) << 24) | (magnitude << 20)
        value = moved.to(tl.float32, bitcast=True) * 2.0**120
        value = tl.where(magnitude == 0x7F, float("nan"), value)
    return value


@triton.jit
def latent_tile(
    latent_ptr, scale_ptr, base, offset,
    FP8: tl.constexpr, WORDS: tl.constexpr, NATIVE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, 512] bf16. With WORDS fp8 codes are read two at a time."""
    d = tl.arange(0, LATENT)
    if FP8:
        if WORDS:
            w = tl.arange(0, LATENT // 2)
            words_ptr = (latent_ptr + base * 16).to(tl.pointer_type(tl.int16))
            words = tl.load(words_ptr + offset[:, None] * 8 + w[None, :])
            if NATIVE:
                low, high = unpack_fp8(words, not INTERPRETED, NATIVE)
            else:
                low, high = widen(words & 255, NATIVE), widen((words >> 8) & 255, NATIVE)
            value = tl.join(low, high).to(tl.float32)
        else:
            packed = tl.load(latent_ptr + base * 16 + offset[:, None] * 16 + d[None, :])
            value = widen(packed, NATIVE)
        g = tl.arange(0, SCALES)
        scale = tl.load(scale_ptr + base * 4 + offset[:, None] * 4 + g[None, :])
        value = tl.reshape(value, (BLOCK_N, SCALES, LATENT // SCALES))
        value = tl.reshape(value * scale[:, :, None], (BLOCK_N, LATENT))
        tile = narrow(value, tl.bfloat16)
    else:
        tile = tl.load(latent_ptr + base * 8 + offset[:, None] * 8 + d[None, :])
    return tile


@triton.jit
def product(a, b, acc):
    """`acc + a b`."""
    if INTERPRETED:  # its dot reads bfloat16 as integers; what is compiled keeps the input type
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def weigh(q_latent, k_latent, s_rope, n, visible, top, total, scale_log2):
    """One step of the online softmax: bf16 weights, the fade of what came before, top and total."""
    s = tl.zeros(s_rope.shape, tl.float32)
    s = s_rope + product(q_latent, tl.trans(k_latent), s) * scale_log2
    s = tl.where(n[None, :] < visible[:, None], s, float("-inf"))
    peak = tl.maximum(top, tl.max(s, 1))
    base = tl.where(peak == float("-inf"), 0.0, peak)
    weight = tl.exp2(s - base[:, None])
    fade = tl.exp2(top - base)
    return narrow(weight, tl.bfloat16), fade, peak, total * fade + tl.sum(weight, 1)


@triton.jit
def weigh_columns(q_latent, k_latent, s_rope, n, visible, top, total, scale_log2):
    """`weigh` with tokens as rows and query rows as columns."""
    s = tl.zeros(s_rope.shape, tl.float32)
    s = s_rope + product(k_latent, tl.trans(q_latent), s) * scale_log2
    s = tl.where(n[:, None] < visible[None, :], s, float("-inf"))
    peak = tl.maximum(top, tl.max(s, 0))
    base = tl.where(peak == float("-inf"), 0.0, peak)
    weight = tl.exp2(s - base[None, :])
    fade = tl.exp2(top - base)
    return weight, fade, peak, total * fade + tl.sum(weight, 0)


@triton.jit
def attend_columns(
    q_latent, q_rope, k_latent, k_rope, n, visible, top, total, acc, scale_log2, length, splits,
    APART: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`attend_tile` with its products swapped: S^T = K Q^T and O^T = V^T P^T."""
    s_rope = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    s_rope = product(k_rope, tl.trans(q_rope), s_rope) * scale_log2
    if APART:
        # p is narrowed only in the second branch: its copy to shared memory then waits until there,
        # and the next tile's copy does not wait for it.
        p = tl.full([BLOCK_N, BLOCK_H], length, tl.float32)
        fade = tl.full([BLOCK_H], length, tl.float32)
        if length > 0:
            p, fade, top, total = weigh_columns(
                q_latent, k_latent, s_rope, n, visible, top, total, scale_log2
            )
        if splits > 0:
            acc = product(tl.trans(k_latent), narrow(p, tl.bfloat16), acc * fade[None, :])
    else:
        p, fade, top, total = weigh_columns(
            q_latent, k_latent, s_rope, n, visible, top, total, scale_log2
        )
        acc = product(tl.trans(k_latent), narrow(p, tl.bfloat16), acc * fade[None, :])
    return top, total, acc


@triton.jit
def attend_tile(
    q_latent, q_rope, k_latent, k_rope, n, visible, top, total, acc, scale_log2, length, splits,
    APART: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add one tile of tokens to the running top, total and output."""
    s_rope = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    s_rope = product(q_rope, tl.trans(k_rope), s_rope) * scale_log2
    if APART:
        # Not zeros: a constant would be kept in shared memory for the branch never taken.
        p = tl.full([BLOCK_H, BLOCK_N], length, tl.bfloat16)
        fade = tl.full([BLOCK_H], length, tl.float32)
        if length > 0:
            p, fade, top, total = weigh(
                q_latent, k_latent, s_rope, n, visible, top, total, scale_log2
            )
        if splits > 0:
            acc = product(p, k_latent, acc * fade[:, None])
    else:
        p, fade, top, total = weigh(q_latent, k_latent, s_rope, n, visible, top, total, scale_log2)
        acc = product(p, k_latent, acc * fade[:, None])
    return top, total, acc


@triton.jit(do_not_specialize=PLAIN)
def decode_tiles(
    q_ptr, latent_ptr, rope_ptr, scale_ptr, latent_boxes, rope_boxes, table_ptr, lengths_ptr,
    out_ptr, lse_ptr, scale_log2, rows, heads, query_tokens, splits,
    stride_q_batch, stride_q_token, stride_q_head,
    stride_batch, stride_page, stride_token, stride_table, slot_tokens,
    PAGE: tl.constexpr, FP8: tl.constexpr, NATIVE: tl.constexpr, BOXES: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, APART: tl.constexpr,
    COLUMNS: tl.constexpr, PDL: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, splits, batch); a row is one head of one query token.

    Writes out [splits, batch, rows, 512] and lse [splits, batch, rows]. PAGE 0 is a contiguous
    cache. With BOXES, whole tiles are copied through the tensor descriptors `latent_boxes` and
    `rope_boxes` of the cache as [slots * slot_tokens, 512 and 64]; the last, broken tile is not.

    COLUMNS swaps the operands of both products, so that tokens and latent channels fill the 64 rows
    of a warp group's product and few query rows are its columns.

    WORDS reads fp8 codes in pairs: of single bytes the compiler makes, for few rows, operands that
    ldmatrix cannot load, and does not pipeline their copies.

    APART keeps the two products in separate branches that are always taken: the compiler then
    gives each its own layout, so that two warp groups halve the tokens of Q K^T instead of both
    computing all of it, and starts the next tile's copy before this tile's products.
    """
    if PDL:
        gdc_launch_dependents()
    split = tl.program_id(1)
    batch = tl.program_id(2)
    length = tl.load(lengths_ptr + batch)
    r = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    d = tl.arange(0, LATENT)
    e = tl.arange(0, ROPE)
    here = r < rows
    head = tl.where(here, r % heads, 0)
    token = tl.where(here, r // heads, 0)
    q_row = q_ptr + batch.to(tl.int64) * stride_q_batch
    q_row += token[:, None] * stride_q_token + head[:, None] * stride_q_head
    q_latent = tl.load(q_row + d[None, :])
    q_rope = tl.load(q_row + LATENT + e[None, :])
    visible = length - (query_tokens - 1 - token)

    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    acc = tl.zeros([LATENT, BLOCK_H] if COLUMNS else [BLOCK_H, LATENT], tl.float32)
    PIECE: tl.constexpr = 16 if BOXES else BLOCK_N
    tiles = tl.cdiv(length, BLOCK_N)
    each = tl.cdiv(tiles, splits)
    first = tl.minimum(split * each, tiles)
    last = tl.minimum(first + each, tiles)
    begin, end, whole = first, last, last
    if BOXES:
        whole = tl.minimum(last, length // BLOCK_N)
        begin = tl.maximum(first, whole) * (BLOCK_N // PIECE)
        end = tl.minimum(last * (BLOCK_N // PIECE), tl.cdiv(length, PIECE))
    for tile in tl.range(begin, end, num_stages=1 if BOXES else STAGES):
        base, offset = token_rows(
            table_ptr, tile, length - 1, batch, stride_batch, stride_page, stride_token,
            stride_table, PAGE, PIECE,
        )  # fmt: skip
        k_latent = latent_tile(latent_ptr, scale_ptr, base, offset, FP8, WORDS, NATIVE, PIECE)
        k_rope = tl.load(rope_ptr + base * 8 + offset[:, None] * 8 + e[None, :])
        n = tile * PIECE + tl.arange(0, PIECE)
        if COLUMNS:
            top, total, acc = attend_columns(
                q_latent, q_rope, k_latent, k_rope, n, visible, top, total, acc, scale_log2,
                length, splits, APART, BLOCK_H, PIECE,
            )  # fmt: skip
        else:
            top, total, acc = attend_tile(
                q_latent, q_rope, k_latent, k_rope, n, visible, top, total, acc, scale_log2,
                length, splits, APART, BLOCK_H, PIECE,
            )  # fmt: skip
    if BOXES:
        for tile in tl.range(first, whole, num_stages=STAGES, disable_licm=True):
            if PAGE == 0:
                place = batch * slot_tokens + tile * BLOCK_N
            else:
                page = tl.load(
                    table_ptr + batch.to(tl.int64) * stride_table + tile * BLOCK_N // PAGE
                )
                place = page * PAGE + tile * BLOCK_N % PAGE
            k_latent = latent_boxes.load([place, 0])
            k_rope = rope_boxes.load([place, 0])
            n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            if COLUMNS:
                top, total, acc = attend_columns(
                    q_latent, q_rope, k_latent, k_rope, n, visible, top, total, acc, scale_log2,
                    length, splits, APART, BLOCK_H, BLOCK_N,
                )  # fmt: skip
            else:
                top, total, acc = attend_tile(
                    q_latent, q_rope, k_latent, k_rope, n, visible, top, total, acc, scale_log2,
                    length, splits, APART, BLOCK_H, BLOCK_N,
                )  # fmt: skip

    if COLUMNS:
        acc = tl.trans(acc)
    mass = tl.where(total == 0.0, 1.0, total)
    out = acc / mass[:, None]
    lse = tl.where(total == 0.0, float("-inf"), top * LN2 + tl.log(mass))
    place = (split * tl.num_programs(2) + batch).to(tl.int64) * rows + r
    tl.store(lse_ptr + place, lse, mask=here)
    tl.store(
        out_ptr + place[:, None] * LATENT + d[None, :],
        narrow(out, out_ptr.dtype.element_ty),
        mask=here[:, None],
    )
