"""Fitting a family's parameters to measured times.

`fit_variant(samples, ceilings)` is the whole of it: parameters from all rows, residuals from rows
that a refit without their group predicted. `fit_parameters` and `out_of_fold` are its two halves.
A family needs nothing but its `Family`: parameters are searched for between their bounds, on a log
scale, so every one is positive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Fit, Residuals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDS = 4
STARTS = 5
SOFT_SCALE = 0.1
"""Log residuals beyond this weigh linearly, so that a few odd rows do not steer a fit."""
LARGE_WEIGHT = 2.0
"""Calls bound by their work count this many times a launch-bound one."""
TETHER = 0.01
"""Weight that holds a parameter which no row determines at its start."""
INTERVAL_QUANTILES = (0.05, 0.95)
INTERVAL_LEAST = 0.02
GROUPS_SHORT = 3.0
ROWS_SHORT = 2.0
SIDED_ROWS = 10.0
"""Intervals are drawn at 5 % and 95 %, at least 2 % each way. Where little was measured the errors
say less of what was not, so they are wider by 3 / groups and 2 / rows; and since few rows do not
tell on which side the large errors fall, each end reaches at least 10 / rows as far as the other,
up to as far."""


class Samples(Struct, frozen=True, kw_only=True):
    """Measured calls of one family and variant. `call`'s arrays, `measured_s` and `groups` (which
    shape and model a row belongs to) have one element per row."""

    family: Family
    variant: str
    call: Any
    measured_s: NDArray[np.float64]
    groups: NDArray[np.str_]


def taken(call: Any, index: Any) -> Any:
    """The rows of a call's arrays that `index` picks, in the calls it holds too; what is not an
    array stays."""
    import numpy as np

    picked = {}
    for name in call.__struct_fields__:
        value = getattr(call, name)
        if isinstance(value, np.ndarray):
            picked[name] = value[index]
        elif isinstance(value, Struct):
            picked[name] = taken(value, index)
    return replace(call, **picked)


def joined(calls: Sequence[Any]) -> Any:
    """Calls of one kind as one; what is not an array must be alike in all."""
    import numpy as np

    first = calls[0]
    together = {}
    for name in first.__struct_fields__:
        values = [getattr(call, name) for call in calls]
        if isinstance(values[0], np.ndarray):
            together[name] = np.concatenate(values)
        elif isinstance(values[0], Struct):
            together[name] = joined(values)
    return replace(first, **together)


def fit_variant(samples: Samples, ceilings: Ceilings) -> Fit:
    """A fit of all rows, with the residuals of rows whose group was left out of a refit."""
    import numpy as np

    family = samples.family
    parameters = fit_parameters(samples, ceilings)
    errors = out_of_fold(samples, ceilings, parameters)
    large = mask(family, samples)
    box = {
        name: (float(np.min(values)), float(np.max(values)))
        for name, values in family.features(samples.call).items()
    }
    groups = len(np.unique(samples.groups))
    kinds = {"large": errors[large], "small": errors[~large]}
    return Fit(
        family=family.name,
        variant=samples.variant,
        parameters=parameters,
        box=box,
        residuals={k: summary(found, groups) for k, found in kinds.items() if len(found)},
        rows=len(errors),
    )


def fit_parameters(
    samples: Samples, ceilings: Ceilings, start: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The parameters that minimise a soft-L1 of ln(predicted / measured).

    Searches from the declared starts and a few scattered ones, or from `start` alone.
    """
    import numpy as np
    from scipy.optimize import least_squares

    family = samples.family
    names = list(family.parameters)
    known = [family.parameters[name] for name in names]
    low = np.log([p.low for p in known])
    high = np.log([p.high for p in known])
    begin = {name: family.parameters[name].start for name in names} if start is None else start
    first = np.log([begin[name] for name in names])
    measured = np.log(samples.measured_s)
    weight = np.where(mask(family, samples), LARGE_WEIGHT, 1.0)
    tether = np.log([p.start for p in known])

    def residuals(point: NDArray[np.float64]) -> NDArray[np.float64]:
        found = dict(zip(names, np.exp(point).tolist(), strict=True))
        off = (np.log(family.seconds(samples.call, ceilings, found)) - measured) / SOFT_SCALE
        # Soft-L1 by hand: the tether must stay a plain square.
        soft = np.sqrt(2.0 * weight * (np.sqrt(1.0 + off**2) - 1.0)) * np.sign(off)
        return np.concatenate([soft, TETHER * (point - tether)])

    rng = np.random.default_rng(crc32(f"{family.name} {samples.variant}".encode()))
    starts = [first]
    if start is None:
        wide = np.minimum(high - low, 2.0)
        starts += [first + rng.uniform(-0.7, 0.7, len(first)) * wide for _ in range(STARTS - 1)]
    inside = [np.clip(point, low + 1e-6, high - 1e-6) for point in starts]
    tries = [
        least_squares(residuals, point, bounds=(low, high), x_scale=0.3, max_nfev=200)
        for point in inside
    ]
    best = min(tries, key=lambda found: float(found.cost))
    return {name: float(f"{value:.6g}") for name, value in zip(names, np.exp(best.x), strict=True)}


def out_of_fold(
    samples: Samples, ceilings: Ceilings, parameters: Mapping[str, float]
) -> NDArray[np.float64]:
    """ln(measured / predicted) of every row, predicted by a refit that did not see its group.

    With fewer than three groups there is nothing to leave out, and the fit's own residuals are
    returned.
    """
    import numpy as np

    family = samples.family
    names = np.unique(samples.groups)
    order = sorted(names.tolist(), key=lambda name: crc32(name.encode()))
    fold_of = {name: place % FOLDS for place, name in enumerate(order)}
    fold = np.array([fold_of[name] for name in samples.groups.tolist()])
    own = family.seconds(samples.call, ceilings, parameters)
    errors: NDArray[np.float64] = np.log(samples.measured_s / own)
    if len(names) < 3:
        return errors
    for left_out in np.unique(fold):
        seen, unseen = np.flatnonzero(fold != left_out), np.flatnonzero(fold == left_out)
        part = replace(
            samples,
            call=taken(samples.call, seen),
            measured_s=samples.measured_s[seen],
            groups=samples.groups[seen],
        )
        found = fit_parameters(part, ceilings, start=parameters)
        predicted = family.seconds(taken(samples.call, unseen), ceilings, found)
        errors[unseen] = np.log(samples.measured_s[unseen] / predicted)
    return errors


def mask(family: Family, samples: Samples) -> NDArray[np.bool_]:
    """Which rows are large."""
    import numpy as np

    return np.broadcast_to(np.asarray(family.large(samples.call)), samples.measured_s.shape)


def summary(errors: NDArray[np.float64], groups: int) -> Residuals:
    """Residuals from ln(measured / predicted) of shapes in `groups` groups.

    The quantiles are Weibull's, k / (n + 1) for the k-th of n errors: the chance that one more
    falls below it.
    """
    import numpy as np

    rows = len(errors)
    relative = np.abs(np.exp(-errors) - 1.0)
    low, high = np.quantile(errors, INTERVAL_QUANTILES, method="weibull")
    other = min(1.0, SIDED_ROWS / rows)
    below, above = max(-low, other * high, 0.0), max(high, -other * low, 0.0)
    wider = 1.0 + GROUPS_SHORT / groups + ROWS_SHORT / rows
    low, high = min(-below * wider, -INTERVAL_LEAST), max(above * wider, INTERVAL_LEAST)
    values = (np.median(relative), np.quantile(relative, 0.9), low, high)
    median, p90, low, high = (float(f"{value:.4g}") for value in values)
    return Residuals(rows=rows, median=median, p90=p90, low=low, high=high)
