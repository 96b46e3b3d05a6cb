"""Pages and records as the command line writes them, and a reader of pages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lcprof.cli import main

ROOT = Path(__file__).resolve().parent.parent
VOID = {"meta", "link", "input", "br", "img"}
SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}
TIMES = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
NUMBER = re.compile(r"([+-]?)(\$|x)?([\d,]+)(?:\.(\d+))?\s?(.*)", re.DOTALL)


def built(folder: Path, *arguments: str) -> tuple[Path, dict[str, Any]]:
    """A page and its record, from the arguments of `lcprof report`."""
    page, record = folder / "page.html", folder / "record.json"
    status = main(["report", *arguments, "-o", str(page), "--record", str(record)])
    assert status in (0, 3)
    return page, json.loads(record.read_text(encoding="utf-8"))


def columns(table: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A table of a record with its axes written out: the last axis changes fastest."""
    axes = list(table.get("axes", {}).items())
    lines: list[tuple[Any, ...]] = [()]
    for _, values in axes:
        lines = [(*line, value) for line in lines for value in values]
    whole = {name: [line[i] for line in lines] for i, (name, _) in enumerate(axes)}
    return {**whole, **table["columns"]}


def scale_of(column: str, unit: str) -> float:
    """What a unit that a page shows multiplies by."""
    column = column.removesuffix("_predicted").removesuffix("_measured")
    timed = column.endswith(("_s", "seconds")) or column.startswith("seconds_")
    if unit in TIMES and timed and "per_s" not in column:
        return TIMES[unit]
    if column.endswith("_tokens") and unit in ("K", "M"):
        return {"K": 1024.0, "M": 1024.0**2}[unit]
    if column.endswith("params"):
        return {"B": 1e9, "M": 1e6}[unit]
    if unit == "%":
        return 0.01
    if unit == "°C":
        return 1.0
    for known in ("B/s", "FLOP/s", "FLOP", "Hz", "B", "J", "W"):
        if unit.endswith(known) and unit.removesuffix(known) in SCALES:
            return SCALES[unit.removesuffix(known)]
    assert not unit, (column, unit)
    return 1.0


def says(text: str, column: str, value: Any) -> bool:
    """Whether a text on a page is a value of a table, as exactly as its digits go."""
    if value is None or value == "":
        return text == "–"
    if isinstance(value, bool):
        return text == ("yes" if value else "no")
    if isinstance(value, str):
        return text == value
    found = NUMBER.fullmatch(text)
    assert found is not None, text
    sign, _, whole, part, unit = found.groups(default="")
    scale = scale_of(column, unit)
    shown = float(f"{sign}{whole.replace(',', '')}.{part or 0}") * scale
    # Rounded to three digits first, then to as many as are shown.
    slack = 0.551 * 10.0 ** -len(part) * scale
    three_digits = abs(shown) * 0.00501
    return abs(shown - value) <= max(slack if part or abs(shown) < 1000 else 0.0, three_digits)


def assert_figures(html: str, record: Mapping[str, Any], least: int) -> None:
    """Holds every figure of a page to the table it names, `least` of them at least; what stands
    outside of one must be in words alone."""
    tables = {name: columns(table) for name, table in record["tables"].items()}
    axes = record["tables"].get("grid_steps", {"axes": {"label": [], "gpu": []}})["axes"]
    checked = 0
    for text, place, tag in Words(html).found:
        if place is not None:
            table, column, row = place
            value = tables[table][column][row]
            assert says(text, column, value), (text, place, value)
            checked += 1
        elif tag == "title":
            assert text == tables["about"]["title"][0]
        elif tag == "option":
            assert text in axes["label"] + axes["gpu"]
        else:
            assert not re.search(r"\d", text), f"{text!r} names no table"
    assert checked >= least


class Words(HTMLParser):
    """Every text of a page with what it stands in: the cell that it names, or its place in a table
    of data (name, column, row)."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.found: list[tuple[str, tuple[str, str, int] | None, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.table: tuple[str, list[str]] | None = None
        self.row = self.cell = -1
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self.tags.append((tag, held))
        if tag == "table":
            listed = held.get("data-columns")
            self.table = (str(held["data-table"]), listed.split()) if listed else None
            self.row = -1
        elif tag == "tbody":
            self.row = -1
        elif tag == "tr":
            self.row, self.cell = self.row + 1, -1
        elif tag == "td":
            self.cell += 1
        if tag not in VOID:
            self.open.append((tag, held))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not data.strip() or self.open[-1][0] in ("script", "style"):
            return
        cell = next(
            (held["data-cell"] for _, held in reversed(self.open) if "data-cell" in held), None
        )
        place: tuple[str, str, int] | None = None
        if cell:
            table, column, row = cell.split(".")
            place = table, column, int(row)
        elif self.table is not None and any(tag == "td" for tag, _ in self.open):
            place = self.table[0], self.table[1][self.cell], self.row
        self.found.append((data, place, self.open[-1][0]))
