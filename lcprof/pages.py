"""The records of pages: of a plan, of runs, of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lcprof.flags import Asked, answers

if TYPE_CHECKING:
    from lcprof.domain.engine import Engine
    from lcprof.measure.record import Record


def engine_called(name: str) -> Engine:
    """An engine of the catalog. Raises InputError for another name."""
    from lcprof.scenario.engines import load_engine

    return load_engine(name, where="--engine")


def page_record(
    asked: Asked | None, runs: Sequence[Record], command: str, date: str = ""
) -> dict[str, Any]:
    """The record of the page of a plan, of runs, or of both."""
    from lcprof.report.html.record import About
    from lcprof.report.html.run_record import run_record, run_tables

    if asked is None:
        return run_record(runs, About(command=command, date=date))
    record = _plan_record(asked, command, date)
    if runs:
        record["tables"] |= run_tables(runs)
    return record


def _plan_record(asked: Asked, command: str, date: str) -> dict[str, Any]:
    """The record of a plan's page: the row to decide on, what to change, how engines would serve
    it."""
    from lcprof.domain.engine import ENGINES
    from lcprof.plan.choice import chosen
    from lcprof.plan.study import GRID_GPUS
    from lcprof.report.engine import engine_answer
    from lcprof.report.html import record
    from lcprof.scenario.gpus import load_gpu

    row = chosen(asked.rows)
    about = record.About(
        question=asked.question,
        note=asked.note,
        command=command,
        date=date,
        planned=asked.planned,
        fitting=asked.fitting,
    )
    engines = [engine_answer(row, engine_called(name)) for name in ENGINES]
    gpus = [load_gpu(name, where="lcprof report") for name in GRID_GPUS]
    return record.record_of(asked.rows, answers(row, asked), engines, gpus, about)
