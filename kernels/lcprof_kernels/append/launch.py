"""Grid, strides and block sizes of the append kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lcprof_kernels.caches import CompressedCache, Format, Quantised

from .triton import append_groups, append_tokens


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Tokens of a block (a KIVI block is a group of tokens), and its warps."""

    block_n: int
    warps: int


def choose_tuning(layout: Format, head_dim: int, new_tokens: int) -> Tuning:
    """The block that was fastest on an H200."""
    if layout.group_tokens is not None:
        warps = max(1, min(8, layout.group_tokens * head_dim // 4096))
        return Tuning(block_n=layout.group_tokens, warps=warps)
    return Tuning(block_n=min(32, max(4, 1 << (new_tokens - 1).bit_length())), warps=4)


CODE_VIEW = {"fp8": torch.uint8, "int8": torch.uint8, "int4": torch.int16}


def _side(side: Quantised, code: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    low = side.scale if side.low is None else side.low
    return side.codes.view(CODE_VIEW[code]), side.scale, low


def _strides(side: Quantised) -> tuple[int, ...]:
    scale = side.scale.stride()[:3] if side.scale.dim() > 1 else (0, 0, 0)
    return (*side.codes.stride()[:3], *scale)


def append_triton(
    cache: CompressedCache,
    k: torch.Tensor,
    v: torch.Tensor,
    new_lengths: torch.Tensor,
    tuning: Tuning | None = None,
) -> None:
    """Launch the kernel of the cache's format, then add to the lengths."""
    layout = cache.format
    table = cache.lengths if cache.page_table is None else cache.page_table
    groups = layout.channel_groups(cache.head_dim)
    tensors = (k, v, *_side(cache.keys, layout.code), *_side(cache.values, layout.code))
    strides = (*k.stride()[:3], *v.stride()[:3], *_strides(cache.keys), *_strides(cache.values))
    new_tokens = k.shape[1]
    chosen = tuning or choose_tuning(layout, cache.head_dim, new_tokens)
    if layout.group_tokens is None:
        append_tokens[(-(-new_tokens // chosen.block_n), cache.kv_heads, cache.batch)](
            *tensors,
            cache.lengths,
            new_lengths,
            table,
            *strides,
            table.stride(0),
            cache.capacity_tokens,
            HEAD_DIM=cache.head_dim,
            BLOCK_N=chosen.block_n,
            PAGE=cache.page_tokens or 0,
            CODE=layout.code,
            MODE=layout.keys,
            GROUPS=groups,
            NATIVE=k.is_cuda and torch.cuda.get_device_capability(k.device) >= (8, 9),
            num_warps=chosen.warps,
        )
    else:
        step = layout.group_tokens
        after = (step - 1 + new_tokens) // step - 1
        for x, side, residual, by_channel in (
            (k, cache.keys, cache.residual_keys, True),
            (v, cache.values, cache.residual_values, False),
        ):
            if residual is None:
                raise ValueError("check_cache lets no KIVI cache without a residual pass")
            for first in (True, False):
                if not first and after <= 0:
                    continue
                append_groups[(1 if first else after, cache.kv_heads, cache.batch)](
                    x,
                    *_side(side, layout.code),
                    residual,
                    cache.lengths,
                    new_lengths,
                    table,
                    *x.stride()[:3],
                    *_strides(side),
                    *residual.stride()[:3],
                    table.stride(0),
                    cache.capacity_tokens,
                    BY_CHANNEL=by_channel,
                    FIRST=first,
                    HEAD_DIM=cache.head_dim,
                    GROUP_TOKENS=step,
                    PAGE=cache.page_tokens or 0,
                    GROUPS=groups,
                    num_warps=chosen.warps,
                )
    cache.lengths.add_(new_lengths).clamp_(max=cache.capacity_tokens)
