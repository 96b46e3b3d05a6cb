"""The view of a row's explanations: each number with its formula, values and source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcprof.plan.accounts.account import Term
from lcprof.plan.explain import Explanation
from lcprof.plan.row import Row, case_columns
from lcprof.report.screen import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_CASE = ("model", "gpu", "gpus", "kv", "weights", "context_tokens", "concurrency")


def explanation_page(
    row: Row, explanations: Sequence[Explanation], *, titled: bool
) -> list[RenderableType]:
    """A block for each explanation; `titled` puts a line that says which row it is about first."""
    from rich.padding import Padding
    from rich.text import Text

    page: list[RenderableType] = []
    if titled:
        case = case_columns(row.case)
        texts = (f"{name} {_number(case[name])}" for name in SHOWN_CASE)
        page += [Text(printable(", ".join(texts)), style="bold reverse"), ""]
    for each in explanations:
        value = "not bounded" if each.value is None else f"{_number(each.value)} {each.unit}"
        page.append(Text.assemble((each.column, "bold"), f" = {value}"))
        page.append(Padding(Text(printable(each.formula)), (0, 0, 0, 2)))
        page += [Padding(Text(_term(term)), (0, 0, 0, 4)) for term in each.terms]
        page += [Padding(Text(f"source: {printable(each.source)}", style="dim"), (0, 0, 0, 2)), ""]
    return page


def _term(term: Term) -> str:
    text = printable(term.text)
    return text if term.value is None else f"{text} = {_number(term.value)}"


def _number(value: object) -> str:
    """A number with all the digits that matter, never in powers of ten."""
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.6g}"
