"""How a decode is cut: the tile of each head size, and how many chunks each cache is split into.

A block reads one chunk of one KV head's cache. Too few blocks leave multiprocessors idle; too many
pay for filling pipelines and merging; a last wave that is nearly empty runs at a fraction of the
bandwidth. `plan_split` weighs these on a plain model of the card, in units of one tile's share of
the full bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from lcprof_kernels.errors import KernelInputError

MULTIPROCESSOR_RATE = 1.1
"""What one multiprocessor can read, over its even share of the bandwidth (measured on an H200)."""
START_TILES = 0.5
"""A block's start and end, in tiles of its own work that it could have read meanwhile."""
DRIFTED_WAVES = 4
"""After so many waves blocks have drifted apart: the last no longer starts all at once."""
UNEVEN_WAVES = 4
"""Blocks wanted when sequences differ in length, in waves: the longest must not end alone."""
UNEVEN_LEAST_TILES = 16
"""The least tiles of a block that is cut for that reason."""
MERGE_BYTES = 9 << 20
"""What could be read while the second kernel merges two splits."""
MERGE_BYTES_PER_SPLIT = 160 << 10
"""The same, for each further split."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One block's shape, and how it fills a multiprocessor.

    `rows` x `block_n` scores at a time; `num_stages` tiles of K and V in flight. `blocks_per_sm`
    is what the compiled kernel leaves room for; `block_rate` what one block alone can read, over a
    multiprocessor's even share of the bandwidth.
    """

    rows: int
    block_n: int
    num_warps: int
    num_stages: int
    blocks_per_sm: int
    block_rate: float


def tiles_for(capability: tuple[int, int], head_dim: int, rows: int) -> list[Tile]:
    """The tiles worth choosing between, by compute capability, head size and query rows.

    `rows` is query heads per KV head times query tokens. The shapes are those that measured best on
    an H200; what fits on a multiprocessor is read from compiled kernels.
    """
    hopper = capability >= (9, 0)
    m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    block_n = {64: 128, 96: 64, 128: 64, 256: 32}.get(head_dim)
    if block_n is None:
        raise KernelInputError(f"head_dim must be 64, 96, 128 or 256, got {head_dim}")
    if m == 64:
        blocks = 2 if hopper and head_dim < 256 else 1
        return [tile_of(m, min(block_n, 64), 3, blocks, 0.8)]
    if m == 32:
        return [tile_of(m, block_n, 3, 2 if head_dim < 256 else 1, 0.8)]
    shallow = tile_of(m, block_n, 3, 3 if hopper else 2, 0.88)
    deep = tile_of(m, block_n, 4, 2, 0.95)
    return [shallow, deep] if hopper else [shallow]


def tile_of(rows: int, block_n: int, num_stages: int, blocks: int, rate: float) -> Tile:
    """A tile of four warps."""
    return Tile(
        rows=rows,
        block_n=block_n,
        num_warps=4,
        num_stages=num_stages,
        blocks_per_sm=blocks,
        block_rate=rate,
    )


def cost(
    tile: Tile, *, splits: int, cells: int, tiles: int, tile_bytes: int, multiprocessors: int
) -> float:
    """Modelled time of `cells` caches of `tiles` tiles in `splits` chunks; the unit is one tile.

    Blocks run in waves of as many as fit. A wave takes what its bytes take at the full bandwidth,
    or what its busiest multiprocessor takes at the rate that its blocks reach, whichever is more.
    """
    blocks = cells * splits
    work = -(-tiles // splits) + START_TILES
    slots = multiprocessors * tile.blocks_per_sm
    waves, rest = divmod(blocks, slots)
    total = waves * slots * work
    if waves >= DRIFTED_WAVES:
        total += rest * work
    elif rest:
        deep = -(-rest // multiprocessors)
        rate = min(deep * tile.block_rate, MULTIPROCESSOR_RATE)
        total += work * max(rest, deep * multiprocessors / rate)
    if splits > 1:
        total += (MERGE_BYTES + MERGE_BYTES_PER_SPLIT * splits) / tile_bytes
    return total


def plan_split(
    choices: list[Tile],
    *,
    cells: int,
    tokens: int,
    token_bytes: int,
    multiprocessors: int,
    uneven: bool = False,
    splits: int | None = None,
) -> tuple[Tile, int]:
    """The cheapest tile and number of splits.

    `cells` is sequences x KV heads x row tiles, `tokens` the most that any sequence reads,
    `token_bytes` K and V of one token of one KV head. `uneven` says that sequences may be much
    shorter than that, each cut into as many chunks. A given number of splits is kept.
    """
    priced = []
    for tile in choices:
        tiles = max(1, -(-tokens // tile.block_n))
        slots = multiprocessors * tile.blocks_per_sm
        most = min(tiles, 1024, 2 * slots // cells if cells <= slots else 8)
        least = 1
        if uneven:
            least = max(1, min(-(-UNEVEN_WAVES * slots // cells), tiles // UNEVEN_LEAST_TILES))
        wanted = range(least, max(least, most) + 1) if splits is None else [splits]
        for count in wanted:
            price = tile.block_n * cost(
                tile,
                splits=count,
                cells=cells,
                tiles=tiles,
                tile_bytes=token_bytes * tile.block_n,
                multiprocessors=multiprocessors,
            )
            priced.append((price, tile, count))
    _, tile, count = min(priced, key=lambda entry: entry[0])
    return tile, count
