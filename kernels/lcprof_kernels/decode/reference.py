"""Decode attention in plain eager steps: the oracle, and the same in a kernel's precision."""

from __future__ import annotations

import torch


def gather_tokens(cache: torch.Tensor, page_table: torch.Tensor) -> torch.Tensor:
    """A paged cache as a contiguous one: `[batch, kv_heads, max_pages * page_tokens, head_dim]`."""
    batch = page_table.shape[0]
    picked = cache[page_table.long()]  # [batch, pages, kv_heads, page_tokens, head_dim]
    return picked.transpose(1, 2).reshape(batch, cache.shape[1], -1, cache.shape[3])


def visible_keys(
    length: int,
    slots: int,
    query_tokens: int,
    *,
    window_tokens: int | None,
    sink_tokens: int,
    ring: bool,
    device: torch.device,
) -> torch.Tensor:
    """Which of `slots` cache slots each query token sees: bool `[query_tokens, slots]`.

    Query token t stands at position `length - query_tokens + t`. In a ring, slot `sinks + i` holds
    the newest position p with `(p - sinks) % (slots - sinks) == i`.
    """
    slot = torch.arange(slots, device=device)
    position = slot.clone()
    if ring:
        size = slots - sink_tokens
        laps = torch.clamp((length - 1 - slot), min=0) // size
        position = torch.where(slot < sink_tokens, slot, slot + laps * size)
    query = torch.arange(query_tokens, device=device) + length - query_tokens
    seen = (position[None, :] <= query[:, None]) & (position < length)[None, :]
    if window_tokens is not None:
        recent = position[None, :] > query[:, None] - window_tokens
        seen &= recent | (position < sink_tokens)[None, :]
    return seen


def decode_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    window_tokens: int | None = None,
    sink_tokens: int = 0,
    ring: bool = False,
    scale: float | None = None,
    low_precision: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `decode_attention` computes, one sequence and KV head at a time.

    In float64 on a CPU and float32 on a GPU; outputs stay in that type. With `low_precision` the
    probabilities and the output are rounded to the inputs' type, as a kernel must.
    """
    exact = torch.float64 if q.device.type == "cpu" else torch.float32
    batch, query_tokens, q_heads, head_dim = q.shape
    kv_heads = k_cache.shape[1]
    group = q_heads // kv_heads
    scale = head_dim**-0.5 if scale is None else scale
    out = torch.zeros(q.shape, dtype=exact, device=q.device)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=exact, device=q.device)
    for b in range(batch):
        rows = slice(b, b + 1)
        k_row = k_cache[rows] if page_table is None else gather_tokens(k_cache, page_table[rows])
        v_row = v_cache[rows] if page_table is None else gather_tokens(v_cache, page_table[rows])
        slots = k_row.shape[2]
        length = slots if lengths is None else int(lengths[b])
        seen = visible_keys(
            length,
            slots,
            query_tokens,
            window_tokens=window_tokens,
            sink_tokens=sink_tokens,
            ring=ring,
            device=q.device,
        )
        read = seen.any(0).nonzero().squeeze(1)
        if read.numel() == 0:
            continue
        everything = read.numel() == slots
        for h in range(kv_heads):
            keys = k_row[0, h] if everything else k_row[0, h, read]
            values = v_row[0, h] if everything else v_row[0, h, read]
            heads = slice(h * group, (h + 1) * group)
            queries = q[b, :, heads].to(exact)  # [query_tokens, group, head_dim]
            scores = torch.einsum("tgd,nd->tgn", queries, keys.to(exact)) * scale
            hidden = ~seen[:, read]
            scores.masked_fill_(hidden[:, None, :], float("-inf"))
            some = seen.any(1)
            row_lse = torch.logsumexp(scores, -1)
            weights = torch.exp(scores - torch.where(some[:, None], row_lse, 0)[..., None])
            weights.masked_fill_(hidden[:, None, :], 0.0)
            if low_precision:
                weights = weights.to(q.dtype).to(exact)
            result = torch.einsum("tgn,nd->tgd", weights, values.to(exact))
            out[b, :, heads] = torch.where(some[:, None, None], result, 0)
            lse[b, :, heads] = torch.where(some[:, None], row_lse, float("-inf"))
    if low_precision:
        out = out.to(q.dtype).to(exact)
    return out, lse
