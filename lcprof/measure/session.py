"""One run from opening the device to the last row: what `lcprof measure` does after planning."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from lcprof.measure.board import Board, Facts, ImpossibleError, NoBoard
from lcprof.measure.counters import MISSING, Counter, NoCounter, NsightCompute
from lcprof.measure.device import CpuDevice, CudaDevice, open_device
from lcprof.measure.floors import Named, join
from lcprof.measure.machine import provenance
from lcprof.measure.points import Point
from lcprof.measure.ranks import Alone, Ranks
from lcprof.measure.record import Record, Writer
from lcprof.measure.row import Provenance, Row
from lcprof.measure.runner import Outcome, Progress, Runner, Settings
from lcprof.units import show_bytes

IDLE_S = 1.0
# torch.profiler tells of its start and stop on stderr unless this is set before PyTorch loads.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class Session(Struct, frozen=True, kw_only=True):
    """A device that is open, with its board and what the board says of itself."""

    kind: Literal["cuda", "cpu"]
    device: CpuDevice | CudaDevice
    board: Board
    facts: Facts

    @property
    def name(self) -> str:
        """What the device is called."""
        return self.device.name


class Wish(Struct, frozen=True, kw_only=True):
    """What a run is to do: measure `points` under `predictions` into the folder `run`, ceilings
    before them where asked for. `scenario` is the text that was planned; `counter` counts what
    each point's call does."""

    run: Path
    points: Sequence[Point]
    predictions: Sequence[Named]
    scenario: str
    command: tuple[str, ...]
    ceilings: bool = False
    resume: bool = False
    counter: Counter | None = None


class Result(Struct, frozen=True, kw_only=True):
    """How a run ended, and what was cut off a record that it went on with."""

    outcome: Outcome
    dropped_bytes: int = 0


def open_session(
    kind: Literal["cuda", "cpu"], *, beside_others: bool = False, index: int = 0
) -> Session:
    """Opens a device, of several GPUs the one at `index`. Raises ImpossibleError where that cannot
    be done, or where other processes hold memory on the board (unless measuring beside them is
    wanted)."""
    if find_spec("torch") is not None and find_spec("triton") is None:
        raise ImpossibleError(
            "no Triton here, which the kernels are written in: pip install triton"
        )
    if kind == "cpu":
        board: Board = NoBoard("a processor has no board that NVML reads")
        return Session(kind=kind, device=open_device(kind), board=board, facts=board.facts())
    board = board_of_gpu(index)
    why = busy(board)
    if why and not beside_others:
        raise ImpossibleError(f"{why}: stop them, or measure beside them with --beside-others")
    device = open_device(kind, index)
    return Session(kind=kind, device=device, board=board, facts=board.facts())


def counter_of(kind: Literal["cuda", "cpu"], *, ranks: int = 1) -> Counter:
    """What counts bytes and FLOPs on a device, or says why nothing does."""
    path = shutil.which("ncu")
    if ranks > 1:
        return NoCounter("Nsight Compute counts what one rank runs alone")
    if kind == "cpu":
        return NoCounter("Nsight Compute counts on a CUDA GPU alone")
    return NsightCompute(path) if path else NoCounter(MISSING)


def board_of_gpu(index: int = 0) -> Board:
    """The board of one of PyTorch's GPUs, opened before anything of ours lies on it."""
    from lcprof.measure.nvml import open_board

    try:
        import torch

        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    except Exception:  # no PyTorch or no GPU: opening the device says so, better than this can
        return NoBoard("no GPU")
    return open_board(uuid)


def busy(board: Board) -> str:
    """Which other processes are on the board, in words; "" when none is."""
    strangers = board.strangers()
    if not strangers:
        return ""
    held = sum(each.used_bytes or 0.0 for each in strangers)
    which = ", ".join(str(each.pid) for each in strangers[:5])
    many = "another process is" if len(strangers) == 1 else f"{len(strangers)} other processes are"
    return f"{many} on the GPU ({which}), holding {show_bytes(held)}"


def run_session(
    session: Session,
    wish: Wish,
    settings: Settings,
    *,
    observe: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    ranks: Ranks | None = None,
) -> Result:
    """Measures what is wished for, row by row into the record; of several ranks the first one
    writes it.

    Raises InputError when the record cannot be begun, gone on with or written.
    """
    from lcprof.measure.ceilings import CeilingWorkshop, ceilings_of, idle_row
    from lcprof.measure.group_work import GroupWorkshop
    from lcprof.measure.links import links_of
    from lcprof.measure.shapes import peaks
    from lcprof.measure.work import PointWorkshop

    here = provenance(
        device=session.kind,
        name=session.name,
        facts=session.facts,
        missing=session.board.missing.get("power_w", ""),
        scenario=wish.scenario,
        command=wish.command,
    )
    peak = settings.bandwidth_bytes_per_s or session.facts.bandwidth_bytes_per_s
    here = replace(here, bandwidth_bytes_per_s=peak, flops_per_cycle=settings.flops_per_cycle)
    ranks = ranks or Alone()
    here = replace(here, ranks=ranks.size)
    session.device.ranks = ranks
    writer, found = _record(wish, here) if ranks.rank == 0 else (None, None)
    try:
        done = found.finished if found is not None else frozenset()
        begun_before = frozenset(found.rows) - done if found is not None else frozenset()
        finished, tried = ranks.first((done, begun_before))

        def append(row: Row) -> None:
            if writer is not None:
                writer.append(row)

        def runner(workshop: Any, chosen: Settings, counter: Counter | None = None) -> Runner:
            return Runner(
                device=session.device,
                board=session.board,
                workshop=workshop,
                append=append,
                settings=chosen,
                clock=clock,
                observe=observe,
                counter=counter,
                ranks=ranks,
            )

        place, begun = session.device.place, clock()
        outcome = Outcome(statuses={}, left=0)
        if wish.ceilings:
            if "ceiling idle" not in finished:
                append(idle_row(session.board, session.kind, seconds=IDLE_S))
            ceilings = [*ceilings_of(session.kind), *links_of(session.kind, ranks)]
            chosen = replace(settings, profile=False)
            workshop = CeilingWorkshop(place=place)
            outcome = runner(workshop, chosen).run(ceilings, {}, finished=finished, tried=tried)
        if not outcome.stopped:
            predicted = join(wish.points, [*peaks(wish.points), *wish.predictions])
            kernels: Any = PointWorkshop(place=place)
            if ranks.size > 1:
                kernels = GroupWorkshop(place=place, ranks=ranks)
            last = runner(kernels, settings, wish.counter).run(
                wish.points,
                predicted,
                finished=finished,
                tried=tried,
                spent_s=clock() - begun,
            )
            outcome = _together(outcome, last)
        return Result(outcome=outcome, dropped_bytes=found.torn_bytes if found else 0)
    finally:
        if writer is not None:
            writer.close()


def _record(wish: Wish, here: Provenance) -> tuple[Writer, Record | None]:
    """The record to write, and what it holds already."""
    if wish.resume:
        return Writer.resume(wish.run, here)
    return Writer.start(wish.run, here), None


def _together(first: Outcome, second: Outcome) -> Outcome:
    statuses = dict(first.statuses)
    for status, count in second.statuses.items():
        statuses[status] = statuses.get(status, 0) + count
    return Outcome(statuses=statuses, left=second.left, stopped=second.stopped)
