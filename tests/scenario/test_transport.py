from __future__ import annotations

from lcprof.cost.timing.families import PARAMETERS
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.transport import TRANSPORT_SPREAD, fit_for


def test_a_measured_gpu_gets_its_own_fit() -> None:
    gpu = load_gpu("h200-sxm", where="test")
    found = fit_for(gpu, "vllm", "gemm", "bfloat16", families=PARAMETERS)
    assert found is not None
    assert found.measured_on == "h200-sxm"


def test_an_unmeasured_gpu_gets_that_of_the_most_alike_with_a_wider_interval() -> None:
    source = load_gpu("h100-sxm", where="test")
    own = fit_for(source, "vllm", "gemm", "bfloat16", families=PARAMETERS)
    gpu = load_gpu("h100-pcie", where="test")
    found = fit_for(gpu, "vllm", "gemm", "bfloat16", families=PARAMETERS)
    assert own is not None
    assert found is not None
    assert found.measured_on == "h100-sxm"
    assert found.fit.parameters == own.fit.parameters
    for kind, residuals in own.fit.residuals.items():
        assert found.fit.residuals[kind].low == residuals.low - TRANSPORT_SPREAD
        assert found.fit.residuals[kind].high == residuals.high + TRANSPORT_SPREAD


def test_what_no_gpu_has_is_not_found() -> None:
    gpu = load_gpu("h200-sxm", where="test")
    assert fit_for(gpu, "vllm", "gemm", "unheard of", families=PARAMETERS) is None
