"""Random inputs of the compressed decode, for tests, benchmarks and measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lcprof_kernels.append.api import append
from lcprof_kernels.append.inputs import draw
from lcprof_kernels.caches import CompressedCache, Format, empty_cache


@dataclass(frozen=True, kw_only=True)
class QuantisedDecodeInputs:
    """Queries `[batch, query_tokens, q_heads, head_dim]` and a filled cache."""

    q: torch.Tensor
    cache: CompressedCache


def make_quantised_decode_inputs(
    layout: Format,
    *,
    lengths: Sequence[int],
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    query_tokens: int = 1,
    page_tokens: int | None = None,
    capacity_tokens: int | None = None,
    scale_dtype: torch.dtype = torch.float16,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    seed: int = 0,
    impl: str = "torch",
) -> QuantisedDecodeInputs:
    """Sequences of these lengths, quantised from bfloat16 by `append`, pages in random order.

    Keys have outlier channels, ten times the others, as those of real models do (KIVI, Liu et al.,
    2024). fp8 per tensor gets scales that bring the largest element to 448.
    """
    generator = torch.Generator(device).manual_seed(seed)
    batch, longest = len(lengths), max(lengths)
    step = max(layout.group_tokens or 1, page_tokens or 1)
    capacity = capacity_tokens or max(step, -(-longest // step) * step)
    order = None
    if page_tokens is not None:
        pages = batch * -(-capacity // page_tokens)
        order = torch.randperm(pages, generator=generator, device=device)
    cache = empty_cache(
        layout,
        batch=batch,
        kv_heads=kv_heads,
        head_dim=head_dim,
        capacity_tokens=capacity,
        page_tokens=page_tokens,
        scale_dtype=scale_dtype,
        device=device,
        page_order=order,
    )
    if layout.keys == "tensor":
        cache.keys.scale.fill_(60.0 / 448)
        cache.values.scale.fill_(6.0 / 448)
    written = torch.zeros(batch, dtype=torch.int64)
    wanted = torch.tensor(lengths)
    piece = max(step, min(longest, (1 << 27) // (batch * kv_heads * head_dim)))
    while bool((written < wanted).any()):
        new = (wanted - written).clamp(max=piece)
        k, v = (
            draw(
                generator,
                batch=batch,
                new_tokens=int(new.max()),
                kv_heads=kv_heads,
                head_dim=head_dim,
                outliers=outliers,
            )
            for outliers in (True, False)
        )
        append(cache, k, v, new_lengths=new.to(device=device, dtype=torch.int32), impl=impl)
        written += new
    q = torch.randn(
        batch, query_tokens, q_heads, head_dim, generator=generator, device=device, dtype=dtype
    )
    return QuantisedDecodeInputs(q=q, cache=cache)
