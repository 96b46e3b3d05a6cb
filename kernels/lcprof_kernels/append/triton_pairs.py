"""int4 append on pairs of channels: the same codes and scales as `triton.py`, fewer instructions.

Two neighbouring 16-bit elements stay in one register until they are quantised: one instruction
compares both. Each plane of a row is loaded by itself, so that a lane holds all four codes of a
word and packing is a sum. A group of KIVI keys is read once, its lanes one pair of channels wide:
extremes over tokens are then found inside a lane, but for one exchange. Keys, values, the group
that was open and all after it share one launch.

(x - low) / scale is clamped by the multiplication (.sat, after a division by 16), which is exact:
the codes are those of `triton.py` bit for bit.
"""

# Kernel code is a language of its own: arguments are untyped, and tuples grow in unrolled loops.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="assignment, unreachable"

from __future__ import annotations

import triton
import triton.language as tl

from .triton import ROUND, _finite_or_nan, _inverse, _ordered, _unordered


@triton.jit
def _least_most_bf16(least, most, other_least, other_most):
    least = tl.inline_asm_elementwise(
        "min.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [least, other_least],
        dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip
    most = tl.inline_asm_elementwise(
        "max.NaN.bf16x2 $0, $1, $2;", "=r,r,r", [most, other_most],
        dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip
    return least, most


@triton.jit
def _least_most_fp16(least, most, other_least, other_most):
    least = tl.inline_asm_elementwise(
        "min.NaN.f16x2 $0, $1, $2;", "=r,r,r", [least, other_least],
        dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip
    most = tl.inline_asm_elementwise(
        "max.NaN.f16x2 $0, $1, $2;", "=r,r,r", [most, other_most],
        dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip
    return least, most


@triton.jit
def _halves(pairs, KIND: tl.constexpr):
    """The even and the odd element of each pair as float32."""
    if KIND == "bf16":
        even = (pairs << 16).to(tl.float32, bitcast=True)
        odd = (pairs & -65536).to(tl.float32, bitcast=True)
    else:
        even = (pairs & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        odd = (pairs >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return even, odd


@triton.jit
def _rounded(x):
    """The bits of x as bfloat16, rounded to even, in the upper half."""
    bits = x.to(tl.int32, bitcast=True)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, nearest)


@triton.jit
def _as_bf16(pairs, KIND: tl.constexpr):
    """Pairs of bfloat16."""
    if KIND == "fp16":
        even, odd = _halves(pairs, KIND)
        pairs = ((_rounded(even) >> 16) & 0xFFFF) | _rounded(odd)
    return pairs


@triton.jit
def _extremes(planes, AXIS: tl.constexpr, KIND: tl.constexpr, ASSEMBLY: tl.constexpr):
    """(least even, least odd, most even, most odd) over some planes and along an axis.

    A NaN among them makes the least or the most a NaN.
    """
    if ASSEMBLY:
        least = planes[0]
        most = planes[0]
        for plane in tl.static_range(1, len(planes)):
            if KIND == "bf16":
                least, most = _least_most_bf16(least, most, planes[plane], planes[plane])
            else:
                least, most = _least_most_fp16(least, most, planes[plane], planes[plane])
        if KIND == "bf16":
            least, most = tl.reduce((least, most), AXIS, _least_most_bf16)
        else:
            least, most = tl.reduce((least, most), AXIS, _least_most_fp16)
        least_even, least_odd = _halves(least, KIND)
        most_even, most_odd = _halves(most, KIND)
    else:
        even, odd = _halves(planes[0], KIND)
        low_even = _ordered(even)
        low_odd = _ordered(odd)
        top_even = low_even
        top_odd = low_odd
        for plane in tl.static_range(1, len(planes)):
            even, odd = _halves(planes[plane], KIND)
            low_even = tl.minimum(low_even, _ordered(even))
            low_odd = tl.minimum(low_odd, _ordered(odd))
            top_even = tl.maximum(top_even, _ordered(even))
            top_odd = tl.maximum(top_odd, _ordered(odd))
        least_even = _unordered(tl.min(low_even, AXIS))
        least_odd = _unordered(tl.min(low_odd, AXIS))
        most_even = _unordered(tl.max(top_even, AXIS))
        most_odd = _unordered(tl.max(top_odd, AXIS))
    return least_even, least_odd, most_even, most_odd


@triton.jit
def _scale_low(least, most, kind: tl.constexpr):
    """Scale and low of int4 codes as they are kept."""
    span = _finite_or_nan(most - least)
    return (span * (1.0 / 15.0)).to(kind), (least + span * 0.0).to(kind)


@triton.jit
def _code(x, low, inverse, ASSEMBLY: tl.constexpr):
    """An integer whose low 16 bits are the code of x; `inverse` is 1 / (16 scale)."""
    if ASSEMBLY:
        code = tl.inline_asm_elementwise(
            """
            {
            .reg .f32 y;
            sub.rn.f32 y, $1, $2;
            mul.rn.sat.f32 y, y, $3;
            min.f32 y, y, 0f3F700000;
            fma.rn.f32 y, y, 0f41800000, 0f4B400000;
            mov.b32 $0, y;
            }
            """,
            "=r,f,f,f",
            [x, low, inverse],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        y = tl.minimum(tl.maximum((x - low) * inverse * 16, 0.0), 15.0)
        code = (y + ROUND).to(tl.int32, bitcast=True)
    return code


@triton.jit
def _words(
    planes, lows_even, lows_odd, inverses_even, inverses_odd, SHARE: tl.constexpr,
    KIND: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Two words to an int32; SHARE neighbouring planes have one low and one inverse."""
    even_word = tl.zeros(planes[0].shape, tl.int32)
    odd_word = tl.zeros(planes[0].shape, tl.int32)
    for plane in tl.static_range(4):
        even, odd = _halves(planes[plane], KIND)
        low, inverse = lows_even[plane // SHARE], inverses_even[plane // SHARE]
        even_word += _code(even, low, inverse, ASSEMBLY) << (4 * plane)
        low, inverse = lows_odd[plane // SHARE], inverses_odd[plane // SHARE]
        odd_word += _code(odd, low, inverse, ASSEMBLY) << (4 * plane)
    return (even_word & 0xFFFF) | (odd_word << 16)


@triton.jit
def _store_by_token(
    planes, codes, scale, low, code_at, scale_at, stride_g, real,
    PAIRS: tl.constexpr, GROUPS: tl.constexpr, KIND: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Quantise planes [tokens, PAIRS] by token and group of channels, and store."""
    SHARE: tl.constexpr = 4 // GROUPS
    lows = ()
    inverses = ()
    for group in tl.static_range(GROUPS):
        some = ()
        for plane in tl.static_range(SHARE):
            some = some + (planes[group * SHARE + plane],)
        least_even, least_odd, most_even, most_odd = _extremes(some, 1, KIND, ASSEMBLY)
        least = tl.minimum(least_even, least_odd, propagate_nan=tl.PropagateNan.ALL)
        most = tl.maximum(most_even, most_odd, propagate_nan=tl.PropagateNan.ALL)
        kept_scale, kept_low = _scale_low(least, most, scale.dtype.element_ty)
        tl.store(scale + scale_at + group * stride_g, kept_scale, mask=real)
        tl.store(low + scale_at + group * stride_g, kept_low, mask=real)
        lows = lows + (kept_low.to(tl.float32)[:, None],)
        inverses = inverses + ((_inverse(kept_scale) * 0.0625)[:, None],)
    words = _words(planes, lows, lows, inverses, inverses, SHARE, KIND, ASSEMBLY)
    tl.store(codes + code_at[:, None] + tl.arange(0, PAIRS)[None, :], words, mask=real[:, None])


@triton.jit
def append_token_pairs(
    k, v, k_codes, k_scale, k_low, v_codes, v_scale, v_low, lengths, new_lengths, page_table,
    k_in_stride_b, k_in_stride_t, k_in_stride_h, v_in_stride_b, v_in_stride_t, v_in_stride_h,
    k_stride_s, k_stride_h, k_stride_n, ks_stride_s, ks_stride_h, ks_stride_g,
    v_stride_s, v_stride_h, v_stride_n, vs_stride_s, vs_stride_h, vs_stride_g,
    table_stride, capacity_tokens,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, GROUPS: tl.constexpr,
    KIND: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """BLOCK_N new tokens x KV head x sequence of an int4 cache whose tokens stand alone.

    k, v and codes are seen as int32, their strides counted in them.
    """
    PAIRS: tl.constexpr = HEAD_DIM // 8
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
    fresh = fresh.to(tl.int64)
    column = tl.arange(0, PAIRS)
    k_from = k + (batch * k_in_stride_b + head * k_in_stride_h)
    v_from = v + (batch * v_in_stride_b + head * v_in_stride_h)
    k_planes = ()
    v_planes = ()
    for plane in tl.static_range(4):
        at = (fresh * k_in_stride_t)[:, None] + (plane * PAIRS + column)[None, :]
        k_planes = k_planes + (tl.load(k_from + at, mask=real[:, None], other=0),)
    for plane in tl.static_range(4):
        at = (fresh * v_in_stride_t)[:, None] + (plane * PAIRS + column)[None, :]
        v_planes = v_planes + (tl.load(v_from + at, mask=real[:, None], other=0),)
    _store_by_token(
        k_planes, k_codes, k_scale, k_low,
        slot * k_stride_s + head * k_stride_h + place * k_stride_n,
        slot * ks_stride_s + head * ks_stride_h + place,
        ks_stride_g, real, PAIRS, GROUPS, KIND, ASSEMBLY,
    )  # fmt: skip
    _store_by_token(
        v_planes, v_codes, v_scale, v_low,
        slot * v_stride_s + head * v_stride_h + place * v_stride_n,
        slot * vs_stride_s + head * vs_stride_h + place,
        vs_stride_g, real, PAIRS, GROUPS, KIND, ASSEMBLY,
    )  # fmt: skip


@triton.jit
def _load_planes(
    source, residual, fresh, offsets, stride_t, r_stride_n, column,
    PAIRS: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Planes [tokens, PAIRS] in bfloat16 of tokens of a full group, old ones from the residual."""
    old = fresh < 0
    rows = tl.where(
        old,
        residual + offsets.to(tl.int64) * r_stride_n,
        source + fresh.to(tl.int64) * stride_t,
    )
    planes = ()
    for plane in tl.static_range(4):
        part = tl.load(rows[:, None] + (plane * PAIRS + column)[None, :])
        if KIND == "fp16":
            part = tl.where(old[:, None], part, _as_bf16(part, KIND))
        planes = planes + (part,)
    return planes


@triton.jit
def _keep_open(
    source, residual, length, total, stride_t, r_stride_n,
    TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Write the new tokens of the group that stays open."""
    offsets = tl.arange(0, TOKENS)
    token = total // TOKENS * TOKENS + offsets
    stays = ((token >= length) & (token < total))[:, None]
    column = tl.arange(0, HEAD_DIM // 2)[None, :]
    fresh = (token - length).to(tl.int64)
    kept = tl.load(source + (fresh * stride_t)[:, None] + column, mask=stays, other=0)
    tl.store(residual + (offsets * r_stride_n)[:, None] + column, _as_bf16(kept, KIND), mask=stays)


@triton.jit
def append_group_pairs(
    k, v, k_codes, k_scale, k_low, v_codes, v_scale, v_low, residual_k, residual_v,
    lengths, new_lengths, page_table,
    k_in_stride_b, k_in_stride_t, k_in_stride_h, v_in_stride_b, v_in_stride_t, v_in_stride_h,
    k_stride_s, k_stride_h, k_stride_n, ks_stride_s, ks_stride_h, ks_stride_g,
    v_stride_s, v_stride_h, v_stride_n, vs_stride_s, vs_stride_h, vs_stride_g,
    r_stride_b, r_stride_h, r_stride_n, table_stride, capacity_tokens,
    HEAD_DIM: tl.constexpr, GROUP_TOKENS: tl.constexpr, PAGE: tl.constexpr,
    GROUPS: tl.constexpr, KIND: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Grid (groups, KV heads, 2 x sequences): keys and values of one group of tokens.

    k, v, codes and residuals are seen as int32, their strides counted in them. The first group is
    the one that is open now: its block alone touches the residual, which it reads before it writes
    the tokens of the group that stays open.
    """
    PAIRS: tl.constexpr = HEAD_DIM // 8
    head = tl.program_id(1).to(tl.int64)
    batch = (tl.program_id(2) // 2).to(tl.int64)
    length = tl.load(lengths + batch)
    total = tl.minimum(length + tl.load(new_lengths + batch), capacity_tokens)
    opened = tl.program_id(0) == 0
    group = length // GROUP_TOKENS + tl.program_id(0)
    full = (group + 1) * GROUP_TOKENS <= total
    slot = batch
    slot_group = group.to(tl.int64)
    if PAGE > 0:
        PER_PAGE: tl.constexpr = PAGE // GROUP_TOKENS
        page = tl.load(page_table + batch * table_stride + group // PER_PAGE, mask=full, other=0)
        slot = page.to(tl.int64)
        slot_group = (group % PER_PAGE).to(tl.int64)
    residual_at = batch * r_stride_b + head * r_stride_h
    if tl.program_id(2) % 2 == 0:
        source = k + batch * k_in_stride_b + head * k_in_stride_h
        residual = residual_k + residual_at
        if full:
            offsets = tl.arange(0, GROUP_TOKENS)
            fresh = group * GROUP_TOKENS + offsets - length
            place = slot_group * GROUP_TOKENS + offsets
            # Told to be aligned to one pair only, a lane takes one pair: 16 lanes a row of a plane.
            column = tl.multiple_of(tl.arange(0, PAIRS), [1])
            planes = _load_planes(
                source, residual, fresh, offsets, k_in_stride_t, r_stride_n, column, PAIRS, KIND
            )
            KEPT: tl.constexpr = k_scale.dtype.element_ty
            scale_at = slot * ks_stride_s + head * ks_stride_h + slot_group * ks_stride_g
            lows_even = ()
            lows_odd = ()
            inverses_even = ()
            inverses_odd = ()
            for plane in tl.static_range(4):
                least_even, least_odd, most_even, most_odd = _extremes(
                    (planes[plane],), 0, "bf16", ASSEMBLY
                )
                scale_even, low_even = _scale_low(least_even, most_even, KEPT)
                scale_odd, low_odd = _scale_low(least_odd, most_odd, KEPT)
                at = scale_at + plane * (2 * PAIRS) + 2 * tl.arange(0, PAIRS)
                tl.store(k_scale + at, scale_even)
                tl.store(k_scale + at + 1, scale_odd)
                tl.store(k_low + at, low_even)
                tl.store(k_low + at + 1, low_odd)
                lows_even = lows_even + (low_even.to(tl.float32)[None, :],)
                lows_odd = lows_odd + (low_odd.to(tl.float32)[None, :],)
                inverses_even = inverses_even + ((_inverse(scale_even) * 0.0625)[None, :],)
                inverses_odd = inverses_odd + ((_inverse(scale_odd) * 0.0625)[None, :],)
            words = _words(
                planes, lows_even, lows_odd, inverses_even, inverses_odd, 1, "bf16", ASSEMBLY
            )
            code_at = slot * k_stride_s + head * k_stride_h + place * k_stride_n
            tl.store(k_codes + code_at[:, None] + column[None, :], words)
        if opened:
            tl.debug_barrier()  # the residual has been read
            _keep_open(
                source, residual, length, total, k_in_stride_t, r_stride_n,
                GROUP_TOKENS, HEAD_DIM, KIND,
            )  # fmt: skip
    else:
        source = v + batch * v_in_stride_b + head * v_in_stride_h
        residual = residual_v + residual_at
        if full:
            # Two halves: loads of the keys' shape would be given the keys' layout.
            HALF: tl.constexpr = GROUP_TOKENS // 2
            halves = ()
            for half in tl.static_range(2):
                offsets = half * HALF + tl.arange(0, HALF)
                halves = halves + (
                    _load_planes(
                        source, residual, group * GROUP_TOKENS + offsets - length, offsets,
                        v_in_stride_t, r_stride_n, tl.arange(0, PAIRS), PAIRS, KIND,
                    ),
                )  # fmt: skip
            for half in tl.static_range(2):
                place = slot_group * GROUP_TOKENS + half * HALF + tl.arange(0, HALF)
                _store_by_token(
                    halves[half], v_codes, v_scale, v_low,
                    slot * v_stride_s + head * v_stride_h + place * v_stride_n,
                    slot * vs_stride_s + head * vs_stride_h + place,
                    vs_stride_g, place >= 0, PAIRS, GROUPS, "bf16", ASSEMBLY,
                )  # fmt: skip
        if opened:
            tl.debug_barrier()
            _keep_open(
                source, residual, length, total, v_in_stride_t, r_stride_n,
                GROUP_TOKENS, HEAD_DIM, KIND,
            )  # fmt: skip


@triton.jit
def advance(lengths, new_lengths, batch, capacity_tokens, BLOCK: tl.constexpr):
    """Add the new lengths, in one launch."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = at < batch
    total = tl.load(lengths + at, mask=real) + tl.load(new_lengths + at, mask=real)
    tl.store(lengths + at, tl.minimum(total, capacity_tokens), mask=real)
