"""Calibrations and power models as a plan asks for them."""

from __future__ import annotations

from functools import cache

from msgspec.structs import replace

from lcprof.cost.expected.kernels import SAME_LIBRARY
from lcprof.cost.expected.own import OWN
from lcprof.cost.expected.task import Fits
from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.calibration import Found, Variant
from lcprof.domain.gpu import Gpu
from lcprof.domain.power import PowerModel
from lcprof.scenario.calibrations import user_folder
from lcprof.scenario.power import power_model
from lcprof.scenario.transport import Calibrations, widened


@cache
def calibrations() -> Calibrations:
    """The user's and the catalog's, read as they are needed."""
    return Calibrations(PARAMETERS, user_folder())


@cache
def fits_for(gpu: Gpu) -> Fits:
    """Finds fits for a GPU among all calibrations."""
    return finder(calibrations(), gpu)


@cache
def published_fits(gpu: Gpu) -> Fits:
    """Finds fits for a GPU as if nothing had been measured on it, and nobody had calibrated: those
    of published kernels on other GPUs."""
    known = Calibrations(PARAMETERS)

    def fits(family: str, variants: tuple[Variant, ...]) -> Found | None:
        for variant in variants:
            if variant[0] in OWN:
                continue
            other = known.elsewhere(gpu, variant[0], family, variant[1])
            if other is not None:
                return other
        return None

    return fits


def finder(known: Calibrations, gpu: Gpu) -> Fits:
    """Finds fits for a GPU: of the first variant that was measured on it, else of the first that
    was measured at all. What is not the first variant stands in for it, unless both are the same
    library's, and so does another GPU's; their intervals are wider."""
    held: dict[tuple[str, tuple[Variant, ...]], Found | None] = {}

    def fits(family: str, variants: tuple[Variant, ...]) -> Found | None:
        key = family, variants
        if key not in held:
            held[key] = _find(known, gpu, family, variants)
        return held[key]

    return fits


def _find(
    known: Calibrations, gpu: Gpu, family: str, variants: tuple[Variant, ...]
) -> Found | None:
    for variant in variants:
        own = known.own(gpu.name, variant[0], family, variant[1])
        if own is not None:
            same = variant == variants[0] or variant[1] in SAME_LIBRARY
            return own if same else replace(own, fit=widened(own.fit), stands_in=True)
    others = (known.find(gpu, stack, family, name) for stack, name in variants)
    return next((other for other in others if other is not None), None)


@cache
def power_for(gpu: Gpu, limit_w: float | None) -> PowerModel | None:
    """What a GPU draws under a limit; None where nothing tells."""
    return power_model(gpu, limit_w)
