"""The table of several rows: what sets them apart, and what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from msgspec import Struct

from lcprof.plan.row import Row, case_columns
from lcprof.report.screen import printable, shorten
from lcprof.units import show_bytes, show_seconds, show_tokens

if TYPE_CHECKING:
    from rich.console import RenderableType

ROWS_SHOWN = 200
GAP = 2
SHORTEST_LABEL = 8
NAMED = ("model", "gpu", "kv", "weights")
HEADS = {
    "page_tokens": "page",
    "chunk_tokens": "chunk",
    "prefix_tokens": "prefix",
    "context_tokens": "context",
    "output_tokens": "output",
    "concurrency": "seqs",
    "utilisation": "util",
    "price_usd_per_gpu_hour": "$/h",
    "power_limit_w": "watts",
}
OF_GPU = ("price_usd_per_gpu_hour", "power_limit_w")
"""Columns that a GPU alone mostly decides."""


class Figure(Struct, frozen=True, kw_only=True):
    """A column of results: its two-line head and how a row shows it. Where there is no room, those
    that are most to `spare` go first."""

    head: str
    show: Callable[[Row], str]
    spare: int = 0


FIGURES = (
    Figure(
        head="KV\nper GPU",
        show=lambda row: show_bytes(row.estimate.kv_reserved_bytes_per_gpu),
        spare=2,
    ),
    Figure(head="total\nper GPU", show=lambda row: show_bytes(row.estimate.total_bytes_per_gpu)),
    Figure(head="\nfits", show=lambda row: "yes" if row.estimate.fits else "no"),
    Figure(head="max\ncontext", show=lambda row: _tokens(row.max_context_tokens), spare=1),
    Figure(head="max\nusers", show=lambda row: _count(row.max_concurrency), spare=3),
    Figure(head="\nTTFT", show=lambda row: _seconds(row, "ttft")),
    Figure(head="\nTPOT", show=lambda row: _seconds(row, "tpot")),
)


def varying(rows: Sequence[Row]) -> list[str]:
    """The columns of the case that differ between rows, without those that another one implies;
    the KV strategy when none does."""
    cases = [case_columns(row.case) for row in rows]
    names = [name for name in cases[0] if len({case[name] for case in cases}) > 1]
    if {"gpus", "tp"} <= set(names):
        pairs = {(case["gpus"], case["tp"]) for case in cases}
        if len(pairs) == len({gpus for gpus, _ in pairs}):
            names.remove("tp")
    for name in OF_GPU:
        if {"gpu", name} <= set(names):
            pairs = {(case["gpu"], case[name]) for case in cases}
            if len(pairs) == len({gpu for gpu, _ in pairs}):
                names.remove(name)
    return names or ["kv"]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Rows that fit first, then by bytes on a GPU as a share of its capacity."""
    return sorted(
        rows,
        key=lambda row: (
            not row.estimate.fits,
            row.estimate.total_bytes_per_gpu / row.estimate.capacity_bytes_per_gpu,
        ),
    )


def table(rows: Sequence[Row], names: Sequence[str], width: int) -> list[RenderableType]:
    """The rows within `width` columns: ranked, or in their own order when a number varies."""
    from rich.table import Table
    from rich.text import Text

    ordered = ranked(rows) if set(names) <= set(NAMED) else list(rows)
    first = ordered[:ROWS_SHOWN]
    chosen = list(FIGURES)
    while len(chosen) > LEAST_FIGURES and _least(first, names) + _taken(chosen, first) > width:
        chosen.remove(max(chosen, key=lambda figure: figure.spare))
    figures = [[figure.show(row) for row in first] for figure in chosen]
    labels = _labels(first, names, width - _taken(chosen, first))
    grid = Table(box=None, show_edge=False, pad_edge=False, padding=(0, GAP, 0, 0))
    for name in names:
        right = name not in NAMED
        grid.add_column(
            "\n" + HEADS.get(name, name), no_wrap=True, justify="right" if right else "left"
        )
    for figure in chosen:
        grid.add_column(figure.head, no_wrap=True, justify="right")
    for index, row in enumerate(first):
        texts = [labels[name][index] for name in names] + [column[index] for column in figures]
        style = "" if row.estimate.fits else "bright_black"
        grid.add_row(*(Text(text, style=style) for text in texts))
    lines: list[RenderableType] = [grid]
    if len(ordered) > len(first):
        more = f"and {len(ordered) - len(first):,} more rows; --csv FILE writes all"
        lines.append(Text(more))
    lines += [Text(note, style="dim") for note in _shortened(first, labels.get("kv", ()))]
    return lines


def _shortened(rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
    """How the first KV spec whose label is shorter is written out."""
    specs = (shown("kv", case_columns(row.case)["kv"]) for row in rows)
    short = ((label, spec) for label, spec in zip(labels, specs, strict=False) if label != spec)
    return [f"KV in short: {label} is {spec}." for label, spec in islice(short, 1)]


LEAST_FIGURES = 4


def _taken(figures: Sequence[Figure], rows: Sequence[Row]) -> int:
    """The columns of text that figures take, with the gaps before them."""
    return sum(
        GAP + max(len(t) for t in [*map(figure.show, rows), *figure.head.split("\n")])
        for figure in figures
    )


def _least(rows: Sequence[Row], names: Sequence[str]) -> int:
    """The columns of text that the labels take when they are cut as far as they may be."""
    cases = [case_columns(row.case) for row in rows]
    total = -GAP
    for name in names:
        longest = max(len(shown(name, case[name])) for case in cases)
        head = len(HEADS.get(name, name))
        total += GAP + max(head, min(longest, SHORTEST_LABEL) if name in NAMED else longest)
    return total


def _labels(rows: Sequence[Row], names: Sequence[str], width: int) -> dict[str, list[str]]:
    """The text of each row under each name, all names together within `width`."""
    cases = [case_columns(row.case) for row in rows]
    labels = {name: [shown(name, case[name]) for case in cases] for name in names}

    def taken(name: str) -> int:
        return max(len(HEADS.get(name, name)), *(len(text) for text in labels[name])) + GAP

    if "kv" in labels and sum(map(taken, names)) - GAP > width:
        labels["kv"] = [abbreviated(text) for text in labels["kv"]]
    for name in sorted((n for n in names if n in NAMED), key=taken, reverse=True):
        excess = sum(map(taken, names)) - GAP - width
        if excess > 0:
            room = max(SHORTEST_LABEL, taken(name) - GAP - excess)
            labels[name] = [shorten(text, room) for text in labels[name]]
    return labels


def abbreviated(spec: str) -> str:
    """A KV spec without the names of its arguments, or with their first letters where numbers
    follow: "fp8:token-head", "window:t4096,s4"."""
    return re.sub(r"([:,])(?:([a-z])[a-z_]*=(?=\d)|[a-z_]+=)", r"\1\2", spec)


def shown(name: str, value: object) -> str:
    """A value of a case as text: tokens as they are typed, names made printable."""
    if name.endswith("_tokens") and isinstance(value, (int, float)):
        return show_tokens(value)
    if isinstance(value, float):
        return f"{value:.10g}"
    return printable(str(value))


def _seconds(row: Row, name: str) -> str:
    """An expected time; the floor behind ">" where nothing measured gives one."""
    if not row.has_times:
        return "-"
    columns = row.columns()
    expected = columns[f"{name}_s"]
    if expected is None:
        return f">{show_seconds(columns[f'{name}_floor_s'])}"
    return show_seconds(expected)


def _tokens(tokens: float | None) -> str:
    """A bound on tokens, rounded down to whole K so that it still fits when typed back."""
    if tokens is None:
        return "any"
    return f"{tokens // 1024:.0f}K" if tokens >= 10240 else f"{tokens:.0f}"


def _count(count: float | None) -> str:
    if count is None:
        return "any"
    return f"{count:.0f}" if count < 1e5 else f"{count:.2g}"
