"""Plans and runs as Python and notebooks see them: rows, DataFrames, charts, a short view."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from lcprof.flags import Asked
from lcprof.measure.record import Record, read_record
from lcprof.measure.row import Row as MeasuredRow
from lcprof.pages import page_record
from lcprof.plan.row import Row

if TYPE_CHECKING:
    import pandas as pd

Each = TypeVar("Each")


class _Shown(Sequence[Each]):
    """A sequence of rows, and the page that `gather` makes the record of."""

    def __init__(self, rows: Sequence[Each], gather: Callable[[], dict[str, Any]]) -> None:
        self._rows = rows
        self._gather = gather

    @overload
    def __getitem__(self, index: int) -> Each: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Each]: ...
    def __getitem__(self, index: int | slice) -> Each | Sequence[Each]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Every table of the page, as `lcprof report --record` writes them."""
        return self._gather()

    @cached_property
    def charts(self) -> dict[str, Any]:
        """The page's charts by name, as Altair charts that hold their data."""
        from lcprof.report.html.handed import charts_of

        return charts_of(self.record)

    def page(self) -> str:
        """The HTML of the whole page, which opens offline."""
        from lcprof.report.html.page import html_page

        return html_page(self.record)


class Plan(_Shown[Row]):
    """The rows of a plan. In a notebook it shows those that rank first."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked.rows, lambda: page_record(asked, (), ""))
        self._question = asked.question

    def __repr__(self) -> str:
        fitting = sum(bool(row.estimate.fits) for row in self)
        return f"<Plan of {len(self):,} rows, {fitting:,} fit>"

    def _repr_html_(self) -> str:
        from lcprof.report.html.handed import plan_view

        return plan_view(self._rows, self._question)

    def frame(self) -> pd.DataFrame:
        """A row each with the columns of `lcprof plan --json`."""
        import pandas as pd

        from lcprof.report.export import records

        return pd.DataFrame(records(self._rows))


class Run(_Shown[MeasuredRow]):
    """The rows of a run, those without a measurement too. In a notebook it shows how far its
    predictions were off."""

    def __init__(self, found: Record) -> None:
        super().__init__(list(found.rows.values()), lambda: page_record(None, [found], ""))
        self.provenance = found.provenance

    def __repr__(self) -> str:
        done = sum(row.status == "measured" for row in self)
        return f"<Run of {len(self):,} points on {self.provenance.gpu}, {done:,} measured>"

    def _repr_html_(self) -> str:
        from lcprof.report.html.handed import run_view

        return run_view(self.record)

    def frame(self) -> pd.DataFrame:
        """A row each with the columns of `lcprof compare --csv`."""
        import pandas as pd

        from lcprof.compare.table import columns

        return pd.DataFrame([columns(row) for row in self])


def planned(source: str | Path | Mapping[str, Any], changes: Mapping[str, Any]) -> Plan:
    """The plan of a scenario, of which `changes` replace keys. Raises InputError."""
    from lcprof.plan.row import plan_cases
    from lcprof.scenario.cases import expand
    from lcprof.scenario.files import place, read_yaml
    from lcprof.scenario.schema import read_scenario

    where, base, data = "scenario", None, source
    keys = frozenset(changes)
    if isinstance(source, (str, Path)):
        path = Path(source)
        where, base, data = place(path), path.parent, read_yaml(path)
    if isinstance(data, Mapping):
        data = {**data, **changes}
        keys = frozenset(data)
    scenario = read_scenario(data, where=where, base=base)
    return Plan(
        Asked(
            rows=plan_cases(expand(scenario, where=where, base=base)),
            question=scenario.question,
            note=scenario.note,
            measure=scenario.measure,
            keys=keys,
        )
    )


def measured(path: str | Path) -> Run:
    """A run from its folder or its record. Raises InputError."""
    return Run(read_record(Path(path)))
