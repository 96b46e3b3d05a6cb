"""A record as a table: one row a point, predictions beside measurements."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from msgspec.structs import asdict

from lcprof.compare.residuals import METRICS, error_of
from lcprof.measure.row import Measured, Row

SAID = ("key", "operation", "implementation", "device", "status", "reason", "note", "source")
LISTED = ("kernels", "throttle", "timeline")
LENGTHS = ("context_tokens", "held_tokens")


def columns(row: Row) -> dict[str, Any]:
    """Column name to value: what the row is, its shape, each metric `_predicted`, `_measured` and
    `_error` (predicted / measured - 1), then everything else that was measured.

    `measured_over_floor` and `sustained_over_burst` are ratios of times; `length_tokens` is the
    context that an operation sees, None for those that see none.
    """
    told, got = row.predicted, row.measured
    table: dict[str, Any] = {name: getattr(row, name) for name in SAID}
    table["shape"] = " ".join(f"{name}={value}" for name, value in row.shape.items())
    for metric in METRICS:
        table[f"{metric.name}_predicted"] = getattr(told, metric.predicted)
        table[f"{metric.name}_measured"] = getattr(got, metric.measured)
        table[f"{metric.name}_error"] = error_of(row, metric)
    table |= {"seconds_low": told.low, "seconds_high": told.high}
    named = {metric.predicted for metric in METRICS} | {"low", "high"}
    table |= {name: value for name, value in asdict(told).items() if name not in named}
    table |= {
        "measured_over_floor": _over(got.burst_s, told.floor_s),
        "sustained_over_burst": _over(got.sustained_s, got.burst_s),
        "length_tokens": length_tokens(row),
    }
    twice = {metric.measured for metric in METRICS}
    rest = {name: value for name, value in asdict(got).items() if name not in twice}
    for name in LISTED:
        rest.pop(name)
    table |= rest
    table["throttle"] = "; ".join(got.throttle)
    table["kernels"] = "; ".join(each.name for each in got.kernels)
    table["grid"] = "; ".join("x".join(map(str, each.grid)) for each in got.kernels)
    table["registers"] = "; ".join(str(each.registers or "") for each in got.kernels)
    table["empty"] = "; ".join(f"{name}: {why}" for name, why in row.empty.items())
    return table


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def length_tokens(row: Row) -> float | None:
    """The context that a row's operation sees, None where it sees none."""
    found = (row.shape.get(name) for name in LENGTHS)
    return next((float(value) for value in found if isinstance(value, (int, float))), None)


def csv_text(rows: Iterable[Row]) -> str:
    """The rows as CSV with a header; None is an empty cell."""
    empty = Row(
        key="", operation="", shape={}, implementation="", device="", status="failed",
        measured=Measured(),
    )  # fmt: skip
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(columns(empty)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(columns(row) for row in rows)
    return buffer.getvalue()
