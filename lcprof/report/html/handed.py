"""What notebooks get of a page: its charts with their data, and a view of a few lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lcprof.plan.choice import chosen
from lcprof.plan.row import Row
from lcprof.report.html.charts import DRAWINGS, drawn
from lcprof.report.html.figures import show
from lcprof.report.html.markup import Markup
from lcprof.report.html.page import STYLE
from lcprof.report.html.record import expanded
from lcprof.report.html.run_charts import RUN_DRAWINGS
from lcprof.report.html.run_sections import run_sentences, worst_points
from lcprof.report.ranked import ranked_table

WIDTH = 640
MOST_LINES = 40


def charts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The charts of a page by name, as Altair charts. Their colours are those of the light page;
    tooltips have the columns' own names and values."""
    import altair as alt

    found = {}
    for drawing in (*DRAWINGS, *RUN_DRAWINGS):
        spec = drawn(record, drawing)
        if spec is None:
            continue
        placed = {"width": WIDTH, "autosize": {"type": "fit-x"}, "background": COLOURS["page"]}
        text = json.dumps({**spec, **placed})
        names = set(re.findall(r'"data": {"name": "(\w+)"}', text)) & set(record["tables"])
        spec = json.loads(re.sub(r"var\(--(\w+)\)", lambda match: COLOURS[match[1]], text))
        spec.setdefault("datasets", {}).update(
            {name: _lines(record["tables"][name]) for name in sorted(names)}
        )
        found[drawing.name] = alt.Chart.from_dict(spec)
    return found


COLOURS = dict(re.findall(r"--(\w+): (#\w+)", STYLE.partition("@media")[0]))
"""The light page's colours by name."""


def _lines(table: dict[str, Any]) -> list[dict[str, Any]]:
    columns = expanded(table)
    return [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]


def plan_view(rows: Sequence[Row], question: str) -> str:
    """The rows of a plan that rank first, as HTML."""
    row = chosen(rows)
    columns = row.columns()
    held = " of ".join(
        show(name, columns[name]) for name in ("total_bytes_per_gpu", "capacity_bytes_per_gpu")
    )
    answer = "Fits" if row.estimate.fits else "Does not fit"
    said = f"{answer}: {row.case.kv_spec} takes {held} on each GPU. "
    heads, lines = ranked_table(rows, MOST_LINES)
    if len(rows) > len(lines):
        said += f"The {len(lines)} of {len(rows):,} rows that rank first:"
    title = f"<strong>{escape(show('question', question))}</strong><br>" if question else ""
    return f"<div><p>{title}{escape(show('said', said))}</p>{_table(heads, lines)}</div>"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def run_view(record: Mapping[str, Any]) -> str:
    """What was measured and how far predictions were off, as HTML."""
    page = Markup(record, ())
    errors = page.data_table("errors", title="Errors") if page.size("errors") else ""
    return f"<div>{run_sentences(page)}{errors}{worst_points(page)}</div>"
