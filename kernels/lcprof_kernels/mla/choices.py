"""Tiles of the MLA decode that are worth timing beside the chosen one."""

from __future__ import annotations

from dataclasses import replace

import triton

from .launch import Tile, tile_for


def others(capability: tuple[int, int], rows: int, *, fp8: bool, paged: bool) -> tuple[Tile, ...]:
    """Tiles that differ from the present one, likeliest first.

    With descriptors a tile of 32 rows in columns takes 549 instructions where copies by lanes take
    624, and its next copy waits for no address. A hidden merge overlaps a launch with the end of
    the splits. fp8 codes read as words are copied ahead, which single bytes are not for few rows.
    """
    present = tile_for(capability, rows, fp8=fp8, paged=paged)
    if capability < (9, 0):
        return ()
    tried = [replace(present, hidden_merge=True)]
    if not fp8:
        boxed = Tile(
            rows=min(64, max(16, triton.next_power_of_2(rows))),
            tokens=64,
            num_warps=8,
            num_stages=2,
            apart=True,
            boxes=True,
            hidden_merge=True,
        )
        if rows <= 32:
            columns = replace(boxed, columns=True)
            tried += [columns, replace(columns, hidden_merge=False)]
            tried += [replace(columns, boxes=False), replace(columns, num_warps=4)]
        if rows > 16:
            tried += [replace(boxed, rows=64), replace(boxed, rows=64, hidden_merge=False)]
    else:
        square = Tile(rows=64, tokens=64, num_warps=8, num_stages=2, apart=True, hidden_merge=True)
        narrow = Tile(rows=16, tokens=32, num_warps=4, num_stages=3, words=True, blocks_per_sm=2)
        if rows <= 16:
            tried += [square, narrow, replace(narrow, num_stages=2), replace(narrow, num_stages=4)]
        elif rows <= 32:
            tried.append(replace(narrow, rows=32, num_warps=8, blocks_per_sm=1))
        tried.append(replace(square, tokens=32))
    kept = dict.fromkeys(tried)
    kept.pop(present, None)
    return tuple(kept)


def place(rows: int, *, fp8: bool, paged: bool) -> str:
    """The entry of the launch's table that would hold a tile."""
    return f"mla.launch.TILES[{(triton.next_power_of_2(rows), fp8, paged)!r}]"
