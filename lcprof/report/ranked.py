"""The rows of a plan from the best, in words: what Markdown and notebooks show."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from lcprof.plan.choice import rank, risk
from lcprof.plan.row import Row
from lcprof.report.html.figures import NOTHING, head, show
from lcprof.report.html.record import labels

FIGURES = (
    *("total_bytes_per_gpu", "max_context_tokens", "max_concurrency", "ttft_s", "tpot_s"),
    *("output_token_j", "request_usd"),
)


def ranked_table(rows: Sequence[Row], most: int) -> tuple[list[str], list[list[str]]]:
    """Heads, and a line for each of the `most` rows that rank first: label, risk to quality,
    whether it fits, then figures. An expected time that is none gives way to its floor."""
    ordered = heapq.nsmallest(most, rows, key=rank)
    lines = []
    for row, label in zip(ordered, labels(ordered), strict=True):
        columns = row.columns()
        cells = [label, risk(row.case).name, show("fits", bool(row.estimate.fits))]
        for name in FIGURES:
            text = show(name, columns[name])
            if text == NOTHING and name.startswith("max_"):
                text = "any"
            elif text == NOTHING and name in ("ttft_s", "tpot_s") and row.has_times:
                floor = name.replace("_s", "_floor_s")
                text = f">{show(floor, columns[floor])}"
            cells.append(text)
        lines.append(cells)
    return ["strategy", "risk", "fits", *map(head, FIGURES)], lines
