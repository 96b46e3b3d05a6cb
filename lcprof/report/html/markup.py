"""HTML of figures, tables and charts of one record. Every text from outside is escaped here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lcprof.report.html.figures import head, show
from lcprof.report.html.record import expanded

WRAPPED = ("kernels", "risk_why", "why", "text", "missing", "flags", "question", "note",
           "reason", "basis", "point", "command", "columns", "first", "here")  # fmt: skip


class Markup:
    """Words and figures of a record. A figure is a `data` element that names the cell it shows, as
    table.column.row; `charts` are the names of those that can be drawn."""

    def __init__(self, record: Mapping[str, Any], charts: Collection[str]) -> None:
        self.tables: Mapping[str, Any] = record["tables"]
        self.charts = charts

    def columns(self, table: str) -> Mapping[str, Sequence[Any]]:
        """The columns of a table; empty where there is none."""
        return expanded(self.tables[table]) if table in self.tables else {}

    def value(self, table: str, column: str, row: int = 0) -> Any:
        """A value of a table; None where there is none."""
        values = self.columns(table).get(column, ())
        return values[row] if row < len(values) else None

    def figure(self, table: str, column: str, row: int = 0) -> str:
        """A value as text, with the cell that it comes from."""
        value = self.value(table, column, row)
        text = escape(show(column, value))
        exact = "" if value is None or isinstance(value, (str, bool)) else f' value="{value}"'
        return f'<data data-cell="{table}.{column}.{row}"{exact}>{text}</data>'

    def within(self, table: str, stem: str, unit: str, row: int = 0) -> str:
        """The interval of an expected value, where it has one."""
        low, high = f"{stem}_low_{unit}", f"{stem}_high_{unit}"
        if self.value(table, low, row) is None:
            return ""
        return f"{self.figure(table, low, row)} to {self.figure(table, high, row)}"

    def size(self, table: str) -> int:
        """How many rows a table has."""
        return len(next(iter(self.columns(table).values()), ()))

    def data_table(
        self, table: str, names: Iterable[str] = (), title: str = "", most: int | None = None
    ) -> str:
        """A whole table, or some of its columns; of the rows `most`, from the first. Which run a
        row is of goes without saying where there is one."""
        columns = self.columns(table)
        chosen = [name for name in names if name in columns] or list(columns)
        if self.size("runs") == 1 and table != "runs":
            chosen = [name for name in chosen if name != "run"]
        kinds = {name: _classes(name, columns[name]) for name in chosen}
        heads = "".join(f'<th scope="col"{kinds[n]}>{escape(head(n))}</th>' for n in chosen)
        lines = []
        for row in range(self.size(table))[:most]:
            cells = (
                f"<td{kinds[name]}>{escape(show(name, columns[name][row]))}</td>" for name in chosen
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
        listed = " ".join(chosen)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title or table)}">'
            f'<table data-table="{table}" data-columns="{listed}">'
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )

    def behind(self, table: str, names: Iterable[str] = ()) -> str:
        """The table behind a chart, folded, and its CSV."""
        return (
            f"<details><summary>Data of this chart</summary>"
            f'<p class="csv"><button type="button" data-csv="{table}">CSV</button></p>'
            f"{self.data_table(table, names)}</details>"
        )

    def chart(
        self, name: str, title: str, caption: str, table: str, names: Iterable[str] = ()
    ) -> str:
        """A chart with its title, its words for those who do not see it, and its table; "" where it
        cannot be drawn."""
        if name not in self.charts:
            return ""
        return (
            f'<figure><h3 id="{name}-title">{escape(title)}</h3>'
            f'<figcaption id="{name}-words">{caption}</figcaption>'
            f'<div class="chart" data-chart="{name}" role="img" aria-labelledby="{name}-title" '
            f'aria-describedby="{name}-words"></div>'
            f"{self.behind(table, names)}</figure>"
        )


def _classes(name: str, values: Sequence[Any]) -> str:
    if name in WRAPPED:
        return ' class="text wrap"'
    texts = any(isinstance(value, str) for value in values)
    return ' class="text"' if texts else ""


def section(name: str, title: str, *parts: str, hidden: bool = False) -> str:
    """A section under its title; `hidden` leaves the title to those who have the page read out."""
    inner = "".join(parts)
    if not inner:
        return ""
    kind = ' class="unseen"' if hidden else ""
    heading = f'<h2 id="{name}-head"{kind}>{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-head">{heading}{inner}</section>\n'
