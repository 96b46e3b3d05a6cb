"""What was learnt about a GPU and a kernel stack: fitted parameters, and how wrong they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof.num import doublings, larger

VOUCHED_RATIO = 64.0
"""A call further outside its box than this is not vouched for."""
WIDENING = 0.0416
"""How much wider, in natural log, each side of an interval grows for each doubling of the distance
from the box: 4 % at twice its end, 13 % at eight times, 28 % at 64 times."""


class Parameter(Struct, frozen=True, kw_only=True):
    """One number that a fit finds: what it means, where the search starts and may go. `bandwidth`:
    a rate of one SM that grows from GPU to GPU as its share of the memory's bandwidth does."""

    meaning: str
    start: float
    low: float
    high: float
    bandwidth: bool = False


class Residuals(Struct, frozen=True, kw_only=True):
    """How far predictions were from measurements of shapes that their fit had not seen.

    `median` and `p90` are of |predicted / measured - 1|; `low` and `high` are the 5 % and 95 %
    quantiles of ln(measured / predicted), drawn wider where few were measured.
    """

    rows: int
    median: float
    p90: float
    low: float
    high: float


class Fit(Struct, frozen=True, kw_only=True):
    """One variant of an operation family on one GPU and stack.

    `box` maps each feature of a call to the least and largest value measured. `residuals` has the
    entries "large" (calls bound by the work they do) and "small" (calls bound by launching); one
    may be absent where nothing of its kind was measured. `rows` counts the measurements.
    """

    family: str
    variant: str
    parameters: Mapping[str, float]
    box: Mapping[str, tuple[float, float]]
    residuals: Mapping[str, Residuals]
    rows: int

    def distance(self, features: Mapping[str, Any]) -> Any:
        """How many times past the box a call lies, over all features; 1 inside. A feature that the
        box lacks does not count."""
        ratio: Any = 1.0
        for name, (low, high) in self.box.items():
            if name in features:
                value = features[name]
                # The box ends at counts; a zero end (no prefix, no window) is compared as one.
                past = (value + 0.0) / max(high, 1.0)
                short = max(low, 1.0) / larger(value, 1.0)
                ratio = larger(ratio, larger(past, short))
        return ratio

    def bounds(self, kind: str, spread: Any) -> tuple[Any, Any]:
        """What to multiply a predicted time by for the low and the high end of an interval that
        nine in ten measurements fall in; `kind` is "large" or "small", `spread` from `spread`.
        """
        residuals = self.residuals.get(kind) or next(iter(self.residuals.values()))
        return math.exp(min(residuals.low, 0.0)) / spread, math.exp(
            max(residuals.high, 0.0)
        ) * spread


def spread(distance: Any) -> Any:
    """By what factor each end of an interval moves outwards at a distance from the box: e^x to its
    second order, x `WIDENING` for each doubling."""
    x = WIDENING * doublings(distance)
    return 1.0 + x + 0.5 * x * x


class Calibration(Struct, frozen=True, kw_only=True):
    """Everything fitted for one GPU and one kernel stack, with where the measurements come from.

    `split` says which part of the source's groups the fits saw. `points` are the keys of the rows
    of `lcprof measure` that they saw; a published table has none.
    """

    gpu: str
    stack: str
    source: str
    licence: str
    date: str
    split: str
    fits: tuple[Fit, ...]
    points: frozenset[str] = frozenset()

    def fit(self, family: str, variant: str) -> Fit | None:
        """The fit of a family's variant, or None where it was not measured."""
        return next((f for f in self.fits if (f.family, f.variant) == (family, variant)), None)

    def variants(self, family: str) -> tuple[str, ...]:
        """The variants of a family that were measured, in the file's order."""
        return tuple(fit.variant for fit in self.fits if fit.family == family)
