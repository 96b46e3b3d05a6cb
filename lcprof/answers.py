"""What pages say of a plan besides its rows: what to change, and how engines would serve it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from lcprof.flags import FILE_AXES, Asked, flag_of

if TYPE_CHECKING:
    from lcprof.domain.engine import Engine
    from lcprof.measure.record import Record
    from lcprof.plan.row import Row
    from lcprof.report.console import Answers


def answers_of(row: Row, asked: Asked) -> Answers:
    """What a page says of a row besides its columns; the offers as flags that can be pasted."""
    from lcprof.plan.crossover import attention_crossover_tokens, kv_crossover_tokens
    from lcprof.plan.tries import fewest_gpus, tries
    from lcprof.report.console import Answers, Offer

    breaks, grows = _first_to_break(row)
    offers = [
        Offer(flags=_flags(each.row, row, asked), why=each.why, row=each.row) for each in tries(row)
    ]
    return Answers(
        row=row,
        offers=offers,
        fewest=fewest_gpus(row.case),
        breaks=breaks,
        grows=grows,
        attention_crossover_tokens=attention_crossover_tokens(row.case),
        kv_crossover_tokens=kv_crossover_tokens(row.case),
    )


def _flags(offer: Row, row: Row, asked: Asked) -> str:
    """The flags that make `offer` of `row` when they follow the command as it was given: what
    differs, and of several rows also what picks this one."""
    from lcprof.plan.row import case_columns
    from lcprof.report.table import varying

    named = {f"{key}_tokens": key for key in ("context", "output", "prefix", "chunk", "page")}
    named |= {"price_usd_per_gpu_hour": "price", "power_limit_w": "power_limit"}
    old, new = case_columns(row.case), case_columns(offer.case)
    pinned = set(varying(asked.rows)) if len(asked.rows) > 1 else set()
    others = new["pp"] * new["cp"] * new["dp"]
    flags: list[str] = []
    for column, value in new.items():
        key = named.get(column, column)
        if value == old[column] and (column not in pinned or not _sayable(key, value)):
            continue
        if key == "tp" and "tp" not in asked.keys and value * others == new["gpus"]:
            continue
        text = f"{value:.10g}" if isinstance(value, float) else str(value)
        flags.append(f"{flag_of(key)} {shlex.quote(text)}")
    return " ".join(flags)


def _sayable(key: str, value: Any) -> bool:
    """Whether a flag can name what a row shows: not a model or GPU from a file or written out."""
    from lcprof.scenario.gpus import gpu_names
    from lcprof.scenario.models import model_names

    return key not in FILE_AXES or value in (model_names() if key == "model" else gpu_names())


def _first_to_break(row: Row) -> tuple[str, str]:
    """What runs out, and of which growth: none for a plan that does not fit as it is."""
    from lcprof.plan.row import plan_case

    if not row.estimate.fits:
        return row.estimate.limited_by, ""
    workload = row.case.workload
    if row.max_context_tokens is not None:
        grown = replace(workload, context_tokens=row.max_context_tokens + 1)
        return plan_case(replace(row.case, workload=grown)).estimate.limited_by, "the context"
    if row.max_concurrency is not None:
        grown = replace(workload, concurrency=row.max_concurrency + 1)
        return plan_case(replace(row.case, workload=grown)).estimate.limited_by, "the batch"
    return "", ""


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
    from lcprof.plan.study import GRID_GPUS, chosen
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
    return record.record_of(asked.rows, answers_of(row, asked), engines, gpus, about)
