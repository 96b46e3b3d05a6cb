"""Runs points one after the other; each leaves a row in the record, whatever happens to it.

Clock, device, board and what turns a point into a call are parameters.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from math import ceil, isnan
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from msgspec import Struct
from msgspec.structs import asdict, replace

from lcprof.measure.board import (
    BOARD_COLUMNS,
    Board,
    Facts,
    LostDeviceError,
    NoBoard,
    Sampler,
    counted,
    summarise,
)
from lcprof.measure.counters import NAME as NSIGHT_COMPUTE
from lcprof.measure.counters import Counter, CountersError
from lcprof.measure.device import Call, Device, is_lost, is_out_of_memory
from lcprof.measure.points import Shape
from lcprof.measure.ranks import Alone, Ranks
from lcprof.measure.row import Measured, Predicted, Row, Status
from lcprof.num import quantile
from lcprof.units import show_bytes

T = TypeVar("T")

OVERHEAD_S = 0.5
"""Guess of what a point takes beside its timed calls: drawing, checking, profiling."""
COUNTING_S = 15.0
"""Guess of what a process takes that reads a point's counters."""
BATCH_S = 0.02
"""Calls of a sustained run are queued for about so long before they are waited for."""
GROUP_BATCH_S = 0.2
"""The same for several ranks, which take about a millisecond to agree on whether to go on."""
GRAPH_S = 2e-4
"""A graph of a sustained run takes at least so long: the host needs a few microseconds to launch
one, which shorter calls would be found to take."""
LONG_BURST_S = 3.0
FAILED = 3
"""Exit status of ranks of which one cannot go on."""
REASON_LETTERS = 200
COUNTED = ("counted_read_bytes", "counted_write_bytes", "counted_flops")
NO_TENSOR_COUNTER = "this chip has no counter of tensor operations that ncu knows"
L2_TIMES = 2.0
"""From so many times the L2 on, a call's reads push out what the call before it read."""


class Task(Protocol):
    """What can be run: a point, or a ceiling."""

    @property
    def operation(self) -> str:
        """The operation."""

    @property
    def shape(self) -> Shape:
        """Its shape, as plain data."""

    @property
    def implementation(self) -> str:
        """Who computes it."""

    @property
    def why(self) -> str:
        """Why it cannot be measured, "" when it can."""

    @property
    def note(self) -> str:
        """Where it differs from what was planned."""

    @property
    def source(self) -> str:
        """What it was planned for."""

    @property
    def key(self) -> str:
        """What identifies its row."""

    @property
    def ranks(self) -> int:
        """How many ranks run it together."""


class Work(Protocol):
    """A call that can be repeated, and a check of its result: (error found, error allowed)."""

    @property
    def run(self) -> Callable[[], Any]:
        """Computes the result."""

    @property
    def check(self) -> Callable[[Any], tuple[float, float]]:
        """Judges it."""


class Workshop(Protocol):
    """How a task becomes a call, and what it will take."""

    def prepare(self, task: Any) -> Work:
        """Draws inputs."""

    def needed_bytes(self, task: Any) -> float:
        """The most memory that it takes."""

    def is_refusal(self, error: BaseException) -> bool:
        """Whether a kernel said that it cannot do this."""

    def rates(self, task: Any, seconds: float) -> dict[str, float]:
        """Columns of a ceiling: rates that follow from the time of a call."""

    def tensor_rate(self, task: Any) -> float:
        """How much faster than in bf16 tensor cores work on it."""


class AgreedError(Exception):
    """A point that failed on one rank, as all of them know."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


class Settings(Struct, frozen=True, kw_only=True):
    """How long each point is timed. `budget_s`: no point begins after so long.

    `flops_per_cycle` of the whole chip and `bandwidth_bytes_per_s` of its memory turn the shares
    that hardware counters give into FLOPs and bytes; without the latter, bus width and clock do.
    `trace` and `timeline` are the folders of each point's Chrome trace and of what it allocated.
    """

    burst_s: float = 0.25
    least_rounds: int = 5
    most_rounds: int = 60
    sustained_s: float = 1.0
    budget_s: float | None = None
    trace: Path | None = None
    timeline: Path | None = None
    profile: bool = True
    flops_per_cycle: float | None = None
    bandwidth_bytes_per_s: float | None = None


class Progress(Struct, frozen=True, kw_only=True):
    """How far a run is: points done and in all, seconds that it took and that are left by the
    predictions, corrected by how long the points so far took against theirs."""

    done: int
    total: int
    taken_s: float
    left_s: float
    now: str


class Outcome(Struct, frozen=True, kw_only=True):
    """How a run ended: rows written by status, points not begun, and why it stopped early."""

    statuses: Mapping[str, int]
    left: int
    stopped: str = ""


class Runner:
    """Measures tasks on a device and hands each row to `append`."""

    def __init__(
        self,
        *,
        device: Device,
        board: Board,
        workshop: Workshop,
        append: Callable[[Row], None],
        settings: Settings,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        observe: Callable[[Progress], None] | None = None,
        counter: Counter | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.now = now
        self.device = device
        self.board = board
        self.workshop = workshop
        self.append = append
        self.settings = settings
        self.clock = clock
        self.observe = observe
        self.counter = counter
        self.ranks: Ranks = ranks or Alone()
        self._facts = _facts(board, settings.bandwidth_bytes_per_s)

    def run(
        self,
        tasks: Sequence[Task],
        predicted: Mapping[str, Predicted],
        *,
        finished: Collection[str] = (),
        tried: Collection[str] = (),
        spent_s: float = 0.0,
    ) -> Outcome:
        """Measures every task whose key is not `finished`; those that were `tried` before, and
        did not finish, come last, so that one that kills the device lets the others through.
        `spent_s` of the budget is gone already.

        A lost device ends the run. Ctrl-C leaves a row for the point it met and goes on upwards.
        """
        todo = [task for task in tasks if task.key not in finished]
        todo.sort(key=lambda task: task.key in tried)
        guesses = [self._guess_s(task, predicted.get(task.key)) for task in todo]
        begun, statuses = self.clock(), Tally[str]()
        for index, task in enumerate(todo):
            taken_s = self.clock() - begun
            left_s = _left_s(taken_s, sum(guesses[:index]), sum(guesses[index:]))
            if self.observe is not None:
                self.observe(
                    Progress(done=index, total=len(todo), taken_s=taken_s, left_s=left_s,
                             now=task.key)
                )  # fmt: skip
            budget_s = self.settings.budget_s
            spent = budget_s is not None and spent_s + taken_s >= budget_s
            if budget_s is not None and self.ranks.first(spent):
                why = f"the budget of {budget_s:g} s is spent"
                return Outcome(statuses=statuses, left=len(todo) - index, stopped=why)
            row = self.measure(task, predicted.get(task.key, Predicted()))
            self.ranks.last_words(None)
            self.append(row)
            statuses[row.status] += 1
            if row.status == "interrupted":
                raise KeyboardInterrupt
            if row.status == "lost":
                return Outcome(statuses=statuses, left=len(todo) - index - 1, stopped=row.reason)
        if self.observe is not None:
            taken_s = self.clock() - begun
            self.observe(
                Progress(done=len(todo), total=len(todo), taken_s=taken_s, left_s=0.0, now="")
            )
        return Outcome(statuses=statuses, left=0)

    def measure(self, task: Task, predicted: Predicted) -> Row:
        """The row of one task. Only what must end the run is raised."""
        row = Row(
            key=task.key,
            operation=task.operation,
            shape=task.shape,
            implementation=task.implementation,
            device=self.device.kind,
            status="not measurable",
            reason=task.why,
            note=task.note,
            source=task.source,
            predicted=predicted,
        )
        if task.why:
            return row
        self.ranks.last_words(
            lambda status, reason: self.append(replace(row, status=status, reason=reason))
        )
        status: Status = "measured"
        reason, found, empty = "", Measured(), dict[str, str]()
        try:
            needed = self.workshop.needed_bytes(task)
            free = min(self.ranks.all(self.device.free_bytes()))
            if needed > free:
                reason = f"needs {show_bytes(needed)} of {show_bytes(free)} that are free"
                return replace(row, status="does not fit", reason=reason)
            found, empty = self._timed(task)
            if found.sustained_s is not None and self._cached(predicted):
                if found.hbm_bytes is not None:
                    empty["hbm_bytes"] = "calls one after the other find this much in the L2"
                found = replace(found, hbm_bytes=None, warm=True)
            if found.error is not None and found.burst_s is None:
                status = "wrong"
                reason = f"error {found.error:.3g}, allowed {found.error_allowed or 0:.3g}"
        except KeyboardInterrupt:
            status, reason = "interrupted", "Ctrl-C"
        except AgreedError as error:
            status, reason = error.status, error.reason
        except Exception as error:  # whatever a kernel or a library raises is a row
            status, reason = self._status(error), _reason(error)
            if self.ranks.size > 1:
                # The others may be waiting for this rank's part of the call.
                self.ranks.fail(f"{task.key}: {reason}", FAILED)
        if status != "lost":
            try:
                self.device.release()
            except Exception as error:  # the first sign of a device that is gone
                status, reason = self._status(error), _reason(error)
                if self.ranks.size > 1:
                    self.ranks.fail(f"{task.key}: {reason}", FAILED)
        if status == "measured" and self.counter is not None:
            try:
                found, empty = self._counted(task, found, empty)
            except KeyboardInterrupt:
                status, reason = "interrupted", "Ctrl-C"
        return replace(row, status=status, reason=reason, measured=found, empty=empty)

    def _counted(
        self, task: Task, found: Measured, empty: Mapping[str, str]
    ) -> tuple[Measured, dict[str, str]]:
        """What was measured with the counters of one more call, or why there are none. The device
        holds nothing of the point any more: another process needs the memory."""
        if self.counter is None:
            return found, dict(empty)
        try:
            counts = self.counter.count(task)
        except CountersError as error:
            return found, {**empty, **dict.fromkeys(COUNTED, str(error))}
        found = replace(
            found,
            counted_read_bytes=counts.read_bytes,
            counted_write_bytes=counts.write_bytes,
            counted_flops=counts.flops,
            counted_by=NSIGHT_COMPUTE,
        )
        without = {} if counts.flops is not None else {"counted_flops": NO_TENSOR_COUNTER}
        return found, {**empty, **without}

    def _cached(self, predicted: Predicted) -> bool:
        """Whether a sustained run reads what the call before it left in the L2."""
        moved = predicted.hbm_bytes
        return moved is not None and moved < L2_TIMES * self.device.l2_bytes

    def _status(self, error: BaseException) -> Status:
        if is_lost(error):
            return "lost"
        if is_out_of_memory(error):
            return "out of memory"
        return "refused" if self.workshop.is_refusal(error) else "failed"

    def _agreed(self, do: Callable[[], T]) -> T:
        """What this rank makes of something that each does by itself. Raises AgreedError on all of
        them where it failed on one."""
        if self.ranks.size == 1:
            return do()
        made: T | None = None
        fault: tuple[Status, str] | None = None
        try:
            made = do()
        except Exception as error:  # told to all ranks
            fault = self._status(error), _reason(error)
        for rank, told in enumerate(self.ranks.all(fault)):
            if told is not None:
                raise AgreedError(told[0], f"rank {rank}: {told[1]}")
        return cast(T, made)

    def _slowest(self, seconds: float) -> float:
        return max(self.ranks.all(seconds))

    def _timed(self, task: Task) -> tuple[Measured, dict[str, str]]:
        """Checks, then times; a wrong result is not timed."""
        device, settings, grouped = self.device, self.settings, task.ranks > 1
        device.begin()
        work = self._agreed(partial(self.workshop.prepare, task))
        run = work.run
        mine = self._agreed(partial(work.check, run()))
        error, allowed = max(self.ranks.all(mine), key=_badness)
        if not error <= allowed:
            return Measured(error=error, error_allowed=allowed), {}
        device.synchronise()
        device.release()
        device.reset_peak()
        run()
        device.synchronise()
        peak = device.peak_bytes()
        # Ranks of which one could not be captured would not meet: they launch call by call.
        call, launch = (run, "eager") if grouped and device.kind == "cuda" else device.ready(run)
        times = self._burst(call)
        median = quantile(times, 0.5)
        often = max(1, ceil(GRAPH_S / max(median, 1e-7))) if launch == "graph" else 1
        if often > 1:
            call, _ = device.ready(run, often)
        found = self._sustained(call, often, median, self.workshop.tensor_rate(task))
        kernels, empty = self._profiled(task, run)
        found = replace(
            found,
            burst_s=median,
            burst_p20_s=quantile(times, 0.2),
            burst_p80_s=quantile(times, 0.8),
            rounds=len(times),
            launch=launch,
            peak_allocated_bytes=peak,
            kernels=kernels,
            launches=None if empty else sum(each.launches for each in kernels),
            error=error,
            error_allowed=allowed,
            **self.workshop.rates(task, median),
        )
        return found, {**self._empty(found, settings), **empty}

    def _burst(self, call: Call) -> list[float]:
        """Times of single calls, until there are enough of them or they took long."""
        settings = self.settings
        times: list[float] = []
        begun = self.clock()
        while True:
            times.append(self._slowest(self.device.time_s(call)))
            taken_s = self.ranks.first(self.clock() - begun)
            if len(times) >= settings.most_rounds or taken_s >= LONG_BURST_S:
                return times
            if len(times) >= settings.least_rounds and taken_s >= settings.burst_s:
                return times

    def _sustained(self, call: Call, often: int, each_s: float, tensor_rate: float) -> Measured:
        """Calls one after the other for `sustained_s`, with the board sampled beside them. `call`
        makes `often` of them, of `each_s` seconds."""
        device, clock, seconds = self.device, self.clock, self.settings.sustained_s
        if seconds <= 0:
            return Measured()
        batch_s = BATCH_S if self.ranks.size == 1 else GROUP_BATCH_S
        batch = max(1, min(10_000, int(batch_s / max(often * each_s, 1e-7))))
        if batch > 1:
            # A long call has just warmed up by being timed alone.
            for _ in range(batch):
                call()
            device.synchronise()
        at = self.now().isoformat(timespec="milliseconds")
        with Sampler(self.board, clock) as sampler:
            begin, begun, calls = self.board.mark(), clock(), 0
            while calls == 0 or self.ranks.first(clock() - begun < seconds):
                for _ in range(batch):
                    call()
                device.synchronise()
                calls += batch * often
            elapsed_s, end = clock() - begun, self.board.mark()
        found = summarise(sampler.readings, calls, elapsed_s)
        found = replace(
            found, sustained_s=elapsed_s / calls, sustained_calls=calls, sustained_begun=at
        )
        used = self.board.utilisation(begin, end)
        cycle = self.settings.flops_per_cycle
        return counted(found, used, self._facts, cycle and cycle * tensor_rate)

    def _profiled(self, task: Task, run: Call) -> tuple[Any, dict[str, str]]:
        """Kernels of one call, or why there are none."""
        if not self.settings.profile:
            return (), dict.fromkeys(("kernels", "launches"), "not asked for")
        if self.ranks.rank:
            run()
            self.device.synchronise()
            return (), {}
        called = False

        def once() -> Any:
            nonlocal called
            called = True
            return run()

        trace, timeline = self.settings.trace, self.settings.timeline
        name = _file_name(task.key)
        try:
            for folder in filter(None, (trace, timeline)):
                folder.mkdir(parents=True, exist_ok=True)
            kernels = self.device.profile(
                once,
                trace and trace / f"{name}.json",
                timeline and timeline / f"{name}.memory.csv",
            )
        except Exception as error:  # a refused profiler costs these columns alone
            if is_lost(error) or is_out_of_memory(error):
                raise
            if task.ranks > 1 and not called:
                run()
            return (), dict.fromkeys(("kernels", "launches"), f"torch.profiler: {_reason(error)}")
        if not kernels:
            why = "torch.profiler saw no kernel: counters may be for administrators only"
            return (), dict.fromkeys(("kernels", "launches"), why)
        return kernels, {}

    def _empty(self, found: Measured, settings: Settings) -> dict[str, str]:
        """Why columns are empty that a board or an allocator could fill."""
        known = {**self.board.missing, **self.device.missing}
        if settings.flops_per_cycle is None:
            known.setdefault("flops", "no data sheet of this GPU says its FLOPs a cycle")
        if settings.sustained_s <= 0:
            known |= dict.fromkeys(
                ("sustained_s", *BOARD_COLUMNS), "no sustained run was asked for"
            )
        values = asdict(found)
        asked = ("sustained_s", "peak_allocated_bytes", *BOARD_COLUMNS)
        without = [name for name in asked if values[name] is None or known.get(name)]
        return {
            name: known.get(name, "the board gave no value")
            for name in without
            if values[name] in (None, ())
        }

    def _guess_s(self, task: Task, predicted: Predicted | None) -> float:
        """Seconds that a task will take, by what is predicted of it."""
        if task.why:
            return 0.0
        counting_s = 0.0 if self.counter is None else COUNTING_S
        told = predicted or Predicted()
        each_s = told.seconds or told.floor_s or 0.0
        burst_s = max(self.settings.burst_s, self.settings.least_rounds * each_s)
        return (
            OVERHEAD_S + counting_s + burst_s + max(self.settings.sustained_s, each_s) + 3 * each_s
        )


def _badness(found: tuple[float, float]) -> float:
    """An error beside what is allowed of it; no number is the worst."""
    error, allowed = found
    if isnan(error):
        return float("inf")
    return error / allowed if allowed else error


def _left_s(taken_s: float, done_s: float, left_s: float) -> float:
    """The predicted rest, by the pace so far once a second's worth of predictions is done."""
    return left_s * taken_s / done_s if done_s > 1.0 and taken_s > 0 else left_s


def _facts(board: Board, bandwidth_bytes_per_s: float | None) -> Facts:
    """The board's facts, with the data sheet's bandwidth where there is one: the counters' shares
    are of that (on an H200, bus width times clock is 2 % more)."""
    try:
        facts = board.facts()
    except LostDeviceError:
        return NoBoard("lost").facts()
    if bandwidth_bytes_per_s is None:
        return facts
    return replace(facts, bandwidth_bytes_per_s=bandwidth_bytes_per_s)


def _reason(error: BaseException) -> str:
    """An error as one line."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return "".join(ch if ch.isprintable() else "?" for ch in text)[:REASON_LETTERS]


def _file_name(key: str) -> str:
    """A file name for the traces of a key, without its ending."""
    kept = "".join(ch if ch.isalnum() or ch in "._-" else "-" for ch in key)
    return kept[:180]
