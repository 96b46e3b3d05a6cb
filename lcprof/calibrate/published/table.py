"""What a published table is, and the rows of it that fits may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from lcprof.calibrate.fit import Samples, taken
from lcprof.cost.timing.family import Family
from lcprof.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

SPLIT = "two thirds of the groups (shape and model) of each table; the rest is held out"
DEVICES = {
    "NVIDIA A100-SXM4-80GB": "a100-80gb-sxm",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H200": "h200-sxm",
    "a100": "a100-80gb-sxm",
    "h100": "h100-sxm",
    "H800": "h800-sxm",
    "H20": "h20",
}
"""The catalog's GPU for each name of a device in the tables."""
DTYPE_BYTES = {"bfloat16": 2.0, "bf16": 2.0, "fp8": 1.0, "float16": 2.0, "half": 2.0}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Who measured a table, under which licence its numbers travel, and from when they are."""

    name: str
    licence: str
    date: str


AICONFIGURATOR = Source(
    name="ai-dynamo/aiconfigurator, silicon tables of the aiconfigurator-core 0.12.0 wheel",
    licence="Apache-2.0",
    date="2026-09",
)
VIDUR = Source(name="microsoft/vidur, data/profiling at 7d475133", licence="MIT", date="2024")
INFERSIM = Source(
    name="alibaba/InferSim, bench_data at f2293dab", licence="Apache-2.0", date="2025"
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one GPU, stack, family and variant. `rows` are positions in the table, `call` holds
    one array element per row, `groups` the shape and model a row belongs to, `large` whether the
    row is one of those that matter most in this table's score, and `column` where its time is.

    What was not measured is predicted by the variants `elsewhere` (stack and variant) of other
    stacks, which mean the same, else by those that `stand_ins` names, of the same stack.

    `kin` are coarser groups, such as models or numbers of GPUs, that residuals are taken over where
    the rows that a fit meets later are of other kin; None where `groups` will do."""

    gpu: str
    stack: str
    family: Family
    variant: str
    call: Any
    rows: NDArray[np.int64]
    groups: NDArray[np.str_]
    large: NDArray[np.bool_]
    column: str = "latency_ms"
    stand_ins: tuple[str, ...] = ()
    elsewhere: tuple[tuple[str, str], ...] = ()
    kin: NDArray[np.str_] | None = None


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A table's batches, and the rows that no family can predict, by reason."""

    known: list[Batch]
    declined: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published table. `seconds` maps its measured columns to the seconds of one unit;
    `withheld` are columns computed from them. `batches` never sees either."""

    name: str
    source: Source
    batches: Callable[[DataFrame], Batches]
    seconds: Mapping[str, float] = field(default_factory=lambda: {"latency_ms": 1e-3})
    withheld: tuple[str, ...] = ()

    def read(self, folder: Path) -> DataFrame | None:
        """The table's rows in `folder` (`.csv` or `.csv.gz`), or None where it is not there.

        Raises InputError for a file without the table's columns.
        """
        import pandas as pd

        found = [
            path for end in (".csv", ".csv.gz") if (path := folder / (self.name + end)).exists()
        ]
        if not found:
            return None
        try:
            frame = pd.read_csv(found[0], low_memory=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError.one(str(found[0]), given=str(error), expected="a CSV") from None
        if missing := [name for name in self.seconds if name not in frame]:
            expected = f"the columns {', '.join(self.seconds)}"
            raise InputError.one(str(found[0]), given=f"no {missing[0]}", expected=expected)
        return frame

    def predictable(self, frame: DataFrame, *, where: str) -> Batches:
        """The batches of `frame`, from its unmeasured columns alone.

        Raises InputError for a column that the table should have and `frame` lacks.
        """
        shapes = frame.drop(columns=[*self.seconds, *self.withheld], errors="ignore")
        try:
            return self.batches(shapes.reset_index(drop=True))
        except KeyError as error:
            name = str(error.args[0])
            raise InputError.one(where, given=f"no column {name}", expected="it") from None

    def measured_s(self, frame: DataFrame, batch: Batch) -> NDArray[np.float64]:
        """The measured seconds of a batch's rows."""
        values = frame[batch.column].to_numpy(dtype="float64")[batch.rows]
        return values * self.seconds[batch.column]


def samples(table: Table, frame: DataFrame) -> list[tuple[Batch, Samples]]:
    """A table's measured calls, batch by batch; rows without a positive time are left out."""
    import numpy as np

    found = []
    for batch in table.predictable(frame, where=table.name).known:
        measured = table.measured_s(frame, batch)
        good = np.flatnonzero(np.isfinite(measured) & (measured > 0))
        if len(good):
            one = Samples(
                family=batch.family,
                variant=batch.variant,
                call=taken(batch.call, good),
                measured_s=measured[good],
                groups=(batch.groups if batch.kin is None else batch.kin)[good],
            )
            found.append((batch, one))
    return found


def fit_rows(table: Table, frame: DataFrame) -> NDArray[np.bool_]:
    """Which rows of a table a calibration may see: those of two thirds of its groups, in the order
    of a hash of their names, so that neither files nor rows decide."""
    import numpy as np

    names = np.full(len(frame), "", dtype=object)
    for batch in table.predictable(frame, where=table.name).known:
        names[batch.rows] = batch.groups
    groups = sorted(set(names.tolist()) - {""}, key=lambda g: crc32(f"{table.name} {g}".encode()))
    chosen = set(groups[: len(groups) * 2 // 3])
    return np.array([name in chosen for name in names.tolist()])


def rows_where(frame: DataFrame, columns: list[str]) -> list[tuple[tuple[Any, ...], Any]]:
    """The distinct values of `columns` and the positions of the rows that have them."""
    import numpy as np

    grouped = frame.groupby(columns, dropna=False, sort=True)
    found = grouped.indices.items()
    return [(key if isinstance(key, tuple) else (key,), np.sort(rows)) for key, rows in found]


def group_names(frame: DataFrame, columns: list[str]) -> Any:
    """A name for each row from the values of `columns`, where one may be missing."""
    text = frame[columns[0]].astype("string").fillna("")
    for name in columns[1:]:
        text = text + "-" + frame[name].astype("string").fillna("")
    return text.to_numpy(dtype=str)


def kin(coarse: NDArray[np.str_], fine: NDArray[np.str_]) -> NDArray[np.str_]:
    """The coarser groups where there are three or more, so that one can be left out; else the
    finer."""
    return coarse if len(set(coarse.tolist())) >= 3 else fine


def column(frame: DataFrame, name: str) -> NDArray[np.float64]:
    """A column as float64."""
    values: NDArray[np.float64] = frame[name].to_numpy(dtype="float64")
    return values
