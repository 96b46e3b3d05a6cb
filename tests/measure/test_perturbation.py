"""What the sampler costs, on a made-up device and board."""

from __future__ import annotations

import threading

import pytest
from measuring import Board, Clock, Device

from lcprof.measure.board import Reading
from lcprof.measure.perturbation import perturbation


class Watched(Board):
    """A board that knows whether it is being read."""

    reads = 0

    def read(self, now_s: float) -> Reading:
        self.reads += 1
        return super().read(now_s)


@pytest.mark.parametrize(("launch", "seconds"), [("graph", 3e-6), ("graph", 0.05), ("eager", 1e-3)])
def test_a_sampler_that_costs_nothing_is_found_to(launch: str, seconds: float) -> None:
    clock, board = Clock(), Watched()
    calls: list[int] = []

    def run() -> None:
        clock.now_s += seconds
        calls.append(board.reads)

    found = perturbation(Device(clock, launch=launch), board, run, seconds=0.02, rounds=2,
                         clock=clock)  # fmt: skip
    assert found.without_s == pytest.approx(seconds)
    assert found.with_s == pytest.approx(seconds)
    assert found.share == pytest.approx(0.0, abs=1e-9)
    # Before the first round with the sampler, nothing had read the board.
    assert calls[0] == 0
    assert board.reads >= 2 * 3


def test_a_sampler_that_slows_calls_is_found_out() -> None:
    clock, board = Clock(), Watched()

    def run() -> None:
        # Calls beside a sampler, take a tenth longer.
        clock.now_s += 0.0011 if sampling() else 0.001

    def sampling() -> bool:
        return any(each.name == "lcprof-board" for each in threading.enumerate())

    found = perturbation(Device(clock, launch="eager"), board, run, seconds=0.05, rounds=3,
                         clock=clock)  # fmt: skip
    assert found.share == pytest.approx(0.1, rel=0.01)
