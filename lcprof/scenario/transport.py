"""Fits for GPUs that were not measured, from those that were."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lcprof.domain.calibration import Fit
from lcprof.domain.gpu import Gpu
from lcprof.scenario.calibrations import FOLDER, Families, load_calibration
from lcprof.scenario.gpus import load_gpu

TRANSPORT_SPREAD = 0.15
"""How much wider, in natural log, each side of an interval becomes on a GPU other than the one
measured. Parameters are fractions of ceilings, and GPUs reach about the same fractions."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A fit and the GPU it was measured on."""

    fit: Fit
    measured_on: str


def fit_for(gpu: Gpu, stack: str, family: str, variant: str, *, families: Families) -> Found | None:
    """The fit of a stack's variant for `gpu`: its own, or that of the most alike GPU that has one
    (of the same architecture where there is any, then the nearest in memory bandwidth), with a
    wider interval. None where no GPU has it.

    Raises InputError for a damaged calibration.
    """
    own = load_calibration(gpu.name, stack, families=families)
    if own is not None and (fit := own.fit(family, variant)) is not None:
        return Found(fit=fit, measured_on=gpu.name)
    others: list[tuple[bool, float, str, Fit]] = []
    for path in FOLDER.glob(f"*--{stack}.yaml"):
        name = path.stem.partition("--")[0]
        if name == gpu.name:
            continue
        calibration = load_calibration(name, stack, families=families)
        fit = calibration.fit(family, variant) if calibration else None
        if fit is None:
            continue
        other = load_gpu(name, where=path.name)
        ratio = other.bandwidth_bytes_per_s / gpu.bandwidth_bytes_per_s
        alike = other.architecture == gpu.architecture
        others.append((not alike, max(ratio, 1.0 / ratio), name, fit))
    if not others:
        return None
    *_, name, fit = min(others, key=lambda found: found[:3])
    return Found(fit=widened(fit), measured_on=name)


def widened(fit: Fit) -> Fit:
    """A fit that stands in for another GPU's or another kernel's, its intervals wider."""
    wider = {
        kind: replace(found, low=found.low - TRANSPORT_SPREAD, high=found.high + TRANSPORT_SPREAD)
        for kind, found in fit.residuals.items()
    }
    return replace(fit, residuals=wider)
