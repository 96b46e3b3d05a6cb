"""Pages of what was measured: a run beside its predictions, two runs, and what a machine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lcprof.compare.residuals import BESIDE, FLOOR, Change, Difference, Residual
from lcprof.compare.summary import (
    Errors,
    by_metric,
    by_operation,
    empty_columns,
    uncalibrated,
    unmeasured,
)
from lcprof.report.screen import printable
from lcprof.units import show_bytes, show_count, show_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lcprof.measure.doctor import Finding
    from lcprof.measure.record import Record
    from lcprof.measure.row import Row

SHORT = {
    "batch": "B",
    "rows": "m",
    "depth": "k",
    "columns": "n",
    "query_tokens": "q",
    "context_tokens": "kv",
    "head_dim": "D",
    "page_tokens": "page ",
    "window_tokens": "window ",
    "sink_tokens": "sinks ",
    "new_tokens": "new ",
    "held_tokens": "held ",
}
"""Before a number of a shape; heads make one word, and what is not here stands with its name."""
UNLABELLED = ("dtype", "format", "layout", "kv")
SHOWN_CHANGES = 40
METRIC_WORDS = {
    "seconds": "times",
    "sustained_s": "times of calls one after the other",
    "energy_j": "energy",
    "hbm_bytes": "bytes of GPU memory",
    "flops": "FLOPs",
    "peak_bytes": "peak memory",
}
LEGEND = "error: predicted / measured - 1. x floor: measured over what the data sheet allows."


def shape_text(shape: Mapping[str, int | float | str]) -> str:
    """A shape in the words of a benchmark: B1 q4096 kv4096 32/8 D128 bf16."""
    heads = shape.get("q_heads"), shape.get("kv_heads")
    words = []
    for name, value in shape.items():
        if name in UNLABELLED:
            words.append(str(value))
        elif name == "q_heads":
            words.append(f"{heads[0]}/{heads[1]}" if heads[1] is not None else f"{heads[0]} heads")
        elif name == "kv_heads":
            words += [] if heads[0] is not None else [f"{value} heads"]
        elif value not in (0, ""):
            words.append(f"{SHORT[name]}{value}" if name in SHORT else f"{name} {value}")
    return printable(" ".join(words))


def record_page(
    record: Record, found: Sequence[Residual], *, shown: int | None = None
) -> list[RenderableType]:
    """A run: where it took place, each row with its predictions (the first `shown`), the worst
    first, and what could not be measured with its reason."""
    from rich.text import Text

    told = record.provenance
    by_key: dict[str, list[Residual]] = {}
    for each in found:
        by_key.setdefault(each.key, []).append(each)
    rows = list(record.rows.values())
    measured = [row for row in rows if row.status == "measured"]
    order = {key: place for place, key in enumerate(by_key)}
    measured.sort(key=lambda row: order.get(row.key, len(order)))
    head = f"{len(measured)} of {len(rows)} measured on {told.device}: {told.gpu}"
    page: list[RenderableType] = [Text(printable(head), style="bold"), _place(record)]
    if record.torn_bytes:
        page.append(Text(f"The last line is torn: {record.torn_bytes} bytes are not read."))
    page += [Text(line) for line in verdict_lines(found)]
    page += [_below(line) for line in _operation_lines(found)]
    page.append("")
    for row in measured[:shown]:
        page += _row_lines(row, by_key.get(row.key, []))
    if shown is not None and len(measured) > shown:
        page.append(Text(f"{len(measured) - shown} more: lcprof compare shows them"))
    page += _unmeasured(rows)
    page += [
        Text(printable(f"empty, {why}: {', '.join(names)}"), style="dim")
        for why, names in empty_columns(rows).items()
    ]
    return [*page, Text(LEGEND, style="dim")]


def verdict_lines(found: Sequence[Residual]) -> list[str]:
    """How far predictions of each metric were off, in a line each."""
    held, without = by_metric(found), uncalibrated(found)
    lines = []
    for metric, words in METRIC_WORDS.items():
        if metric in held:
            line = f"Predicted {words} {_off(held[metric])}"
            if metric in without:
                line += f"; without measuring here {_sizes(without[metric])}"
            lines.append(f"{line}.")
    if "seconds" not in held:
        lines.insert(0, "No time was expected, so there is none to hold against a measurement.")
    if FLOOR in held:
        times = 1.0 / (1.0 + held[FLOOR].bias)
        lines.append(f"Measured times were {times:.3g} x the data sheet's floor in the median.")
    return lines


def _off(errors: Errors) -> str:
    seen = ""
    if errors.seen:
        seen = f", {errors.seen} of them seen by the fit"
    many = f"of {errors.rows} point{'s' * (errors.rows != 1)}{seen}"
    inside = ""
    if errors.inside is not None:
        inside = f"; {errors.inside:.0%} lay in the interval"
    return f"{many}: off by {_sizes(errors)}{inside}"


def _sizes(errors: Errors) -> str:
    return f"{errors.median:.1%} in the median, nine in ten by {errors.p90:.1%}"


def _operation_lines(found: Sequence[Residual]) -> list[str]:
    """The error of times by operation, where there are several, the worst first."""
    held = [(op, each) for (metric, op), each in by_operation(found).items() if metric == "seconds"]
    if len(held) < 2:
        return []
    held.sort(key=lambda pair: -pair[1].median)
    return [
        f"{op}: {each.rows} points, {each.median:.1%} ({each.p90:.1%}), bias {each.bias:+.1%}"
        for op, each in held
    ]


def point_text(row: Row) -> str:
    """A row in one line: operation, shape, who computes it."""
    if row.operation == "ceiling":
        return printable(row.key)
    by = f", {row.implementation}" if row.implementation else ""
    return f"{printable(row.operation)} {shape_text(row.shape)}{printable(by)}"


def _place(record: Record) -> RenderableType:
    from rich.text import Text

    told = record.provenance
    parts = [
        f"torch {told.torch}" if told.torch else "",
        f"triton {told.triton}" if told.triton else "",
        f"driver {told.driver}" if told.driver else "",
        f"limit {told.power_limit_w:g} W" if told.power_limit_w is not None else "",
        f"lcprof {told.lcprof}{f' at {told.commit}' if told.commit else ''}",
        told.started,
    ]
    return Text(printable(", ".join(part for part in parts if part)), style="dim")


def _below(text: str) -> RenderableType:
    """A line that belongs to the one above it."""
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(printable(text), style="dim"), (0, 0, 0, 2))


def _row_lines(row: Row, found: Sequence[Residual]) -> list[RenderableType]:
    from rich.text import Text

    got = row.measured
    parts: list[str] = []
    if got.burst_s is not None:
        spread = ""
        if got.burst_p20_s is not None and got.burst_p80_s is not None:
            spread = f" ({show_seconds(got.burst_p20_s)} to {show_seconds(got.burst_p80_s)})"
        once = " in one call" * (got.rounds == 1)
        parts.append(show_seconds(got.burst_s) + (once or spread))
    if got.launch == "eager":
        parts.append("launches included")
    if got.sustained_s is not None:
        warm = " from a warm L2" * got.warm
        parts.append(f"sustained {show_seconds(got.sustained_s)}{warm}")
    if got.rate_bytes_per_s is not None:
        parts.append(f"{show_bytes(got.rate_bytes_per_s)}/s")
    if got.rate_flops_per_s is not None:
        parts.append(show_count(got.rate_flops_per_s, "FLOP/s"))
    if got.idle_power_w is not None:
        parts.append(f"idle {got.idle_power_w:.0f} W")
    elif got.power_w is not None:
        parts.append(f"{got.power_w:.0f} W")
    if got.energy_j is not None:
        parts.append(f"{got.energy_j:.3g} J")
    if got.throttle:
        parts.append("throttled: " + ", ".join(got.throttle))
    for each in found:
        if each.metric == FLOOR:
            parts.append(f"{each.measured / each.predicted:.3g} x floor")
        elif each.metric not in BESIDE:
            seen = ", seen by its fit" if each.held_out is False else ""
            basis = f" ({each.basis}{seen})" if each.basis and each.metric == "seconds" else ""
            parts.append(f"{each.metric} error {100 * each.error:+.1f}%{basis}")
    lines: list[RenderableType] = [
        Text(point_text(row)),
        _below(", ".join(parts)),
    ]
    if row.note:
        lines.append(_below(row.note))
    return lines


def _unmeasured(rows: Sequence[Row]) -> list[RenderableType]:
    from rich.text import Text

    lines: list[RenderableType] = []
    for each in unmeasured(rows):
        more = f" and {each.rows - 1} more" if each.rows > 1 else ""
        lines.append(Text(f"{point_text(each.first)}{more}"))
        lines.append(_below(f"{status_text(each.status)}: {each.reason}"))
    return lines


def status_text(status: str) -> str:
    """A status in words: what has no kernel was planned all the same."""
    return "planned, " * (status == "not measurable") + status


def runs_page(
    names: tuple[str, str],
    changed: Sequence[Change],
    apart: Sequence[Difference],
    missing: tuple[Sequence[str], Sequence[str]],
) -> list[RenderableType]:
    """Two runs: what was not the same around them, then every metric, the largest change first."""
    from rich.text import Text

    page: list[RenderableType] = [
        Text(printable(f"{names[0]} then {names[1]}"), style="bold"),
        *(
            Text(printable(f"{each.condition}: {each.first or '-'} then {each.second or '-'}"))
            for each in apart
        ),
        "",
    ]
    by_key: dict[str, list[Change]] = {}
    for each in changed[:SHOWN_CHANGES]:
        by_key.setdefault(each.key, []).append(each)
    for key, members in by_key.items():
        page.append(Text(printable(key)))
        page += [_below(_change(each)) for each in members]
    if len(changed) > SHOWN_CHANGES:
        page.append(Text(f"{len(changed) - SHOWN_CHANGES} smaller changes: --json has them"))
    for name, keys in zip(names, missing, strict=True):
        if keys:
            page.append(Text(printable(f"measured in {name} alone: {len(keys)}, as {keys[0]}")))
    if not changed:
        page.append(Text("No point was measured in both."))
    return page


def _change(each: Change) -> str:
    values = f"{metric_text(each.metric, each.first)} then {metric_text(each.metric, each.second)}"
    return f"{each.metric}: {values}, {100 * each.change:+.1f}%"


def metric_text(metric: str, value: float) -> str:
    """A value of a metric in the unit that its name ends in."""
    if metric.endswith("bytes_per_s"):
        return f"{show_bytes(value)}/s"
    if metric.endswith("bytes"):
        return show_bytes(value)
    if metric.startswith("rate_flops"):
        return show_count(value, "FLOP/s")
    return show_seconds(value) if metric.endswith("_s") else f"{value:.4g}"


def doctor_page(findings: Sequence[Finding]) -> list[RenderableType]:
    """What was looked at, with the remedy below whatever is missing."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, show_header=False
    )
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("")
    for each in findings:
        mark = "yes" if each.able else "no, needed" if each.needed else "no"
        table.add_row(each.name, mark, Text(printable(each.found)))
        if each.remedy:
            table.add_row("", "", Text(printable(each.remedy), style="dim"))
    return [table]
