"""The variants of lcprof's own kernels and of PyTorch's: the names that a calibration gives them
and that a plan asks for, and the public kernels that are most like them."""

from __future__ import annotations

from lcprof.cost.expected.task import Variant
from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.formats import DECODE_PAGES, dense_dtype, kernel_format
from lcprof.domain.kv.sparse import Quest

OWN = ("lcprof", "torch")
"""The stacks that `lcprof measure` runs; PyTorch multiplies for both."""
GENERATIONS = {"9": "hopper", "10": "blackwell"}
"""By the first number of the compute capability. RTX Blackwell (12) runs Ada's kernels."""
PLAIN = {"bf16": "bf16", "fp16": "bf16", "fp32": "fp32"}
"""Elements of 16 bits are read and multiplied at one pace."""
HEAD_DIMS = (64, 96, 128, 192, 256)
"""Dimensions that kernels of prompts have tiles of their own for."""
KERNEL_HEAD_DIM = 128


def generation(gpu: Gpu) -> str:
    """Whose kernels the GPU runs: "hopper" (FlashAttention 3's), "blackwell" (TensorRT-LLM's, in
    every stack) or "older"."""
    if gpu.compute_capability:
        return GENERATIONS.get(gpu.compute_capability.partition(".")[0], "older")
    named = (name for name in GENERATIONS.values() if gpu.architecture.lower().startswith(name))
    return next(named, "older")


def is_new(gpu: Gpu) -> bool:
    """Whether the GPU runs Hopper's kernels or later ones."""
    return generation(gpu) != "older"


# Names


def prompt_variant(implementation: str, dtype: str, heads: str) -> Variant:
    """Attention of a prompt; `implementation` as `lcprof measure` names it."""
    name = f"prompt {PLAIN[dtype]}, {heads}"
    return ("lcprof", name) if implementation == "triton" else ("torch", f"{implementation} {name}")


def prompt_variants(implementation: str, dtype: str, head_dim: float) -> tuple[Variant, ...]:
    """Attention of a prompt with heads of a dimension, then with those of others, the nearest
    first."""
    others = sorted(HEAD_DIMS, key=lambda dim: abs(dim - head_dim))
    dims = dict.fromkeys((head_dim, *map(float, others)))
    return tuple(prompt_variant(implementation, dtype, f"heads of {dim:g}") for dim in dims)


def step_variant(implementation: str, cache: str, layout: str) -> Variant:
    """Attention of a decode step over a cache of a format (`kernel_format`) and layout."""
    name = f"{PLAIN.get(cache, cache)} cache, {layout}"
    return ("lcprof", name) if implementation == "triton" else ("torch", f"{implementation} {name}")


def step_variants(implementation: str, cache: str, meant: str) -> tuple[Variant, ...]:
    """Attention of a decode step over a cache in a layout, then in others."""
    page = int(meant.removeprefix(PAGES)) if meant.startswith(PAGES) else 0
    nearest = sorted(DECODE_PAGES, key=lambda size: (abs(size - page), size))
    layouts = dict.fromkeys((meant, *map(layout, nearest), layout(0), layout(0, ring=True)))
    return tuple(step_variant(implementation, cache, each) for each in layouts)


def layout(page_tokens: int, *, ring: bool = False) -> str:
    """How a cache lies: in a ring of its window, in pages, or in one piece."""
    if ring:
        return "ring"
    return f"{PAGES}{page_tokens}" if page_tokens else "contiguous"


PAGES = "pages of "


def chosen_pages(page_tokens: int) -> str:
    """The layout of a cache of which Quest reads some pages, and the bounds of all."""
    return f"chosen pages of {page_tokens}"


def kernel_of(implementation: str, gpu: Gpu) -> str:
    """The tiles of an implementation's prompts (`prefill_attention.KERNELS`)."""
    if implementation == "triton":
        return "triton" if is_new(gpu) else "triton_ampere"
    return "cudnn" if implementation == "cudnn" else "fa2"


# What is most like them


def public_prompt(gpu: Gpu) -> tuple[Variant, ...]:
    """Published kernels of a prompt's attention in bf16."""
    if is_new(gpu):
        return (
            ("vllm", "vllm_flash_attn_fa3 bf16, bf16 cache"),
            ("sglang", "fa3 bf16, bf16 cache"),
            ("infersim", "mha, bf16 cache"),
        )
    return (("vllm", "vllm_flash_attn bf16, bf16 cache"),)


def public_step(gpu: Gpu, element_bytes: float, *, windowed: bool = False) -> tuple[Variant, ...]:
    """Published kernels of a decode step's attention, by the bytes of a cached element."""
    if not is_new(gpu):
        return (("vllm", "vllm_flash_attn bf16 cache"), ("vidur", "flashinfer fp16 cache"))
    fa3 = f"vllm_flash_attn_fa3 {'bf16' if element_bytes > 1.5 else 'fp8'} cache"
    window: tuple[Variant, ...] = (("vllm", f"{fa3}, window"),) if windowed else ()
    return (*window, ("vllm", fa3), ("infersim", "mha, bf16 cache"))


PUBLIC_LATENT_PROMPT: tuple[Variant, ...] = (
    ("trtllm", "mla default, bf16 cache"),
    ("infersim", "mla, bf16 cache"),
)
"""Published attention of prompts on expanded latents."""
PUBLIC_LATENT_STEP: tuple[Variant, ...] = (
    ("sglang", "flash_attention, bf16 cache"),
    ("trtllm", "default, bf16 cache"),
    ("infersim", "mla, bf16 cache"),
)
"""Published attention of a decode step over latents, between the projections."""


# What a plan asks for


def own_prompt(deployment: Deployment, head_dim: float) -> tuple[tuple[Variant, ...], str]:
    """The variants of a plan's prompts on our stacks, and the tiles of the first."""
    gpu = deployment.gpu
    torch = ("cudnn", "flash") if is_new(gpu) else ("flash", "cudnn")
    able = ("triton",) if deployment.stack == "lcprof" else torch
    own = (variant for each in able for variant in prompt_variants(each, "bf16", head_dim))
    return (*own, *public_prompt(gpu)), kernel_of(able[0], gpu)


def chooses_pages(deployment: Deployment, kv: KvStrategy) -> bool:
    """Whether the step's kernel reads the bounds of pages that it chooses by, too."""
    return deployment.stack == "lcprof" and any(isinstance(link, Quest) for link in kv.chain())


def own_step(deployment: Deployment, kv: KvStrategy, *, windowed: bool) -> tuple[Variant, ...]:
    """The variants of a plan's decode steps on our stacks: the cache's format in the layout that
    the plan has, then in others, then published ones."""
    coded = kernel_format(kv, KERNEL_HEAD_DIM)[0]
    cache = coded or dense_dtype(kv)
    chosen = next((link.page for link in kv.chain() if isinstance(link, Quest)), None)
    lies = layout(deployment.page_tokens, ring=windowed)
    able = ("triton",) if deployment.stack == "lcprof" else ("cudnn", "flash", "torch")
    public = public_step(deployment.gpu, kv.element_bytes(), windowed=windowed)
    if coded == "none":
        kinds = "+".join(link.kind for link in kv.chain())
        return ((deployment.stack, f"{kinds} cache"), *public)
    if chosen is not None:
        own = [step_variant(each, cache, chosen_pages(chosen)) for each in able]
    else:
        own = [variant for each in able for variant in step_variants(each, cache, lies)]
    return (*own, *public)
