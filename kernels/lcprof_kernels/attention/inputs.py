"""The one factory of random attention inputs, for tests, benchmarks and measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors in `attention`'s layouts, and the gradient of its output."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    d_out: torch.Tensor
    cu_query_tokens: torch.Tensor | None = None
    cu_context_tokens: torch.Tensor | None = None


def make_inputs(
    *,
    batch: int = 1,
    q_heads: int,
    kv_heads: int,
    query_tokens: int,
    context_tokens: int | None = None,
    head_dim: int = 128,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    tokens_first: bool = False,
    outlier: float = 1.0,
    seed: int | None = None,
) -> Inputs:
    """Normal random numbers; `outlier` multiplies one channel of q and k.

    `tokens_first` lays k and v out as [batch, context_tokens, kv_heads, D] and returns the
    transposed views. float8_e4m3fn numbers are drawn in float32 and rounded.
    """
    context_tokens = query_tokens if context_tokens is None else context_tokens
    value_dim = head_dim if value_dim is None else value_dim
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    def draw(shape: Sequence[int], peak: float = 1.0) -> torch.Tensor:
        low = dtype.itemsize == 1
        kind = torch.float32 if low else dtype
        tensor = torch.randn(shape, generator=generator, dtype=kind, device=device)
        if peak != 1.0:
            tensor[..., shape[-1] // 3] *= peak
        return tensor.to(dtype)

    if tokens_first:
        k = draw((batch, context_tokens, kv_heads, head_dim), outlier).transpose(1, 2)
        v = draw((batch, context_tokens, kv_heads, value_dim)).transpose(1, 2)
    else:
        k = draw((batch, kv_heads, context_tokens, head_dim), outlier)
        v = draw((batch, kv_heads, context_tokens, value_dim))
    return Inputs(
        q=draw((batch, query_tokens, q_heads, head_dim), outlier),
        k=k,
        v=v,
        d_out=draw((batch, query_tokens, q_heads, value_dim)),
    )


def make_packed_inputs(
    spans: Sequence[tuple[int, int]],
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> Inputs:
    """Sequences of (query tokens, context tokens) packed into one row."""
    queries = torch.tensor([0, *(span[0] for span in spans)]).cumsum(0)
    keys = torch.tensor([0, *(span[1] for span in spans)]).cumsum(0)
    plain = make_inputs(
        q_heads=q_heads,
        kv_heads=kv_heads,
        query_tokens=int(queries[-1]),
        context_tokens=int(keys[-1]),
        head_dim=head_dim,
        dtype=dtype,
        device=device,
        seed=seed,
    )
    return Inputs(
        q=plain.q,
        k=plain.k,
        v=plain.v,
        d_out=plain.d_out,
        cu_query_tokens=queries.to(device=device, dtype=torch.int32),
        cu_context_tokens=keys.to(device=device, dtype=torch.int32),
    )
