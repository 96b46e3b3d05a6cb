"""Fits for a GPU: its own, or those of the most alike GPU that was measured."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from lcprof.domain.calibration import Calibration, Fit
from lcprof.domain.gpu import Gpu
from lcprof.scenario.calibrations import FOLDER, Families, load_calibration
from lcprof.scenario.gpus import load_gpu

TRANSPORT_SPREAD = 0.15
"""How much wider, in natural log, each side of an interval becomes on a GPU other than the one
measured. Parameters are fractions of ceilings, and GPUs reach about the same fractions."""


class Found(Struct, frozen=True, kw_only=True):
    """A fit and the GPU it was measured on."""

    fit: Fit
    measured_on: str


class Calibrations:
    """The catalog's calibrations, each read once, when it is first asked for.

    `families` are the parameters of each operation family, which a file must give.
    """

    def __init__(self, families: Families) -> None:
        self.families = families
        self._held: dict[tuple[str, str], Calibration | None] = {}
        self._nearest: dict[tuple[str, str], list[str]] = {}

    def own(self, gpu: str, stack: str, family: str, variant: str) -> Found | None:
        """The fit of a stack's variant that was measured on `gpu`. Raises InputError for a damaged
        calibration."""
        key = gpu, stack
        if key not in self._held:
            self._held[key] = load_calibration(gpu, stack, families=self.families)
        calibration = self._held[key]
        fit = calibration.fit(family, variant) if calibration else None
        return Found(fit=fit, measured_on=gpu) if fit else None

    def find(self, gpu: Gpu, stack: str, family: str, variant: str) -> Found | None:
        """The fit of a stack's variant for `gpu`: its own, or that of the most alike GPU that has
        one, with a wider interval. None where no GPU has it. Raises InputError."""
        found = self.own(gpu.name, stack, family, variant)
        if found is not None:
            return found
        for name in self._by_likeness(gpu, stack):
            found = self.own(name, stack, family, variant)
            if found is not None:
                return Found(fit=widened(found.fit), measured_on=name)
        return None

    def _by_likeness(self, gpu: Gpu, stack: str) -> list[str]:
        """Other GPUs with a calibration of a stack: of the same architecture first, then the
        nearest in memory bandwidth."""

        def unlike(name: str) -> tuple[bool, float, str]:
            other = load_gpu(name, where=name)
            ratio = other.bandwidth_bytes_per_s / gpu.bandwidth_bytes_per_s
            return other.architecture != gpu.architecture, max(ratio, 1.0 / ratio), name

        key = gpu.name, stack
        if key not in self._nearest:
            names = (path.stem.partition("--")[0] for path in FOLDER.glob(f"*--{stack}.yaml"))
            self._nearest[key] = sorted((n for n in names if n != gpu.name), key=unlike)
        return self._nearest[key]


def widened(fit: Fit) -> Fit:
    """A fit that stands in for another GPU's or another kernel's, its intervals wider."""
    wider = {
        kind: replace(found, low=found.low - TRANSPORT_SPREAD, high=found.high + TRANSPORT_SPREAD)
        for kind, found in fit.residuals.items()
    }
    return replace(fit, residuals=wider)
