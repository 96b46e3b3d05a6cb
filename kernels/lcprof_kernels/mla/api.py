"""Absorbed MLA decode: attention of many query heads over one latent row a token."""

from __future__ import annotations

from typing import Literal

import torch

from lcprof_kernels.attention.api import attention_with_lse
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

from .fp8 import FP8_ROW_BYTES, LATENT, ROW
from .launch import Tile, launch
from .reference import mla_reference

DEFAULT_SCALE = (128 + 64) ** -0.5
"""1 / sqrt(192): the head dim before absorption in DeepSeek-V2 (arXiv 2405.04434, section 2.1)."""
MOST_QUERY_TOKENS = 8


def mla_decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    scale: float = DEFAULT_SCALE,
    check_values: bool = False,
    impl: Literal["triton", "naive"] = "triton",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend from the newest tokens to all cached ones; the latent part of a row is its value.

    - `q`: bf16 `[batch, query_tokens, q_heads, 576]`, 512 absorbed and 64 rotary elements.
      Query token t stands at position `lengths - query_tokens + t` and sees up to itself.
    - `cache`: bf16 `[batch, context_tokens, 576]`, or with `page_table` `[pages, page_tokens,
      576]`; or in the fp8 layout (see `fp8.py`) uint8 of the same shape with rows of 656 bytes.
    - `lengths`: int32 `[batch]`, cached tokens with the query's own; the whole cache when None.
    - `page_table`: int32 `[batch, max_pages]`.

    `check_values` also reads `lengths` and `page_table` back to the host to check them (it waits
    for the device). Without it nothing waits, and the launch can be captured in a CUDA graph.

    Returns out `[batch, query_tokens, q_heads, 512]` in bf16, still to be multiplied by the
    up-projection of the values, and lse float32 `[batch, query_tokens, q_heads]`, natural
    logarithm. A row that sees nothing is 0 with lse -inf. Raises `KernelInputError`.
    """
    check_one_of("impl", impl, ("triton", "naive"))
    check_shape("q", q, (None, None, None, ROW), "[batch, query_tokens, q_heads, 576]")
    check_dtype("q", q, [torch.bfloat16])
    check_last_dim_dense("q", q)
    batch, query_tokens, q_heads, _ = q.shape
    require(
        1 <= query_tokens <= MOST_QUERY_TOKENS,
        f"q must hold 1 to {MOST_QUERY_TOKENS} query tokens, got {query_tokens}",
    )
    require(q_heads >= 1, "q must hold at least one head")
    lengths = check_cache(cache, batch=batch, lengths=lengths, page_table=page_table)
    device = check_same_device(q=q, cache=cache, lengths=lengths, page_table=page_table)
    if check_values:
        check_contents(cache, lengths, page_table)
    if impl == "naive":
        out, lse = mla_reference(
            q, cache, lengths=lengths, page_table=page_table, scale=scale, low_precision=True
        )
        return out.to(q.dtype), lse.float()
    check_triton_device(device)
    return mla_decode_with(None, q, cache, lengths=lengths, page_table=page_table, scale=scale)


def mla_decode_with(
    tile: Tile | None,
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    lengths: torch.Tensor,
    page_table: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch arguments that are known to be right, by a given tile or the one of `tile_for`."""
    context = cache.shape[1] if page_table is None else page_table.shape[1] * cache.shape[1]
    latent, rope, scales = parts_of(cache)
    unit = 16 // cache.element_size()
    return launch(
        q,
        latent,
        rope,
        scales,
        slot_stride=cache.stride(0) // unit,
        token_stride=cache.stride(1) // unit,
        lengths=lengths,
        page_table=page_table,
        page_tokens=cache.shape[1],
        context_tokens=context,
        scale=scale,
        tile=tile,
    )


def mla_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    impl: Literal["triton", "naive"] = "triton",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend many tokens to many with the up-projected keys and values of latent attention.

    `q` is `[batch, query_tokens, q_heads, 192]`, `k` `[batch, q_heads, context_tokens, 192]` (128
    without position and 64 rotary elements), `v` `[batch, q_heads, context_tokens, 128]`. Queries
    stand at the end of the context; scale defaults to 1 / sqrt(192). Returns out
    `[batch, query_tokens, q_heads, 128]` and lse float32 `[batch, query_tokens, q_heads]`. Raises
    `KernelInputError`.
    """
    check_shape("q", q, (None, None, None, 192), "[batch, query_tokens, q_heads, 192]")
    batch, _, heads, _ = q.shape
    check_shape("k", k, (batch, heads, None, 192), "[batch, q_heads, context_tokens, 192]")
    check_shape("v", v, (batch, heads, k.shape[2], 128), "[batch, q_heads, context_tokens, 128]")
    return attention_with_lse(q, k, v, causal=causal, scale=scale, impl=impl)


def check_cache(
    cache: torch.Tensor,
    *,
    batch: int,
    lengths: torch.Tensor | None,
    page_table: torch.Tensor | None,
) -> torch.Tensor:
    """Check a cache, its lengths and its page table; returns the lengths."""
    check_dtype("cache", cache, [torch.bfloat16, torch.uint8])
    row = ROW if cache.dtype == torch.bfloat16 else FP8_ROW_BYTES
    slots = "batch, context_tokens" if page_table is None else "pages, page_tokens"
    check_shape("cache", cache, (None, None, row), f"[{slots}, {row}]")
    check_last_dim_dense("cache", cache)
    check_rows_aligned("cache", cache)
    if page_table is None:
        require(
            cache.shape[0] == batch,
            f"cache must hold {batch} sequences like q, got {cache.shape[0]}",
        )
        most = cache.shape[1]
    else:
        check_shape("page_table", page_table, (batch, None), "[batch, max_pages]")
        check_dtype("page_table", page_table, [torch.int32])
        check_last_dim_dense("page_table", page_table)
        require(lengths is not None, "a paged cache needs lengths")
        most = page_table.shape[1] * cache.shape[1]
    if lengths is None:
        lengths = torch.full((batch,), most, dtype=torch.int32, device=cache.device)
    check_shape("lengths", lengths, (batch,), "[batch]")
    check_dtype("lengths", lengths, [torch.int32])
    require(lengths.is_contiguous(), "lengths must be contiguous")
    return lengths


def check_contents(
    cache: torch.Tensor, lengths: torch.Tensor, page_table: torch.Tensor | None
) -> None:
    """The values of the lengths and of the page table's used entries."""
    slots, slot_tokens = cache.shape[:2]
    most = slot_tokens if page_table is None else page_table.shape[1] * slot_tokens
    require(
        bool(((lengths >= 0) & (lengths <= most)).all()),
        f"lengths must lie in 0 to {most}, the tokens that fit the cache",
    )
    if page_table is not None:
        first = torch.arange(page_table.shape[1], device=page_table.device) * slot_tokens
        wrong = (page_table < 0) | (page_table >= slots)
        require(
            not bool((wrong & (first < lengths[:, None])).any()),
            f"page_table must name pages 0 to {slots - 1}",
        )


def parts_of(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Views of a cache that start at its latent part, its rotary part and its scales."""
    if cache.dtype == torch.bfloat16:
        return cache, cache[..., LATENT:], None
    rope = cache[..., LATENT + 16 :].view(torch.bfloat16)
    return cache, rope, cache[..., LATENT : LATENT + 16].view(torch.float32)
