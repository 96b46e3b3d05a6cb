"""What calibrations expect of points that are about to be measured."""

from __future__ import annotations

from collections.abc import Iterable

from lcprof.calibrate.calls import UncalledError, called
from lcprof.cost.expected.task import Fits, Timed, UnmeasuredError, timed
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.domain.calibration import VOUCHED_RATIO
from lcprof.domain.gpu import Gpu
from lcprof.measure.floors import Prediction
from lcprof.measure.points import Point


def expectations(points: Iterable[Point], gpu: Gpu, fits: Fits) -> list[Prediction]:
    """Expected seconds of points on a GPU: by the calibration of their implementation's stack, or
    by the published kernel most like it. What no family describes, and what lies too far from
    everything measured, is left out.

    The basis is "measured" where the fit saw this very point, then "interpolated" or
    "extrapolated" on this GPU and kernel, "transported" from others.
    """
    ceilings, found = ceilings_of(gpu), []
    for point in points:
        if point.why:
            continue
        try:
            made = called(point.operation, point.shape, point.implementation, gpu)
            each: Timed = timed(made.task(made.call), fits, ceilings)
        except (UncalledError, UnmeasuredError):
            continue
        if each.distance > VOUCHED_RATIO:
            continue
        seen = point.key in each.found[0].points and not each.found[0].stands_in
        found.append(
            Prediction(
                name=point.key,
                seconds=float(each.seconds),
                low=float(each.seconds - each.below_s),
                high=float(each.seconds + each.above_s),
                basis=_basis(each, seen=seen),
                held_out=not seen,
            )
        )
    return found


def _basis(each: Timed, *, seen: bool) -> str:
    (found,) = each.found
    rests = "interpolated"
    if each.distance > 1.0:
        rests = f"extrapolated x{each.distance:.3g}"
    if found.stands_in:
        rests = "transported"
    if seen:
        rests = "measured"
    here = f", calibrated on {found.calibrated}" if found.calibrated else ""
    stack, variant = found.variant
    return f"{rests}: {stack} {variant} on {found.measured_on}{here}"
