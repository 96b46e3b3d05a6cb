"""NVIDIA boards through NVML (the nvidia-ml-py package), late-imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from lcprof.measure.board import (
    BOARD_COLUMNS,
    Board,
    Facts,
    LostDeviceError,
    NoBoard,
    Reading,
    Stranger,
    Utilisation,
)

COUNTED = ("hbm_bytes", "flops", "dram_utilisation", "tensor_utilisation", "sm_occupancy")
THROTTLE = {
    "SwPowerCap": "power limit",
    "HwPowerBrakeSlowdown": "external power brake",
    "SwThermalSlowdown": "temperature",
    "HwThermalSlowdown": "temperature (hardware)",
    "HwSlowdown": "hardware slowdown",
    "SyncBoost": "sync boost",
    "ApplicationsClocksSetting": "clocks set by the user",
}
"""NVML's clock event reasons that slow a busy GPU, by the ends of their names."""
METRICS = {
    "dram": "NVML_GPM_METRIC_DRAM_BW_UTIL",
    "tensor": "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
    "occupancy": "NVML_GPM_METRIC_SM_OCCUPANCY",
}
SLOW = ("temperature_c", "peak_used_bytes", "other_processes")
SLOW_S = 0.5
"""Columns that are asked for so rarely: listing processes takes long, and none changes fast."""
TRANSFERS_PER_CLOCK = 2
"""DDR and HBM move two bits a pin and clock."""


def open_board(uuid: str | None, nvml: ModuleType | None = None) -> Board:
    """The board with this UUID (the first one when None), or a `NoBoard` that says why not."""
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            return NoBoard("nvidia-ml-py is not installed: pip install nvidia-ml-py")
        nvml = pynvml
    try:
        nvml.nvmlInit()
        handle = (
            nvml.nvmlDeviceGetHandleByIndex(0)
            if uuid is None
            else nvml.nvmlDeviceGetHandleByUUID(uuid)
        )
    except nvml.NVMLError as error:
        return NoBoard(f"NVML: {error}")
    return NvmlBoard(nvml, handle)


class NvmlBoard:
    """One GPU through NVML. What it does not answer at the start stays empty, with NVML's reason.

    Made before this process has memory on the GPU: in a container NVML numbers processes as the
    host does, and this one is then known as the one that was not there yet.
    """

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._reasons = {
            getattr(nvml, f"nvmlClocksThrottleReason{name}", 0): words
            for name, words in THROTTLE.items()
        }
        self._asked_slow_s = float("-inf")
        self._before = {pid for pid, _ in self._ask(self._processes) or ()}
        self.missing: Mapping[str, str] = self._refusals()

    def facts(self) -> Facts:
        nvml, handle = self._nvml, self._handle
        width = self._ask(lambda: nvml.nvmlDeviceGetMemoryBusWidth(handle))
        memory_hz = self._ask(
            lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6
        )
        sm_hz = self._ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6)
        cuda = self._ask(nvml.nvmlSystemGetCudaDriverVersion)
        known = width is not None and memory_hz is not None
        return Facts(
            name=self._ask(lambda: str(nvml.nvmlDeviceGetName(handle))) or "",
            uuid=self._ask(lambda: str(nvml.nvmlDeviceGetUUID(handle))),
            driver=self._ask(lambda: str(nvml.nvmlSystemGetDriverVersion())) or "",
            cuda="" if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            memory_bytes=self._ask(lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
            sm_clock_max_hz=sm_hz,
            memory_clock_max_hz=memory_hz,
            bandwidth_bytes_per_s=width / 8 * memory_hz * TRANSFERS_PER_CLOCK if known else None,
            power_limit_w=self._ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
            mig=self._ask(lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0])),
            ecc=self._ask(lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0])),
        )

    def read(self, now_s: float) -> Reading:
        slow = now_s - self._asked_slow_s >= SLOW_S
        asked = {
            column: self._ask(ask)
            for column, ask in self._questions().items()
            if column not in self.missing and (slow or column not in SLOW)
        }
        if slow:
            self._asked_slow_s = now_s
        return Reading(
            at_s=now_s,
            power_w=asked.get("power_w"),
            energy_j=asked.get("energy_j"),
            sm_clock_hz=asked.get("sm_clock_hz"),
            memory_clock_hz=asked.get("memory_clock_hz"),
            throttle=asked.get("throttle") or (),
            temperature_c=asked.get("temperature_c"),
            used_bytes=asked.get("peak_used_bytes"),
            other_processes=asked.get("other_processes"),
        )

    def strangers(self) -> Sequence[Stranger]:
        return self._ask(self._strangers) or ()

    def _strangers(self) -> Sequence[Stranger]:
        found = dict(self._processes())
        if found.pop(os.getpid(), None) is None:
            new = [pid for pid in found if pid not in self._before]
            if new:
                del found[new[0]]
        return tuple(Stranger(pid=pid, used_bytes=used) for pid, used in found.items())

    def mark(self) -> Any:
        if "hbm_bytes" in self.missing:
            return None
        return self._ask(self._sample)

    def utilisation(self, begin: Any, end: Any) -> Utilisation:
        if begin is None or end is None:
            return Utilisation()
        nvml = self._nvml
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        asked.sample1, asked.sample2 = begin, end
        asked.numMetrics = len(METRICS)
        for index, name in enumerate(METRICS.values()):
            asked.metrics[index].metricId = getattr(nvml, name)
        try:
            if self._ask(lambda: nvml.nvmlGpmMetricsGet(asked)) is None:
                return Utilisation()
            shares = {
                field: asked.metrics[index].value / 100
                for index, field in enumerate(METRICS)
                if asked.metrics[index].nvmlReturn == nvml.NVML_SUCCESS
            }
        finally:
            for sample in (begin, end):
                self._ask(lambda sample=sample: nvml.nvmlGpmSampleFree(sample))  # type: ignore[misc]
        return Utilisation(**shares)

    def _questions(self) -> dict[str, Callable[[], Any]]:
        """How each column of a reading is asked for."""
        nvml, handle = self._nvml, self._handle
        return {
            "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
            "power_w": self._power_w,
            "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": lambda: (
                nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6
            ),
            "throttle": self._throttle,
            "temperature_c": lambda: float(
                nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            "peak_used_bytes": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
            "other_processes": lambda: len(self._strangers()),
        }

    def _refusals(self) -> dict[str, str]:
        """Why columns stay empty, by asking for each of them once."""
        refused: dict[str, str] = {}
        for column, ask in self._questions().items():
            try:
                ask()
            except self._nvml.NVMLError as error:
                self._check_lost(error)
                refused[column] = f"NVML: {error}"
        refused |= dict.fromkeys(COUNTED, self._counters_refused() or "")
        return {column: refused[column] for column in BOARD_COLUMNS if refused.get(column)}

    def _counters_refused(self) -> str:
        nvml = self._nvml
        try:
            if not nvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice:
                return "this GPU has no GPM counters (Hopper and newer have)"
            sample = self._sample()
            nvml.nvmlGpmSampleFree(sample)
        except nvml.NVMLError as error:
            self._check_lost(error)
            return f"GPM counters: {error}"
        except AttributeError:
            return "this nvidia-ml-py knows no GPM counters: pip install -U nvidia-ml-py"
        return ""

    def _sample(self) -> Any:
        sample = self._nvml.nvmlGpmSampleAlloc()
        return self._nvml.nvmlGpmSampleGet(self._handle, sample)

    def _power_w(self) -> float:
        """Power now; where only its mean over a second is told, as by older drivers, that."""
        nvml = self._nvml
        field = getattr(nvml, "NVML_FI_DEV_POWER_INSTANT", None)
        if field is not None:
            (told,) = nvml.nvmlDeviceGetFieldValues(self._handle, [field])
            if told.nvmlReturn == nvml.NVML_SUCCESS:
                return float(told.value.uiVal) / 1e3
        return float(nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3

    def _throttle(self) -> tuple[str, ...]:
        bits = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        return tuple(words for bit, words in self._reasons.items() if bits & bit)

    def _processes(self) -> list[tuple[int, float | None]]:
        found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return [
            (int(each.pid), None if each.usedGpuMemory is None else float(each.usedGpuMemory))
            for each in found
        ]

    def _ask(self, ask: Callable[[], Any]) -> Any:
        """The answer, or None where NVML refuses one."""
        try:
            return ask()
        except self._nvml.NVMLError as error:
            self._check_lost(error)
            return None

    def _check_lost(self, error: Any) -> None:
        lost = (self._nvml.NVML_ERROR_GPU_IS_LOST, self._nvml.NVML_ERROR_RESET_REQUIRED)
        if getattr(error, "value", None) in lost:
            raise LostDeviceError(f"NVML: {error}") from None
