"""A row of a plan: one case, its estimate, and the answers to the inverse questions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lcprof.domain.case import Case
from lcprof.domain.workload import Workload
from lcprof.plan.estimate import Estimate, capacity_bytes, estimate, remade
from lcprof.plan.search import LIMIT, max_concurrency, max_context_tokens

TOGETHER = 64
"""Cases of one kind from which planning them as arrays is faster."""


class Row(Struct, frozen=True, kw_only=True):
    """One line of a plan. The inverse answers are None when memory sets no bound."""

    case: Case
    estimate: Estimate[float]
    max_context_tokens: float | None
    max_concurrency: float | None

    def columns(self) -> dict[str, Any]:
        """Column name to value, as `--json`, `--csv` and the sweep name them."""
        return {
            **case_columns(self.case),
            **self.estimate.columns(),
            "max_context_tokens": self.max_context_tokens,
            "max_concurrency": self.max_concurrency,
            "max_position_tokens": self.case.model.positions,
        }


def case_columns(case: Case) -> dict[str, Any]:
    """The columns that say what was planned."""
    deployment, workload = case.deployment, case.workload
    return {
        "model": case.model.name,
        "gpu": deployment.gpu.name,
        "gpus": deployment.gpus,
        "kv": case.kv_spec,
        "tp": deployment.tp,
        "pp": deployment.pp,
        "cp": deployment.cp,
        "dp": deployment.dp,
        "ep": deployment.ep,
        "dcp": deployment.dcp,
        "weights": deployment.weights.name if deployment.weights else "checkpoint",
        "utilisation": deployment.utilisation,
        "page_tokens": deployment.page_tokens,
        "chunk_tokens": workload.chunk_tokens,
        "prefix_tokens": workload.prefix_tokens,
        "context_tokens": workload.context_tokens,
        "output_tokens": workload.output_tokens,
        "concurrency": workload.concurrency,
    }


def plan_case(case: Case) -> Row:
    """The row of one case."""
    model = remade(case.model, case.kv)
    capacity = capacity_bytes(case.deployment)
    asked = (model, case.deployment, case.kv, case.workload, capacity)
    return Row(
        case=case,
        estimate=estimate(case.model, case.deployment, case.kv, case.workload),
        max_context_tokens=_bounded(max_context_tokens(*asked)),
        max_concurrency=_bounded(max_concurrency(*asked)),
    )


def plan_cases(cases: Iterable[Case]) -> list[Row]:
    """A row for each case, in their order, the same as `plan_case` gives.

    Cases that differ in context and concurrency alone are planned together when there are enough
    of them to be worth loading numpy.
    """
    kinds: dict[tuple[Any, ...], list[tuple[int, Case]]] = {}
    for index, case in enumerate(cases):
        kinds.setdefault(_kind(case), []).append((index, case))
    rows: dict[int, Row] = {}
    for members in kinds.values():
        alike = [case for _, case in members]
        planned = map(plan_case, alike) if len(alike) < TOGETHER else _plan_together(alike)
        rows |= {index: row for (index, _), row in zip(members, planned, strict=True)}
    return [rows[index] for index in range(len(rows))]


def _kind(case: Case) -> tuple[Any, ...]:
    workload = case.workload
    asked = workload.output_tokens, workload.prefix_tokens, workload.chunk_tokens
    return case.model, case.deployment, case.kv, *asked


def _plan_together(cases: list[Case]) -> list[Row]:
    import numpy as np

    first = cases[0]
    grid: Workload[Any] = replace(
        first.workload,
        context_tokens=np.array([case.workload.context_tokens for case in cases]),
        concurrency=np.array([case.workload.concurrency for case in cases]),
    )
    model = remade(first.model, first.kv)
    capacity = capacity_bytes(first.deployment)
    asked = (model, first.deployment, first.kv, grid, capacity)
    contexts, sequences = max_context_tokens(*asked), max_concurrency(*asked)
    table = estimate(first.model, first.deployment, first.kv, grid)
    columns = {
        name: np.broadcast_to(getattr(table, name), len(cases)).tolist()
        for name in table.__struct_fields__
    }
    return [
        Row(
            case=case,
            estimate=Estimate(**{name: column[index] for name, column in columns.items()}),
            max_context_tokens=_bounded(float(contexts[index])),
            max_concurrency=_bounded(float(sequences[index])),
        )
        for index, case in enumerate(cases)
    ]


def _bounded(answer: float) -> float | None:
    return None if answer >= LIMIT else answer
