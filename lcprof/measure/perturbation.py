"""What sampling a board costs the work beside it: the same calls with the sampler and without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from math import ceil

from msgspec import Struct

from lcprof.measure.board import Board, Sampler
from lcprof.measure.device import Call, Device
from lcprof.measure.runner import BATCH_S, GRAPH_S

ROUNDS = 7


class Perturbation(Struct, frozen=True, kw_only=True):
    """Median seconds of a call among many, without the sampler and with it."""

    without_s: float
    with_s: float

    @property
    def share(self) -> float:
        """How much longer a call takes with it; less than 0 where it takes no longer."""
        return self.with_s / self.without_s - 1.0


def perturbation(
    device: Device,
    board: Board,
    run: Call,
    *,
    seconds: float = 1.0,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Perturbation:
    """Calls one after the other for `seconds`, as the runner makes them, `rounds` times without the
    sampler and as often with it, in turns: a board that warms up slows both alike."""
    call, launch = device.ready(run)
    each_s = max(device.time_s(call), 1e-7)
    often = ceil(GRAPH_S / each_s) if launch == "graph" else 1
    if often > 1:
        call, _ = device.ready(run, often)
    batch = max(1, int(BATCH_S / (often * each_s)))
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for sampled in (bool(number % 2), not number % 2):
            with Sampler(board, clock) if sampled else nullcontext():
                begun, calls = clock(), 0
                while calls == 0 or clock() - begun < seconds:
                    for _ in range(batch):
                        call()
                    device.synchronise()
                    calls += batch * often
                elapsed_s = clock() - begun
            # The first round warms up.
            if number:
                times[sampled].append(elapsed_s / calls)
    return Perturbation(
        without_s=statistics.median(times[False]), with_s=statistics.median(times[True])
    )
