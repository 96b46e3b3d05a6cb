"""Tensors for selecting pages and tokens: tests, benchmarks and measurements draw them here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class PageInputs:
    """A query over a paged cache."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    lengths: torch.Tensor
    page_table: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class IndexInputs:
    """Arguments of `score_tokens`, by its names."""

    q: torch.Tensor
    weights: torch.Tensor
    keys: torch.Tensor
    key_scales: torch.Tensor | None
    lengths: torch.Tensor
    page_table: torch.Tensor | None


def page_inputs(
    *,
    batch: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    context_tokens: int,
    page_tokens: int,
    lengths: Sequence[int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> PageInputs:
    """Normal random numbers; pages are handed out in random order. Random anew at each call."""
    per_sequence = -(-context_tokens // page_tokens)
    pages = batch * per_sequence
    shape = (pages, kv_heads, page_tokens, head_dim)
    return PageInputs(
        q=torch.randn(batch, 1, q_heads, head_dim, device=device, dtype=dtype),
        k_cache=torch.randn(shape, device=device, dtype=dtype),
        v_cache=torch.randn(shape, device=device, dtype=dtype),
        lengths=torch.tensor(
            [context_tokens] * batch if lengths is None else lengths,
            dtype=torch.int32,
            device=device,
        ),
        page_table=torch.randperm(pages, device=device).to(torch.int32).reshape(batch, -1),
    )


def index_inputs(
    *,
    batch: int,
    heads: int,
    context_tokens: int,
    query_tokens: int = 1,
    index_dim: int = 128,
    fp8: bool = False,
    page_tokens: int | None = None,
    lengths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> IndexInputs:
    """Normal random queries and keys, positive and negative weights. Random anew at each call."""
    slots, slot_tokens, page_table = batch, context_tokens, None
    if page_tokens is not None:
        per_sequence = -(-context_tokens // page_tokens)
        slots, slot_tokens = batch * per_sequence, page_tokens
        page_table = torch.randperm(slots, device=device).to(torch.int32).reshape(batch, -1)
    keys = torch.randn(slots, slot_tokens, index_dim, device=device, dtype=torch.bfloat16)
    scales = None
    if fp8:
        scales = keys.float().abs().amax(-1).clamp_min(1e-12) / 448
        keys = (keys.float() / scales[..., None]).to(torch.float8_e4m3fn)
    return IndexInputs(
        q=torch.randn(batch, query_tokens, heads, index_dim, device=device, dtype=torch.bfloat16),
        weights=torch.randn(batch, query_tokens, heads, device=device),
        keys=keys,
        key_scales=scales,
        lengths=torch.tensor(
            [context_tokens] * batch if lengths is None else lengths,
            dtype=torch.int32,
            device=device,
        ),
        page_table=page_table,
    )
