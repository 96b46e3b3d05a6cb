"""What calibrations expect of points that are about to be measured."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import asdict

from lcprof.calibrate.calls import UncalledError, called
from lcprof.cost.expected.draw import held
from lcprof.cost.expected.task import Fits, Timed, UnmeasuredError, timed
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.domain.calibration import VOUCHED_RATIO
from lcprof.domain.gpu import Gpu
from lcprof.domain.power import PowerModel
from lcprof.measure.floors import Load, Prediction, load_of
from lcprof.measure.points import Point
from lcprof.measure.row import Predicted


def expectations(
    points: Iterable[Point], gpu: Gpu, fits: Fits, power: PowerModel | None = None
) -> list[Prediction]:
    """Expected seconds of points on a GPU: by the calibration of their implementation's stack, or
    by the published kernel most like it. What no family describes, and what lies too far from
    everything measured, is left out. With what the GPU draws, also seconds and joules of calls one
    after the other, where one rank makes them.

    The basis is "measured" where the fit saw this very point, then "interpolated" or
    "extrapolated" on this GPU and kernel, "transported" from others.
    """
    found = []
    for point in points:
        each = _expected(point, gpu, fits)
        if each is None:
            continue
        seen = point.key in each.found[0].points and not each.found[0].stands_in
        seconds, low, high = _interval(each)
        told = Predicted(
            seconds=seconds,
            low=low,
            high=high,
            basis=_basis(each, seen=seen),
            held_out=not seen,
        )
        drawn = Predicted()
        if point.ranks == 1:
            drawn = _drawn(load_of(point), gpu, power, seconds, low, high)
        found.append(_named(point, told, drawn))
    return found


def uncalibrated(
    points: Iterable[Point], gpu: Gpu, published: Fits, power: PowerModel | None = None
) -> list[Prediction]:
    """The same as if nothing had been measured on this GPU: `published` finds the fits of kernels
    on others. Where these have nothing like a point, its floor stands there."""
    found = []
    for point in points:
        if point.why:
            continue
        alone = point.ranks == 1
        load = load_of(point) if alone else Load(flops_by_compute={}, hbm_bytes=0.0)
        each = _expected(point, gpu, published)
        if each is None:
            seconds, basis = max(load.memory_s(gpu), load.matrix_s(gpu)), "floor"
        else:
            (seconds, _, _), basis = _interval(each), _basis(each, seen=False)
        if not seconds:
            continue
        drawn = _drawn(load, gpu, power if alone else None, seconds, seconds, seconds)
        told = Predicted(
            uncalibrated_s=seconds,
            uncalibrated_sustained_s=drawn.sustained_s,
            uncalibrated_energy_j=drawn.energy_j,
            uncalibrated_basis=basis,
        )
        found.append(_named(point, told))
    return found


def _expected(point: Point, gpu: Gpu, fits: Fits) -> Timed | None:
    if point.why:
        return None
    try:
        made = called(point.operation, point.shape, point.implementation, gpu)
        each: Timed = timed(made.task(made.call), fits, ceilings_of(gpu))
    except (UncalledError, UnmeasuredError):
        return None
    return None if each.distance > VOUCHED_RATIO else each


def _interval(each: Timed) -> tuple[float, float, float]:
    seconds = float(each.seconds)
    return seconds, seconds - float(each.below_s), seconds + float(each.above_s)


def _drawn(
    load: Load, gpu: Gpu, power: PowerModel | None, seconds: float, low_s: float, high_s: float
) -> Predicted:
    """A call among many under the power limit; the SM clock stretches what the matrix units bound
    on the data sheet."""
    if power is None:
        return Predicted()
    bound = seconds if load.matrix_s(gpu) > load.memory_s(gpu) else 0.0
    under = held(power, seconds, low_s, high_s, bound, load.flops_by_compute, load.hbm_bytes)
    return Predicted(
        sustained_s=float(under.seconds),
        sustained_low_s=float(under.low_s),
        sustained_high_s=float(under.high_s),
        energy_j=float(under.joules),
        energy_low_j=float(under.joules_low),
        energy_high_j=float(under.joules_high),
    )


def _named(point: Point, *told: Predicted) -> Prediction:
    said = {
        name: value
        for each in told
        for name, value in asdict(each).items()
        if value not in (None, "")
    }
    return Prediction(name=point.key, **said)


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
