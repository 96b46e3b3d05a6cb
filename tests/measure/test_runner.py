"""The runner: every point leaves a row, whatever happens to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measuring import Board, Clock, Device, RefusalError, Task, Workshop

from lcprof.errors import InputError
from lcprof.measure.board import LostDeviceError, NoBoard
from lcprof.measure.row import Predicted, Row
from lcprof.measure.runner import Outcome, Progress, Runner, Settings
from lcprof.num import quantile

QUICK = Settings(burst_s=0.01, sustained_s=0.05, flops_per_cycle=1000.0)


class Bench:
    """A runner on made-up things, and the rows it wrote."""

    def __init__(self, settings: Settings = QUICK, *, board: Any = None, **device: Any) -> None:
        self.clock = Clock()
        self.workshop = Workshop(self.clock)
        self.device = Device(self.clock, **device)
        self.rows: list[Row] = []
        self.seen: list[Progress] = []
        self.runner = Runner(
            device=self.device,
            board=board or Board(),
            workshop=self.workshop,
            append=self.rows.append,
            settings=settings,
            clock=self.clock,
            observe=self.seen.append,
        )

    def run(self, *tasks: Task, **how: Any) -> Outcome:
        return self.runner.run(tasks, how.pop("predicted", {}), **how)

    def only(self, task: Task) -> Row:
        self.run(task)
        (row,) = self.rows
        return row


def test_a_measured_row_has_every_column() -> None:
    bench = Bench()
    bench.run(Task("a", seconds=0.002), predicted={"a": Predicted(seconds=0.0018)})
    (row,) = bench.rows
    got = row.measured
    assert (row.status, row.reason, row.empty) == ("measured", "", {})
    assert got.burst_s == pytest.approx(0.002)
    assert got.burst_p20_s == got.burst_p80_s == pytest.approx(0.002)
    assert got.rounds == 5
    assert got.launch == "graph"
    assert got.sustained_s == pytest.approx(0.002)
    # 20 ms of 2 ms calls are queued at a time, until 50 ms have passed.
    assert got.sustained_calls == 30
    assert got.peak_allocated_bytes == 2e3
    assert got.power_w == 500.0
    assert got.energy_j == pytest.approx(1.0)
    assert got.hbm_bytes == pytest.approx(0.5 * 4e12 * 0.002)
    assert got.flops == pytest.approx(0.25 * 1000 * 1.5e9 * 0.002)
    assert got.throttle == ("power limit",)
    assert (got.launches, got.kernels[0].registers) == (2, 128)
    assert (got.error, got.error_allowed) == (0.0, 0.5)
    assert row.predicted.seconds == 0.0018
    assert row.source == "made up"


def test_a_short_call_is_repeated_within_a_graph() -> None:
    """200 us of calls are launched at once, so that the host keeps up."""
    bench = Bench()
    got = bench.only(Task("a", seconds=3e-6)).measured
    assert bench.device.graphs == [1, 67]
    assert got.sustained_s == pytest.approx(3e-6)
    assert got.sustained_calls % 67 == 0
    eager = Bench(launch="eager")
    got = eager.only(Task("a", seconds=3e-6)).measured
    assert (got.launch, eager.device.graphs) == ("eager", [])


def test_a_small_call_is_marked_as_warm() -> None:
    """Twice the L2, 50 MB here, is the least that pushes out what the call before read."""
    for moved, warm in ((99e6, True), (101e6, False)):
        bench = Bench()
        bench.run(Task("a"), predicted={"a": Predicted(hbm_bytes=moved)})
        (row,) = bench.rows
        assert row.measured.warm is warm
        assert (row.measured.hbm_bytes is None) is warm
        assert ("hbm_bytes" in row.empty) is warm


def test_fp8_does_twice_the_flops_in_a_cycle() -> None:
    once, twice = (Bench().only(Task(name)).measured.flops for name in ("bf16", "fp8"))
    assert once is not None
    assert twice == pytest.approx(2 * once)


def test_a_wrong_result_is_not_timed() -> None:
    row = Bench().only(Task("a", error=0.7))
    assert (row.status, row.reason) == ("wrong", "error 0.7, allowed 0.5")
    assert row.measured.burst_s is None
    assert Bench().only(Task("nan", error=float("nan"))).status == "wrong"


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        (
            RefusalError("head_dim must be 64\nor so"),
            "refused",
            "RefusalError: head_dim must be 64",
        ),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory", "CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory", "allocate"),
        (MemoryError(), "out of memory", "MemoryError"),
        (ValueError("odd\x1b[31m"), "failed", "ValueError: odd?[31m"),
    ],
)
def test_a_fault_is_a_row_and_the_next_point_runs(
    fault: Exception, status: str, reason: str
) -> None:
    bench = Bench()
    outcome = bench.run(Task("a", fault=fault), Task("b"))
    first, second = bench.rows
    assert first.status == status
    assert reason in first.reason
    assert "\n" not in first.reason
    assert second.status == "measured"
    assert outcome == Outcome(statuses={status: 1, "measured": 1}, left=0)


@pytest.mark.parametrize(
    "fault",
    [
        LostDeviceError("NVML: GPU is lost"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_a_lost_gpu_ends_the_run_with_a_row(fault: Exception) -> None:
    bench = Bench()
    outcome = bench.run(Task("a"), Task("b", fault=fault), Task("c"), Task("d"))
    assert [row.status for row in bench.rows] == ["measured", "lost"]
    assert outcome.left == 2
    assert outcome.stopped == bench.rows[1].reason != ""


def test_a_gpu_lost_while_sampled_or_released_ends_the_run_too() -> None:
    bench = Bench(board=Board(lost=False))
    bench.runner.board.lost = True  # type: ignore[attr-defined]
    bench.run(Task("a"), Task("b"))
    assert [row.status for row in bench.rows] == ["lost"]
    bench = Bench(release_fault=LostDeviceError("gone"))
    bench.run(Task("a", error=0.9), Task("b"))
    assert [row.status for row in bench.rows] == ["lost"]


def test_ctrl_c_leaves_a_row() -> None:
    bench = Bench()
    with pytest.raises(KeyboardInterrupt):
        bench.run(Task("a"), Task("b", fault=KeyboardInterrupt()), Task("c"))
    assert [(row.key, row.status) for row in bench.rows] == [
        ("a", "measured"),
        ("b", "interrupted"),
    ]
    assert not bench.rows[1].finished


def test_what_does_not_fit_is_skipped_with_the_bytes() -> None:
    bench = Bench(free=1.5e9)
    row = bench.only(Task("a", bytes=2e9))
    assert (row.status, row.reason) == ("does not fit", "needs 2.00 GB of 1.50 GB that are free")
    assert bench.workshop.prepared == []


def test_what_has_no_kernel_is_a_row() -> None:
    bench = Bench()
    row = bench.only(Task("a", why="h2o has no kernel"))
    assert (row.status, row.reason) == ("not measurable", "h2o has no kernel")
    assert bench.workshop.prepared == []


def test_a_refused_profiler_costs_its_columns_alone() -> None:
    row = Bench(profiler_fault=RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")).only(Task("a"))
    assert row.status == "measured"
    assert row.measured.launches is None
    assert "CUPTI" in row.empty["kernels"]
    assert "CUPTI" in row.empty["launches"]


def test_without_a_board_the_columns_say_why() -> None:
    row = Bench(board=NoBoard("NVML: Not Found"), missing={"peak_allocated_bytes": "none"}).only(
        Task("a")
    )
    assert row.status == "measured"
    assert row.empty["power_w"] == row.empty["throttle"] == row.empty["flops"] == "NVML: Not Found"
    # The made-up device has a peak, so that its reason is not needed.
    assert "peak_allocated_bytes" not in row.empty
    row = Bench(Settings(sustained_s=0.0)).only(Task("a"))
    assert row.empty["sustained_s"] == row.empty["energy_j"] == "no sustained run was asked for"
    assert row.measured.sustained_s is None


def test_bytes_that_stay_in_the_l2_are_not_told_as_those_of_hbm() -> None:
    bench = Bench()
    predicted = {"small": Predicted(hbm_bytes=99e6), "large": Predicted(hbm_bytes=101e6)}
    bench.run(Task("small"), Task("large"), predicted=predicted)
    small, large = bench.rows
    assert small.measured.hbm_bytes is None
    assert "L2" in small.empty["hbm_bytes"]
    assert small.measured.dram_utilisation == 0.5
    assert large.measured.hbm_bytes is not None


def test_an_unknown_gpu_says_why_flops_are_empty() -> None:
    row = Bench(Settings(burst_s=0.0, sustained_s=0.01)).only(Task("a"))
    assert "data sheet" in row.empty["flops"]
    assert row.measured.hbm_bytes is not None


def test_finished_points_are_not_run_again_and_those_that_failed_come_last() -> None:
    bench = Bench()
    tasks = [Task(name) for name in "abcd"]
    bench.run(*tasks, finished={"a"}, tried={"b"})
    assert bench.workshop.prepared == ["c", "d", "b"]


def test_no_point_begins_after_the_budget() -> None:
    bench = Bench(Settings(burst_s=0.0, sustained_s=0.0, budget_s=10.0))
    # Each point runs about eight times: a check, a warm-up, five rounds, no profile of real time.
    tasks = [Task(name, seconds=1.0) for name in "abcd"]
    outcome = bench.run(*tasks)
    assert [row.key for row in bench.rows] == ["a", "b"]
    assert (outcome.left, outcome.stopped) == (2, "the budget of 10 s is spent")
    assert bench.run(*tasks, spent_s=11.0).left == 4


def test_slow_points_are_timed_a_few_times_only() -> None:
    row = Bench().only(Task("a", seconds=30.0))
    assert row.measured.rounds == 1
    assert Bench().only(Task("a", seconds=1.0)).measured.rounds == 3
    assert Bench().only(Task("a", seconds=1e-6)).measured.rounds == 60


def test_the_time_left_comes_from_the_predictions() -> None:
    bench = Bench(Settings(burst_s=0.0, sustained_s=0.0))
    tasks = [Task("short", seconds=0.1), Task("long", seconds=10.0), Task("not", why="no kernel")]
    predicted = {"short": Predicted(seconds=0.1), "long": Predicted(floor_s=10.0)}
    bench.run(*tasks, predicted=predicted)
    first, second, third, last = bench.seen
    # 5 rounds, 3 single calls, one sustained: 9 calls of 0.1 s and of 10 s, and 0.5 s around each.
    assert first.left_s == pytest.approx(0.9 + 90 + 2 * 0.5)
    # The first took 0.7 s where 1.4 s were predicted: the rest is expected to do likewise.
    assert second.taken_s == pytest.approx(0.7)
    assert second.left_s == pytest.approx(90.5 * 0.7 / 1.4)
    assert third.left_s == 0.0
    assert (last.done, last.total, last.left_s) == (3, 3, 0.0)
    assert [each.now for each in bench.seen] == ["short", "long", "not", ""]


def test_a_record_that_cannot_be_written_ends_the_run() -> None:
    bench = Bench()

    def full(row: Row) -> None:
        raise InputError.one("-o", given="run", expected="a record that can be written")

    bench.runner.append = full
    with pytest.raises(InputError):
        bench.run(Task("a"), Task("b"))
    assert bench.workshop.prepared == ["a"]


def test_traces_are_kept_where_asked(tmp_path: Path) -> None:
    Bench(Settings(burst_s=0.0, sustained_s=0.0, trace=tmp_path / "traces")).only(
        Task("gemm m=1 by x/y")
    )
    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["gemm-m-1-by-x-y.json"]
    both = Settings(sustained_s=0.0, trace=tmp_path / "a", timeline=tmp_path / "a")
    Bench(both).only(Task("gemm m=1 by x/y"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "gemm-m-1-by-x-y.json", "gemm-m-1-by-x-y.memory.csv",
    ]  # fmt: skip


def test_quantiles_lie_between_neighbours() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert quantile([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 0.2) == 1.0
    assert quantile([7.0], 0.8) == 7.0
