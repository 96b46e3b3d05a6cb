"""Tensors for an absorbed MLA decode: tests, benchmarks and measurements draw them here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .fp8 import ROW, pack_fp8


@dataclass(frozen=True, kw_only=True)
class MlaInputs:
    """Arguments of `mla_decode`, by its names."""

    q: torch.Tensor
    cache: torch.Tensor
    lengths: torch.Tensor
    page_table: torch.Tensor | None


def mla_inputs(
    *,
    batch: int,
    q_heads: int,
    context_tokens: int,
    query_tokens: int = 1,
    page_tokens: int | None = None,
    fp8: bool = False,
    lengths: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> MlaInputs:
    """Normal random numbers; pages are handed out in random order.

    `lengths` are the sequences' cached tokens, all `context_tokens` when None. Random anew at each
    call unless `seed` is given.
    """
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.bfloat16)

    page_table = None
    slots, slot_tokens = batch, context_tokens
    if page_tokens is not None:
        per_sequence = -(-context_tokens // page_tokens)
        slots, slot_tokens = batch * per_sequence, page_tokens
        order = torch.randperm(slots, generator=generator, device=device)
        page_table = order.to(torch.int32).reshape(batch, per_sequence)
    cache = draw(slots, slot_tokens, ROW)
    return MlaInputs(
        q=draw(batch, query_tokens, q_heads, ROW),
        cache=pack_fp8(cache) if fp8 else cache,
        lengths=torch.tensor(
            [context_tokens] * batch if lengths is None else lengths,
            dtype=torch.int32,
            device=device,
        ),
        page_table=page_table,
    )
