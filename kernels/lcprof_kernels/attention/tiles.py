"""The tile of each kernel by architecture and head dimension: measured once, kept as tables."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One block: `block_m` query rows, `block_n` keys, and how it is compiled.

    `registers` caps what a thread may have, so that one more block fits on a multiprocessor.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    registers: int | None = None


def _tile(
    block_m: int, block_n: int, num_warps: int, num_stages: int, registers: int | None = None
) -> Tile:
    return Tile(
        block_m=block_m,
        block_n=block_n,
        num_warps=num_warps,
        num_stages=num_stages,
        registers=registers,
    )


FORWARD = {
    (80, 64): _tile(128, 64, 4, 3),
    (80, 96): _tile(128, 64, 8, 2),
    (80, 128): _tile(128, 32, 8, 3),
    (80, 192): _tile(128, 64, 8, 2),
    (80, 256): _tile(64, 64, 8, 2),
    (90, 64): _tile(64, 64, 4, 3, 128),
    (90, 96): _tile(128, 128, 8, 2),
    (90, 128): _tile(64, 64, 4, 3),
    (90, 192): _tile(128, 64, 8, 3),
    (90, 256): _tile(128, 32, 8, 3),
}
"""Tiles by (architecture, head dimension of the keys). sm_90 rows are the fastest measured on an
H200 at 16 K tokens: two or more small blocks on a multiprocessor, each computing its softmax under
the other's products, beat one large block. sm_80 rows fit its shared memory without spills and have
not been timed."""

FORWARD_FP8 = {
    (80, 64): _tile(128, 64, 8, 2),
    (80, 96): _tile(128, 64, 8, 2),
    (80, 128): _tile(128, 64, 8, 2),
    (80, 192): _tile(128, 64, 8, 2),
    (80, 256): _tile(64, 64, 8, 2),
    (90, 64): _tile(128, 128, 8, 2),
    (90, 96): _tile(128, 128, 8, 2),
    (90, 128): _tile(128, 128, 8, 2),
    (90, 192): _tile(128, 64, 8, 2),
    (90, 256): _tile(128, 64, 8, 2),
}
"""The same for fp8 inputs, timed at head dimension 128. sm_80 has no fp8 products: those rows are
the interpreter's."""

BACKWARD_KEYS = {
    (80, 64): _tile(32, 32, 4, 2),
    (80, 96): _tile(16, 64, 8, 2),
    (80, 128): _tile(32, 64, 8, 2),
    (80, 192): _tile(32, 32, 8, 2),
    (80, 256): _tile(32, 32, 8, 1),
    (90, 64): _tile(64, 64, 4, 3),
    (90, 96): _tile(64, 64, 4, 2),
    (90, 128): _tile(64, 64, 4, 2),
    (90, 192): _tile(64, 64, 8, 2),
    (90, 256): _tile(32, 64, 8, 2),
}
"""dK and dV. The fastest without spills of those timed on an H200 at head dimensions 64, 128 and
256 and 16 K tokens; the rows of 96 and 192 follow their neighbours."""

BACKWARD_KEYS_PACKED = {
    (90, 64): _tile(32, 64, 8, 2),
    (90, 96): _tile(32, 64, 8, 2),
    (90, 128): _tile(32, 64, 8, 1),
    (90, 192): _tile(32, 64, 8, 1),
    (90, 256): _tile(32, 32, 8, 2),
}
"""What replaces these for packed sequences, whose queries are read without descriptors."""

BACKWARD_QUERIES = {
    (80, 64): _tile(64, 32, 4, 3),
    (80, 96): _tile(64, 64, 8, 2),
    (80, 128): _tile(64, 64, 8, 2),
    (80, 192): _tile(32, 32, 8, 2),
    (80, 256): _tile(64, 32, 8, 1),
    (90, 64): _tile(64, 64, 4, 3),
    (90, 96): _tile(64, 64, 4, 2),
    (90, 128): _tile(64, 64, 4, 2),
    (90, 192): _tile(64, 64, 8, 2),
    (90, 256): _tile(64, 32, 8, 3),
}
"""dQ, timed like BACKWARD_KEYS."""


@dataclass(frozen=True, kw_only=True)
class BackwardTiles:
    """The tiles of both kernels of a backward pass."""

    keys: Tile
    queries: Tile


def other_backward_tiles(present: BackwardTiles) -> tuple[BackwardTiles, ...]:
    """Tiles of head dimension 256 worth timing: those that compile for sm_90 without spills."""
    others = [
        replace(present, keys=_tile(32, 64, 8, 3)),
        replace(present, keys=_tile(64, 32, 8, 2)),
        replace(present, keys=_tile(16, 64, 8, 3)),
        replace(present, queries=_tile(64, 32, 8, 2)),
    ]
    return tuple(record for record in others if record != present)
