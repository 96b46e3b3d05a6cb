"""A plan as Markdown, for a pull request: the page's order, its figures, no charts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lcprof.plan.answers import Answers
from lcprof.plan.choice import risk
from lcprof.plan.row import Row
from lcprof.report.console import BREAKS, kernels_of, position_note
from lcprof.report.html.figures import show
from lcprof.report.ranked import ranked_table

MOST_LINES = 40
_SPECIAL = re.compile(r"([\\`*_{}\[\]|~@$])")
TIMES = (("TTFT, one request", "ttft"), ("TPOT", "tpot"), ("whole request", "request"))


def markdown_page(
    rows: Sequence[Row], answers: Answers, question: str, planned: int | None = None
) -> str:
    """The Markdown of a plan: its verdict about `answers.row`, times with intervals, every row,
    limits and what to try. `planned`: how many rows there were, where `rows` are a choice."""
    row = answers.row
    columns = row.columns()
    title = question or f"{columns['model']} on {columns['gpus']} x {columns['gpu']}"
    parts = [f"## {escaped(title)}", _verdict(row), _facts(row), *_times(row)]
    if len(rows) > 1:
        parts.append(_table(rows, planned or len(rows)))
    parts.append(_limits(answers))
    if answers.offers:
        tries = (
            f"- {code(offer.flags)}: {escaped(offer.why)}, "
            f"{_figure(offer.row.columns(), 'total_bytes_per_gpu')}"
            for offer in answers.offers
        )
        parts.append("\n".join(["**Try**", "", *tries]))
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """Text on one line that Markdown and HTML leave alone."""
    line = " ".join(show("text", text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", line)


def code(text: str) -> str:
    """Text as code on one line, however many backticks it holds."""
    line = " ".join(show("text", text).split())
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def _figure(columns: dict[str, Any], name: str) -> str:
    return show(name, columns.get(name))


def _verdict(row: Row) -> str:
    columns = row.columns()
    held = (
        f"{_figure(columns, 'total_bytes_per_gpu')} of "
        f"{_figure(columns, 'capacity_bytes_per_gpu')} per GPU"
    )
    if row.estimate.fits:
        return f"**Fits**: {code(row.case.kv_spec)}, {held}."
    broken = BREAKS[row.estimate.limited_by]
    return f"**Does not fit**: {code(row.case.kv_spec)} needs {held}; first to break: {broken}."


def _facts(row: Row) -> str:
    columns = row.columns()
    worst = risk(row.case)
    lines = [
        f"- model: {escaped(columns['model'])}, {_figure(columns, 'params')} parameters, weights: "
        f"{escaped(columns['weights'])}",
        f"- GPUs: {columns['gpus']} x {escaped(columns['gpu'])}",
        f"- workload: {_figure(columns, 'context_tokens')} tokens of context, "
        f"{_figure(columns, 'output_tokens')} of output, {_figure(columns, 'concurrency')} at once",
        f"- risk to quality: {worst.name} ({escaped(worst.why)}; {escaped(worst.source)})",
    ]
    if note := position_note(row):
        lines.append(f"- positions: {escaped(note)}")
    return "\n".join(lines)


def _times(row: Row) -> list[str]:
    if not row.has_times:
        return ["No times: it does not fit."]
    columns = row.columns()
    lines = [
        "| | expected | 9 in 10 within | floor | rests on |",
        "| --- | --: | --: | --: | --- |",
    ]
    for label, name in TIMES:
        low, high = columns.get(f"{name}_low_s"), columns.get(f"{name}_high_s")
        within = "" if low is None else f"{show('_s', low)} to {show('_s', high)}"
        floor = _figure(columns, f"{name}_floor_s")
        basis = _basis(columns, name)
        lines.append(
            f"| {label} | {_figure(columns, f'{name}_s')} | {within} | {floor} | {basis} |"
        )
    said = f"Expected on {escaped(kernels_of(row))}."
    if row.no_times:
        said = f"Nothing is expected: {escaped(row.no_times)}."
    costs = [
        f"{label} {_figure(columns, name)}"
        for label, name in (
            ("request", "request_usd"),
            ("million output tokens", "usd_per_million_output_tokens"),
            ("output token", "output_token_j"),
        )
        if columns[name] is not None
    ]
    if costs:
        said += f" Costs: {', '.join(costs)}."
    return ["\n".join(lines), said]


def _basis(columns: dict[str, Any], name: str) -> str:
    basis = columns.get(f"{name}_basis")
    if basis is None:
        return ""
    distance = columns[f"{name}_distance"]
    return f"{basis} {show('distance', distance)}" if distance > 1 else str(basis)


def _table(rows: Sequence[Row], planned: int) -> str:
    """The rows, those that fit first; an expected time that is none gives way to its floor."""
    heads, found = ranked_table(rows, MOST_LINES)
    figures = len(heads) - 3
    lines = [f"| {' | '.join(heads)} |", "| --- | --- | --- |" + " --: |" * figures]
    for label, *cells in found:
        said = (cell.replace(">", "&gt;") for cell in cells)
        lines.append(f"| {' | '.join((escaped(label), *said))} |")
    if planned > len(found):
        lines += ["", f"{planned:,} rows were planned; the first {len(found)} are shown."]
    return "\n".join(lines)


def _limits(answers: Answers) -> str:
    row = answers.row
    longest = "any" if row.max_context_tokens is None else show("_tokens", row.max_context_tokens)
    most = "any" if row.max_concurrency is None else show("", row.max_concurrency)
    fewest = "more than any that were tried"
    if answers.fewest is not None:
        deployment = answers.fewest.case.deployment
        fewest = f"{deployment.gpus} x {escaped(deployment.gpu.name)}"
    return "\n".join(
        [
            "**Limits**",
            "",
            f"- longest context: {longest}",
            f"- most sequences at once: {most}",
            f"- fewest GPUs: {fewest}",
        ]
    )
