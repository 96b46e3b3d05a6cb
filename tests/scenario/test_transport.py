from __future__ import annotations

from lcprof.cost.timing.families import PARAMETERS
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


def test_what_no_gpu_has_is_not_found() -> None:
    gpu = load_gpu("h200-sxm", where="test")
    assert CALIBRATIONS.find(gpu, "vllm", "gemm", "unheard of") is None
