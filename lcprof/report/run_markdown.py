"""Runs as Markdown, for a pull request: the page's order, its figures, no charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcprof.measure.record import Record
from lcprof.report.html.figures import head, show
from lcprof.report.html.markup import Markup
from lcprof.report.html.record import About
from lcprof.report.html.run_record import run_record
from lcprof.report.markdown import code, escaped

WORST = 12
TIMES = ("run", "point", "seconds_predicted", "seconds_measured", "seconds_error", "basis")
FLOORS = ("run", "point", "seconds_measured", "floor_s", "measured_over_floor")
PLACE = ("driver", "cuda", "torch", "triton", "lcprof", "commit", "power_limit_w", "started")


def run_markdown(records: Sequence[Record]) -> str:
    """The Markdown of runs: what was measured, how far predictions were off, the worst points, what
    could not be measured, and where all this took place."""
    page = Markup(run_record(records, About()), ())
    parts = [f"## {escaped(page.value('about', 'title'))}"]
    parts += [_run(page, row) for row in range(page.size("runs"))]
    if page.size("errors"):
        parts += ["**Errors by operation**", _table(page, "errors")]
    if any(page.columns("runs")["seconds_points"]):
        parts += ["**Worst points**", _table(page, "points", TIMES, WORST)]
    elif page.size("points"):
        known = any(page.columns("points")["measured_over_floor"])
        names = FLOORS if known else ("run", "point", "seconds_measured", "sustained_s_measured")
        parts += ["**Points**", _table(page, "points", names, WORST)]
    if page.size("changes"):
        parts += ["**Against the first run**", _table(page, "changes", most=WORST)]
    if page.size("unmeasured"):
        parts += ["**Without a measurement**", _table(page, "unmeasured")]
    return "\n\n".join(parts) + "\n"


def _run(page: Markup, row: int) -> str:
    """A run in a sentence, and where it took place."""

    def at(column: str) -> str:
        return escaped(show(column, page.value("runs", column, row)))

    said = f"**{at('run')}**: {at('measured')} of {at('points')} points measured on {at('gpu')}"
    if page.value("runs", "seconds_points", row):
        said += (
            f"; expected times off by {at('seconds_median_error_share')} in the median, nine in "
            f"ten by less than {at('seconds_high_error_share')}, worst {at('worst_point')} at "
            f"{at('worst_error')}"
        )
    else:
        said += "; no time was expected of them"
    if page.value("runs", "measured_over_floor", row) is not None:
        said += f"; {at('measured_over_floor')} the data sheet's floor in the median"
    place = [
        f"{head(name)} {at(name)}"
        for name in PLACE
        if page.value("runs", name, row) not in (None, "")
    ]
    command = code(page.value("runs", "command", row))
    return f"{said}.\n\n{', '.join(place)}: {command}"


def _table(page: Markup, table: str, names: Sequence[str] = (), most: int | None = None) -> str:
    """A table, or some columns of its first rows, and how many are left out."""
    held = page.columns(table)
    chosen = [name for name in names or held if any(each is not None for each in held[name])]
    size = page.size(table)
    shown = size if most is None else min(size, most)
    lines = [
        f"| {' | '.join(map(head, chosen))} |",
        f"|{'|'.join(_rule(held[n]) for n in chosen)}|",
    ]
    for row in range(shown):
        cells = (escaped(show(name, held[name][row])) for name in chosen)
        lines.append(f"| {' | '.join(cells)} |")
    if shown < size:
        lines += ["", f"{size - shown} more are not shown."]
    return "\n".join(lines)


def _rule(values: Sequence[Any]) -> str:
    return " --- " if any(isinstance(value, str) for value in values) else " --: "
