"""What the board says of itself while kernels run: power, energy, clocks, counters.

`Board` is the interface, `nvml.py` has NVIDIA's; a sampler reads it in a thread of its own.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from lcprof.errors import LcprofError
from lcprof.measure.row import Measured, Moment

PERIOD_S = 0.02
LEAST_EDGES = 3
MOST_MOMENTS = 20

T = TypeVar("T")


class LostDeviceError(LcprofError):
    """The device is gone, or no longer answers: nothing further can be measured on it."""


class ImpossibleError(LcprofError):
    """Nothing can be measured here, in one sentence that says why and what to change."""


class Reading(Struct, frozen=True, kw_only=True):
    """The board at one moment; None where it does not say. `energy_j` counts from some start."""

    at_s: float
    power_w: float | None = None
    energy_j: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle: tuple[str, ...] = ()
    temperature_c: float | None = None
    used_bytes: float | None = None
    other_processes: int | None = None


class Utilisation(Struct, frozen=True, kw_only=True):
    """Shares of the time between two moments: memory bandwidth used, tensor cores busy, warps
    resident. None where the board does not say."""

    dram: float | None = None
    tensor: float | None = None
    occupancy: float | None = None


class Facts(Struct, frozen=True, kw_only=True):
    """What does not change while a board runs. `bandwidth_bytes_per_s` is its memory's peak by
    bus width and clock."""

    name: str = ""
    uuid: str | None = None
    driver: str = ""
    cuda: str = ""
    memory_bytes: float | None = None
    sm_clock_max_hz: float | None = None
    memory_clock_max_hz: float | None = None
    bandwidth_bytes_per_s: float | None = None
    power_limit_w: float | None = None
    mig: bool | None = None
    ecc: bool | None = None


class Stranger(Struct, frozen=True, kw_only=True):
    """Another process on the board."""

    pid: int
    used_bytes: float | None = None


class Board(Protocol):
    """A board to read. `missing` says by column of `Measured` why it stays empty."""

    missing: Mapping[str, str]

    def facts(self) -> Facts:
        """What does not change. Raises LostDeviceError, as every other method may."""

    def read(self, now_s: float) -> Reading:
        """The board now."""

    def strangers(self) -> Sequence[Stranger]:
        """Other processes that hold memory on the board."""

    def mark(self) -> Any:
        """A moment from which counters count; None where there are none."""

    def utilisation(self, begin: Any, end: Any) -> Utilisation:
        """What the counters say of the time between two marks."""


BOARD_COLUMNS = (
    "power_w",
    "energy_j",
    "sm_clock_hz",
    "memory_clock_hz",
    "throttle",
    "temperature_c",
    "peak_used_bytes",
    "other_processes",
    "hbm_bytes",
    "flops",
    "dram_utilisation",
    "tensor_utilisation",
    "sm_occupancy",
)
"""The columns that only a board can fill."""


class NoBoard:
    """Stands in where no board can be read; every column is empty for the same reason."""

    def __init__(self, why: str) -> None:
        self.missing: Mapping[str, str] = dict.fromkeys(BOARD_COLUMNS, why)

    def facts(self) -> Facts:
        return Facts()

    def read(self, now_s: float) -> Reading:
        return Reading(at_s=now_s)

    def strangers(self) -> Sequence[Stranger]:
        return ()

    def mark(self) -> Any:
        return None

    def utilisation(self, begin: Any, end: Any) -> Utilisation:
        return Utilisation()


class Sampler:
    """Reads a board every `period_s` in a thread of its own, between `with` and its end.

    What the thread meets (a lost device) is raised at the end of the block.
    """

    def __init__(
        self, board: Board, clock: Callable[[], float], *, period_s: float = PERIOD_S
    ) -> None:
        self.readings: list[Reading] = []
        self._board = board
        self._clock = clock
        self._period_s = period_s
        self._stop = threading.Event()
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="lcprof-board", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._fault is not None and error is None:
            raise self._fault

    def _run(self) -> None:
        try:
            while True:
                self.readings.append(self._board.read(self._clock()))
                if self._stop.wait(self._period_s):
                    self.readings.append(self._board.read(self._clock()))
                    return
        except Exception as error:  # carried over to the thread that waits for it
            self._fault = error


def summarise(readings: Sequence[Reading], calls: int, elapsed_s: float) -> Measured:
    """What a sustained run of `calls` calls over `elapsed_s` seconds did to the board.

    Clocks, power and temperature are medians, memory and other processes the most that was seen,
    throttle reasons all that occurred. Energy is the energy counter's rate times the time of a
    call; where the counter moved too rarely, the median power times it.
    """
    power_w = _median([each.power_w for each in readings])
    rate_w, basis = counter_power_w(readings), "counter"
    if rate_w is None:
        rate_w, basis = power_w, "power"
    used = _present([each.used_bytes for each in readings])
    others = _present([each.other_processes for each in readings])
    return Measured(
        power_w=power_w,
        energy_j=None if rate_w is None else rate_w * elapsed_s / calls,
        energy_basis="" if rate_w is None else basis,
        sm_clock_hz=_median([each.sm_clock_hz for each in readings]),
        memory_clock_hz=_median([each.memory_clock_hz for each in readings]),
        throttle=tuple(dict.fromkeys(why for each in readings for why in each.throttle)),
        temperature_c=_median([each.temperature_c for each in readings]),
        peak_used_bytes=max(used) if used else None,
        other_processes=max(others) if others else None,
        timeline=timeline(readings),
    )


def timeline(readings: Sequence[Reading]) -> tuple[Moment, ...]:
    """At most `MOST_MOMENTS` readings, evenly chosen, the first and the last among them, counted
    from the first one; none of a board that says nothing of power and clock."""
    told = [each for each in readings if (each.power_w, each.sm_clock_hz) != (None, None)]
    last = len(told) - 1
    count = min(len(told), MOST_MOMENTS)
    chosen = [told[round(place * last / max(count - 1, 1))] for place in range(count)]
    return tuple(
        Moment(
            at_s=each.at_s - told[0].at_s,
            power_w=each.power_w,
            sm_clock_hz=each.sm_clock_hz,
            temperature_c=each.temperature_c,
        )
        for each in chosen
    )


def counter_power_w(readings: Sequence[Reading]) -> float | None:
    """Mean power by the energy counter: from one step of it to the last one.

    The counter moves in steps of a board's own period, so that only the moments at which it moved
    bound an interval. None when it moved less than three times.
    """
    counted = [each for each in readings if each.energy_j is not None]
    edges = [
        (after.at_s, after.energy_j)
        for before, after in pairwise(counted)
        if after.energy_j != before.energy_j and after.energy_j is not None
    ]
    if len(edges) < LEAST_EDGES:
        return None
    (first_s, first_j), (last_s, last_j) = edges[0], edges[-1]
    if last_s <= first_s or last_j <= first_j:
        return None
    return (last_j - first_j) / (last_s - first_s)


def counted(
    measured: Measured, used: Utilisation, facts: Facts, flops_per_cycle: float | None
) -> Measured:
    """`measured` with bytes and FLOPs of a call, from shares of peak over the sustained run.

    Bytes: share of the memory's peak by bus width and clock, times the time of a call. FLOPs:
    share of cycles in which tensor cores worked, times `flops_per_cycle` of the whole chip, times
    the SM clock and the time.
    """
    hbm_bytes = flops = None
    each_s = measured.sustained_s
    if each_s is not None and used.dram is not None and facts.bandwidth_bytes_per_s is not None:
        hbm_bytes = used.dram * facts.bandwidth_bytes_per_s * each_s
    clock_hz = measured.sm_clock_hz
    if None not in (each_s, used.tensor, clock_hz, flops_per_cycle):
        flops = (used.tensor or 0.0) * (flops_per_cycle or 0.0) * (clock_hz or 0.0) * (each_s or 0)
    return replace(
        measured,
        hbm_bytes=hbm_bytes,
        flops=flops,
        dram_utilisation=used.dram,
        tensor_utilisation=used.tensor,
        sm_occupancy=used.occupancy,
    )


def _present(values: Sequence[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def _median(values: Sequence[float | None]) -> float | None:
    found = _present(values)
    return statistics.median(found) if found else None
