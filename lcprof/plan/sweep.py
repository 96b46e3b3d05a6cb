"""A sweep: kinds (model x deployment x strategy) times an open grid of contexts and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.expected.whole import Clock
from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import parse_kv
from lcprof.domain.model import ModelShape
from lcprof.domain.workload import Workload
from lcprof.plan.estimate import LIMITS, capacity_bytes, count, finish
from lcprof.plan.fits import fits_for
from lcprof.plan.row import FLOORS, case_columns
from lcprof.plan.search import LIMIT, max_concurrency, max_context_tokens
from lcprof.plan.times import Times, named, times

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

CODES = {name: said for name in Times.__struct_fields__ if (said := named(name))}
CODES["limit_code"] = ("limited_by", LIMITS)
CODED = dict(CODES.values())
"""Columns whose values are positions of names."""
Columns: TypeAlias = dict[str, Any]
"""Column name to one value for a whole kind, or to an array over its grid."""
TEXT_COLUMNS = ("model", "gpu", "kv", "weights", "stack", "no_times", *CODED)


def sweep(
    *,
    models: Sequence[ModelShape],
    deployments: Sequence[Deployment],
    kv: Sequence[str],
    context_tokens: Sequence[float],
    concurrency: Sequence[float],
    output_tokens: float = 1.0,
    prefix_tokens: float = 0.0,
    chunk_tokens: float = 8192.0,
    hypothetical: bool = False,
    with_times: bool = True,
) -> pd.DataFrame:
    """A DataFrame of every combination, one row each, with the columns of a plan's row.

    Rows are ordered by model, deployment, strategy, context and concurrency, the last fastest.
    Text columns are categorical. An inverse answer that memory does not bound is NaN, as is an
    unknown `max_position_tokens`, and every time of a point that does not fit, unless the sweep is
    `hypothetical`. `with_times=False` leaves expected times, energy and money out, which halves the
    work. Raises InputError for a damaged calibration.
    """
    import numpy as np
    import pandas as pd

    workload: Workload[Any] = Workload(
        context_tokens=np.asarray(context_tokens, dtype=np.float64).reshape(-1, 1),
        concurrency=np.asarray(concurrency, dtype=np.float64).reshape(1, -1),
        output_tokens=output_tokens,
        prefix_tokens=prefix_tokens,
        chunk_tokens=chunk_tokens,
    )
    shape = (len(models), len(deployments), len(kv), len(context_tokens), len(concurrency))
    table = _Table(shape)
    strategies = [parse_kv(spec, where="sweep") for spec in kv]
    alike = _alike(deployments)
    clocks: dict[Gpu, Clock] = {}
    if with_times:
        clocks = {d.gpu: Clock(d.gpu, fits_for(d.gpu)) for d in deployments}
    for m, model in enumerate(models):
        for k, (spec, strategy) in enumerate(zip(kv, strategies, strict=True)):
            for layout in alike:
                same = [deployments[d] for d in layout]
                case = Case(
                    model=model,
                    deployment=same[0],
                    kv=strategy,
                    kv_spec=spec,
                    workload=workload,
                    hypothetical=hypothetical,
                )
                rows = columns_of(case, same, clocks)
                for d, row in zip(layout, rows, strict=True):
                    table.put((m, d, k), row)
    return pd.DataFrame(table.series(), copy=False)


def framed(columns: Columns, grid: tuple[int, int]) -> pd.DataFrame:
    """The columns of one kind as a DataFrame, a row for each point of the grid."""
    import pandas as pd

    table = _Table((1, 1, 1, *grid))
    table.put((0, 0, 0), columns)
    return pd.DataFrame(table.series(), copy=False)


def _alike(deployments: Sequence[Deployment]) -> list[list[int]]:
    """Indices of deployments that share their work: layout and weights are the same."""
    groups: dict[Deployment, list[int]] = {}
    if not deployments:
        return []
    stand_in = deployments[0].gpu
    for index, deployment in enumerate(deployments):
        layout = replace(
            deployment,
            gpu=stand_in,
            utilisation=1.0,
            stack="",
            price_usd_per_gpu_hour=None,
            power_limit_w=None,
        )
        groups.setdefault(layout, []).append(index)
    return list(groups.values())


def columns_of(
    case: Case, deployments: Sequence[Deployment], clocks: Mapping[Gpu, Clock]
) -> list[Columns]:
    """The columns of one model and strategy on deployments of one layout, that of `case`: work is
    counted once, the inverse searches run over all capacities at once. Without `clocks` there are
    no expected times."""
    import numpy as np

    first = case.deployment
    workload: Workload[Any] = case.workload
    counts = count(case.model, first, case.kv, workload)
    capacities = np.array([capacity_bytes(d) for d in deployments]).reshape(-1, 1, 1)
    contexts = max_context_tokens(counts.model, first, case.kv, workload, capacities)
    sequences = max_concurrency(counts.model, first, case.kv, workload, capacities)
    contexts = np.where(contexts >= LIMIT, np.nan, contexts)
    sequences = np.where(sequences >= LIMIT, np.nan, sequences)
    rows: list[Columns] = []
    for index, deployment in enumerate(deployments):
        estimate = finish(counts, deployment)
        shown = estimate.fits | case.hypothetical
        columns = case_columns(replace(case, deployment=deployment))
        tables: list[Struct] = [estimate]
        if clocks:
            found, columns["no_times"], _ = times(
                counts, deployment, clocks[deployment.gpu], estimate, shown
            )
            tables.append(found)
        for table in tables:
            for name in table.__struct_fields__:
                value = getattr(table, name)
                if name in FLOORS:
                    value = np.where(shown, value, np.nan)
                columns[CODES[name][0] if name in CODES else name] = value
        columns["max_context_tokens"] = contexts[index]
        columns["max_concurrency"] = sequences[index]
        columns["max_position_tokens"] = float(case.model.positions or np.nan)
        rows.append(columns)
    return rows


class _Table:
    """Columns of a sweep, filled kind by kind; a column that is one number for a whole kind is
    held as that number until the end."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.grids: dict[str, NDArray[Any]] = {}
        self.numbers: dict[str, NDArray[Any]] = {}
        self.order: dict[str, None] = {}
        self.labels: dict[str, dict[str, int]] = {name: {} for name in TEXT_COLUMNS}
        for name, said in CODED.items():
            self.labels[name] = {each: code for code, each in enumerate(said)}

    def put(self, kind: tuple[int, int, int], row: Mapping[str, Any]) -> None:
        self.order |= dict.fromkeys(row)
        for name, given in row.items():
            value = given
            if isinstance(given, str):
                codes = self.labels[name]
                value = codes.setdefault(given, len(codes))
            whole = isinstance(value, (int, float))
            held = self.numbers if whole else self.grids
            if name not in held:
                held[name] = self._empty(name, value, self.shape[:3] if whole else self.shape)
            held[name][kind] = value

    def _empty(self, name: str, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        import numpy as np

        if name in TEXT_COLUMNS:
            return np.empty(shape, dtype=np.int16)
        if name == "fits":
            return np.empty(shape, dtype=np.bool_)
        return np.empty(shape, dtype=np.int64 if isinstance(value, int) else np.float64)

    def series(self) -> dict[str, Any]:
        import pandas as pd

        columns: dict[str, Any] = {name: self._column(name) for name in self.order}
        for name in TEXT_COLUMNS:
            if name in columns:
                labels = pd.Index(list(self.labels[name]))
                columns[name] = pd.Categorical.from_codes(columns[name], labels)
        return columns

    def _column(self, name: str) -> NDArray[Any]:
        import numpy as np

        if name in self.grids:
            return self.grids[name].ravel()
        return np.repeat(self.numbers[name].ravel(), self.shape[3] * self.shape[4])
