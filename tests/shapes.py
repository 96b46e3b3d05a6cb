"""Model shapes written out by hand for tests, from the public configs named beside them."""

from __future__ import annotations

from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.model import (
    FeedForward,
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    Matrix,
    ModelShape,
    RecurrentState,
)


def matrix(name: str, inputs: int, outputs: int, split: str = "none", count: int = 0) -> Matrix:
    return Matrix(name=name, inputs=inputs, outputs=outputs, split=split, split_count=count)


def grouped(
    hidden: int, q_heads: int, kv_heads: int, head_dim: int, window: int | None = None
) -> GroupedAttention:
    return GroupedAttention(
        q_heads=q_heads,
        kv_heads=kv_heads,
        k_dim=head_dim,
        v_dim=head_dim,
        window_tokens=window,
        matrices=(
            matrix("q", hidden, q_heads * head_dim, "q_heads", q_heads),
            matrix("k", hidden, kv_heads * head_dim, "kv_heads", kv_heads),
            matrix("v", hidden, kv_heads * head_dim, "kv_heads", kv_heads),
            matrix("o", q_heads * head_dim, hidden, "q_heads", q_heads),
        ),
    )


def gated(hidden: int, width: int) -> FeedForward:
    return FeedForward(
        matrices=(
            matrix("gate", hidden, width, "width", width),
            matrix("up", hidden, width, "width", width),
            matrix("down", width, hidden, "width", width),
        )
    )


def llama(
    *, hidden: int, layers: int, q_heads: int, width: int, name: str, kv_heads: int = 8
) -> ModelShape:
    group = LayerGroup(
        name="full",
        mixer=grouped(hidden, q_heads, kv_heads, 128),
        ffn=gated(hidden, width),
        vectors=2 * hidden,
    )
    return ModelShape(
        name=name,
        hidden=hidden,
        vocab=128256,
        groups=(group,),
        order=(0,) * layers,
        tied_embeddings=False,
        vectors=hidden,
        positions=131072,
    )


LLAMA_8B = llama(hidden=4096, layers=32, q_heads=32, width=14336, name="llama-8b")
"""meta-llama/Llama-3.1-8B config.json."""
LLAMA_70B = llama(hidden=8192, layers=80, q_heads=64, width=28672, name="llama-70b")
"""meta-llama/Llama-3.1-70B config.json."""


def deepseek_v3() -> ModelShape:
    """deepseek-ai/DeepSeek-V3 config.json, in bf16."""
    hidden, heads = 7168, 128
    attention = LatentAttention(
        q_heads=heads,
        latent_dim=512,
        rope_dim=64,
        nope_dim=128,
        v_dim=128,
        matrices=(
            matrix("q_down", hidden, 1536),
            matrix("q_up", 1536, heads * 192, "q_heads", heads),
            matrix("kv_down", hidden, 576),
            matrix("kv_up", 512, heads * 256, "q_heads", heads),
            matrix("o", heads * 128, hidden, "q_heads", heads),
        ),
        vectors=1536 + 512,
    )
    expert = gated(hidden, 2048).matrices
    moe = FeedForward(
        matrices=(matrix("router", hidden, 256), *expert),
        expert=expert,
        experts=256,
        experts_per_token=8,
        vectors=256,
    )
    dense = LayerGroup(name="mla", mixer=attention, ffn=gated(hidden, 18432), vectors=2 * hidden)
    sparse = LayerGroup(name="mla + moe", mixer=attention, ffn=moe, vectors=2 * hidden)
    return ModelShape(
        name="deepseek-v3",
        hidden=hidden,
        vocab=129280,
        groups=(dense, sparse),
        order=(0,) * 3 + (1,) * 58,
        tied_embeddings=False,
        vectors=hidden,
    )


def hybrid() -> ModelShape:
    """A small model with full, windowed and recurrent layers."""
    hidden = 1024
    state = RecurrentState(
        kind="gated-deltanet",
        heads=8,
        state_elements=8 * 128 * 128,
        state_bytes=4,
        conv_elements=3 * 3072,
        flops_per_token=8 * 128 * 128 * 6,
        matrices=(
            matrix("qkv", hidden, 3072, "q_heads", 8),
            matrix("o", 1024, hidden, "q_heads", 8),
        ),
    )
    groups = (
        LayerGroup(name="full", mixer=grouped(hidden, 8, 4, 128), ffn=gated(hidden, 4096)),
        LayerGroup(name="window", mixer=grouped(hidden, 8, 4, 128, 512), ffn=gated(hidden, 4096)),
        LayerGroup(name="state", mixer=state, ffn=gated(hidden, 4096)),
    )
    return ModelShape(
        name="hybrid",
        hidden=hidden,
        vocab=32000,
        groups=groups,
        order=(2, 1, 0) * 4,
        tied_embeddings=True,
    )


def gpu(name: str, *, gb: float, bytes_per_s: float, flops: float, link: float = 450e9) -> Gpu:
    return Gpu(
        name=name,
        vendor="NVIDIA",
        form_factor="SXM",
        architecture="Hopper",
        compute_capability="9.0",
        memory_type="HBM3",
        marketed_bytes=gb * 1e9,
        usable_bytes=81559 * 2**20 if gb == 80 else 143771 * 2**20,
        bandwidth_bytes_per_s=bytes_per_s,
        peak_flops={"bf16": flops, "fp8": 2 * flops, "fp32": 66.9e12},
        link_bytes_per_s=link,
        pcie_bytes_per_s=64e9,
        sources={
            "usable_bytes": "nvidia-smi",
            "bandwidth_bytes_per_s": "datasheet",
            "peak_flops.bf16": "datasheet",
        },
    )


H100 = gpu("h100-sxm", gb=80, bytes_per_s=3.35e12, flops=989e12)
"""NVIDIA H100 SXM datasheet: 3.35 TB/s, 989 dense bf16 TFLOP/s."""
H200 = gpu("h200-sxm", gb=141, bytes_per_s=4.8e12, flops=989e12)


def on(gpu: Gpu, **layout: int) -> Deployment:
    gpus = 1
    for degree in ("tp", "pp", "cp", "dp"):
        gpus *= layout.get(degree, 1)
    return Deployment(gpu=gpu, gpus=gpus, **layout)
