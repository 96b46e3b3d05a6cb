from __future__ import annotations

from pathlib import Path

import pytest

from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.calibration import Calibration, Fit, Residuals
from lcprof.scenario.calibrations import calibration_path, write_calibration
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.transport import TRANSPORT_SPREAD, Calibrations

CALIBRATIONS = Calibrations(PARAMETERS)


def test_a_measured_gpu_gets_its_own_fit() -> None:
    gpu = load_gpu("h200-sxm", where="test")
    found = CALIBRATIONS.find(gpu, "vllm", "gemm", "bfloat16")
    assert found is not None
    assert found.measured_on == "h200-sxm"


def test_an_unmeasured_gpu_gets_that_of_the_most_alike_with_a_wider_interval() -> None:
    source = load_gpu("h100-sxm", where="test")
    own = CALIBRATIONS.find(source, "vllm", "gemm", "bfloat16")
    gpu = load_gpu("h100-pcie", where="test")
    found = CALIBRATIONS.find(gpu, "vllm", "gemm", "bfloat16")
    assert own is not None
    assert found is not None
    assert found.measured_on == "h100-sxm"
    assert found.fit.parameters == own.fit.parameters
    for kind, residuals in own.fit.residuals.items():
        assert found.fit.residuals[kind].low == residuals.low - TRANSPORT_SPREAD
        assert found.fit.residuals[kind].high == residuals.high + TRANSPORT_SPREAD


def test_an_sms_share_of_the_bandwidth_is_that_of_the_gpu_in_question() -> None:
    """4.8 TB/s over 132 SMs of an H200; 7.7 over 148 of a B200."""
    asked = "trtllm", "decode_attention", "torch_flow bf16 cache"
    own = CALIBRATIONS.find(load_gpu("h200-sxm", where="test"), *asked)
    found = CALIBRATIONS.find(load_gpu("b200", where="test"), *asked)
    assert own is not None
    assert found is not None
    assert found.measured_on == "h200-sxm"
    ratio = (7.7 / 148) / (4.8 / 132)
    rates = [each.fit.parameters["cta_bytes_per_s"] for each in (own, found)]
    assert rates[1] / rates[0] == pytest.approx(ratio)
    assert found.fit.parameters["stream"] == own.fit.parameters["stream"]


def test_what_no_gpu_has_is_not_found() -> None:
    gpu = load_gpu("h200-sxm", where="test")
    assert CALIBRATIONS.find(gpu, "vllm", "gemm", "unheard of") is None


def test_a_users_calibration_is_searched_first_and_says_when_it_was_made(tmp_path: Path) -> None:
    catalog = CALIBRATIONS.own("h200-sxm", "vllm", "gemm", "bfloat16")
    assert catalog is not None
    assert catalog.calibrated == ""
    mine = Fit(
        family="gemm",
        variant="bfloat16",
        parameters={**catalog.fit.parameters, "stream": 0.5},
        box={"rows": (1.0, 2.0)},
        residuals={"small": Residuals(rows=8, median=0.01, p90=0.02, low=-0.1, high=0.1)},
        rows=8,
    )
    for gpu in ("h200-sxm", "a-gpu-of-mine"):
        made = Calibration(
            gpu=gpu, stack="vllm", source="me", licence="mine", date="2026-11-26", split="all",
            fits=(mine,), points=frozenset({"a point"}),
        )  # fmt: skip
        write_calibration(made, calibration_path(gpu, "vllm", tmp_path))
    both = Calibrations(PARAMETERS, tmp_path)
    found = both.own("h200-sxm", "vllm", "gemm", "bfloat16")
    assert found is not None
    assert found.fit.parameters["stream"] == 0.5
    assert (found.calibrated, found.points) == ("2026-11-26", {"a point"})
    # What the user did not measure is the catalog's.
    rest = both.own("h200-sxm", "vllm", "gemm", "fp8")
    assert rest == CALIBRATIONS.own("h200-sxm", "vllm", "gemm", "fp8")
    # Another GPU takes them with a wider interval, never those of a GPU that nothing is known of.
    other = both.find(load_gpu("h200-nvl", where="test"), "vllm", "gemm", "bfloat16")
    assert other is not None
    assert (other.measured_on, other.calibrated) == ("h200-sxm", "2026-11-26")
    low = other.fit.residuals["small"].low
    assert low == -0.1 - TRANSPORT_SPREAD
