"""Eager quantisation, the oracle of the append kernels: the same codes and scales, bit for bit.

Symmetric codes (int8, fp8): scale = largest |x| / largest code. int4: low = smallest x, scale =
(largest
- smallest) / 15. Scales are rounded to the cache's scale dtype first and codes are made with the
rounded ones, so that code and scale belong together. Ties round to even. A group that holds a NaN
or an infinity gets a NaN scale: all of it dequantises to NaN.
"""

from __future__ import annotations

import torch

from lcprof_kernels.caches import LARGEST_CODE, CompressedCache, Format, Quantised


def scales_of(
    x: torch.Tensor, dim: int, layout: Format, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(scale, low) of float32 `x` over `dim` (kept, size 1), rounded to `dtype`."""
    share = 1 / LARGEST_CODE[layout.code]
    if layout.code != "int4":
        largest = x.abs().amax(dim, keepdim=True)
        return ((largest + largest * 0) * share).to(dtype), None
    low = x.amin(dim, keepdim=True)
    span = x.amax(dim, keepdim=True) - low
    span = span + span * 0
    return (span * share).to(dtype), (low + span * 0).to(dtype)


def encode(
    x: torch.Tensor, scale: torch.Tensor, low: torch.Tensor | None, layout: Format
) -> torch.Tensor:
    """Codes of float32 `x`, before int4 codes are packed; `scale` and `low` broadcast."""
    wide = scale.float()
    inverse = torch.where(wide > 0, 1 / wide, 0.0)
    if layout.code == "fp8":
        return (x * inverse).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    shifted = x if low is None else x - low.float()
    bound = LARGEST_CODE[layout.code]
    code = torch.round(shifted * inverse).clamp(0.0 if low is not None else -bound, bound)
    return torch.nan_to_num(code).to(torch.int8)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15 `[..., head_dim]` to int16 words `[..., head_dim / 4]`."""
    planes = torch.unflatten(codes.to(torch.int32), -1, (4, -1))
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=codes.device)[:, None]
    word = (planes << shifts).sum(-2)
    return torch.where(word >= 1 << 15, word - (1 << 16), word).to(torch.int16)


def quantise_tokens(
    x: torch.Tensor, layout: Format, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes `[..., tokens, codes]`, scale and low `[..., groups, tokens]` of `[..., tokens,
    dim]`.
    """
    groups = layout.channel_groups(x.shape[-1])
    grouped = torch.unflatten(x.float(), -1, (groups, -1))
    scale, low = scales_of(grouped, -1, layout, dtype)
    codes = encode(grouped, scale, low, layout).flatten(-2)
    if layout.code == "int4":
        codes = pack_int4(codes)
    turn = scale.squeeze(-1).transpose(-1, -2)
    return codes, turn, None if low is None else low.squeeze(-1).transpose(-1, -2)


def quantise_channels(
    x: torch.Tensor, layout: Format, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes `[..., tokens, codes]`, scale and low `[..., dim]` of one group `[..., tokens,
    dim]`.
    """
    scale, low = scales_of(x.float(), -2, layout, dtype)
    if low is None:
        raise ValueError("only int4 is scaled by channel")
    codes = pack_int4(encode(x.float(), scale, low, layout))
    return codes, scale.squeeze(-2), low.squeeze(-2)


def append_eager(
    cache: CompressedCache, k: torch.Tensor, v: torch.Tensor, new_lengths: torch.Tensor
) -> None:
    """Append on any device, one sequence at a time; waits for the device to read lengths."""
    for b in range(cache.batch):
        length, new = int(cache.lengths[b]), int(new_lengths[b])
        keys, values = k[b, :new].transpose(0, 1), v[b, :new].transpose(0, 1)
        if cache.format.group_tokens is None:
            _write_tokens(cache, cache.keys, b, length, keys)
            _write_tokens(cache, cache.values, b, length, values)
        else:
            _write_groups(cache, b, length, keys, values, cache.format.group_tokens)
        cache.lengths[b] = length + new


def _slots(cache: CompressedCache, b: int, first: int, count: int) -> tuple[torch.Tensor, ...]:
    """Slot and place in it of `count` tokens of sequence b."""
    token = torch.arange(first, first + count, device=cache.lengths.device)
    if cache.page_table is None or cache.page_tokens is None:
        return torch.full_like(token, b), token
    return cache.page_table[b, token // cache.page_tokens].long(), token % cache.page_tokens


def _write_tokens(
    cache: CompressedCache, side: Quantised, b: int, first: int, x: torch.Tensor
) -> None:
    slot, place = _slots(cache, b, first, x.shape[1])
    if cache.format.keys == "tensor":
        codes = encode(x.float(), side.scale, None, cache.format)
        side.codes.view(torch.uint8)[slot, :, place] = codes.view(torch.uint8).transpose(0, 1)
        return
    codes, scale, low = quantise_tokens(x, cache.format, side.scale.dtype)
    raw = torch.int16 if cache.format.code == "int4" else torch.uint8
    side.codes.view(raw)[slot, :, place] = codes.view(raw).transpose(0, 1)
    side.scale[slot, :, :, place] = scale.permute(2, 0, 1)
    if side.low is not None and low is not None:
        side.low[slot, :, :, place] = low.permute(2, 0, 1)


def _write_groups(
    cache: CompressedCache, b: int, length: int, keys: torch.Tensor, values: torch.Tensor, step: int
) -> None:
    if cache.residual_keys is None or cache.residual_values is None or cache.keys.low is None:
        raise ValueError("a KIVI cache has a residual and lows")
    held = length % step
    first = length - held
    keys = torch.cat([cache.residual_keys[b, :, :held], keys.to(torch.bfloat16)], 1)
    values = torch.cat([cache.residual_values[b, :, :held], values.to(torch.bfloat16)], 1)
    full = keys.shape[1] // step * step
    for start in range(0, full, step):
        slot, place = _slots(cache, b, first + start, step)
        group = keys[:, start : start + step]
        codes, scale, low = quantise_channels(group, cache.format, cache.keys.scale.dtype)
        cache.keys.codes[slot, :, place] = codes.transpose(0, 1)
        cache.keys.scale[slot[0], :, place[0] // step] = scale
        cache.keys.low[slot[0], :, place[0] // step] = low
    _write_tokens(cache, cache.values, b, first, values[:, :full])
    left = keys.shape[1] - full
    cache.residual_keys[b, :, :left] = keys[:, full:]
    cache.residual_values[b, :, :left] = values[:, full:]
