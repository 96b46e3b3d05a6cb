"""Time of operators that only move data: norms, rotary embedding, activations, residual sums,
embedding look-ups. Buffers that fit the L2 cache are moved faster than memory allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter


class ElementwiseCall(Struct, frozen=True, kw_only=True):
    """One operator that reads and writes `moved_bytes` in all, `row_bytes` of them for a token."""

    moved_bytes: Any
    row_bytes: Any


PARAMETERS = {
    "launch_s": Parameter(meaning="fixed time of a call", start=2.5e-6, low=2e-7, high=5e-5),
    "stream": Parameter(
        meaning="achieved part of memory bandwidth", start=0.8, low=0.005, high=1.3
    ),
    "cached": Parameter(
        meaning="time for bytes that stay in L2, in times of those that do not",
        start=0.5, low=0.02, high=1.5,
    ),
    "row_bytes_per_s": Parameter(
        meaning="pace of one thread block through a row, which a call of few rows waits for",
        start=2e10, low=1e9, high=1e13,
    ),
}  # fmt: skip


def seconds(call: ElementwiseCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Expected seconds of one call."""
    p = parameters
    inside = num.smaller(call.moved_bytes, ceilings.l2_bytes)
    weighed = call.moved_bytes - inside + p["cached"] * inside
    moving = weighed / (p["stream"] * ceilings.bandwidth_bytes_per_s)
    row_s = call.row_bytes / p["row_bytes_per_s"]
    return p["launch_s"] + row_s + moving


def features(call: ElementwiseCall) -> Mapping[str, Any]:
    """What the box of a fit is drawn around."""
    return {"moved_bytes": call.moved_bytes, "row_bytes": call.row_bytes}


def large(call: ElementwiseCall) -> Any:
    """More than 50 MB."""
    return call.moved_bytes > 50e6


ELEMENTWISE = Family(
    name="elementwise", parameters=PARAMETERS, seconds=seconds, features=features, large=large
)
