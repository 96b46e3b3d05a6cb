"""NVIDIA's boards, by a made-up nvidia-ml-py with its names and units."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from lcprof.measure.board import LostDeviceError, NoBoard, Stranger
from lcprof.measure.nvml import COUNTED, NvmlBoard, open_board


class NVMLError(Exception):
    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


NOT_SUPPORTED, LOST = 3, 15
ANSWERS: Mapping[str, Any] = {
    "nvmlInit": None,
    "nvmlDeviceGetHandleByUUID": "handle",
    "nvmlDeviceGetHandleByIndex": "first",
    "nvmlDeviceGetPowerUsage": 640_000,  # mW, the mean of a second
    "nvmlDeviceGetFieldValues": [
        SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=650_000))
    ],
    "nvmlDeviceGetTotalEnergyConsumption": 7_500,  # mJ
    "nvmlDeviceGetClockInfo": 1500,  # MHz
    "nvmlDeviceGetMaxClockInfo": 3200,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x20 | 0x1,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30, total=2**37),
    "nvmlDeviceGetComputeRunningProcesses": [],
    "nvmlDeviceGetMemoryBusWidth": 6144,  # bits
    "nvmlDeviceGetName": "NVIDIA H200",
    "nvmlDeviceGetUUID": "GPU-1",
    "nvmlSystemGetDriverVersion": "570.1",
    "nvmlSystemGetCudaDriverVersion": 12080,
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetEccMode": [1, 1],
    "nvmlGpmQueryDeviceSupport": SimpleNamespace(isSupportedDevice=1),
    "nvmlGpmSampleAlloc": "sample",
    "nvmlGpmSampleGet": "sample",
    "nvmlGpmSampleFree": None,
}
CONSTANTS = {
    "NVML_FI_DEV_POWER_INSTANT": 186, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2,
    "NVML_TEMPERATURE_GPU": 0, "NVML_SUCCESS": 0,
    "NVML_ERROR_GPU_IS_LOST": LOST, "NVML_ERROR_RESET_REQUIRED": 16,
    "NVML_GPM_METRICS_GET_VERSION": 1, "NVML_GPM_METRIC_DRAM_BW_UTIL": 10,
    "NVML_GPM_METRIC_ANY_TENSOR_UTIL": 5, "NVML_GPM_METRIC_SM_OCCUPANCY": 3,
    "nvmlClocksThrottleReasonGpuIdle": 0x1, "nvmlClocksThrottleReasonSwPowerCap": 0x4,
    "nvmlClocksThrottleReasonHwSlowdown": 0x8, "nvmlClocksThrottleReasonSwThermalSlowdown": 0x20,
}  # fmt: skip
PERCENT = {10: 92.0, 5: 40.0, 3: 25.0}


def fake(**changes: Any) -> Any:
    """The package; a change that is an exception is raised by the call of that name."""
    nvml = SimpleNamespace(NVMLError=NVMLError, **CONSTANTS, answers={**ANSWERS, **changes})

    def call(name: str) -> Any:
        def answer(*_: Any) -> Any:
            told = nvml.answers[name]
            if isinstance(told, Exception):
                raise told
            return told

        return answer

    for name in ANSWERS:
        setattr(nvml, name, call(name))

    def metrics() -> Any:
        each = [SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(8)]
        return SimpleNamespace(metrics=each)

    def get(asked: Any) -> Any:
        assert asked.version == 1
        for metric in asked.metrics[: asked.numMetrics]:
            metric.value = PERCENT[metric.metricId]
        return asked

    nvml.c_nvmlGpmMetricsGet_t = metrics
    nvml.nvmlGpmMetricsGet = get
    return nvml


def refusal(text: str = "Not Supported", value: int = NOT_SUPPORTED) -> NVMLError:
    return NVMLError(value, text)


def process(pid: int, used: int | None = 1000) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_a_reading_is_in_base_units() -> None:
    board = open_board("GPU-1", fake())
    reading = board.read(3.0)
    assert board.missing == {}
    assert reading.power_w == 650.0
    assert reading.energy_j == 7.5
    assert reading.sm_clock_hz == 1.5e9
    assert reading.throttle == ("power limit", "temperature")
    assert reading.temperature_c == 61.0
    assert reading.used_bytes == 2**30
    assert reading.other_processes == 0
    assert reading.at_s == 3.0


def test_facts() -> None:
    facts = open_board("GPU-1", fake()).facts()
    # 6144 bits of two transfers at 3.2 GHz: 4.9 TB/s.
    assert facts.bandwidth_bytes_per_s == pytest.approx(6144 / 8 * 2 * 3.2e9)
    assert facts.cuda == "12.8"
    assert facts.power_limit_w == 700.0
    assert facts.mig is False
    assert facts.ecc is True
    assert (facts.name, facts.uuid, facts.driver) == ("NVIDIA H200", "GPU-1", "570.1")


def test_counters_are_shares() -> None:
    board = open_board("GPU-1", fake())
    used = board.utilisation(board.mark(), board.mark())
    assert (used.dram, used.tensor, used.occupancy) == (0.92, 0.4, 0.25)


def test_what_nvml_refuses_has_its_reason() -> None:
    nvml = fake(
        nvmlDeviceGetTotalEnergyConsumption=refusal(),
        nvmlDeviceGetComputeRunningProcesses=refusal("Insufficient Permissions", 4),
        nvmlDeviceGetMigMode=refusal(),
        nvmlGpmQueryDeviceSupport=SimpleNamespace(isSupportedDevice=0),
    )
    board = open_board("GPU-1", nvml)
    assert board.missing["energy_j"] == "NVML: Not Supported"
    assert board.missing["other_processes"] == "NVML: Insufficient Permissions"
    for column in COUNTED:
        assert "no GPM counters" in board.missing[column]
    reading = board.read(0.0)
    assert reading.energy_j is None
    assert reading.other_processes is None
    assert reading.power_w == 650.0
    assert board.facts().mig is None
    assert board.mark() is None
    assert board.strangers() == ()


def test_counters_that_need_rights_say_so() -> None:
    board = open_board("GPU-1", fake(nvmlGpmSampleGet=refusal("Insufficient Permissions", 4)))
    assert board.missing["hbm_bytes"] == "GPM counters: Insufficient Permissions"


def test_an_old_package_without_counters_says_so() -> None:
    nvml = fake()
    del nvml.nvmlGpmQueryDeviceSupport
    assert "pip install -U nvidia-ml-py" in open_board("GPU-1", nvml).missing["flops"]


def test_power_is_that_of_the_moment_where_the_driver_tells_it() -> None:
    refused = [SimpleNamespace(nvmlReturn=NOT_SUPPORTED, value=SimpleNamespace(uiVal=0))]
    assert open_board("GPU-1", fake(nvmlDeviceGetFieldValues=refused)).read(0.0).power_w == 640.0
    nvml = fake()
    del nvml.NVML_FI_DEV_POWER_INSTANT
    assert open_board("GPU-1", nvml).read(0.0).power_w == 640.0


def test_what_changes_slowly_is_asked_for_rarely() -> None:
    board = open_board("GPU-1", fake())
    temperatures = [board.read(at_s).temperature_c for at_s in (0.0, 0.2, 0.4, 0.6, 0.8, 1.2)]
    assert temperatures == [61.0, None, None, 61.0, None, 61.0]


def test_a_lost_gpu_is_raised() -> None:
    nvml = fake()
    board = open_board("GPU-1", nvml)
    nvml.answers["nvmlDeviceGetClockInfo"] = refusal("GPU is lost", LOST)
    with pytest.raises(LostDeviceError, match="GPU is lost"):
        board.read(0.0)


def test_other_processes_are_those_that_are_not_ours() -> None:
    nvml = fake(nvmlDeviceGetComputeRunningProcesses=[process(7)])
    board = NvmlBoard(nvml, "handle")
    assert board.strangers() == (Stranger(pid=7, used_bytes=1000.0),)
    both = [process(7), process(os.getpid(), None)]
    nvml.answers["nvmlDeviceGetComputeRunningProcesses"] = both
    assert [each.pid for each in board.strangers()] == [7]


def test_in_a_container_our_own_process_has_another_number() -> None:
    nvml = fake(nvmlDeviceGetComputeRunningProcesses=[process(7)])
    board = NvmlBoard(nvml, "handle")
    # 99 came after the board was opened: it is we. 100 came too, and somebody else must have.
    nvml.answers["nvmlDeviceGetComputeRunningProcesses"] = [process(7), process(99)]
    assert [each.pid for each in board.strangers()] == [7]
    nvml.answers["nvmlDeviceGetComputeRunningProcesses"] = [process(7), process(99), process(100)]
    assert [each.pid for each in board.strangers()] == [7, 100]


def test_without_the_package_or_the_library_there_is_no_board(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    board = open_board("GPU-1")
    assert isinstance(board, NoBoard)
    assert "pip install nvidia-ml-py" in board.missing["power_w"]
    board = open_board(None, fake(nvmlInit=refusal("NVML Shared Library Not Found", 12)))
    assert isinstance(board, NoBoard)
    assert board.missing["flops"] == "NVML: NVML Shared Library Not Found"
