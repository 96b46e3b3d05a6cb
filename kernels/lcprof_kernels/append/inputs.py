"""Random new keys and values, for tests, benchmarks and measuring."""

from __future__ import annotations

import torch


def draw(
    generator: torch.Generator,
    *,
    batch: int,
    new_tokens: int,
    kv_heads: int,
    head_dim: int,
    outliers: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Normal `[batch, new_tokens, kv_heads, head_dim]`; with `outliers`, one channel in 32 is ten
    times as large, the same one for all tokens of a head.
    """
    device = generator.device
    x = torch.randn(
        batch, new_tokens, kv_heads, head_dim, generator=generator, device=device, dtype=dtype
    )
    if outliers:
        x[..., 5::32] *= 10
    return x
