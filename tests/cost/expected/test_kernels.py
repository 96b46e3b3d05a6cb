"""Every kernel that a plan may name was measured somewhere."""

from __future__ import annotations

import itertools

import pytest

from lcprof.cost.expected import kernels
from lcprof.cost.expected.own import OWN
from lcprof.cost.expected.task import Variant
from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.deployment import STACKS, Deployment
from lcprof.domain.kv import parse_kv
from lcprof.domain.weights import WEIGHT_FORMATS
from lcprof.scenario.calibrations import FOLDER, load_calibration
from lcprof.scenario.gpus import load_gpu

MEASURED: dict[str, set[Variant]] = {}
for path in FOLDER.glob("*.yaml"):
    gpu_name, _, stack_name = path.stem.partition("--")
    calibration = load_calibration(gpu_name, stack_name, families=PARAMETERS)
    assert calibration is not None
    for fit in calibration.fits:
        MEASURED.setdefault(fit.family, set()).add((stack_name, fit.variant))

GPUS = [load_gpu(name, where="test") for name in ("h100-sxm", "a100-80gb-sxm", "l40s", "b200")]
CACHES = [parse_kv(spec, where="test") for spec in ("bf16", "fp8")]
PLACES = list(itertools.product(STACKS, GPUS))


def check(family: str, variants: tuple[Variant, ...]) -> None:
    """The first may be a kernel that nobody measured, and so may those that users measure;
    something that stands in for it was, and all others are names of what was measured."""
    assert any(variant in MEASURED[family] for variant in variants), (family, variants)
    for variant in variants[1:]:
        if variant[0] in OWN:
            continue
        named = {name for _, name in MEASURED[family]}
        assert variant[1] in named, (family, variant)


@pytest.mark.parametrize(("stack", "gpu"), PLACES, ids=lambda place: getattr(place, "name", place))
def test_products_and_experts(stack: str, gpu: object) -> None:
    for stored in WEIGHT_FORMATS.values():
        found = kernels.product(stack, gpu, stored)  # type: ignore[arg-type]  # one of GPUS
        check("gemm", found.variants)
        if found.few_rows:
            check("gemm", found.few_rows)
        check("moe", kernels.experts(stack, gpu, stored).variants)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("h200-sxm", ("vllm", "vllm_flash_attn_fa3 bf16 cache")),
        ("b200", ("vllm", "flashinfer trtllm")),
        ("b300", ("vllm", "flashinfer trtllm")),
        ("rtx-5090", ("vllm", "vllm_flash_attn bf16 cache")),
        ("a100-80gb-sxm", ("vllm", "vllm_flash_attn bf16 cache")),
    ],
)
def test_generations_run_kernels_of_their_own(name: str, first: Variant) -> None:
    deployment = Deployment(gpu=load_gpu(name, where="test"), stack="vllm")
    found = kernels.step_attention(deployment, CACHES[0], grouped=True, windowed=False)
    assert found[0] == first
    if first[1].startswith("flashinfer"):
        assert found[1] == ("trtllm", "torch_flow bf16 cache")
        assert kernels.prompt_attention(deployment, CACHES[0]).kernel == "fmha"


@pytest.mark.parametrize(("stack", "gpu"), PLACES, ids=lambda place: getattr(place, "name", place))
def test_attention(stack: str, gpu: object) -> None:
    deployment = Deployment(gpu=gpu, stack=stack)  # type: ignore[arg-type]  # one of GPUS
    for kv in CACHES:
        check("prefill_attention", kernels.prompt_attention(deployment, kv).variants)
        for grouped, windowed in itertools.product((True, False), repeat=2):
            found = kernels.step_attention(deployment, kv, grouped=grouped, windowed=windowed)
            check("decode_attention", found)
        check("mla_prefill_module", kernels.latent_prompt(deployment, kv, plain=True).variants)
        check("mla_decode_module", kernels.latent_step(deployment, kv, plain=True)[0])
        for phase in ("prefill", "decode"):
            check("dsa_module", kernels.sparse_module(deployment, kv, phase))


@pytest.mark.parametrize("tp", [2, 8, 16])
def test_exchanges(tp: int) -> None:
    for stack in STACKS:
        deployment = Deployment(gpu=GPUS[0], gpus=2 * tp, tp=tp, pp=2, stack=stack)
        for eager in (True, False):
            check("collective", kernels.own_all_reduce(deployment, eager=eager))
        check("collective", kernels.hand_over(GPUS[0], across=tp > 8))
        check("collective", kernels.nccl(GPUS[0], tp))
        for gpu in GPUS:
            check("collective", kernels.nccl(gpu, tp))
            check("collective", kernels.hand_over(gpu, across=False))
    for part, low_latency in itertools.product(("dispatch", "combine"), (True, False)):
        for nodes in (1, 4):
            found = kernels.expert_exchange(part, low_latency=low_latency, nodes=nodes)
            check("exchange", found)
    for name in ("input_layernorm", "attn_rope", "mlp_act", "emb", "add"):
        check("elementwise", kernels.mover("vllm", name))
