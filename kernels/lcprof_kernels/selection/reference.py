"""Selection in plain eager steps, in float64 on a CPU and float32 on a GPU."""

from __future__ import annotations

import torch


def exact_of(tensor: torch.Tensor) -> torch.dtype:
    """The type in which the oracle computes."""
    return torch.float64 if tensor.device.type == "cpu" else torch.float32


def bounds_reference(
    k_cache: torch.Tensor, *, lengths: torch.Tensor, page_table: torch.Tensor
) -> torch.Tensor:
    """Least and greatest key of every used page; 0 for the others."""
    pages, kv_heads, page_tokens, head_dim = k_cache.shape
    bounds = k_cache.new_zeros(pages, kv_heads, 2, head_dim)
    for b, length in enumerate(lengths.tolist()):
        for slot in range(-(-length // page_tokens)):
            page = int(page_table[b, slot])
            keys = k_cache[page, :, : min(page_tokens, length - slot * page_tokens)]
            bounds[page, :, 0], bounds[page, :, 1] = keys.amin(1), keys.amax(1)
    return bounds


def page_scores_reference(
    q: torch.Tensor,
    bounds: torch.Tensor,
    *,
    lengths: torch.Tensor,
    page_table: torch.Tensor,
    page_tokens: int,
) -> torch.Tensor:
    """Quest's score as its paper writes it: the sum over channels of max(q lo, q hi)."""
    exact = exact_of(q)
    batch, query_tokens, q_heads, head_dim = q.shape
    kv_heads = bounds.shape[1]
    chosen = bounds[page_table.long()].to(exact)  # [batch, max_pages, kv_heads, 2, head_dim]
    rows = q.to(exact).reshape(batch, query_tokens, kv_heads, q_heads // kv_heads, head_dim)
    products = torch.einsum("btkgd,bpkcd->bkptgcd", rows, chosen)
    scores = products.amax(-2).sum(-1).amax((-1, -2))
    slots = torch.arange(page_table.shape[1], device=q.device)
    unused = slots * page_tokens >= lengths[:, None]
    return scores.masked_fill(unused[:, None], float("-inf"))


def token_scores_reference(
    q: torch.Tensor,
    weights: torch.Tensor,
    keys: torch.Tensor,
    *,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """The indexer's scores; `keys` are `[batch, context_tokens, index_dim]`, any scale applied."""
    exact = exact_of(q)
    hits = torch.einsum("bthd,bnd->bthn", q.to(exact), keys.to(exact)).relu()
    scores = torch.einsum("bth,bthn->btn", weights.to(exact), hits)
    query_tokens, context = q.shape[1], keys.shape[1]
    visible = lengths[:, None] - torch.arange(query_tokens - 1, -1, -1, device=q.device)
    hidden = torch.arange(context, device=q.device) >= visible[..., None]
    return scores.masked_fill(hidden, float("-inf"))
