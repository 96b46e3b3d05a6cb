"""Absorbed MLA decode in plain eager steps: the oracle, and the same in a kernel's precision."""

from __future__ import annotations

import torch

from .fp8 import LATENT, unpack_fp8


def rows_of_sequence(
    cache: torch.Tensor, page_table: torch.Tensor | None, sequence: int, length: int
) -> torch.Tensor:
    """The first `length` cached rows of one sequence, bf16 `[length, 576]`."""
    if page_table is None:
        rows = cache[sequence, :length]
    else:
        pages = -(-length // cache.shape[1])
        rows = cache[page_table[sequence, :pages].long()].flatten(0, 1)[:length]
    return unpack_fp8(rows) if rows.dtype == torch.uint8 else rows


def mla_reference(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    lengths: torch.Tensor,
    scale: float,
    page_table: torch.Tensor | None = None,
    low_precision: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `mla_decode` computes, one sequence at a time.

    In float64 on a CPU and float32 on a GPU. With `low_precision` the probabilities and the output
    are rounded to the type of `q`, as a kernel must.
    """
    exact = torch.float64 if q.device.type == "cpu" else torch.float32
    batch, query_tokens, q_heads, _ = q.shape
    out = torch.zeros(batch, query_tokens, q_heads, LATENT, dtype=exact, device=q.device)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=exact, device=q.device)
    for b in range(batch):
        length = int(lengths[b])
        keys = rows_of_sequence(cache, page_table, b, length).to(exact)
        for t in range(query_tokens):
            seen = keys[: max(0, length - (query_tokens - 1 - t))]
            if seen.shape[0] == 0:
                continue
            scores = q[b, t].to(exact) @ seen.T * scale
            lse[b, t] = torch.logsumexp(scores, -1)
            weights = torch.exp(scores - lse[b, t, :, None])
            if low_precision:
                weights = weights.to(q.dtype).to(exact)
            out[b, t] = weights @ seen[:, :LATENT]
    if low_precision:
        out = out.to(q.dtype).to(exact)
    return out, lse
