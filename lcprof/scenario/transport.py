"""Fits for a GPU: its own, or those of the most alike GPU that was measured."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from lcprof.domain.calibration import Calibration, Fit, Found
from lcprof.domain.gpu import Gpu
from lcprof.scenario.calibrations import FOLDER, Families, load_calibration
from lcprof.scenario.gpus import gpu_names, load_gpu

TRANSPORT_SPREAD = 0.15
"""How much wider, in natural log, each side of an interval becomes on a GPU other than the one
measured. Parameters are fractions of ceilings, and GPUs reach about the same fractions."""


class Calibrations:
    """A user's calibrations and the catalog's, each read once, when it is first asked for; where
    both have a fit the user's counts. Without `own_folder` it is the catalog alone.

    `families` are the parameters of each operation family, which a file must give.
    """

    def __init__(self, families: Families, own_folder: Path | None = None) -> None:
        self.families = families
        self.own_folder = own_folder
        self._held: dict[tuple[Path, str, str], Calibration | None] = {}
        self._nearest: dict[tuple[str, str], list[str]] = {}

    def own(self, gpu: str, stack: str, family: str, variant: str) -> Found | None:
        """The fit of a stack's variant that was measured on `gpu`. Raises InputError for a damaged
        calibration."""
        for folder in self._folders():
            calibration = self._read(folder, gpu, stack)
            fit = calibration.fit(family, variant) if calibration else None
            if calibration is None or fit is None:
                continue
            date = calibration.date if folder is self.own_folder else ""
            return Found(
                fit=fit,
                variant=(stack, variant),
                measured_on=gpu,
                stands_in=False,
                calibrated=date,
                points=calibration.points,
            )
        return None

    def _folders(self) -> tuple[Path, ...]:
        return (FOLDER,) if self.own_folder is None else (self.own_folder, FOLDER)

    def _read(self, folder: Path, gpu: str, stack: str) -> Calibration | None:
        key = folder, gpu, stack
        if key not in self._held:
            self._held[key] = load_calibration(gpu, stack, families=self.families, folder=folder)
        return self._held[key]

    def find(self, gpu: Gpu, stack: str, family: str, variant: str) -> Found | None:
        """The fit of a stack's variant for `gpu`: its own, or that of the most alike GPU that has
        one, with a wider interval. None where no GPU has it. Raises InputError."""
        found = self.own(gpu.name, stack, family, variant)
        return self.elsewhere(gpu, stack, family, variant) if found is None else found

    def elsewhere(self, gpu: Gpu, stack: str, family: str, variant: str) -> Found | None:
        """The fit of a stack's variant that was measured on the most alike other GPU, with a wider
        interval. None where none has it. Raises InputError."""
        for name in self._by_likeness(gpu, stack):
            found = self.own(name, stack, family, variant)
            if found is not None:
                moved = widened(self._moved(found.fit, name, gpu))
                return replace(found, fit=moved, stands_in=True)
        return None

    def _moved(self, fit: Fit, measured_on: str, gpu: Gpu) -> Fit:
        """A fit with the rates of its source's SMs turned into those of another GPU's. The decode
        fits of TensorRT-LLM show it: 24.6 GB/s on an H100 and 36.1 on an H200, whose SMs have
        25.4 and 36.4 of the bandwidth each."""
        other = load_gpu(measured_on, where=measured_on)
        ratio = gpu.bandwidth_bytes_per_s / other.bandwidth_bytes_per_s
        if gpu.sm_count and other.sm_count:
            ratio *= other.sm_count / gpu.sm_count
        kinds = self.families[fit.family]
        moved = {
            name: value * ratio if kinds[name].bandwidth else value
            for name, value in fit.parameters.items()
        }
        return replace(fit, parameters=moved)

    def _by_likeness(self, gpu: Gpu, stack: str) -> list[str]:
        """Other GPUs with a calibration of a stack: of the same architecture first, then the
        nearest in memory bandwidth."""

        def unlike(name: str) -> tuple[bool, float, str]:
            other = load_gpu(name, where=name)
            ratio = other.bandwidth_bytes_per_s / gpu.bandwidth_bytes_per_s
            return other.architecture != gpu.architecture, max(ratio, 1.0 / ratio), name

        key = gpu.name, stack
        if key not in self._nearest:
            names = {
                path.stem.partition("--")[0]
                for folder in self._folders()
                for path in folder.glob(f"*--{stack}.yaml")
            }
            # A user's file may be of a GPU that the catalog does not know: nothing is like it.
            known = names & set(gpu_names()) - {gpu.name}
            self._nearest[key] = sorted(known, key=unlike)
        return self._nearest[key]


def widened(fit: Fit) -> Fit:
    """A fit that stands in for another GPU's or another kernel's, its intervals wider."""
    wider = {
        kind: replace(found, low=found.low - TRANSPORT_SPREAD, high=found.high + TRANSPORT_SPREAD)
        for kind, found in fit.residuals.items()
    }
    return replace(fit, residuals=wider)
