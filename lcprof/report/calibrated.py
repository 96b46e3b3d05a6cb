"""The page of a calibration: how wrong predictions were before and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcprof.calibrate.runs import Calibrated, Errors, Score
from lcprof.report.screen import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

LEGEND = "Median of |predicted / measured - 1|, p90 in brackets."


def calibrated_page(found: Calibrated) -> list[RenderableType]:
    """Each kernel with its errors, and what could not be fitted."""
    from rich.text import Text

    rows = sum(score.seen.rows for score in found.scores)
    kernels = f"{len(found.scores)} kernel{'s' * (len(found.scores) != 1)}"
    head = f"{kernels} calibrated on {found.gpu.name} from {rows} rows"
    page: list[RenderableType] = [Text(printable(head), style="bold")]
    for score in found.scores:
        title = f"{score.operation}, {score.stack}: {score.variant}"
        page += [Text(printable(title)), _below(_said(score))]
    if found.unfitted:
        page.append(Text("Not fitted; more contexts and batches give more rows", style="bold"))
        page += [_below(line) for line in found.unfitted]
    return [*page, Text(LEGEND, style="dim")]


def _below(text: str) -> RenderableType:
    """A line that belongs to the one above it."""
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(printable(text)), (0, 0, 0, 2))


def _said(score: Score) -> str:
    """The errors before and after, and on rows held out."""
    parts = [f"{score.seen.rows} rows fitted {_errors(score.seen)}"]
    where = ""
    if score.unseen is not None:
        parts.append(f"{score.unseen.rows} held out {_errors(score.unseen)}")
        parts[-1] += f", {score.inside or 0.0:.0%} inside the interval"
        where = " on those held out"
    if score.before is not None:
        parts.append(f"before{where} {_errors(score.before)}, by {score.before_basis}")
    return "; ".join(parts)


def _errors(errors: Errors) -> str:
    return f"{100 * errors.median:.1f}% ({100 * errors.p90:.1f}%)"
