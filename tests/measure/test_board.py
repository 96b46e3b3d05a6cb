"""What is made of a board's readings, and the thread that takes them."""

from __future__ import annotations

import threading
import time

import pytest
from measuring import Board

from lcprof.measure.board import (
    BOARD_COLUMNS,
    Facts,
    LostDeviceError,
    NoBoard,
    Reading,
    Sampler,
    Utilisation,
    counted,
    counter_power_w,
    summarise,
    timeline,
)
from lcprof.measure.row import Measured


def readings(step_s: float, power_w: float, *, period_s: float, count: int) -> list[Reading]:
    """A counter that moves once in `step_s`, read every `period_s`."""
    return [
        Reading(at_s=i * period_s, energy_j=power_w * step_s * int(i * period_s / step_s + 1e-9))
        for i in range(count)
    ]


def test_power_by_the_counter_is_exact_whatever_its_step() -> None:
    # 100 ms steps read every 20 ms: steps fall on readings, and 600 J/s is 600 W.
    assert counter_power_w(readings(0.1, 600.0, period_s=0.02, count=51)) == pytest.approx(600.0)
    # First minus last would say 600 * 9 / 10 over the same readings.
    found = readings(0.1, 600.0, period_s=0.02, count=49)
    whole_j = (found[-1].energy_j or 0) - (found[0].energy_j or 0)
    assert whole_j / found[-1].at_s < 570
    assert counter_power_w(found) == pytest.approx(600.0)


def test_a_counter_that_hardly_moves_gives_no_power() -> None:
    assert counter_power_w(readings(0.4, 600.0, period_s=0.1, count=9)) is None
    assert counter_power_w([Reading(at_s=0.0), Reading(at_s=1.0)]) is None
    assert counter_power_w([]) is None


def test_energy_is_that_of_one_call() -> None:
    found = readings(0.1, 600.0, period_s=0.05, count=41)
    # 400 calls in 2 s, 5 ms each, at 600 W: 3 J.
    told = summarise(found, 400, 2.0)
    assert told.energy_j == pytest.approx(3.0)
    assert told.energy_basis == "counter"


def test_without_a_counter_energy_is_by_power_and_says_so() -> None:
    found = [Reading(at_s=float(i), power_w=watts) for i, watts in enumerate((300, 400, 500))]
    told = summarise(found, 10, 2.0)
    # Median 400 W times 0.2 s.
    assert (told.energy_j, told.energy_basis, told.power_w) == (80.0, "power", 400)


def test_a_summary_holds_medians_peaks_and_every_reason() -> None:
    found = [
        Reading(at_s=0.0, sm_clock_hz=1e9, throttle=(), used_bytes=5.0, other_processes=0),
        Reading(at_s=1.0, sm_clock_hz=3e9, throttle=("power limit",), used_bytes=9.0),
        Reading(at_s=2.0, sm_clock_hz=2e9, throttle=("temperature", "power limit"), used_bytes=7.0,
                other_processes=2),
    ]  # fmt: skip
    told = summarise(found, 1, 2.0)
    assert told.sm_clock_hz == 2e9
    assert told.throttle == ("power limit", "temperature")
    assert told.peak_used_bytes == 9.0
    assert told.other_processes == 2
    assert (told.power_w, told.energy_j, told.energy_basis) == (None, None, "")


def test_counters_become_bytes_and_flops_of_a_call() -> None:
    measured = Measured(sustained_s=1e-3, sm_clock_hz=1.5e9)
    used = Utilisation(dram=0.9, tensor=0.5, occupancy=0.25)
    facts = Facts(bandwidth_bytes_per_s=4.8e12)
    told = counted(measured, used, facts, 540672.0)
    assert told.hbm_bytes == pytest.approx(0.9 * 4.8e9)
    # Half the cycles of 1.5 GHz for 1 ms: 750,000 cycles of 540,672 FLOPs.
    assert told.flops == pytest.approx(750_000 * 540_672)
    assert (told.dram_utilisation, told.tensor_utilisation, told.sm_occupancy) == (0.9, 0.5, 0.25)
    nothing = counted(measured, Utilisation(), facts, None)
    assert (nothing.hbm_bytes, nothing.flops) == (None, None)


def test_the_sampler_reads_in_a_thread_of_its_own() -> None:
    names: list[str] = []

    class Watched(Board):
        def read(self, now_s: float) -> Reading:
            names.append(threading.current_thread().name)
            return super().read(now_s)

    with Sampler(Watched(), time.perf_counter, period_s=0.001) as sampler:
        until = time.monotonic() + 30
        while len(sampler.readings) < 3 and time.monotonic() < until:
            time.sleep(0.001)
    assert len(sampler.readings) >= 3
    assert set(names) == {"lcprof-board"}
    assert not any(thread.name == "lcprof-board" for thread in threading.enumerate())


def sampled(board: Board, fault: Exception | None = None) -> None:
    with Sampler(board, time.perf_counter):
        if fault is not None:
            raise fault


def test_a_board_that_is_lost_while_sampled_is_raised_at_the_end() -> None:
    with pytest.raises(LostDeviceError, match="lost"):
        sampled(Board(lost=True))
    # What went wrong inside comes first.
    with pytest.raises(ValueError, match="inside"):
        sampled(Board(lost=True), ValueError("inside"))


def test_no_board_says_why_in_every_column() -> None:
    board = NoBoard("NVML: Insufficient Permissions")
    assert set(board.missing) == set(BOARD_COLUMNS)
    assert set(board.missing.values()) == {"NVML: Insufficient Permissions"}
    assert board.read(1.0) == Reading(at_s=1.0)
    assert board.utilisation(board.mark(), board.mark()) == Utilisation()
    assert set(BOARD_COLUMNS) <= set(Measured.__struct_fields__)


def test_a_timeline_keeps_both_ends_and_few_moments() -> None:
    found = [Reading(at_s=100 + i, power_w=float(i), sm_clock_hz=1e9) for i in range(401)]
    told = timeline(found)
    assert len(told) == 20
    assert (told[0].at_s, told[0].power_w) == (0.0, 0.0)
    assert (told[-1].at_s, told[-1].power_w) == (400.0, 400.0)
    assert timeline([Reading(at_s=5.0, power_w=1.0)])[0].at_s == 0.0
    # A board that says nothing of power and clock has none.
    assert timeline([Reading(at_s=0.0, temperature_c=50.0)]) == ()
