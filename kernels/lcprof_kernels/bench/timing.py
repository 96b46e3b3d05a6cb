"""Times of GPU work: cold L2, interleaved rounds, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .nvml import Nvml


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one implementation over the rounds, and the card's state while it ran."""

    median_s: float
    p20_s: float
    p80_s: float
    rounds: int
    launch: str
    sm_mhz: float | None
    power_w: float | None


class Flush:
    """Empties the L2 by reading: a flush that writes leaves dirty lines for the next kernel."""

    def __init__(self, device: torch.device, l2_bytes: int) -> None:
        size = max(4 * l2_bytes, 256 << 20)
        self.buffer = torch.randn(size // 4, device=device)

    def __call__(self) -> None:
        """Queue one read of the buffer."""
        self.buffer.sum()


def captured(run: Callable[[], Any]) -> tuple[Callable[[], None], str]:
    """`run` as a CUDA graph ("graph"), or itself ("eager") where it cannot be captured.

    A graph takes the launch cost of the host, which differs between implementations in Python and
    in C++, out of the time of the device.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return (lambda: _drop(run())), "eager"
    return graph.replay, "graph"


def _drop(_: object) -> None:
    return None


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    *,
    flush: Flush,
    nvml: Nvml,
    limit_s: float,
    least: int = 7,
    most: int = 60,
) -> dict[str, Timing]:
    """Time each run once a round, in turn, until `limit_s` of wall time or `most` rounds.

    At least `least` rounds are made. Before every timed run the L2 is read over; that also gives
    the host time to queue the run, so that the device never waits for it.
    """
    ready = {name: captured(run) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    clocks: dict[str, list[float]] = {name: [] for name in ready}
    powers: dict[str, list[float]] = {name: [] for name in ready}
    for replay, _ in ready.values():
        replay()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    rounds = 0
    while rounds < least or (rounds < most and time.perf_counter() - begun < limit_s):
        for name, (replay, _) in ready.items():
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            flush()
            start.record()
            replay()
            end.record()
            if rounds % 5 == 0:
                clock, power = nvml.read()
                if clock is not None:
                    clocks[name].append(clock)
                if power is not None:
                    powers[name].append(power)
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3)
        rounds += 1
    found = {}
    for name, (_, launch) in ready.items():
        ordered = sorted(seconds[name])
        found[name] = Timing(
            median_s=statistics.median(ordered),
            p20_s=ordered[int(0.2 * (rounds - 1))],
            p80_s=ordered[round(0.8 * (rounds - 1))],
            rounds=rounds,
            launch=launch,
            sm_mhz=statistics.median(clocks[name]) if clocks[name] else None,
            power_w=statistics.median(powers[name]) if powers[name] else None,
        )
    return found
