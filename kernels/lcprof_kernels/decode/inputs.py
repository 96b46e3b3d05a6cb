"""Random tensors for decode attention: one factory for tests, benchmarks and measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class DecodeInputs:
    """Arguments of `decode_attention`, in its layouts."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    lengths: torch.Tensor | None
    page_table: torch.Tensor | None
    window_tokens: int | None
    sink_tokens: int
    ring: bool

    def arguments(self) -> dict[str, Any]:
        """Everything as keyword arguments."""
        return dict(vars(self))


def decode_inputs(
    *,
    batch: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    context_tokens: int,
    query_tokens: int = 1,
    lengths: Sequence[int] | None = None,
    page_tokens: int | None = None,
    window_tokens: int | None = None,
    sink_tokens: int = 0,
    ring: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    outlier: float = 1.0,
    seed: int = 0,
) -> DecodeInputs:
    """Normal random q, K and V; every eighth channel of K and V is `outlier` times larger.

    `context_tokens` is the room of the cache (with `ring`, that of the ring and its sinks). Pages
    are scattered at random over a pool that is somewhat larger than needed.
    """
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=device)
        return tensor.normal_(generator=generator)

    q = normal(batch, query_tokens, q_heads, head_dim)
    page_table = None
    if page_tokens is None:
        shape = (batch, kv_heads, context_tokens, head_dim)
    else:
        each = -(-context_tokens // page_tokens)
        pages = batch * each + 3
        order = torch.randperm(pages, generator=generator, device=device)
        page_table = order[: batch * each].reshape(batch, each).to(torch.int32)
        shape = (pages, kv_heads, page_tokens, head_dim)
    k_cache, v_cache = normal(*shape), normal(*shape)
    if outlier != 1.0:
        k_cache[..., ::8] *= outlier
        v_cache[..., ::8] *= outlier
    return DecodeInputs(
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        lengths=None
        if lengths is None
        else torch.tensor(list(lengths), dtype=torch.int32, device=device),
        page_table=page_table,
        window_tokens=window_tokens,
        sink_tokens=sink_tokens,
        ring=ring,
    )
