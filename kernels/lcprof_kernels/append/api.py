"""Quantise new keys and values and append them to a compressed cache."""

from __future__ import annotations

import torch

from lcprof_kernels.caches import CompressedCache, check_cache
from lcprof_kernels.checks import (
    check_dtype,
    check_last_dim_dense,
    check_one_of,
    check_rows_aligned,
    check_same_device,
    check_shape,
    check_triton_device,
    require,
)

from .launch import append_triton
from .reference import append_eager

IMPLEMENTATIONS = ("triton", "torch")


def append(
    cache: CompressedCache,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    new_lengths: torch.Tensor | None = None,
    impl: str = "triton",
) -> None:
    """Append up to `new_tokens` tokens to each sequence, in place; `cache.lengths` grows.

    k, v: bfloat16 or float16 `[batch, new_tokens, kv_heads, head_dim]`, any strides with a dense
    last dimension. new_lengths: int32 `[batch]`, how many of them count (all when None). A KIVI
    cache closes each group of tokens as it fills and keeps the rest as bfloat16.

    impl: "triton", or "torch" (eager, which waits for the device). Raises `KernelInputError`. On a
    GPU lengths are not looked at: tokens beyond the capacity are dropped.
    """
    check_one_of("impl", impl, IMPLEMENTATIONS)
    device = check_cache(cache)
    shape = (cache.batch, None, cache.kv_heads, cache.head_dim)
    words = "[batch, new_tokens, kv_heads, head_dim]"
    for name, tensor in (("k", k), ("v", v)):
        check_shape(name, tensor, shape, words)
        check_dtype(name, tensor, [torch.bfloat16, torch.float16])
        check_last_dim_dense(name, tensor)
        check_rows_aligned(name, tensor)
    require(k.shape == v.shape and k.dtype == v.dtype, "k and v must have one shape and dtype")
    require(
        k.shape[1] <= cache.capacity_tokens,
        f"{k.shape[1]} new tokens do not fit a capacity of {cache.capacity_tokens}",
    )
    if new_lengths is None:
        new_lengths = torch.full_like(cache.lengths, k.shape[1])
    check_shape("new_lengths", new_lengths, (cache.batch,), "[batch]")
    check_dtype("new_lengths", new_lengths, [torch.int32])
    require(new_lengths.is_contiguous(), "new_lengths must be contiguous")
    check_same_device(cache=cache.lengths, k=k, v=v, new_lengths=new_lengths)
    if device.type == "cpu":
        require(
            bool(((new_lengths >= 0) & (new_lengths <= k.shape[1])).all()),
            f"new_lengths must lie between 0 and new_tokens = {k.shape[1]}",
        )
        require(
            bool((cache.lengths + new_lengths <= cache.capacity_tokens).all()),
            f"the new tokens do not fit a capacity of {cache.capacity_tokens}",
        )
    if k.numel() == 0:
        return
    if impl == "torch":
        append_eager(cache, k, v, new_lengths)
        return
    check_triton_device(device)
    append_triton(cache, k, v, new_lengths)
