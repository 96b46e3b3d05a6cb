"""Which measured kernels stand for those that a serving stack would run on a GPU.

The first variant of every list is the kernel that is meant, whether it was measured or not; what
is most like it follows. Every list ends where likeness ends: what nothing measured is like has no
expected time.
"""

from __future__ import annotations

from msgspec import Struct

from lcprof.cost.expected.own import OWN, generation, is_new, own_prompt, own_step
from lcprof.cost.expected.task import Variant
from lcprof.domain.deployment import NODE_GPUS, Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import KvStrategy
from lcprof.domain.weights import WeightFormat

SAME_LIBRARY = frozenset({"bfloat16"})
"""Variants that are one library's (cuBLAS) in every stack."""
WITH = {
    "bfloat16": ("vllm", "trtllm"),
    "fp8": ("vllm", "trtllm"),
    "fp8_block": ("vllm", "trtllm", "infersim"),
    "all_reduce": ("vllm", "sglang", "trtllm"),
    "all_reduce eager": ("vllm", "sglang"),
}
"""The stacks that a variant was measured in."""


def alike(stack: str, variant: str) -> tuple[Variant, ...]:
    """A stack's variant, then those of the same name that other stacks were measured with."""
    others = tuple((each, variant) for each in WITH[variant] if each != stack)
    return ((stack, variant), *others)


def cache_kind(kv: KvStrategy) -> str:
    """How the cache is stored: "bf16", "fp8", or a format that no stack was measured with."""
    kinds = [link.kind for link in kv.chain() if link.kind in {"fp8", "int8", "int4", "kivi"}]
    return kinds[0] if kinds else "bf16"


def measured_cache(kv: KvStrategy) -> str:
    """The measured cache that a decode step reads most alike: by its bytes."""
    return "bf16" if kv.element_bytes() > 1.0 else "fp8"


def meant(stack: str, kv: KvStrategy) -> tuple[Variant, ...]:
    """The kernel meant for a cache that no stack was measured with; nothing for bf16 and fp8."""
    kind = cache_kind(kv)
    return () if kind in {"bf16", "fp8"} else ((stack, f"{kind} cache"),)


class Product(Struct, frozen=True, kw_only=True):
    """How a matrix product of a weight format runs: the variants that predict it and how bytes,
    dtype and dispatch enter its call. `few_rows` predict products of fewer than 32 rows."""

    variants: tuple[Variant, ...]
    weight_bytes: float
    activation_bytes: float = 2.0
    compute: str = "bf16"
    dispatch: str = "best"
    quantised: bool = False
    few_rows: tuple[Variant, ...] = ()


def product(stack: str, gpu: Gpu, stored: WeightFormat) -> Product:
    """The product of a stored format. A dtype that the GPU has no unit for is widened in
    registers. PyTorch multiplies for lcprof's kernels."""
    stack = "torch" if stack in OWN else stack
    bf16 = (*alike(stack, "bfloat16"), ("vidur", "float16"))
    bytes_each = stored.matrix_bytes(8192, 8192) / 8192**2
    if stored.compute == "fp8" and "fp8" in gpu.peak_flops:
        block = stored.group_inputs > 0
        first, second = ("fp8_block", "fp8") if block else ("fp8", "fp8_block")
        vllm = stack == "vllm"
        return Product(
            variants=(*alike(stack, first), *alike(stack, second)),
            weight_bytes=1.0,
            activation_bytes=1.0,
            compute="fp8",
            dispatch="rows" if vllm and not block else "best",
            quantised=True,
            few_rows=(("vllm", "fp8_block few rows"),) if vllm and block else (),
        )
    if stored.compute == "int8" and "int8" in gpu.peak_flops:
        return Product(
            variants=((stack, "int8"), ("trtllm", "sq"), *alike(stack, "fp8")),
            weight_bytes=1.0,
            activation_bytes=1.0,
            compute="int8",
            quantised=True,
        )
    if stored.bits < 16:
        name = "int4_wo" if stored.bits == 4 else "int8_wo"
        return Product(
            variants=((stack, f"{stored.name} weights"), ("trtllm", name), *bf16),
            weight_bytes=bytes_each,
        )
    return Product(variants=bf16, weight_bytes=stored.bits / 8)


class Experts(Struct, frozen=True, kw_only=True):
    """How routed experts of a weight format run."""

    variants: tuple[Variant, ...]
    weight_bytes: float
    compute: str = "bf16"


def experts(stack: str, gpu: Gpu, stored: WeightFormat) -> Experts:
    """The kernel of routed experts; Triton's is the one that engines fall back on. Its products in
    fp8 were measured with scales by blocks."""
    bytes_each = stored.matrix_bytes(8192, 8192) / 8192**2
    bf16 = ("vllm", "bfloat16 triton")
    if stored.bits == 4:
        mxfp4 = ("vllm", "w4a16_mxfp4 triton")
        own = (stack, "w4a16_mxfp4 triton" if stored.name == "mxfp4" else f"{stored.name} experts")
        return Experts(variants=(own, mxfp4, bf16), weight_bytes=bytes_each)
    if stored.bits == 8 and "fp8" in gpu.peak_flops:
        block = stored.compute == "fp8" and stored.group_inputs > 0
        own = (stack, "fp8_block triton" if block else f"{stored.name} experts")
        measured = (("vllm", "fp8_block triton"), ("vllm", "fp8_block cutlass"))
        return Experts(variants=(own, *measured), weight_bytes=1.0, compute="fp8")
    own = (stack, "bfloat16 triton" if stored.bits == 16 else f"{stored.name} experts")
    return Experts(variants=(own, bf16), weight_bytes=bytes_each)


class PromptKernel(Struct, frozen=True, kw_only=True):
    """How attention over many queries runs: variants, the dtype of its products and its tiles
    (`lcprof.cost.timing.prefill_attention.KERNELS`)."""

    variants: tuple[Variant, ...]
    compute: str
    kernel: str


def prompt_attention(
    deployment: Deployment, kv: KvStrategy, head_dim: float = 128.0
) -> PromptKernel:
    """The kernel of prefill attention. With an fp8 cache the newer ones also multiply in fp8; any
    other narrow cache is widened first."""
    stack, gpu = deployment.stack, deployment.gpu
    if stack in OWN:
        own_variants, tiles = own_prompt(deployment, head_dim)
        return PromptKernel(variants=own_variants, compute="bf16", kernel=tiles)
    fp8 = cache_kind(kv) == "fp8" and "fp8" in gpu.peak_flops
    if is_new(gpu):
        plain = "bf16, bf16 cache"
        vllm = ("vllm", f"vllm_flash_attn_fa3 {'bf16, fp8 cache' if fp8 else plain}")
        sglang = ("sglang", f"fa3 {'fp8, fp8 cache' if fp8 else plain}")
        fused = ("trtllm", f"torch_flow {'fp8, fp8 cache' if fp8 else plain}")
        tiles, order = "fa3", (vllm, sglang) if stack == "vllm" else (sglang, vllm)
        if _runs_trtllm(deployment):
            tiles, order = "fmha", (fused, vllm)
        return PromptKernel(
            variants=(*_meant_grouped(deployment, kv), *order, ("infersim", "mha, bf16 cache")),
            compute="fp8" if fp8 else "bf16",
            kernel=tiles,
        )
    unmeasured = ((stack, f"{cache_kind(kv)} cache"),) if cache_kind(kv) != "bf16" else ()
    if stack == "trtllm":
        own: Variant = ("trtllm", "torch_flow bf16, bf16 cache")
        return PromptKernel(variants=(*unmeasured, own), compute="bf16", kernel="fmha_ampere")
    plain = "vllm_flash_attn bf16, bf16 cache"
    variants = (*(unmeasured or ((stack, plain),)), ("vllm", plain))
    return PromptKernel(variants=variants, compute="bf16", kernel="fa2")


def _runs_trtllm(deployment: Deployment) -> bool:
    """Whether grouped attention is TensorRT-LLM's. On Blackwell every stack runs it (vLLM and
    SGLang from FlashInfer, as their tables of attention backends say); FlashAttention 3 is
    Hopper's alone."""
    return deployment.stack == "trtllm" or generation(deployment.gpu) == "blackwell"


def _meant_grouped(deployment: Deployment, kv: KvStrategy) -> tuple[Variant, ...]:
    """The kernel of grouped attention that is meant, where the stack was not measured with it."""
    borrowed = deployment.stack != "trtllm" and _runs_trtllm(deployment)
    own: tuple[Variant, ...] = ((deployment.stack, "flashinfer trtllm"),) if borrowed else ()
    return meant(deployment.stack, kv) or own


def step_attention(
    deployment: Deployment, kv: KvStrategy, *, grouped: bool, windowed: bool
) -> tuple[Variant, ...]:
    """The kernels of decode attention."""
    stack, dtype = deployment.stack, measured_cache(kv)
    if stack in OWN:
        return own_step(deployment, kv, windowed=windowed)
    if not is_new(deployment.gpu):
        unmeasured = ((stack, f"{cache_kind(kv)} cache"),) if cache_kind(kv) != "bf16" else ()
        kernels: dict[str, Variant] = {
            "vllm": ("vllm", "vllm_flash_attn bf16 cache"),
            "sglang": ("sglang", "flash_attention bf16 cache"),
            "trtllm": ("trtllm", "torch_flow bf16 cache"),
        }
        others = (kernels[stack], kernels["vllm"], ("vidur", "flashinfer fp16 cache"))
        return (*unmeasured, *others)
    fa3 = f"vllm_flash_attn_fa3 {dtype} cache"
    vllm: tuple[Variant, ...] = (("vllm", fa3),)
    if windowed:
        vllm = (("vllm", f"{fa3}, window"), *vllm)
    like = (*vllm, ("infersim", "mha, bf16 cache"))
    first = _meant_grouped(deployment, kv)
    if _runs_trtllm(deployment):
        name = f"torch_flow {dtype} cache"
        single = () if grouped else (("trtllm", f"{name}, one query head per KV head"),)
        return (*first, *single, ("trtllm", name), *like)
    if stack == "sglang":
        name = f"triton {dtype} cache, window" if windowed else f"fa3 {dtype} cache"
        return (*first, ("sglang", name), *like)
    return (*first, *like)


def latent_prompt(deployment: Deployment, kv: KvStrategy, *, plain: bool) -> PromptKernel:
    """The whole latent attention module on a prompt; `plain` says that its weights are bf16 or
    fp8, as those measured were. SGLang's module was not measured as a whole."""
    stack, dtype = deployment.stack, measured_cache(kv)
    vllm, fused = ("vllm", f"FLASH_ATTN, {dtype} cache"), ("trtllm", f"default, {dtype} cache")
    order = (fused, vllm) if stack == "trtllm" else (vllm, fused)
    return PromptKernel(
        variants=(*_latent_meant(deployment, kv, plain=plain), *order),
        compute="bf16",
        kernel="fmha" if stack == "trtllm" else "fa3",
    )


def latent_step(
    deployment: Deployment, kv: KvStrategy, *, plain: bool
) -> tuple[tuple[Variant, ...], str]:
    """The whole latent attention module in a decode step, and the dtype of its products."""
    dtype = measured_cache(kv)
    name = "FLASHMLA, fp8 cache" if dtype == "fp8" else "FLASH_ATTN_MLA, bf16 cache"
    vllm, fused = ("vllm", name), ("trtllm", f"default, {dtype} cache")
    unmeasured = _latent_meant(deployment, kv, plain=plain)
    if deployment.stack == "trtllm":
        return (*unmeasured, fused, vllm), "fp8" if dtype == "fp8" else "bf16"
    return (*unmeasured, vllm, fused), "bf16"


def _latent_meant(deployment: Deployment, kv: KvStrategy, *, plain: bool) -> tuple[Variant, ...]:
    if deployment.stack in ("sglang", *OWN) or not plain:
        return ((deployment.stack, "latent attention module"),)
    return meant(deployment.stack, kv)


def sparse_module(deployment: Deployment, kv: KvStrategy, phase: str) -> tuple[Variant, ...]:
    """The whole module of sparse latent attention; `phase` is "prefill" or "decode"."""
    stack, dtype = deployment.stack, measured_cache(kv)
    vllm = ("vllm", f"{phase} FLASHMLA_SPARSE, {dtype} cache")
    if phase == "prefill":
        kernel = "flashmla_kv" if dtype == "fp8" else "flashmla_sparse"
    else:
        kernel = "flashmla_kv" if dtype == "fp8" else "fa3"
    sglang = ("sglang", f"{phase} {kernel}, {dtype} cache")
    unmeasured = stack in ("trtllm", *OWN)
    own: tuple[Variant, ...] = ((stack, "sparse module"),) if unmeasured else ()
    order = (sglang, vllm) if stack == "sglang" else (vllm, sglang)
    return (*meant(stack, kv), *own, *order)


RECURRENT = {
    "scan": "chunk_gated_delta_rule_flashinfer",
    "step": "fused_recurrent_gated_delta_rule_packed_decode",
    "convolution": "causal_conv1d_fn",
    "convolution step": "causal_conv1d_update",
}
"""vLLM's kernels of gated delta nets."""


def recurrent(stack: str, kind: str, part: str) -> tuple[Variant, ...]:
    """The kernel of a part of a recurrent layer; only gated delta nets were measured with all."""
    measured = ("vllm", RECURRENT[part])
    alone = part.startswith("convolution") or kind == "gated-deltanet"
    return ((stack, RECURRENT[part] if alone else f"{kind} {part}"), measured)


def mover(stack: str, name: str) -> tuple[Variant, ...]:
    """An operator that only moves data: measured in Vidur's layers alone."""
    return ((stack, name), ("vidur", name))


BETWEEN_NODES = (("vidur", "all_reduce between nodes"),)


def node_gpus(gpu: Gpu) -> int:
    """GPUs that are reached without a network: those that the link joins, or a host's eight."""
    return max(NODE_GPUS, gpu.link_gpus)


def is_on_bus(gpu: Gpu, ranks: int) -> bool:
    """Whether so many ranks of a node exchange over the host's bus."""
    return gpu.link_gpus < ranks <= node_gpus(gpu)


ON_BUS = (("vidur", "all_reduce over PCIe"),)


def own_all_reduce(deployment: Deployment, *, eager: bool) -> tuple[Variant, ...]:
    """The all-reduce of tensor parallelism: in a node, over the host's bus, or across nodes."""
    if deployment.tp > node_gpus(deployment.gpu):
        return BETWEEN_NODES
    if is_on_bus(deployment.gpu, deployment.tp):
        return ON_BUS
    if deployment.stack in OWN:
        return (("nccl", "nccl"),)
    own = alike(deployment.stack, "all_reduce")
    return (*(alike(deployment.stack, "all_reduce eager") if eager else ()), *own, ("nccl", "nccl"))


def nccl(gpu: Gpu, ranks: int) -> tuple[Variant, ...]:
    """A collective that the library runs."""
    if ranks > node_gpus(gpu):
        return BETWEEN_NODES
    return ON_BUS if is_on_bus(gpu, ranks) else (("nccl", "nccl"),)


def hand_over(gpu: Gpu, *, across: bool) -> tuple[Variant, ...]:
    """Sending activations to the next pipeline stage, in a node or across nodes."""
    if across:
        return (("vidur", "send_recv between nodes"),)
    return ON_BUS if gpu.link_gpus == 1 else (("vidur", "send_recv in a node"),)


def expert_exchange(part: str, *, low_latency: bool, nodes: int) -> tuple[Variant, ...]:
    """DeepEP's "dispatch" or "combine", the same library in every stack, measured in one node."""
    measured = ("sglang", f"{part} low latency" if low_latency else part)
    return (measured,) if nodes == 1 else (("sglang", f"{part} between nodes"), measured)
