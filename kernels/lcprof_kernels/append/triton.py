"""Quantise and append: one block reads a piece of new K and V once and writes codes and scales.

int4 words are put together in registers: one lane holds all four planes of a word, so
packing needs no exchange. fp8 codes are made by integer arithmetic before sm_89.
"""

# Kernel code is a language of its own: arguments are untyped.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2**23: added to a small float32, it leaves the nearest integer in the low bits."""
MAGNITUDE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _inverse(scale):
    wide = scale.to(tl.float32)
    return tl.where(wide > 0, tl.div_rn(1.0, tl.where(wide > 0, wide, 1.0)), 0.0)


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _nearest(x):
    """The low bits of the integer nearest to x; anything for NaN."""
    return _bits(x + ROUND)


@triton.jit
def _finite_or_nan(x):
    return x + x * 0.0


@triton.jit
def _largest(x, axis: tl.constexpr):
    """Largest |x|, NaN if any is NaN or infinite: magnitudes compare as integers, NaN above all."""
    top = tl.max(_bits(x) & MAGNITUDE, axis)
    return _finite_or_nan(top.to(tl.float32, bitcast=True))


@triton.jit
def _ordered(x):
    """Integers that compare as the floats do, NaN at the ends; its own inverse on integers."""
    bits = _bits(x)
    return bits ^ ((bits >> 31) & MAGNITUDE)


@triton.jit
def _unordered(key):
    return (key ^ ((key >> 31) & MAGNITUDE)).to(tl.float32, bitcast=True)


@triton.jit
def _e4m3(x):
    """The e4m3 byte of float32 x within +-448, rounded to even; NaN stays NaN."""
    size = _bits(x) & MAGNITUDE
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960  # (127 - 7) << 3
    small = _nearest(tl.minimum(tl.abs(x), 1.0) * 512) & 15
    code = tl.where(size < 0x3C800000, small, normal)  # 2**-6, the least normal
    code = tl.where(size > 0x7F800000, 127, code)
    return (code | ((_bits(x) >> 24) & 128)).to(tl.uint8)


@triton.jit
def _byte(x, inverse, CODE: tl.constexpr, NATIVE: tl.constexpr):
    """Symmetric codes as bytes."""
    scaled = x * inverse
    if CODE == "int8":
        code = _nearest(tl.minimum(tl.maximum(scaled, -127.0), 127.0)).to(tl.uint8)
    else:
        clamped = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
        clamped = tl.where(scaled == scaled, clamped, scaled)  # noqa: PLR0124 — a NaN is kept
        if NATIVE:
            code = clamped.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
        else:
            code = _e4m3(clamped)
    return code


@triton.jit
def _span(least, most, dtype: tl.constexpr):
    """(scale, low) of int4 codes from the ordered integers of the smallest and largest element."""
    smallest = _unordered(least)
    span = _finite_or_nan(_unordered(most) - smallest)
    return (span * (1.0 / 15.0)).to(dtype), (smallest + span * 0.0).to(dtype)


@triton.jit
def _words(planes, low, inverse):
    """int16 words [tokens, words] of [tokens, 4, words] numbers; low and inverse broadcast."""
    code = (planes - low) * inverse
    code = _nearest(tl.minimum(tl.maximum(code, 0.0), 15.0)) & 15
    return tl.sum(code << (tl.arange(0, 4) * 4)[None, :, None], 1).to(tl.int16)


@triton.jit
def _plane_channels(WORDS: tl.constexpr):
    """The channels of [1, 4 planes, words]."""
    plane = tl.arange(0, 4) * WORDS
    return plane[None, :, None] + tl.arange(0, WORDS)[None, None, :]


@triton.jit
def _int4_by_token(
    planes,
    codes,
    scale,
    low,
    code_at,
    scale_at,
    stride_g,
    real,
    TOKENS: tl.constexpr,
    WORDS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Quantise [tokens, 4, words] by token and group of channels, and store."""
    SHARE: tl.constexpr = 4 // GROUPS
    key = _ordered(planes)
    shape: tl.constexpr = (TOKENS, GROUPS, SHARE)
    least = tl.min(tl.reshape(tl.min(key, 2), shape), 2)
    most = tl.max(tl.reshape(tl.max(key, 2), shape), 2)
    kept_scale, kept_low = _span(least, most, scale.dtype.element_ty)
    group = tl.arange(0, GROUPS)[None, :]
    tl.store(scale + scale_at[:, None] + group * stride_g, kept_scale, mask=real[:, None])
    tl.store(low + scale_at[:, None] + group * stride_g, kept_low, mask=real[:, None])
    inverse = tl.reshape(tl.broadcast_to(_inverse(kept_scale)[:, :, None], shape), (TOKENS, 4))
    lows = tl.broadcast_to(kept_low.to(tl.float32)[:, :, None], shape)
    word = _words(planes, tl.reshape(lows, (TOKENS, 4))[:, :, None], inverse[:, :, None])
    at = code_at[:, None] + tl.arange(0, WORDS)[None, :]
    tl.store(codes + at, word, mask=real[:, None])


@triton.jit
def _append_side(
    x,
    codes,
    scale,
    low,
    source,
    code_at,
    scale_at,
    stride_g,
    real,
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CODE: tl.constexpr,
    MODE: tl.constexpr,
    GROUPS: tl.constexpr,
    NATIVE: tl.constexpr,
):
    if CODE == "int4":
        planes = tl.load(
            x + source[:, None, None] + _plane_channels(HEAD_DIM // 4),
            mask=real[:, None, None],
            other=0.0,
        ).to(tl.float32)
        _int4_by_token(
            planes, codes, scale, low, code_at, scale_at, stride_g, real,
            TOKENS, HEAD_DIM // 4, GROUPS,
        )  # fmt: skip
    else:
        channel = tl.arange(0, HEAD_DIM)[None, :]
        part = tl.load(x + source[:, None] + channel, mask=real[:, None], other=0.0).to(tl.float32)
        if MODE == "tensor":
            inverse = _inverse(tl.load(scale))
        else:
            LARGEST: tl.constexpr = 1.0 / 127.0 if CODE == "int8" else 1.0 / 448.0
            kept = (_largest(part, 1) * LARGEST).to(scale.dtype.element_ty)
            tl.store(scale + scale_at, kept, mask=real)
            inverse = _inverse(kept)[:, None]
        byte = _byte(part, inverse, CODE, NATIVE)
        tl.store(codes + code_at[:, None] + channel, byte, mask=real[:, None])


@triton.jit
def append_tokens(
    k,
    v,
    k_codes,
    k_scale,
    k_low,
    v_codes,
    v_scale,
    v_low,
    lengths,
    new_lengths,
    page_table,
    k_in_stride_b,
    k_in_stride_t,
    k_in_stride_h,
    v_in_stride_b,
    v_in_stride_t,
    v_in_stride_h,
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
    capacity_tokens,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr,
    CODE: tl.constexpr,
    MODE: tl.constexpr,
    GROUPS: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """BLOCK_N new tokens x KV head x sequence, for caches whose tokens stand alone.

    Codes are bytes (fp8, int8) or 16-bit words (int4), strides counted in them.
    """
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths + batch)
    fresh = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = length + fresh
    real = (fresh < tl.load(new_lengths + batch)) & (token < capacity_tokens)
    if PAGE > 0:
        page = tl.load(page_table + batch * table_stride + token // PAGE, mask=real, other=0)
        slot = page.to(tl.int64)
        place = token % PAGE
    else:
        slot = batch
        place = token
    place = place.to(tl.int64)
    _append_side(
        k, k_codes, k_scale, k_low,
        batch * k_in_stride_b + fresh.to(tl.int64) * k_in_stride_t + head * k_in_stride_h,
        slot * k_stride_s + head * k_stride_h + place * k_stride_n,
        slot * ks_stride_s + head * ks_stride_h + place,
        ks_stride_g, real, BLOCK_N, HEAD_DIM, CODE, MODE, GROUPS, NATIVE,
    )  # fmt: skip
    _append_side(
        v, v_codes, v_scale, v_low,
        batch * v_in_stride_b + fresh.to(tl.int64) * v_in_stride_t + head * v_in_stride_h,
        slot * v_stride_s + head * v_stride_h + place * v_stride_n,
        slot * vs_stride_s + head * vs_stride_h + place,
        vs_stride_g, real, BLOCK_N, HEAD_DIM, CODE, MODE, GROUPS, NATIVE,
    )  # fmt: skip


@triton.jit
def _group(residual, x, held, fresh, FIRST: tl.constexpr):
    """A group at pointers `x`; the FIRST one has tokens that were held. Masks broadcast."""
    if FIRST:
        new = tl.load(x, mask=fresh, other=0.0).to(tl.bfloat16)
        part = tl.where(held, tl.load(residual, mask=held, other=0.0), new)
    else:
        part = tl.load(x).to(tl.bfloat16)
    return part.to(tl.float32)


@triton.jit
def append_groups(
    x,
    codes,
    scale,
    low,
    residual,
    lengths,
    new_lengths,
    page_table,
    in_stride_b,
    in_stride_t,
    in_stride_h,
    stride_s,
    stride_h,
    stride_n,
    s_stride_s,
    s_stride_h,
    s_stride_g,
    r_stride_b,
    r_stride_h,
    r_stride_n,
    table_stride,
    capacity_tokens,
    BY_CHANNEL: tl.constexpr,
    FIRST: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP_TOKENS: tl.constexpr,
    PAGE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One group of tokens x KV head x sequence, of the keys (BY_CHANNEL) or of the values.

    A full group is quantised. The FIRST group is the one that is open now: its block alone touches
    the residual, which it reads before it writes the tokens of the group that stays open. The other
    blocks, a launch of their own, take the groups after it.
    """
    WORDS: tl.constexpr = HEAD_DIM // 4
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths + batch)
    total = tl.minimum(length + tl.load(new_lengths + batch), capacity_tokens)
    group = length // GROUP_TOKENS
    if not FIRST:
        group += 1 + tl.program_id(0)
    offsets = tl.arange(0, GROUP_TOKENS)
    token = group * GROUP_TOKENS + offsets
    source = x + batch * in_stride_b + head * in_stride_h
    held_tokens = residual + batch * r_stride_b + head * r_stride_h
    if (group + 1) * GROUP_TOKENS <= total:
        if PAGE > 0:
            page = tl.load(page_table + batch * table_stride + group // (PAGE // GROUP_TOKENS))
            slot = page.to(tl.int64)
            slot_group = (group % (PAGE // GROUP_TOKENS)).to(tl.int64)
        else:
            slot = batch
            slot_group = group.to(tl.int64)
        fresh = (token - length).to(tl.int64)
        held = token < length
        held_at = offsets * r_stride_n
        fresh_at = fresh * in_stride_t
        place = slot_group * GROUP_TOKENS + offsets
        code_at = slot * stride_s + head * stride_h + place * stride_n
        scale_at = slot * s_stride_s + head * s_stride_h
        if BY_CHANNEL:
            # Read twice: rows for the extremes, few lanes to a channel; planes, from L1, to pack.
            channel = tl.arange(0, HEAD_DIM)
            rows = _group(
                held_tokens + held_at[:, None] + channel[None, :],
                source + fresh_at[:, None] + channel[None, :],
                held[:, None], fresh[:, None] >= 0, FIRST,
            )  # fmt: skip
            key = _ordered(rows)
            kept_scale, kept_low = _span(tl.min(key, 0), tl.max(key, 0), scale.dtype.element_ty)
            tl.store(scale + scale_at + slot_group * s_stride_g + channel, kept_scale)
            tl.store(low + scale_at + slot_group * s_stride_g + channel, kept_low)
            inverse = tl.reshape(_inverse(kept_scale), (1, 4, WORDS))
            kept_low = tl.reshape(kept_low.to(tl.float32), (1, 4, WORDS))
        plane_channel = _plane_channels(WORDS)
        planes = _group(
            held_tokens + held_at[:, None, None] + plane_channel,
            source + fresh_at[:, None, None] + plane_channel,
            held[:, None, None], fresh[:, None, None] >= 0, FIRST,
        )  # fmt: skip
        if BY_CHANNEL:
            tl.store(
                codes + code_at[:, None] + tl.arange(0, WORDS)[None, :],
                _words(planes, kept_low, inverse),
            )
        else:
            _int4_by_token(
                planes, codes, scale, low, code_at, scale_at + place, s_stride_g, place >= 0,
                GROUP_TOKENS, WORDS, GROUPS,
            )  # fmt: skip
    if FIRST:
        tl.debug_barrier()  # the residual has been read
        token = total // GROUP_TOKENS * GROUP_TOKENS + offsets
        stays = (token >= length) & (token < total)
        fresh = (token - length).to(tl.int64)
        channel = tl.arange(0, HEAD_DIM)[None, :]
        kept = tl.load(
            source + (fresh * in_stride_t)[:, None] + channel, mask=stays[:, None], other=0.0
        )
        tl.store(
            held_tokens + (offsets * r_stride_n)[:, None] + channel,
            kept.to(tl.bfloat16),
            mask=stays[:, None],
        )
