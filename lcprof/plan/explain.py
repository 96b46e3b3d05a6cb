"""Where each number of a row comes from: its formula, the values that entered, its source."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from lcprof.plan.accounts.account import Account, Grounds, Term, Text
from lcprof.plan.accounts.memory import SIZED
from lcprof.plan.accounts.times import INVERSE, TIMED
from lcprof.plan.accounts.work import COUNTED, FLOORS
from lcprof.plan.row import Row

ACCOUNTS: Mapping[str, Account] = {**SIZED, **COUNTED, **FLOORS, **TIMED, **INVERSE}
"""Every column that a plan computes, judgements (fits, bases) apart."""


class Explanation(Struct, frozen=True, kw_only=True):
    """One number: `value` in `unit` (None where nothing bounds it), its formula in words, the
    terms, and the formula's source."""

    column: str
    value: float | None
    unit: str
    formula: str
    terms: tuple[Term, ...]
    source: str


def explain(row: Row) -> list[Explanation]:
    """An explanation of every number of a row that a plan computes, in the order of a plan; of a
    time, a power or a price that the row does not have there is none."""
    on, columns = Grounds(row), row.columns()
    chosen = [name for name in columns if name in ACCOUNTS]
    return [
        _explanation(on, name) for name in chosen if columns[name] is not None or name in INVERSE
    ]


def missing(row: Row, column: str) -> str:
    """Why a row has no number in a column of `ACCOUNTS`."""
    if not row.has_times:
        return "it does not fit; --hypothetical gives times all the same"
    if row.no_times:
        return row.no_times
    if "usd" in column and row.case.deployment.usd_per_gpu_hour is None:
        return "no price is known; --price gives one"
    if column.endswith(("_j", "_w_per_gpu")) and row.case.deployment.gpu.tdp_w is None:
        return "the power that the GPU draws is not known"
    return "not vouched for, too far beyond what was measured"


def _explanation(on: Grounds, column: str) -> Explanation:
    account = ACCOUNTS[column]
    return Explanation(
        column=column,
        value=on.columns.get(column),
        unit=account.unit,
        formula=_said(account.formula, on),
        terms=tuple(account.terms(on)),
        source=_said(account.source, on),
    )


def _said(text: Text, on: Grounds) -> str:
    return text if isinstance(text, str) else text(on)
