"""A row of a plan: one case, its estimate, and the answers to the inverse questions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.expected.whole import Clock
from lcprof.domain.case import Case
from lcprof.domain.gpu import Gpu
from lcprof.domain.workload import Workload
from lcprof.plan.estimate import Counts, Estimate, capacity_bytes, count, finish
from lcprof.plan.fits import fits_for
from lcprof.plan.search import LIMIT, max_concurrency, max_context_tokens
from lcprof.plan.times import Times, named, times

TOGETHER = 64
"""Cases of one kind from which planning them as arrays is faster."""


class Row(Struct, frozen=True, kw_only=True):
    """One line of a plan. The inverse answers are None when memory sets no bound.

    `times` is None where only bytes were asked for; `no_times` says why there are none though they
    were ("" where there are).
    """

    case: Case
    estimate: Estimate[float]
    max_context_tokens: float | None
    max_concurrency: float | None
    times: Times[float] | None = None
    no_times: str = ""

    @property
    def has_times(self) -> bool:
        """Whether floors and expected times mean anything: a plan that does not fit takes no time,
        unless the question is hypothetical."""
        return bool(self.estimate.fits) or self.case.hypothetical

    def columns(self) -> dict[str, Any]:
        """Column name to value, as `--json`, `--csv` and the sweep name them."""
        sized = dict(self.estimate.columns())
        if not self.has_times:
            sized |= dict.fromkeys(FLOORS)
        return {
            **case_columns(self.case),
            "no_times": self.no_times,
            **sized,
            **time_columns(self.times),
            "max_context_tokens": self.max_context_tokens,
            "max_concurrency": self.max_concurrency,
            "max_position_tokens": self.case.model.positions,
        }


FLOORS = ("ttft_floor_s", "tpot_floor_s", "request_floor_s")


def time_columns(found: Times[float] | None) -> dict[str, Any]:
    """The columns of expected times; None where there is none."""
    columns: dict[str, Any] = {}
    for name in Times.__struct_fields__:
        value = None if found is None else getattr(found, name)
        said = named(name)
        if said is None:
            columns[name] = None if value is None or math.isnan(value) else value
        else:
            columns[said[0]] = None if value is None else said[1][int(value)] or None
    return columns


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
        "stack": deployment.stack,
        "price_usd_per_gpu_hour": deployment.usd_per_gpu_hour,
        "power_limit_w": deployment.power_limit_w or deployment.gpu.tdp_w,
        "chunk_tokens": workload.chunk_tokens,
        "prefix_tokens": workload.prefix_tokens,
        "context_tokens": workload.context_tokens,
        "output_tokens": workload.output_tokens,
        "concurrency": workload.concurrency,
    }


def plan_case(case: Case) -> Row:
    """The row of one case, without expected times."""
    return _sized(case, count(case.model, case.deployment, case.kv, case.workload))


def _sized(case: Case, counts: Counts[float]) -> Row:
    capacity = capacity_bytes(case.deployment)
    asked = (counts.model, case.deployment, case.kv, case.workload, capacity)
    return Row(
        case=case,
        estimate=finish(counts, case.deployment),
        max_context_tokens=_bounded(max_context_tokens(*asked)),
        max_concurrency=_bounded(max_concurrency(*asked)),
    )


def timed_case(case: Case, clock: Clock) -> Row:
    """The row of one case. Raises InputError for a damaged calibration."""
    counts = count(case.model, case.deployment, case.kv, case.workload)
    row = _sized(case, counts)
    found, reason = times(counts, case.deployment, clock, row.estimate, row.has_times)
    return replace(row, times=found, no_times=reason)


def plan_cases(cases: Iterable[Case]) -> list[Row]:
    """A row with expected times for each case, in their order.

    Cases that differ in context and concurrency alone are planned together when there are enough
    of them to be worth loading numpy. Raises InputError for a damaged calibration.
    """
    kinds: dict[tuple[Any, ...], list[tuple[int, Case]]] = {}
    for index, case in enumerate(cases):
        kinds.setdefault(_kind(case), []).append((index, case))
    rows: dict[int, Row] = {}
    clocks: dict[Gpu, Clock] = {}
    for members in kinds.values():
        alike = [case for _, case in members]
        if len(alike) < TOGETHER:
            gpu = alike[0].deployment.gpu
            clock = clocks.setdefault(gpu, Clock(gpu, fits_for(gpu)))
            planned = [timed_case(case, clock) for case in alike]
        else:
            planned = _plan_together(alike)
        rows |= {index: row for (index, _), row in zip(members, planned, strict=True)}
    return [rows[index] for index in range(len(rows))]


def _kind(case: Case) -> tuple[Any, ...]:
    workload = case.workload
    asked = workload.output_tokens, workload.prefix_tokens, workload.chunk_tokens
    return case.model, case.deployment, case.kv, case.hypothetical, *asked


def _plan_together(cases: list[Case]) -> list[Row]:
    import numpy as np

    first = cases[0]
    deployment = first.deployment
    grid: Workload[Any] = replace(
        first.workload,
        context_tokens=np.array([case.workload.context_tokens for case in cases]),
        concurrency=np.array([case.workload.concurrency for case in cases]),
    )
    counts = count(first.model, deployment, first.kv, grid)
    asked = (counts.model, deployment, first.kv, grid, capacity_bytes(deployment))
    contexts, sequences = max_context_tokens(*asked), max_concurrency(*asked)
    table = finish(counts, deployment)
    clock = Clock(deployment.gpu, fits_for(deployment.gpu))
    found, reason = times(counts, deployment, clock, table, table.fits | first.hypothetical)

    def columns(of: Struct) -> dict[str, list[Any]]:
        names = of.__struct_fields__
        return {n: np.broadcast_to(getattr(of, n), len(cases)).tolist() for n in names}

    sized, timed = columns(table), columns(found)
    return [
        Row(
            case=case,
            estimate=Estimate(**{name: column[index] for name, column in sized.items()}),
            max_context_tokens=_bounded(float(contexts[index])),
            max_concurrency=_bounded(float(sequences[index])),
            times=Times(**{name: column[index] for name, column in timed.items()}),
            no_times=reason,
        )
        for index, case in enumerate(cases)
    ]


def _bounded(answer: float) -> float | None:
    return None if answer >= LIMIT else answer
