"""The host side of the MLA kernel: its tiles, its splits, its launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from lcprof_kernels.device import capability_of, multiprocessors_of
from lcprof_kernels.merge.api import launch_merge

from .fp8 import LATENT, ROPE
from .triton import decode_tiles

LOG2E = 1.4426950408889634
CALM_TILES = 8
"""A split shorter than this many tiles spends its time starting up."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One block's shape; `blocks_per_sm` is how many a multiprocessor holds.

    `apart`, `boxes`, `columns` and `words` are ways of the kernel, which says what they do.
    `hidden_merge` launches the merge of the splits while their kernel still runs (sm_90).
    """

    rows: int
    tokens: int
    num_warps: int
    num_stages: int
    apart: bool = False
    boxes: bool = False
    columns: bool = False
    words: bool = False
    hidden_merge: bool = False
    blocks_per_sm: int = 1


TILES: dict[tuple[int, bool, bool], Tile] = {}
"""What a run of `bench.tune` found faster on sm_90 than the rule of `tile_for`: by query rows (a
power of two), whether the cache is fp8, and whether it is paged."""


def tile_for(capability: tuple[int, int], rows: int, *, fp8: bool, paged: bool) -> Tile:
    """The tile of a number of query rows (heads x query tokens).

    Compute capability 9.0 has warp-group products from 64 rows on and 227 KB of shared memory, 8.0
    has 163 KB, the other 8.x have 99 KB. Widening fp8 tiles costs registers and as much time for
    few rows as for many.
    """
    if capability >= (9, 0):
        measured = TILES.get((triton.next_power_of_2(rows), fp8, paged))
        if measured is not None:
            return measured
        if rows > 32 or (fp8 and rows > 16):
            return Tile(rows=64, tokens=64, num_warps=8, num_stages=2, apart=True, boxes=True)
        if rows > 16:
            return Tile(rows=32, tokens=64, num_warps=8, num_stages=2, apart=True, columns=True)
        if paged and not fp8:
            return Tile(rows=16, tokens=64, num_warps=8, num_stages=2, apart=True, columns=True)
        return Tile(rows=16, tokens=32, num_warps=4, num_stages=2 if fp8 else 3, blocks_per_sm=2)
    if capability == (8, 0) and rows > 16 and not fp8:
        return Tile(rows=32, tokens=32, num_warps=8, num_stages=3)
    if fp8:
        return Tile(rows=16, tokens=32, num_warps=4, num_stages=3)
    return Tile(rows=16, tokens=32, num_warps=8, num_stages=3)


def choose_splits(*, cells: int, tiles: int, slots: int) -> int:
    """How many chunks to cut each sequence into.

    Each wave of blocks costs its longest chunk and a start-up of a few tiles; the split with the
    smallest sum wins, the smaller one in a tie.
    """
    best, least = 1, float("inf")
    for splits in range(1, max(1, min(tiles, 4 * slots // max(cells, 1))) + 1):
        waves = -(-cells * splits // slots)
        cost = waves * (-(-tiles // splits) + CALM_TILES) + 0.25 * splits
        if cost < least:
            best, least = splits, cost
    return best


def launch(
    q: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    scales: torch.Tensor | None,
    *,
    slot_stride: int,
    token_stride: int,
    lengths: torch.Tensor,
    page_table: torch.Tensor | None,
    page_tokens: int,
    context_tokens: int,
    scale: float,
    tile: Tile | None = None,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend arguments that are known to be right.

    `latent`, `rope` and `scales` point at the first cached row's parts; `slot_stride` and
    `token_stride` are in units of 16 bytes. `page_table` lists slots of `page_tokens` tokens.
    """
    batch, query_tokens, heads, _ = q.shape
    rows = heads * query_tokens
    capability = capability_of(q.device)
    if tile is None:
        tile = tile_for(capability, rows, fp8=scales is not None, paged=page_table is not None)
    row_tiles = triton.cdiv(rows, tile.rows)
    if splits is None:
        splits = choose_splits(
            cells=row_tiles * batch,
            tiles=triton.cdiv(context_tokens, tile.tokens),
            slots=multiprocessors_of(q.device) * tile.blocks_per_sm,
        )
    kind = q.dtype if splits == 1 else torch.float32
    outs = torch.empty(splits, batch, query_tokens, heads, LATENT, dtype=kind, device=q.device)
    lses = torch.empty(splits, batch, query_tokens, heads, dtype=torch.float32, device=q.device)
    if lses.numel() == 0:
        return outs[0], lses[0]
    slot_tokens = latent.shape[1]
    boxes = (
        tile.boxes
        and scales is None
        and (latent.shape[0] == 1 or slot_stride == slot_tokens * token_stride)
        and (page_table is None or page_tokens % tile.tokens == 0)
    )
    latent_boxes: Any = None
    rope_boxes: Any = None
    if boxes:
        all_tokens = latent.shape[0] * slot_tokens
        strides = [token_stride * 8, 1]
        latent_boxes = TensorDescriptor(
            latent, [all_tokens, LATENT], strides, [tile.tokens, LATENT]
        )
        rope_boxes = TensorDescriptor(rope, [all_tokens, ROPE], strides, [tile.tokens, ROPE])
    hidden = tile.hidden_merge and splits > 1 and capability >= (9, 0)
    decode_tiles[(row_tiles, splits, batch)](
        q,
        latent,
        rope,
        lses if scales is None else scales,
        latent_boxes,
        rope_boxes,
        lengths if page_table is None else page_table,
        lengths,
        outs,
        lses,
        scale * LOG2E,
        rows,
        heads,
        query_tokens,
        splits,
        q.stride(0),
        q.stride(1),
        q.stride(2),
        slot_stride,
        slot_stride,
        token_stride,
        0 if page_table is None else page_table.stride(0),
        slot_tokens,
        PAGE=0 if page_table is None else page_tokens,
        FP8=scales is not None,
        NATIVE=capability >= (8, 9),
        BLOCK_H=tile.rows,
        BLOCK_N=tile.tokens,
        STAGES=tile.num_stages,
        BOXES=boxes,
        APART=tile.apart,
        COLUMNS=tile.columns,
        PDL=hidden,
        WORDS=tile.words,
        num_warps=tile.num_warps,
    )
    return (outs[0], lses[0]) if splits == 1 else launch_merge(outs, lses, q.dtype, hidden=hidden)
