"""Provenance, and which catalogued GPU a driver's name means."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime

import pytest

from lcprof.measure.board import Facts
from lcprof.measure.machine import catalogued, commit_here, flops_per_cycle, provenance
from lcprof.scenario.gpus import load_gpu

MIB = 2.0**20


@pytest.mark.parametrize(
    ("name", "mebibytes", "expected"),
    [
        ("NVIDIA H200", 143771, "h200-sxm"),
        ("NVIDIA H200 NVL", 143771, "h200-nvl"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100-sxm"),
        ("NVIDIA H100 PCIe", 81559, "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb-sxm"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-80gb-pcie"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
        ("NVIDIA L4", 23034, "l4"),
        # A name that stands for another memory, a slice of a GPU, and one that is not there.
        ("NVIDIA A100-SXM4-40GB", 40960, None),
        ("NVIDIA H200", 16384, None),
        ("Tesla T4", 15360, None),
        ("", 15360, None),
    ],
)
def test_driver_names(name: str, mebibytes: int, expected: str | None) -> None:
    found = catalogued(name, mebibytes * MIB)
    assert (found.name if found is not None else None) == expected


def test_flops_of_a_cycle_are_hoppers_where_its_data_sheet_agrees() -> None:
    # 132 SMs x 4 tensor cores x 512 multiply-adds; 114 of them on the PCIe card.
    assert flops_per_cycle(load_gpu("h200-sxm", where="test")) == 132 * 4 * 512 * 2
    assert flops_per_cycle(load_gpu("h100-pcie", where="test")) == 114 * 4 * 512 * 2
    # The H20 has the SMs but not the rate.
    assert flops_per_cycle(load_gpu("h20", where="test")) is None
    assert flops_per_cycle(load_gpu("a100", where="test")) is None
    assert flops_per_cycle(None) is None


def test_the_commit_is_lcprofs_own() -> None:
    assert re.fullmatch(r"([0-9a-f]{12}\+?)?", commit_here())


def test_provenance_says_everything_and_hides_the_uuid() -> None:
    facts = Facts(name="NVIDIA H200", uuid="GPU-secret", driver="570.1", cuda="12.8", ecc=True,
                  mig=False, power_limit_w=700.0, sm_clock_max_hz=1.98e9)  # fmt: skip
    told = provenance(
        device="cuda", name="NVIDIA H200", facts=facts, missing="", scenario="model: x\n",
        command=["lcprof", "measure"], now=datetime(2026, 11, 26, tzinfo=UTC),
    )  # fmt: skip
    assert told.gpu_uuid_sha256 == hashlib.sha256(b"GPU-secret").hexdigest()
    assert told.scenario_sha256 == hashlib.sha256(b"model: x\n").hexdigest()
    assert (told.driver, told.cuda, told.power_limit_w) == ("570.1", "12.8", 700.0)
    assert (told.ecc, told.mig, told.started) == (True, False, "2026-11-26T00:00:00+00:00")
    assert told.torch
    assert told.lcprof
    assert told.command == ("lcprof", "measure")
    assert told.unknown == {}


def test_what_a_mute_board_does_not_say_has_its_reason() -> None:
    told = provenance(
        device="cpu", name="a processor", facts=Facts(), missing="no NVML", scenario="", command=[]
    )
    assert told.gpu_uuid_sha256 is None
    assert told.unknown == {"gpu_uuid_sha256": "no NVML"}
