"""Ceilings between ranks: every pair's link, and collectives of all of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, Literal

import torch

from lcprof.domain.operations import COLLECTIVES
from lcprof.measure.ceilings import Ceiling
from lcprof.measure.counters import Counted
from lcprof.measure.group_work import WORD, prepare_group, sent_between
from lcprof.measure.groups import LIBRARIES, link_bytes
from lcprof.measure.points import Shape
from lcprof.measure.ranks import Ranks

GPU_BYTES = 256 << 20
CPU_BYTES = 4 << 20


class _Exchange:
    """A collective of all ranks, as a point has it."""

    def __init__(self, operation: str, shape: Shape, implementation: str) -> None:
        self.operation = operation
        self.shape = shape
        self.implementation = implementation


def links_of(device: Literal["cuda", "cpu"], ranks: Ranks) -> list[Ceiling]:
    """The ceilings between ranks, pairs first; of one rank there are none. Rates are bytes a second
    on each rank's link, in one direction."""
    if ranks.size == 1:
        return []
    size = GPU_BYTES if device == "cuda" else CPU_BYTES
    size -= size % (WORD.itemsize * ranks.size)
    library = LIBRARIES[device]
    pairs = [_pair(one, other, size, ranks, library) for one, other in
             combinations(range(ranks.size), 2)]  # fmt: skip
    together = [_all(name, size, ranks, library) for name in COLLECTIVES if name != "send_recv"]
    return [*pairs, *together]


def _pair(source: int, target: int, size: int, ranks: Ranks, library: str) -> Ceiling:
    def make(place: torch.device) -> Callable[[], Any]:
        return sent_between(size // WORD.itemsize, source, target, ranks.rank, place).run

    return Ceiling(
        kind=f"link {source} to {target}",
        moved_bytes=float(size),
        held_bytes=float(size),
        make=make,
        implementation=library,
        shape={"bytes": size},
        ranks=ranks.size,
    )


def _all(name: str, size: int, ranks: Ranks, library: str) -> Ceiling:
    shape: Shape = {"ranks": ranks.size, "buffer_bytes": size}
    asked: Counted = _Exchange(name, shape, library)

    def make(place: torch.device) -> Callable[[], Any]:
        return prepare_group(asked, place, ranks).run

    return Ceiling(
        kind=f"{name} of {ranks.size}",
        moved_bytes=link_bytes(name, shape),
        held_bytes=2.0 * size,
        make=make,
        implementation=library,
        shape=shape,
        ranks=ranks.size,
    )
