"""The page of held-out errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcprof.report.screen import printable
from lcprof.scenario.accuracy import POOLED, Accuracy

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

STARTUP = "engine_startup_memory."
REQUESTS = ("published_figures.", "anchors.")
TIMES, MEMORY = "Times of operations", "What engines print at start-up"
WHOLE = "Whole requests, as published"
HELD_OUT = (
    "Held out: parameters were fitted without these groups; the models' form was designed with "
    "them in view."
)
LEGEND = (
    "Errors are predicted / measured - 1: median and p90 of their size, bias the median with its "
    "sign. inside: measurements within the predicted 90% interval. declined: rows that nothing "
    "predicts. large: the calls that weigh most."
)


def accuracy_page(scores: Sequence[Accuracy]) -> list[RenderableType]:
    """A table of errors for each kind of score: times of operations (by framework, where they are
    of one GPU), and what engines print at start-up."""
    from rich.text import Text

    sections: dict[str, list[Accuracy]] = {}
    for score in scores:
        head = WHOLE if score.table.startswith(REQUESTS) else TIMES
        head = MEMORY if score.table.startswith(STARTUP) else head
        if score.device != POOLED:
            head += f", {score.device}, {score.framework}"
        sections.setdefault(head, []).append(score)
    page: list[RenderableType] = []
    for head, members in sections.items():
        page += [Text(printable(head), style="bold"), _table(members), ""]
    return [*page, Text(LEGEND, style="dim"), Text(HELD_OUT)]


def _table(scores: Sequence[Accuracy]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("", no_wrap=True, min_width=25)
    table.add_column("", no_wrap=True, min_width=5)
    for head in ("rows", "declined", "median", "p90", "bias", "inside"):
        table.add_column(head, justify="right", no_wrap=True, min_width=6 if head != "rows" else 5)
    last = ""
    for score in scores:
        name = score.table.removeprefix(STARTUP).removeprefix(REQUESTS[0])
        table.add_row(
            f"  {printable(name)}" if name != last else "",
            score.subset,
            f"{score.rows:,}",
            f"{score.declined:,}",
            _percent(score.median),
            _percent(score.p90),
            _percent(score.bias, sign="+"),
            "-" if score.interval_coverage is None else f"{score.interval_coverage:.0%}",
        )
        last = name
    return table


def _percent(share: float | None, sign: str = "") -> str:
    """A share in percent, with two decimals where one would round it away."""
    if share is None:
        return "-"
    digits = 2 if abs(share) < 0.0095 else 1
    # Adding 0 makes -0.0 plain zero.
    return f"{round(100 * share, digits) + 0.0:{sign}.{digits}f}%"
