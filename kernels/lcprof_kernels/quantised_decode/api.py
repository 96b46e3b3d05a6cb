"""Decode attention over a compressed cache."""

from __future__ import annotations

import torch

from lcprof_kernels.caches import CompressedCache, check_cache
from lcprof_kernels.checks import (
    check_dtype,
    check_last_dim_dense,
    check_one_of,
    check_same_device,
    check_shape,
    check_triton_device,
    require,
)

from .launch import quantised_decode_triton
from .reference import quantised_decode_naive, quantised_decode_sdpa

IMPLEMENTATIONS = ("triton", "torch", "naive")
MOST_QUERY_TOKENS = 8


def quantised_decode(
    q: torch.Tensor,
    cache: CompressedCache,
    *,
    softmax_scale: float | None = None,
    longest_tokens: int | None = None,
    impl: str = "triton",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend 1 to 8 new tokens of each sequence to its cache, which already holds them.

    q: bfloat16 or float16 `[batch, query_tokens, q_heads, head_dim]`; query i of a sequence sees
    the first `length - query_tokens + 1 + i` tokens. `cache`: see `lcprof_kernels.caches` for the
    formats and their layouts. `longest_tokens` bounds the lengths (the capacity when None) and
    only chooses how the work is split. `softmax_scale` is 1 / sqrt(head_dim) when None.

    Returns the output, shaped and typed like q, and the natural log-sum-exp, float32 `[batch,
    query_tokens, q_heads]`. A row that sees no token gives zeros and -inf.

    impl: "triton" dequantises in registers; "torch" dequantises to q's dtype and calls
    scaled_dot_product_attention (no log-sum-exp: None); "naive" dequantises and attends eagerly.
    The last two read lengths on the host. Raises `KernelInputError` before any launch.
    """
    check_one_of("impl", impl, IMPLEMENTATIONS)
    device = check_cache(cache)
    check_shape(
        "q",
        q,
        (cache.batch, None, None, cache.head_dim),
        "[batch, query_tokens, q_heads, head_dim]",
    )
    check_dtype("q", q, [torch.bfloat16, torch.float16])
    check_last_dim_dense("q", q)
    check_same_device(q=q, cache=cache.lengths)
    _, query_tokens, q_heads, _ = q.shape
    require(
        1 <= query_tokens <= MOST_QUERY_TOKENS,
        f"query_tokens must be 1 to {MOST_QUERY_TOKENS}, got {query_tokens}",
    )
    require(
        q_heads > 0 and q_heads % cache.kv_heads == 0,
        f"q_heads {q_heads} must be a multiple of kv_heads {cache.kv_heads}",
    )
    longest = cache.capacity_tokens if longest_tokens is None else longest_tokens
    require(
        0 < longest <= cache.capacity_tokens,
        f"longest_tokens must be 1 to {cache.capacity_tokens}, got {longest}",
    )
    scale = cache.head_dim**-0.5 if softmax_scale is None else softmax_scale
    if impl == "torch":
        return quantised_decode_sdpa(q, cache, scale), None
    if impl == "naive":
        return quantised_decode_naive(q, cache, scale)
    check_triton_device(device)
    return quantised_decode_triton(q, cache, scale, longest)
