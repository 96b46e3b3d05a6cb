"""What a machine can and cannot measure, each with the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measuring import Board

from lcprof.measure.board import NoBoard, Stranger
from lcprof.measure.doctor import Doctor, Finding, possible

H200_BYTES = 143771 * 2**20


def cuda(**changes: Any) -> Any:
    """A PyTorch that sees one H200."""
    told: dict[str, Any] = {
        "is_available": lambda: True,
        "get_device_capability": lambda index: (9, 0),
        "get_device_name": lambda index: "NVIDIA H200",
        "mem_get_info": lambda index: (100 * 10**9, H200_BYTES),
    }
    return SimpleNamespace(
        __version__="2.11.0", version=SimpleNamespace(cuda="12.8"),
        cuda=SimpleNamespace(**told | changes), zeros=lambda *_, **__: refuse(),
    )  # fmt: skip


def refuse() -> None:
    raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")


def examined(torch: Any, board: Any = None, device: str = "cuda", **how: Any) -> dict[str, Finding]:
    told: dict[str, Any] = {
        "which": lambda name: None,
        "versions": lambda package: "3.6.0",
        "free_disk_bytes": lambda: 1e12,
        "refusal": lambda path: "",
    }
    doctor = Doctor(torch=torch, board=board or Board(), device=device, **told | how)
    return {each.name: each for each in doctor.examine()}


def test_without_pytorch_nothing_can_be_measured() -> None:
    found = examined(None)
    assert not found["PyTorch"].able
    assert "pip install" in found["PyTorch"].remedy
    assert not possible(list(found.values()))


@pytest.mark.parametrize(
    ("built", "remedy"), [(None, "a CUDA build of PyTorch"), ("12.8", "an NVIDIA driver")]
)
def test_without_a_gpu_only_the_references_can(built: str | None, remedy: str) -> None:
    told = cuda(is_available=lambda: False)
    told.version.cuda = built
    found = examined(told)
    assert not possible(list(found.values()))
    assert remedy in found["GPU"].remedy
    assert "--device cpu" in found["GPU"].remedy


def test_a_processor_measures_times() -> None:
    found = examined(torch, device="cpu")
    assert possible(list(found.values()))
    assert "threads" in found["processor"].found
    assert not found["power, energy, counters"].able


def test_a_whole_machine() -> None:
    found = examined(cuda(), which=lambda name: f"/usr/bin/{name}")
    assert possible(list(found.values()))
    assert found["GPU"].found == "NVIDIA H200, compute capability 9.0"
    assert found["data sheet"].found == "h200-sxm"
    assert found["free memory"].found == "100 GB of 151 GB"
    assert found["power limit"].found == "700 W"
    assert found["Nsight Compute"].found == "/usr/bin/ncu"
    for name in ("NVML", "power", "energy counter", "throttle reasons", "GPM counters", "Triton",
                 "MIG", "other processes", "room for records"):  # fmt: skip
        assert found[name].able, name
        assert found[name].remedy == ""


def test_what_is_refused_has_a_remedy_and_the_rest_goes_on() -> None:
    board = Board(
        missing={"hbm_bytes": "GPM counters: Insufficient Permissions", "energy_j": "NVML: no"},
        others=[Stranger(pid=12, used_bytes=2e9)],
    )
    found = examined(cuda(), board, versions=lambda package: "")
    assert possible(list(found.values()))
    assert "NVreg_RestrictProfilingToAdminUsers" in found["GPM counters"].remedy
    assert "power samples" in found["energy counter"].remedy
    assert "--beside-others" in found["other processes"].remedy
    assert "2.00 GB" in found["other processes"].found
    assert "CUPTI" in found["torch.profiler"].found
    assert "NVreg" in found["torch.profiler"].remedy
    assert "Nsight" in found["Nsight Compute"].remedy
    assert "pip install triton" in found["Triton"].remedy


@pytest.mark.parametrize(
    ("why", "found", "remedy"),
    [
        ("ERR_NVGPUCTRPERM: let users", "ERR_NVGPUCTRPERM", "NVreg_RestrictProfilingToAdminUsers"),
        ("ncu: LibraryNotLoaded", "ncu: LibraryNotLoaded", "ncu --version"),
    ],
)
def test_counters_that_ncu_may_not_read_are_named(why: str, found: str, remedy: str) -> None:
    told = examined(cuda(), which=lambda name: "/usr/bin/ncu", refusal=lambda path: why)
    assert not told["Nsight Compute"].able
    assert told["Nsight Compute"].found == found
    assert remedy in told["Nsight Compute"].remedy
    assert possible(list(told.values()))


def test_a_gpu_that_does_not_answer_is_a_finding() -> None:
    def busy(index: int) -> None:
        raise RuntimeError("CUDA error: devices are busy\nand more")

    found = examined(cuda(mem_get_info=busy))
    assert found["GPU"].found == "CUDA error: devices are busy"
    assert not possible(list(found.values()))
    assert found["room for records"].able


def test_nvml_that_is_missing_says_why() -> None:
    found = examined(cuda(), NoBoard("nvidia-ml-py is not installed: pip install nvidia-ml-py"))
    assert found["NVML"].remedy == "pip install nvidia-ml-py"
    found = examined(cuda(), NoBoard("NVML: Driver Not Loaded"))
    assert "libnvidia-ml" in found["NVML"].remedy


def test_old_and_unknown_gpus() -> None:
    told = cuda(
        get_device_capability=lambda index: (7, 5),
        get_device_name=lambda index: "Tesla T4",
        mem_get_info=lambda index: (1, 15360 * 2**20),
    )
    found = examined(told)
    assert possible(list(found.values()))
    assert "8.0" in found["Triton"].remedy
    assert not found["data sheet"].able


def test_a_full_disk_is_seen() -> None:
    assert "-o RUN" in examined(cuda(), free_disk_bytes=lambda: 1e6)["room for records"].remedy
