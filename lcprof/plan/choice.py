"""Which row of a plan to decide on, and what a row puts the quality of answers at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lcprof.domain.case import Case
from lcprof.domain.kv.strategy import Risk
from lcprof.plan.row import Row

SAFE_LEVEL = 1
"""The highest risk to quality (lcprof.domain.kv) that a choice takes without being asked to."""
SAFE_BITS = 8


def chosen(rows: Sequence[Row]) -> Row:
    """The row to decide on, the first of `rank`; the first as it was asked for where none fits."""
    best = min(rows, key=rank)
    return best if best.estimate.fits else rows[0]


def risk(case: Case) -> Risk:
    """The worst that KV strategy and weights put the quality of answers at. Weights as their
    checkpoint holds them take nothing away."""
    worst = case.kv.risks()[0]
    weights = case.deployment.weights
    if weights is None or weights.bits > SAFE_BITS:
        return worst
    level = SAFE_LEVEL + (weights.bits < SAFE_BITS)
    if level <= worst.level:
        return worst
    why = f"{weights.name} weights in place of the checkpoint's"
    return Risk(level=level, why=why, source="depends on how they were quantised")


def rank(row: Row) -> tuple[Any, ...]:
    """Where a row stands among others, smaller first: what fits, then what is safe for quality,
    then the longest context, the cheapest request, the quickest, the smallest."""
    usd, seconds, floor_s = math.inf, math.inf, math.inf
    if row.has_times:
        floor_s = row.estimate.tpot_floor_s
        if row.times is not None:
            usd, seconds = _or_endless(row.times.request_usd), _or_endless(row.times.request_s)
    context = row.case.workload.context_tokens
    small = row.estimate.total_bytes_per_gpu
    return (
        not row.estimate.fits,
        risk(row.case).level > SAFE_LEVEL,
        -context,
        usd,
        seconds,
        floor_s,
        small,
    )


def _or_endless(value: float) -> float:
    return math.inf if math.isnan(value) else value
