"""Which measured kernels stand for those that a serving stack would run on a GPU.

A stack's own kernel comes first, then what is most like it. Every list ends where likeness ends:
what nothing measured is like has no expected time.
"""

from __future__ import annotations

from msgspec import Struct

from lcprof.cost.expected.task import Variant
from lcprof.domain.deployment import NODE_GPUS, Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import KvStrategy
from lcprof.domain.weights import WeightFormat

HOPPER = ("Hopper", "Blackwell")
"""Architectures that run FlashAttention 3 or what came after it."""


LIBRARIES = {
    "bfloat16": ("vllm", "trtllm"),
    "float16": ("vidur",),
    "fp8": ("vllm", "trtllm"),
    "fp8_block": ("vllm", "trtllm", "infersim"),
    "all_reduce": ("vllm", "sglang", "trtllm"),
    "all_reduce eager": ("vllm", "sglang"),
    "sq": ("trtllm",),
    "int8_wo": ("trtllm",),
    "int4_wo": ("trtllm",),
}
"""The stacks in which a variant of one name means about the same and was measured."""


def alike(stack: str, *variants: str) -> tuple[Variant, ...]:
    """Variants of every stack that has them, this one's first."""
    found: list[Variant] = []
    for variant in variants:
        stacks = LIBRARIES.get(variant, ("vllm",))
        found += [(each, variant) for each in sorted(stacks, key=lambda s: s != stack)]
    return tuple(found)


def is_new(gpu: Gpu) -> bool:
    """Whether the GPU runs Hopper's kernels or later ones."""
    return gpu.architecture in HOPPER


UNMEASURED_CACHES = ("int8", "int4", "kivi")


def cache_dtype(kv: KvStrategy) -> str:
    """The dtype of the cache that a measured kernel reads most alike: "fp8" for 8 bits and less."""
    return "bf16" if kv.element_bytes() > 1.0 else "fp8"


def meant(stack: str, kv: KvStrategy) -> tuple[Variant, ...]:
    """What a cache would be read by where no stack has a kernel for it: a variant that no file
    has, so that what predicts it counts as a stand-in."""
    kinds = [link.kind for link in kv.chain() if link.kind in UNMEASURED_CACHES]
    return tuple((stack, f"{kind} cache") for kind in kinds[:1])


class Product(Struct, frozen=True, kw_only=True):
    """How a matrix product of a weight format runs: the variants that predict it and how bytes,
    dtype and dispatch enter its call. `few_rows` predict products of fewer than 32 rows."""

    variants: tuple[Variant, ...]
    weight_bytes: float
    activation_bytes: float = 2.0
    compute: str = "bf16"
    dispatch: str = "best"
    quantised: bool = False
    eager: bool = False
    few_rows: tuple[Variant, ...] = ()


def product(stack: str, gpu: Gpu, stored: WeightFormat) -> Product:
    """The product of a stored format. A dtype that the GPU has no unit for is widened in
    registers."""
    bf16 = alike(stack, "bfloat16", "float16")
    bytes_each = stored.matrix_bytes(8192, 8192) / 8192**2
    if stored.name in {"fp8", "fp8-block"} and "fp8" in gpu.peak_flops:
        block = stored.name == "fp8-block"
        names: tuple[str, ...] = ("fp8_block", "fp8") if block else ("fp8", "fp8_block")
        vllm = stack == "vllm"
        return Product(
            variants=alike(stack, *names),
            weight_bytes=1.0,
            activation_bytes=1.0,
            compute="fp8",
            dispatch="rows" if vllm and not block else "best",
            quantised=True,
            few_rows=alike(stack, "fp8_block few rows") if vllm and block else (),
        )
    if stored.name == "int8" and "int8" in gpu.peak_flops:
        return Product(
            variants=alike(stack, "sq", "fp8"),
            weight_bytes=1.0,
            activation_bytes=1.0,
            compute="int8",
            quantised=True,
        )
    if stored.bits == 4:
        return Product(variants=(*alike(stack, "int4_wo"), *bf16), weight_bytes=bytes_each)
    if stored.bits == 8:
        return Product(variants=(*alike(stack, "int8_wo"), *bf16), weight_bytes=bytes_each)
    return Product(variants=bf16, weight_bytes=stored.bits / 8)


class Experts(Struct, frozen=True, kw_only=True):
    """How routed experts of a weight format run."""

    variants: tuple[Variant, ...]
    weight_bytes: float
    compute: str
    kernel: str = "best"


def experts(stack: str, gpu: Gpu, stored: WeightFormat) -> Experts:
    """The kernel of routed experts."""
    bytes_each = stored.matrix_bytes(8192, 8192) / 8192**2
    if stored.bits == 4:
        names = ("w4a16_mxfp4 triton", "bfloat16 triton")
        return Experts(variants=alike(stack, *names), weight_bytes=bytes_each, compute="bf16")
    if stored.bits == 8 and "fp8" in gpu.peak_flops:
        if stored.group_inputs:
            block = ("fp8_block triton", "fp8_block cutlass", "fp8 cutlass")
            return Experts(variants=alike(stack, *block), weight_bytes=1.0, compute="fp8")
        return Experts(
            variants=alike(stack, "fp8 cutlass"),
            weight_bytes=1.0,
            compute="fp8",
            kernel="wide",
        )
    return Experts(
        variants=alike(stack, "bfloat16 triton"), weight_bytes=bytes_each, compute="bf16"
    )


class PromptKernel(Struct, frozen=True, kw_only=True):
    """How attention over many queries runs: variants, the dtype of its products and its tiles
    (`lcprof.cost.timing.prefill_attention.KERNELS`)."""

    variants: tuple[Variant, ...]
    compute: str
    kernel: str


def prompt_attention(deployment: Deployment, kv: KvStrategy) -> PromptKernel:
    """The kernel of prefill attention. With an fp8 cache the newer ones also multiply in fp8."""
    stack, gpu = deployment.stack, deployment.gpu
    fp8 = kv.element_bytes() == 1.0 and "fp8" in gpu.peak_flops
    if is_new(gpu):
        dtypes = "bf16, fp8 cache" if fp8 else "bf16, bf16 cache"
        vllm = ("vllm", f"vllm_flash_attn_fa3 {dtypes}")
        sglang = ("sglang", "fa3 fp8, fp8 cache" if fp8 else "fa3 bf16, bf16 cache")
        fused = ("trtllm", "torch_flow fp8, fp8 cache" if fp8 else "torch_flow bf16, bf16 cache")
        order = {"vllm": (vllm, sglang), "sglang": (sglang, vllm), "trtllm": (fused,)}[stack]
        return PromptKernel(
            variants=order,
            compute="fp8" if fp8 else "bf16",
            kernel="fmha" if stack == "trtllm" else "fa3",
        )
    if stack == "trtllm":
        variants: tuple[Variant, ...] = (("trtllm", "torch_flow bf16, bf16 cache"),)
        return PromptKernel(variants=variants, compute="bf16", kernel="fmha_ampere")
    variants = (("vllm", "vllm_flash_attn bf16, bf16 cache"),)
    return PromptKernel(variants=variants, compute="bf16", kernel="fa2")


def step_attention(
    deployment: Deployment, kv: KvStrategy, *, grouped: bool, windowed: bool
) -> tuple[Variant, ...]:
    """The kernels of decode attention."""
    own = _step_kernels(deployment, kv, grouped=grouped, windowed=windowed)
    return (*meant(deployment.stack, kv), *own)


def _step_kernels(
    deployment: Deployment, kv: KvStrategy, *, grouped: bool, windowed: bool
) -> tuple[Variant, ...]:
    stack, dtype = deployment.stack, cache_dtype(kv)
    if not is_new(deployment.gpu):
        own: dict[str, tuple[Variant, ...]] = {
            "vllm": (("vllm", "vllm_flash_attn bf16 cache"),),
            "sglang": (("sglang", "flash_attention bf16 cache"),),
            "trtllm": (("vidur", "flashinfer fp16 cache"),),
        }
        return (*own[stack], ("vllm", "vllm_flash_attn bf16 cache"))
    fa3 = f"vllm_flash_attn_fa3 {dtype} cache"
    vllm: tuple[Variant, ...] = (("vllm", fa3),)
    if windowed:
        vllm = (("vllm", f"{fa3}, window"), *vllm)
    if stack == "trtllm":
        plain = f"torch_flow {dtype} cache"
        single = () if grouped else (("trtllm", f"{plain}, one query head per KV head"),)
        return (*single, ("trtllm", plain))
    if stack == "sglang":
        name = f"triton {dtype} cache, window" if windowed else f"fa3 {dtype} cache"
        return (("sglang", name), *vllm)
    return vllm


def latent_prompt(deployment: Deployment, kv: KvStrategy) -> PromptKernel:
    """The whole latent attention module on a prompt."""
    dtype = cache_dtype(kv)
    vllm = ("vllm", f"FLASH_ATTN, {dtype} cache")
    fused = ("trtllm", f"default, {dtype} cache")
    order = (fused, vllm) if deployment.stack == "trtllm" else (vllm, fused)
    kernel = "fmha" if deployment.stack == "trtllm" else "fa3"
    return PromptKernel(variants=order, compute="bf16", kernel=kernel)


def latent_step(deployment: Deployment, kv: KvStrategy) -> tuple[tuple[Variant, ...], str]:
    """The whole latent attention module in a decode step, and the dtype of its products."""
    dtype = cache_dtype(kv)
    name = "FLASHMLA, fp8 cache" if dtype == "fp8" else "FLASH_ATTN_MLA, bf16 cache"
    vllm, fused = ("vllm", name), ("trtllm", f"default, {dtype} cache")
    unmeasured = meant(deployment.stack, kv)
    if deployment.stack == "trtllm":
        return (*unmeasured, fused, vllm), "fp8" if dtype == "fp8" else "bf16"
    return (*unmeasured, vllm, fused), "bf16"


def sparse_module(deployment: Deployment, kv: KvStrategy, phase: str) -> tuple[Variant, ...]:
    """The whole module of sparse latent attention; `phase` is "prefill" or "decode"."""
    dtype = cache_dtype(kv)
    vllm = ("vllm", f"{phase} FLASHMLA_SPARSE, {dtype} cache")
    if phase == "prefill":
        kernel = "flashmla_kv" if dtype == "fp8" else "flashmla_sparse"
    else:
        kernel = "flashmla_kv" if dtype == "fp8" else "fa3"
    sglang = ("sglang", f"{phase} {kernel}, {dtype} cache")
    order = (sglang, vllm) if deployment.stack == "sglang" else (vllm, sglang)
    return (*meant(deployment.stack, kv), *order)


def mover(name: str) -> tuple[Variant, ...]:
    """An operator that only moves data: measured with Vidur's layers alone."""
    return (("vidur", name),)


BETWEEN_NODES = (("vidur", "send_recv between nodes"), ("vidur", "all_reduce between nodes"))
"""What tells a network's rate, that from one GPU to one other first."""


def own_all_reduce(deployment: Deployment, *, eager: bool) -> tuple[Variant, ...]:
    """The all-reduce of tensor parallelism, in a node or across nodes."""
    if deployment.tp > NODE_GPUS:
        return (("vidur", "all_reduce between nodes"),)
    names = ("all_reduce eager", "all_reduce") if eager else ("all_reduce",)
    return (*alike(deployment.stack, *names), ("nccl", "nccl"))


def nccl(ranks: int) -> tuple[Variant, ...]:
    """A collective that the library runs."""
    if ranks > NODE_GPUS:
        return BETWEEN_NODES
    return (("nccl", "nccl"),)


def hand_over(deployment: Deployment) -> tuple[Variant, ...]:
    """Sending activations to the next pipeline stage."""
    across = deployment.tp * deployment.pp > NODE_GPUS
    return BETWEEN_NODES if across else (("vidur", "send_recv in a node"),)


def expert_exchange(part: str, *, low_latency: bool) -> tuple[Variant, ...]:
    """DeepEP's "dispatch" or "combine"."""
    return (("sglang", f"{part} low latency" if low_latency else part),)
