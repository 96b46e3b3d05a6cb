"""Grid, strides and block sizes of the append kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lcprof_kernels.caches import CompressedCache, Format, Quantised
from lcprof_kernels.checks import interpreting, require

from .triton import append_groups, append_tokens
from .triton_pairs import advance, append_group_pairs, append_token_pairs


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Tokens of a block (a KIVI block is a group of tokens), and its warps.

    `pairs`, for int4 alone, takes the kernels of `triton_pairs.py`: the same results in fewer
    instructions, and one launch for a KIVI cache.
    """

    block_n: int
    warps: int
    pairs: bool = False


TUNINGS: dict[tuple[str, int, bool], Tuning] = {}
"""What a run of `bench.tune` found faster than the rule of `choose_tuning`: by name of the format,
head_dim, and whether more than one token a sequence is appended."""


def choose_tuning(layout: Format, head_dim: int, new_tokens: int) -> Tuning:
    """The block that was fastest on an H200."""
    measured = TUNINGS.get((layout.name, head_dim, new_tokens > 1))
    if measured is not None:
        return measured
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
    chosen = tuning or choose_tuning(cache.format, cache.head_dim, k.shape[1])
    require(
        not chosen.pairs or cache.format.code == "int4",
        f"the append of pairs is for int4, not for {cache.format.name}",
    )
    if chosen.pairs:
        _append_pairs(cache, k, v, new_lengths, chosen)
        block = 128
        advance[(-(-cache.batch // block),)](
            cache.lengths, new_lengths, cache.batch, cache.capacity_tokens, BLOCK=block, num_warps=4
        )
        return
    if cache.format.group_tokens is None:
        _append_tokens(cache, k, v, new_lengths, chosen)
    else:
        _append_groups(cache, k, v, new_lengths, chosen)
    cache.lengths.add_(new_lengths).clamp_(max=cache.capacity_tokens)


def _table(cache: CompressedCache) -> torch.Tensor:
    return cache.lengths if cache.page_table is None else cache.page_table


def _append_tokens(
    cache: CompressedCache,
    k: torch.Tensor,
    v: torch.Tensor,
    new_lengths: torch.Tensor,
    chosen: Tuning,
) -> None:
    layout, table = cache.format, _table(cache)
    append_tokens[(-(-k.shape[1] // chosen.block_n), cache.kv_heads, cache.batch)](
        k,
        v,
        *_side(cache.keys, layout.code),
        *_side(cache.values, layout.code),
        cache.lengths,
        new_lengths,
        table,
        *k.stride()[:3],
        *v.stride()[:3],
        *_strides(cache.keys),
        *_strides(cache.values),
        table.stride(0),
        cache.capacity_tokens,
        HEAD_DIM=cache.head_dim,
        BLOCK_N=chosen.block_n,
        PAGE=cache.page_tokens or 0,
        CODE=layout.code,
        MODE=layout.keys,
        GROUPS=layout.channel_groups(cache.head_dim),
        NATIVE=k.is_cuda and torch.cuda.get_device_capability(k.device) >= (8, 9),
        num_warps=chosen.warps,
    )


def _append_groups(
    cache: CompressedCache,
    k: torch.Tensor,
    v: torch.Tensor,
    new_lengths: torch.Tensor,
    chosen: Tuning,
) -> None:
    layout, table = cache.format, _table(cache)
    step = chosen.block_n
    after = (step - 1 + k.shape[1]) // step - 1
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
                GROUPS=layout.channel_groups(cache.head_dim),
                num_warps=chosen.warps,
            )


def _pairs(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


def _append_pairs(
    cache: CompressedCache,
    k: torch.Tensor,
    v: torch.Tensor,
    new_lengths: torch.Tensor,
    chosen: Tuning,
) -> None:
    layout, table = cache.format, _table(cache)
    tensors: list[torch.Tensor | None] = [_pairs(k), _pairs(v)]
    strides = [*_pairs(k).stride()[:3], *_pairs(v).stride()[:3]]
    for side in (cache.keys, cache.values):
        codes = _pairs(side.codes)
        tensors += [codes, side.scale, side.low]
        strides += [*codes.stride()[:3], *side.scale.stride()[:3]]
    options = {
        "HEAD_DIM": cache.head_dim,
        "PAGE": cache.page_tokens or 0,
        "GROUPS": layout.channel_groups(cache.head_dim),
        "KIND": "bf16" if k.dtype == torch.bfloat16 else "fp16",
        "ASSEMBLY": not interpreting(),
        "num_warps": chosen.warps,
    }
    shared = (cache.lengths, new_lengths, table)
    if cache.residual_keys is None or cache.residual_values is None:
        append_token_pairs[(-(-k.shape[1] // chosen.block_n), cache.kv_heads, cache.batch)](
            *tensors,
            *shared,
            *strides,
            table.stride(0),
            cache.capacity_tokens,
            BLOCK_N=chosen.block_n,
            **options,
        )
        return
    residuals = [_pairs(cache.residual_keys), _pairs(cache.residual_values)]
    most_groups = (chosen.block_n - 1 + k.shape[1]) // chosen.block_n
    append_group_pairs[(max(1, most_groups), cache.kv_heads, 2 * cache.batch)](
        *tensors,
        *residuals,
        *shared,
        *strides,
        *residuals[0].stride()[:3],
        table.stride(0),
        cache.capacity_tokens,
        GROUP_TOKENS=chosen.block_n,
        **options,
    )
