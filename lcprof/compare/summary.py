"""A run in few figures: how far its predictions were off, and what could not be measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from msgspec import Struct

from lcprof.compare.residuals import METRICS, UNCALIBRATED, Residual
from lcprof.measure.row import Row
from lcprof.num import quantile


class Errors(Struct, frozen=True, kw_only=True):
    """Errors of one metric over some rows: median and 90 % quantile of their size, and `bias`, the
    median with its sign. `inside` is the share of measurements within their predicted interval,
    None where nothing had one; `seen` counts the rows that the prediction's own fit had seen."""

    rows: int
    median: float
    p90: float
    bias: float
    inside: float | None
    seen: int
    worst: Residual


class Unmeasured(Struct, frozen=True, kw_only=True):
    """Rows without a measurement that share a status and its reason; `first` is one of them."""

    status: str
    reason: str
    rows: int
    first: Row


def errors_of(found: Sequence[Residual]) -> Errors | None:
    """The errors of residuals of one metric; None of none."""
    if not found:
        return None
    sizes = [abs(each.error) for each in found]
    known = [each.inside for each in found if each.inside is not None]
    return Errors(
        rows=len(found),
        median=statistics.median(sizes),
        p90=quantile(sizes, 0.9),
        bias=statistics.median(each.error for each in found),
        inside=sum(known) / len(known) if known else None,
        seen=sum(each.held_out is False for each in found),
        worst=max(found, key=lambda each: abs(each.error)),
    )


def by_metric(found: Iterable[Residual]) -> dict[str, Errors]:
    """The errors of each metric, floors among them."""
    return {metric: errors for (metric, _), errors in _grouped(found, whole=True).items()}


def uncalibrated(found: Sequence[Residual]) -> dict[str, Errors]:
    """By metric the errors of the same rows had nothing been measured on this GPU."""
    names = {metric.measured: name for name, metric in UNCALIBRATED.items()}
    without = {metric.name: names.get(metric.measured) for metric in METRICS}
    made = {}
    for metric, name in without.items():
        keys = {each.key for each in found if each.metric == metric}
        errors = errors_of([e for e in found if name and e.metric == name and e.key in keys])
        if errors is not None:
            made[metric] = errors
    return made


def by_operation(found: Iterable[Residual]) -> dict[tuple[str, str], Errors]:
    """The errors of each metric and operation."""
    return _grouped(found, whole=False)


def _grouped(found: Iterable[Residual], *, whole: bool) -> dict[tuple[str, str], Errors]:
    groups: dict[tuple[str, str], list[Residual]] = {}
    for each in found:
        groups.setdefault((each.metric, "" if whole else each.op), []).append(each)
    made = ((key, errors_of(members)) for key, members in groups.items())
    return {key: errors for key, errors in made if errors is not None}


def slowdown(rows: Iterable[Row]) -> float | None:
    """The median of sustained over burst time; None where no row has both."""
    found = [
        got.sustained_s / got.burst_s
        for got in (row.measured for row in rows if row.status == "measured")
        if got.sustained_s and got.burst_s
    ]
    return statistics.median(found) if found else None


def unmeasured(rows: Iterable[Row]) -> list[Unmeasured]:
    """What was not measured, by status and reason, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status != "measured":
            groups.setdefault((row.status, row.reason), []).append(row)
    return [
        Unmeasured(status=status, reason=reason, rows=len(members), first=members[0])
        for (status, reason), members in groups.items()
    ]


def empty_columns(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Why columns of measured rows stayed empty: the columns by reason."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.status == "measured":
            for name, why in row.empty.items():
                found.setdefault(why, {})[name] = None
    return {why: list(names) for why, names in found.items()}
