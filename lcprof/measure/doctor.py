"""What a machine can and cannot measure, each with the remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from lcprof.measure.board import Board, LostDeviceError, NoBoard
from lcprof.measure.counters import PERMISSION, REFUSED, NsightCompute
from lcprof.measure.device import CpuDevice, profiled
from lcprof.measure.machine import catalogued, package_version
from lcprof.measure.session import busy
from lcprof.units import show_bytes

LEAST_CAPABILITY = (8, 0)
LEAST_DISK_BYTES = 100e6


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at. Without what is `needed` nothing can be measured."""

    name: str
    able: bool
    found: str
    remedy: str = ""
    needed: bool = False


class Doctor:
    """Looks at a machine; everything it asks is a parameter. `torch` None: not installed."""

    def __init__(
        self,
        *,
        torch: ModuleType | Any | None,
        board: Board,
        device: str,
        which: Callable[[str], str | None] = shutil.which,
        versions: Callable[[str], str] = package_version,
        free_disk_bytes: Callable[[], float] | None = None,
        refusal: Callable[[str], str] | None = None,
    ) -> None:
        self.torch = torch
        self.board = board
        self.device = device
        self.which = which
        self.versions = versions
        self.refusal = refusal or (lambda path: NsightCompute(path).refusal())
        self.free_disk_bytes = free_disk_bytes or (lambda: float(shutil.disk_usage(Path()).free))

    def examine(self) -> list[Finding]:
        """Everything, what is needed first."""
        found = [self._torch()]
        if self.torch is not None:
            try:
                found += self._cpu() if self.device == "cpu" else self._cuda()
            except (RuntimeError, LostDeviceError) as error:
                first = str(error).strip().partition("\n")[0]
                remedy = "nvidia-smi tells its state; a GPU that is lost needs a reset"
                found.append(
                    Finding(name="GPU", able=False, found=first, remedy=remedy, needed=True)
                )
        return [*found, self._disk()]

    def _torch(self) -> Finding:
        if self.torch is None:
            remedy = "pip install torch triton nvidia-ml-py"
            return Finding(
                name="PyTorch", able=False, found="not installed", remedy=remedy, needed=True
            )
        return Finding(name="PyTorch", able=True, found=str(self.torch.__version__), needed=True)

    def _cpu(self) -> list[Finding]:
        device = CpuDevice()
        free = show_bytes(device.free_bytes())
        return [
            Finding(name="processor", able=True, found=device.name, needed=True),
            Finding(name="free memory", able=True, found=free),
            Finding(
                name="power, energy, counters",
                able=False,
                found="not on a processor",
                remedy="times and operators of the reference kernels are measured",
            ),
        ]

    def _cuda(self) -> list[Finding]:
        cuda = self.torch.cuda if self.torch is not None else None
        if cuda is None or not cuda.is_available():
            return [self._no_gpu()]
        capability = tuple(cuda.get_device_capability(0))
        name = str(cuda.get_device_name(0))
        words = f"{name}, compute capability {capability[0]}.{capability[1]}"
        free, total = cuda.mem_get_info(0)
        sheet = catalogued(name, float(total))
        found = [
            Finding(name="GPU", able=True, found=words, needed=True),
            Finding(
                name="data sheet",
                able=sheet is not None,
                found=sheet.name if sheet is not None else "not in the catalog",
                remedy=""
                if sheet
                else "floors need --gpu NAME or a YAML of the GPU (lcprof schema)",
            ),
            self._triton(capability),
            Finding(
                name="free memory", able=True, found=f"{show_bytes(free)} of {show_bytes(total)}"
            ),
        ]
        return [*found, *self._board(), self._profiler(), self._ncu()]

    def _no_gpu(self) -> Finding:
        built = getattr(getattr(self.torch, "version", None), "cuda", None)
        if built is None:
            found, remedy = "this PyTorch has no CUDA", "install a CUDA build of PyTorch"
        else:
            found = f"none that PyTorch (CUDA {built}) can use"
            remedy = "an NVIDIA driver for it (nvidia-smi), --gpus all for a container"
        remedy += "; or measure the references with --device cpu"
        return Finding(name="GPU", able=False, found=found, remedy=remedy, needed=True)

    def _triton(self, capability: tuple[int, ...]) -> Finding:
        version = self.versions("triton")
        if not version:
            remedy = "pip install triton; --impl torch and naive need none"
            return Finding(name="Triton", able=False, found="not installed", remedy=remedy)
        able = capability >= LEAST_CAPABILITY
        remedy = "" if able else "the kernels need compute capability 8.0; --impl torch does not"
        return Finding(name="Triton", able=able, found=version, remedy=remedy)

    def _board(self) -> list[Finding]:
        missing, facts = self.board.missing, self.board.facts()
        if isinstance(self.board, NoBoard):
            why = missing["power_w"]
            remedy = why.partition(": ")[2] if why.startswith("nvidia-ml-py") else ""
            remedy = remedy or "NVML must be visible (libnvidia-ml.so.1, container runtime)"
            return [Finding(name="NVML", able=False, found=why, remedy=remedy)]
        found = [Finding(name="NVML", able=True, found=f"driver {facts.driver}")]
        for name, column, remedy in (
            ("power", "power_w", "ask for NVML rights"),
            ("energy counter", "energy_j", "energy comes from power samples instead"),
            ("throttle reasons", "throttle", "ask for NVML rights"),
            ("GPM counters", "hbm_bytes", PERMISSION),
        ):
            why = missing.get(column, "")
            found.append(
                Finding(name=name, able=not why, found=why or "yes", remedy=remedy if why else "")
            )
        limit = "unknown" if facts.power_limit_w is None else f"{facts.power_limit_w:g} W"
        strangers = busy(self.board)
        return [
            *found,
            Finding(name="power limit", able=facts.power_limit_w is not None, found=limit),
            Finding(
                name="MIG",
                able=not facts.mig,
                found="on" if facts.mig else "off",
                remedy="a slice is measured, not the GPU of the data sheet" if facts.mig else "",
            ),
            Finding(
                name="other processes",
                able=not strangers,
                found=strangers or "none",
                remedy="stop them, or measure with --beside-others" if strangers else "",
            ),
        ]

    def _profiler(self) -> Finding:
        torch = self.torch
        try:
            one = torch.zeros(1, device="cuda")  # type: ignore[union-attr]
            kernels = profiled(torch, lambda: one.add_(1), None, cuda=True)
        except Exception as error:  # any refusal is the finding
            return Finding(
                name="torch.profiler", able=False, found=str(error)[:80], remedy=PERMISSION
            )
        able = bool(kernels)
        found = "yes" if able else "saw no kernel"
        return Finding(
            name="torch.profiler", able=able, found=found, remedy="" if able else PERMISSION
        )

    def _ncu(self) -> Finding:
        path = self.which("ncu")
        if path is None:
            remedy = "install NVIDIA Nsight Compute; --counters leaves its columns empty without"
            return Finding(name="Nsight Compute", able=False, found="no ncu here", remedy=remedy)
        why = self.refusal(path)
        remedy = PERMISSION if REFUSED in why else "ncu --version must run as this user"
        return Finding(
            name="Nsight Compute",
            able=not why,
            found=(REFUSED if REFUSED in why else why) or path,
            remedy=remedy if why else "",
        )

    def _disk(self) -> Finding:
        free = self.free_disk_bytes()
        able = free > LEAST_DISK_BYTES and os.access(Path(), os.W_OK)
        remedy = "" if able else "write the record elsewhere: -o RUN"
        return Finding(
            name="room for records", able=able, found=f"{show_bytes(free)} here", remedy=remedy
        )


def open_doctor(device: str) -> Doctor:
    """A doctor for this machine."""
    from lcprof.measure.session import board_of_gpu

    try:
        import torch
    except ImportError:
        return Doctor(torch=None, board=NoBoard("no PyTorch"), device=device)
    board: Board = NoBoard("a processor has no board that NVML reads")
    if device == "cuda" and torch.cuda.is_available():
        board = board_of_gpu()
    return Doctor(torch=torch, board=board, device=device)


def possible(findings: list[Finding]) -> bool:
    """Whether anything can be measured."""
    return all(each.able for each in findings if each.needed)
