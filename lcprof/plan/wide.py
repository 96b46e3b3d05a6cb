"""A plan of more rows than are worth holding: every kind planned as arrays, the best rows kept.

A kind is a case that others differ from in context and batch alone; its rows are the open grid of
contexts x batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.expected.whole import Clock
from lcprof.domain.case import Case
from lcprof.domain.workload import Workload
from lcprof.plan.choice import SAFE_LEVEL, risk
from lcprof.plan.fits import fits_for
from lcprof.plan.row import Row, plan_cases
from lcprof.plan.sweep import Columns, columns_of, framed

if TYPE_CHECKING:
    import pandas as pd

RANKED = ("request_usd", "request_s", "tpot_floor_s", "total_bytes_per_gpu")
"""What decides between rows that fit alike at one context, smaller first."""


class Wide(Struct, frozen=True, kw_only=True):
    """What was planned of `cases` (a kind each) x `contexts` x `sequences`: how many rows, how many
    fit, and `rows`: the first as it was asked for, then the best of each kind and those that rank
    first of all, in the order of `choice.rank`. Without `contexts` each kind has its own."""

    cases: Sequence[Case]
    contexts: Sequence[float]
    sequences: Sequence[float]
    fitting: int
    rows: list[Row]

    @property
    def planned(self) -> int:
        """How many rows there are in all."""
        return len(self.cases) * max(1, len(self.contexts)) * len(self.sequences)


def plan_wide(
    cases: Sequence[Case], contexts: Sequence[float], sequences: Sequence[float], most: int
) -> Wide:
    """Plans every row and keeps `most` of them at most, beside the first. Raises InputError for a
    damaged calibration."""
    fitting, found = 0, list[list[tuple[Any, ...]]]()
    for kind, (case, columns) in enumerate(_kinds(cases, contexts, sequences)):
        fits, best = _best(case, columns, _own(case, contexts), sequences, most)
        fitting += fits
        found.append([(*rank, kind, place) for rank, place in best])
    leading = sorted(each[0] for each in found)[: max(1, most // 2)]
    kept = set(leading)
    for each in sorted(line for lines in found for line in lines):
        if len(kept) >= most:
            break
        kept.add(each)
    chosen = [_at(cases[0], _own(cases[0], contexts)[0], sequences[0])]
    for *_, kind, place in sorted(kept):
        context, batch = divmod(place, len(sequences))
        if (kind, context, batch) != (0, 0, 0):
            length = _own(cases[kind], contexts)[context]
            chosen.append(_at(cases[kind], length, sequences[batch]))
    return Wide(
        cases=cases,
        contexts=contexts,
        sequences=sequences,
        fitting=fitting,
        rows=plan_cases(chosen),
    )


def frames(wide: Wide) -> Iterator[pd.DataFrame]:
    """Every row with the columns of a plan, a DataFrame for each kind, batches fastest."""
    for _, columns in _kinds(wide.cases, wide.contexts, wide.sequences):
        yield framed(columns, (max(1, len(wide.contexts)), len(wide.sequences)))


def _own(case: Case, contexts: Sequence[float]) -> Sequence[float]:
    """The contexts of a kind."""
    return contexts or [case.workload.context_tokens]


def _at(case: Case, context: float, sequences: float) -> Case:
    workload = replace(case.workload, context_tokens=context, concurrency=sequences)
    return replace(case, workload=workload)


def _kinds(
    cases: Sequence[Case], contexts: Sequence[float], sequences: Sequence[float]
) -> Iterator[tuple[Case, Columns]]:
    """The columns of each kind over the grid."""
    import numpy as np

    clocks: dict[Any, Clock] = {}
    for case in cases:
        grid: Workload[Any] = replace(
            case.workload,
            context_tokens=np.asarray(_own(case, contexts), dtype=np.float64).reshape(-1, 1),
            concurrency=np.asarray(sequences, dtype=np.float64).reshape(1, -1),
        )
        gpu = case.deployment.gpu
        if gpu not in clocks:
            clocks[gpu] = Clock(gpu, fits_for(gpu))
        wide = replace(case, workload=grid)
        (columns,) = columns_of(wide, [case.deployment], clocks)
        yield case, columns


def _best(
    case: Case,
    columns: Columns,
    contexts: Sequence[float],
    sequences: Sequence[float],
    most: int,
) -> tuple[int, list[tuple[tuple[Any, ...], int]]]:
    """How many rows of a kind fit, and the first `most` in the order of `choice.rank`, each with
    its rank and its place on the flattened grid."""
    import numpy as np

    shape = len(contexts), len(sequences)

    def flat(name: str) -> Any:
        return np.broadcast_to(columns[name], shape).ravel()

    fits = flat("fits")
    lengths = np.repeat(np.asarray(contexts, dtype=np.float64), len(sequences))
    costs = [np.nan_to_num(flat(name), nan=math.inf, posinf=math.inf) for name in RANKED]
    keys = (~fits, -lengths, *costs)
    order = np.lexsort(tuple(reversed(keys)))[:most]
    unsafe = risk(case).level > SAFE_LEVEL
    ranks = [
        ((bool(not_fit), unsafe, *(float(value) for value in values)), int(place))
        for place, not_fit, *values in zip(order, *(key[order] for key in keys), strict=True)
    ]
    return int(fits.sum()), ranks
