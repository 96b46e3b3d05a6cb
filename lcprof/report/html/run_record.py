"""The tables of runs for a page: where they took place, every point, what was not measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lcprof import __version__
from lcprof.compare.residuals import Residual, changes, differences, residuals
from lcprof.compare.summary import (
    by_metric,
    by_operation,
    empty_columns,
    slowdown,
    unmeasured,
)
from lcprof.compare.table import columns, length_tokens
from lcprof.measure.record import NAME, Record
from lcprof.measure.row import Row
from lcprof.report.html.figures import head, show
from lcprof.report.html.record import (
    FORMAT,
    TEXT_LIMIT,
    About,
    Table,
    from_lines,
    printable_lines,
)
from lcprof.report.measured import (
    METRIC_WORDS,
    SHOWN_CHANGES,
    shape_text,
    status_text,
)
from lcprof.report.screen import printable
from lcprof.units import show_tokens

MOST_POINTS = 300
MOST_MOMENTS = 600
CEILING = "ceiling"
PLACE = (
    *("device", "driver", "cuda", "torch", "triton", "python", "lcprof", "commit"),
    *("power_limit_w", "sm_clock_max_hz", "memory_clock_max_hz", "memory_bytes"),
    *("bandwidth_bytes_per_s", "flops_per_cycle", "mig", "ecc", "started"),
)
"""What a page says of where a run took place, after its GPU."""
DROPPED = ("key", "operation", "status", "reason", "device")
"""Columns of a point that others say, or that are the same for every measured one."""


def run_record(records: Sequence[Record], asked: About) -> dict[str, Any]:
    """The record of a page about runs alone."""
    gpus = list(dict.fromkeys(printable(each.provenance.gpu) for each in records))
    facts = {
        "title": printable(asked.question or f"Measured on {' and '.join(gpus)}")[:TEXT_LIMIT],
        "note": printable(asked.note)[:TEXT_LIMIT],
        "command": asked.command,
        "lcprof_version": __version__,
        "date": printable(asked.date),
    }
    about = {"columns": {name: [value] for name, value in facts.items()}}
    tables = {"about": about, **run_tables(records)}
    return {"format": FORMAT, "lcprof": __version__, "tables": tables}


def run_names(records: Sequence[Record]) -> list[str]:
    """What each run is called, no two alike: its folder's name, or its file's."""
    names: list[str] = []
    for each in records:
        path = Path(each.path)
        name = printable(path.absolute().parent.name if path.name == NAME else path.stem)
        count = sum(other.partition(" (")[0] == name for other in names)
        names.append(f"{name} ({count + 1})" if count else name)
    return names


def run_tables(records: Sequence[Record]) -> dict[str, Table]:
    """Every table that a page shows of runs."""
    names = run_names(records)
    found = [residuals(each.rows.values()) for each in records]
    points = _points(names, records)
    kept = _kept(points)
    shown = [sum(point["run"] == name for point in kept) for name in names]
    runs = [_run(*each) for each in zip(names, records, found, shown, strict=True)]
    tables = {
        "runs": from_lines(list(runs[0]), [list(line.values()) for line in runs]),
        "points": _as_table(kept),
        "errors": _errors(names, found),
        "ceilings": _ceilings(names, records),
        "board": _board(names, records),
        "unmeasured": _unmeasured(names, records),
        "empty": _empty(names, records),
    }
    if len(records) > 1:
        tables |= _against_first(names, records)
    return tables


def _run(name: str, record: Record, found: Sequence[Residual], shown: int) -> dict[str, Any]:
    """A run in a line: its conditions, how many points, how far predictions were off."""
    told = record.provenance
    rows = list(record.rows.values())
    line: dict[str, Any] = {"run": name, "gpu": printable(told.gpu)}
    for field in PLACE:
        value = getattr(told, field)
        line[field] = printable(value) if isinstance(value, str) else value
    line |= {
        "command": printable(shlex.join(told.command)),
        "scenario": printable_lines(told.scenario[:TEXT_LIMIT].splitlines()),
        "scenario_sha256": printable(told.scenario_sha256),
        "resumed": len(record.resumptions),
        "torn_bytes": record.torn_bytes,
        "points": len(rows),
        "measured": sum(row.status == "measured" for row in rows),
        "shown": shown,
        "sustained_over_burst": slowdown(row for row in rows if row.operation != CEILING),
    }
    held = by_metric(found)
    for metric in METRIC_WORDS:
        errors = held.get(metric)
        line |= {
            f"{metric}_points": errors.rows if errors else 0,
            f"{metric}_median_error_share": errors.median if errors else None,
            f"{metric}_high_error_share": errors.p90 if errors else None,
        }
    times, floors = held.get("seconds"), held.get("floor_s")
    worst = record.rows[times.worst.key] if times else None
    return line | {
        "inside_share": times.inside if times else None,
        "seen_points": times.seen if times else 0,
        "worst_point": _in_words(worst) if worst else None,
        "worst_error": times.worst.error if times else None,
        "measured_over_floor": 1.0 / (1.0 + floors.bias) if floors else None,
    }


def _points(names: Sequence[str], records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every measured point of every run, the worst predicted first, then the farthest from its
    floor, then in the order of the run."""
    found: list[dict[str, Any]] = []
    for name, record in zip(names, records, strict=True):
        for row in record.rows.values():
            if row.status != "measured" or row.operation == CEILING:
                continue
            operation = _words(row.operation)
            line: dict[str, Any] = {
                "run": name,
                "point": _point(row),
                "lane": operation if len(names) == 1 else f"{operation}, {name}",
                "operation": operation,
            }
            held = columns(row)
            told, got = row.predicted, row.measured
            if told.low is not None and told.high is not None and got.burst_s is not None:
                line["inside"] = told.low <= got.burst_s <= told.high
            else:
                line["inside"] = None
            line |= {
                key: printable(value) if isinstance(value, str) else value
                for key, value in held.items()
                if key not in DROPPED
            }
            found.append(line)
    return sorted(found, key=_worst_first)


def _worst_first(point: Mapping[str, Any]) -> tuple[bool, float]:
    error = point["seconds_error"]
    return error is None, -abs(error if error is not None else point["measured_over_floor"] or 0.0)


def _kept(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many as a page shows: the first half of them as they come, the others evenly."""
    if len(points) <= MOST_POINTS:
        return list(points)
    half = MOST_POINTS // 2
    rest = points[half:]
    step = len(rest) / (MOST_POINTS - half)
    return [*points[:half], *(rest[int(place * step)] for place in range(MOST_POINTS - half))]


def _as_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Lines of one kind as a table; nothing of none."""
    names = list(lines[0]) if lines else []
    return from_lines(names, [list(line.values()) for line in lines])


WORDS = {"gemm": "matrix product", "mla_prefill": "MLA prefill", "mla_decode": "MLA decode",
         "sparse_mla_decode": "sparse MLA decode"}  # fmt: skip
"""Operations that their names do not word."""


def _words(name: str) -> str:
    return WORDS.get(name) or printable(name.replace("_", " "))


def _point(row: Row) -> str:
    """A row in one line: operation, shape, who computes it."""
    if row.operation == CEILING:
        return printable(row.key)
    by = printable(f", {row.implementation}") if row.implementation else ""
    return f"{_words(row.operation)} {shape_text(row.shape)}{by}"


def _in_words(row: Row) -> str:
    """A row for a sentence: the operation and the context that it sees, where it sees one."""
    length = length_tokens(row)
    return (
        _point(row)
        if length is None
        else f"{_words(row.operation)} over {show_tokens(length)} tokens"
    )


def _errors(names: Sequence[str], found: Sequence[Sequence[Residual]]) -> Table:
    lines = []
    for name, each in zip(names, found, strict=True):
        held = by_operation(each)
        order = {metric: place for place, metric in enumerate(METRIC_WORDS)}
        known = [(metric, operation) for metric, operation in held if metric in order]
        for metric, operation in sorted(known, key=lambda key: (order[key[0]], -held[key].median)):
            errors = held[metric, operation]
            lines.append(
                (name, METRIC_WORDS[metric], _words(operation), errors.rows, errors.median,
                 errors.p90, errors.bias, errors.inside, errors.seen)
            )  # fmt: skip
    heads = ("run", "what", "operation", "points", "median_error_share", "high_error_share")
    return from_lines((*heads, "bias_error", "inside_share", "seen_points"), lines)


def _ceilings(names: Sequence[str], records: Sequence[Record]) -> Table:
    lines = []
    for name, record in zip(names, records, strict=True):
        for row in record.rows.values():
            got = row.measured
            if row.operation == CEILING and row.status == "measured":
                power_w = got.power_w if got.idle_power_w is None else got.idle_power_w
                lines.append(
                    (name, printable(row.key.removeprefix(f"{CEILING} ")), got.burst_s,
                     got.rate_bytes_per_s, got.rate_flops_per_s, power_w, got.sm_clock_hz)
                )  # fmt: skip
    heads = ("run", "ceiling", "burst_s", "rate_bytes_per_s", "rate_flops_per_s")
    return from_lines((*heads, "power_w", "sm_clock_hz"), lines)


def _board(names: Sequence[str], records: Sequence[Record]) -> Table:
    """The board over the time since each run began, thinned to what a page shows."""
    lines = []
    for name, record in zip(names, records, strict=True):
        started = _moment(record.provenance.started)
        for row in record.rows.values():
            begun = _moment(row.measured.sustained_begun)
            if started is None or begun is None:
                continue
            since_s = (begun - started).total_seconds()
            lines += [
                (name, _point(row), _words(row.operation), since_s + each.at_s, each.power_w,
                 each.sm_clock_hz, each.temperature_c)
                for each in row.measured.timeline
            ]  # fmt: skip
    step = max(1, -(-len(lines) // MOST_MOMENTS))
    heads = ("run", "point", "operation", "moment_s", "power_w", "sm_clock_hz", "temperature_c")
    return from_lines(heads, lines[::step])


def _moment(text: str) -> datetime | None:
    """A moment as a record has it; None for what is none, or has no time zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def _unmeasured(names: Sequence[str], records: Sequence[Record]) -> Table:
    lines = [
        (name, status_text(each.status), printable(each.reason), each.rows, _point(each.first))
        for name, record in zip(names, records, strict=True)
        for each in unmeasured(record.rows.values())
    ]
    return from_lines(("run", "status", "reason", "points", "example"), lines)


def _empty(names: Sequence[str], records: Sequence[Record]) -> Table:
    lines = [
        (name, printable(why), ", ".join(map(head, held)))
        for name, record in zip(names, records, strict=True)
        for why, held in empty_columns(record.rows.values()).items()
    ]
    return from_lines(("run", "reason", "columns"), lines)


def _against_first(names: Sequence[str], records: Sequence[Record]) -> dict[str, Table]:
    """What was not the same around each further run, and what took another time there."""
    first = records[0]
    apart: list[tuple[str, ...]] = []
    changed: list[tuple[Any, ...]] = []
    for name, record in zip(names[1:], records[1:], strict=True):
        apart += [
            (
                name,
                printable(each.condition.replace("_", " ")),
                printable(each.first),
                printable(each.second),
            )
            for each in differences(first, record)
        ]
        for each in changes(first, record)[:SHOWN_CHANGES]:
            point = _point(first.rows[each.key])
            values = (show(each.metric, value) for value in (each.first, each.second))
            changed.append((name, point, head(each.metric), *values, each.change))
    return {
        "apart": from_lines(("run", "condition", "first", "here"), apart),
        "changes": from_lines(("run", "point", "what", "first", "here", "change"), changed),
    }
