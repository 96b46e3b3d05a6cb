"""Block sizes, splits and launches of the compressed decode kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lcprof_kernels.caches import CompressedCache, Format, Quantised
from lcprof_kernels.checks import interpreting, require
from lcprof_kernels.device import capability_of

from .triton import merge_splits, quantised_decode_split


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """One shape of the kernel.

    A block holds `rows` query rows (a power of two from 8 on) and few warps (below four, products
    stay on the 16-row matrix instructions). Many blocks share a multiprocessor: `blocks_per_sm` of
    them are counted when the work is split. `dense_rows` compiles the distance between tokens in,
    `late_scales` reads scales by token beside their codes (both in the kernel's docstring);
    `registers` caps what a thread may have.
    """

    rows: int
    block_n: int
    stages: int
    warps: int
    blocks_per_sm: int
    dense_rows: bool = False
    late_scales: bool = False
    registers: int | None = None


TUNINGS: dict[tuple[str, int, int, bool], Tuning] = {}
"""What a run of `bench.tune` found faster on sm_90 than the rule of `choose_tuning`: by name of the
format, head_dim, query rows (from 8 on, a power of two) and whether the cache is paged."""


def most_rows(layout: Format, head_dim: int) -> int:
    """Query rows that one block can hold without spilling registers."""
    return 32 if layout.code != "int4" and head_dim <= 128 else 16


def choose_tuning(layout: Format, head_dim: int, rows: int, *, paged: bool, hopper: bool) -> Tuning:
    """The block that was fastest on an H200 for this kind of code, at 8 rows and head_dim 128.

    Wider rows and heads take the widest block that does not spill.
    """
    measured = TUNINGS.get((layout.name, head_dim, rows, paged))
    if hopper and measured is not None:
        return measured
    rows = min(rows, most_rows(layout, head_dim))
    if rows > 8 or head_dim > 128:
        stages = 3 if layout.code == "int4" or head_dim <= 128 else 2
        return Tuning(rows=rows, block_n=32, stages=stages, warps=2, blocks_per_sm=4)
    if layout.code != "int4":
        return Tuning(rows=8, block_n=64, stages=3, warps=2, blocks_per_sm=6)
    groups = layout.channel_groups(head_dim)
    if groups == 4:
        return Tuning(rows=8, block_n=32, stages=3, warps=1, blocks_per_sm=8)
    if layout.group_tokens is not None:
        tokens = min(64, layout.group_tokens)
        return Tuning(rows=8, block_n=tokens, stages=3, warps=1, blocks_per_sm=8)
    blocks = 8 if groups > 1 else 12
    return Tuning(rows=8, block_n=64, stages=2, warps=1, blocks_per_sm=blocks)


def query_rows(q_heads: int, kv_heads: int, query_tokens: int) -> int:
    """Query rows that read the same keys, as a power of two from 8 on."""
    return max(8, 1 << (q_heads // kv_heads * query_tokens - 1).bit_length())


def choose_splits(
    *, tiles: int, cells: int, multiprocessors: int, blocks_per_sm: int, least_tiles: int = 4
) -> tuple[int, int]:
    """(splits, tiles a split) that fill the GPU once with `cells` independent pieces of work."""
    wanted = max(1, multiprocessors * blocks_per_sm // cells)
    split_tiles = max(least_tiles, -(-tiles // wanted))
    return -(-tiles // split_tiles), split_tiles


def _multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2


def _words(side: Quantised) -> torch.Tensor:
    return side.codes.view(torch.int16)


def _strides(side: Quantised) -> tuple[int, ...]:
    scale = side.scale.stride()[:3] if side.scale.dim() > 1 else (0, 0, 0)
    return (*_words(side).stride()[:3], *scale)


def quantised_decode_triton(
    q: torch.Tensor,
    cache: CompressedCache,
    softmax_scale: float,
    longest_tokens: int,
    tuning: Tuning | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the split kernel and the merge that starts as it drains. Arguments are checked."""
    layout = cache.format
    batch, query_tokens, q_heads, head_dim = q.shape
    kv_heads = cache.kv_heads
    group = q_heads // kv_heads
    capability = capability_of(q.device)
    native, hopper = capability >= (8, 9), capability >= (9, 0)
    chosen = tuning or choose_tuning(
        layout,
        head_dim,
        query_rows(q_heads, kv_heads, query_tokens),
        paged=cache.page_tokens is not None,
        hopper=hopper,
    )
    for name, tokens in (("page", cache.page_tokens), ("group", layout.group_tokens)):
        require(
            tokens is None or tokens % chosen.block_n == 0,
            f"a {name} of {tokens} tokens is no whole number of blocks of {chosen.block_n}",
        )
    rows = chosen.rows
    row_tiles = -(-group * query_tokens // rows)
    cells = batch * kv_heads * row_tiles
    splits, split_tiles = choose_splits(
        tiles=-(-longest_tokens // chosen.block_n),
        cells=cells,
        multiprocessors=_multiprocessors(q.device),
        blocks_per_sm=chosen.blocks_per_sm,
    )
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    part_out = torch.empty((cells, splits, rows, head_dim), dtype=torch.float32, device=q.device)
    part_lse = torch.empty((cells, splits, rows), dtype=torch.float32, device=q.device)
    table = cache.lengths if cache.page_table is None else cache.page_table
    residual = q if cache.residual_keys is None else cache.residual_keys
    residual_v = q if cache.residual_values is None else cache.residual_values
    keys, values = cache.keys, cache.values
    groups = layout.channel_groups(head_dim)
    launch_options = {"launch_pdl": True} if hopper else {}
    capped = {"maxnreg": chosen.registers} if chosen.registers else {}
    quantised_decode_split[(splits * row_tiles, kv_heads, batch)](
        q,
        _words(keys),
        keys.scale,
        keys.scale if keys.low is None else keys.low,
        _words(values),
        values.scale,
        values.scale if values.low is None else values.low,
        residual,
        residual_v,
        part_out,
        part_lse,
        cache.lengths,
        table,
        softmax_scale / math.log(2.0),
        *q.stride()[:3],
        *_strides(keys),
        *_strides(values),
        table.stride(0),
        kv_heads,
        splits,
        split_tiles,
        GROUP=group,
        QUERY_TOKENS=query_tokens,
        ROWS=rows,
        ROW_TILES=row_tiles,
        HEAD_DIM=head_dim,
        BLOCK_N=chosen.block_n,
        STAGES=chosen.stages,
        PAGE=cache.page_tokens or 0,
        CODE=layout.code,
        K_MODE=layout.keys,
        V_MODE=layout.values,
        GROUPS=groups if layout.keys == "token" else 1,
        GROUP_TOKENS=layout.group_tokens or 0,
        V_GROUPS=groups,
        ASSEMBLY=not interpreting(),
        NATIVE=native,
        PDL=hopper,
        K_ROW=_words(keys).stride(2) if chosen.dense_rows else 0,
        V_ROW=_words(values).stride(2) if chosen.dense_rows else 0,
        LATE=chosen.late_scales,
        num_warps=chosen.warps,
        **capped,
    )
    block_d = min(32, head_dim)
    merge_splits[(group * query_tokens * (head_dim // block_d), kv_heads, batch)](
        out,
        lse,
        part_out,
        part_lse,
        kv_heads,
        splits,
        GROUP=group,
        QUERY_TOKENS=query_tokens,
        ROWS=rows,
        ROW_TILES=row_tiles,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_S=min(256, 1 << (splits - 1).bit_length()),
        PDL=hopper,
        num_warps=4,
        **launch_options,
    )
    return out, lse
