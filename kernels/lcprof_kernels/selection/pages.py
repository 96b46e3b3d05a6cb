"""Quest: score pages by bounds of their keys, attend to the best ones of a full paged cache.

Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference" (2024).
"""

from __future__ import annotations

from typing import Literal

import torch
import triton

from lcprof_kernels.checks import (
    check_dtype,
    check_last_dim_dense,
    check_one_of,
    check_same_device,
    check_shape,
    check_triton_device,
    require,
)
from lcprof_kernels.decode.api import decode_attention

from .reference import bounds_reference, page_scores_reference
from .triton import bound_pages, score_page_tiles

DTYPES = (torch.bfloat16, torch.float16)
Impl = Literal["triton", "naive"]


def check_table(lengths: torch.Tensor, page_table: torch.Tensor, batch: int | None) -> None:
    """int32 lengths [batch] and page table [batch, max_pages]."""
    check_shape("page_table", page_table, (batch, None), "[batch, max_pages]")
    check_dtype("page_table", page_table, [torch.int32])
    check_last_dim_dense("page_table", page_table)
    check_shape("lengths", lengths, (page_table.shape[0],), "[batch]")
    check_dtype("lengths", lengths, [torch.int32])


def page_bounds(
    k_cache: torch.Tensor,
    *,
    lengths: torch.Tensor,
    page_table: torch.Tensor,
    bounds: torch.Tensor | None = None,
    new_tokens: int | None = None,
    impl: Impl = "triton",
) -> torch.Tensor:
    """Least and greatest key of each page, head and channel: `[pages, kv_heads, 2, head_dim]`.

    `k_cache` is `[pages, kv_heads, page_tokens, head_dim]`, `lengths` int32 `[batch]`, `page_table`
    int32 `[batch, max_pages]`. With `bounds` and `new_tokens` only the pages that hold one of each
    sequence's newest `new_tokens` tokens are bounded again, in place. Raises `KernelInputError`.
    """
    check_one_of("impl", impl, ("triton", "naive"))
    check_shape("k_cache", k_cache, (None,) * 4, "[pages, kv_heads, page_tokens, head_dim]")
    check_dtype("k_cache", k_cache, DTYPES)
    check_last_dim_dense("k_cache", k_cache)
    check_table(lengths, page_table, None)
    pages, kv_heads, page_tokens, head_dim = k_cache.shape
    require(
        (bounds is None) == (new_tokens is None), "bounds and new_tokens must be given together"
    )
    require(new_tokens is None or new_tokens >= 1, f"new_tokens must be positive, got {new_tokens}")
    device = check_same_device(
        k_cache=k_cache, lengths=lengths, page_table=page_table, bounds=bounds
    )
    shape = (pages, kv_heads, 2, head_dim)
    if bounds is not None:
        check_shape("bounds", bounds, shape, "[pages, kv_heads, 2, head_dim]")
        check_dtype("bounds", bounds, [k_cache.dtype])
        require(bounds.is_contiguous(), "bounds must be contiguous")
    if impl == "naive":
        whole = bounds_reference(k_cache, lengths=lengths, page_table=page_table)
        return whole if bounds is None else bounds.copy_(whole)
    check_triton_device(device)
    batch, max_pages = page_table.shape
    touched = max_pages
    if bounds is None:
        bounds = torch.zeros(shape, dtype=k_cache.dtype, device=device)
    if new_tokens is not None:
        touched = min(max_pages, (new_tokens + page_tokens - 2) // page_tokens + 1)
    if 0 in (touched, kv_heads, batch):
        return bounds
    bound_pages[(touched, kv_heads, batch)](
        k_cache,
        page_table,
        lengths,
        bounds,
        max_pages * page_tokens if new_tokens is None else new_tokens,
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        page_table.stride(0),
        kv_heads,
        PAGE=page_tokens,
        DIM=head_dim,
        BLOCK_P=triton.next_power_of_2(page_tokens),
        BLOCK_D=triton.next_power_of_2(head_dim),
        num_warps=4 if page_tokens * head_dim <= 8192 else 8,
    )
    return bounds


def score_pages(
    q: torch.Tensor,
    bounds: torch.Tensor,
    *,
    lengths: torch.Tensor,
    page_table: torch.Tensor,
    page_tokens: int,
    impl: Impl = "triton",
) -> torch.Tensor:
    """The largest score that any key of a page could have: float32 `[batch, kv_heads, max_pages]`.

    `q` is `[batch, query_tokens, q_heads, head_dim]`, `bounds` as from `page_bounds`. The score of
    a page is sum_d max(q_d lo_d, q_d hi_d) (Quest, section 3.2), for a KV head that of its best
    query head and query token. -inf for pages past a sequence's length. Raises `KernelInputError`.
    """
    check_one_of("impl", impl, ("triton", "naive"))
    check_shape("q", q, (None,) * 4, "[batch, query_tokens, q_heads, head_dim]")
    batch, query_tokens, q_heads, head_dim = q.shape
    check_shape("bounds", bounds, (None, None, 2, head_dim), "[pages, kv_heads, 2, head_dim]")
    check_dtype("q", q, DTYPES)
    check_dtype("bounds", bounds, [q.dtype])
    check_last_dim_dense("q", q)
    require(bounds.is_contiguous(), "bounds must be contiguous")
    check_table(lengths, page_table, batch)
    kv_heads = bounds.shape[1]
    require(
        kv_heads > 0 and q_heads % kv_heads == 0,
        f"q_heads must be a multiple of kv_heads, got {q_heads} and {kv_heads}",
    )
    device = check_same_device(q=q, bounds=bounds, lengths=lengths, page_table=page_table)
    if impl == "naive":
        return page_scores_reference(
            q, bounds, lengths=lengths, page_table=page_table, page_tokens=page_tokens
        ).float()
    check_triton_device(device)
    max_pages = page_table.shape[1]
    scores = torch.empty(batch, kv_heads, max_pages, dtype=torch.float32, device=device)
    if scores.numel() == 0:
        return scores
    rows = query_tokens * (q_heads // kv_heads)
    block_n = 64
    score_page_tiles[(triton.cdiv(max_pages, block_n), kv_heads, batch)](
        q,
        bounds,
        page_table,
        lengths,
        scores,
        q.stride(0),
        q.stride(1),
        q.stride(2),
        page_table.stride(0),
        max_pages,
        kv_heads,
        GROUP=q_heads // kv_heads,
        ROWS=rows,
        BLOCK_R=max(16, triton.next_power_of_2(rows)),
        DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        PAGE=page_tokens,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return scores


def select_pages(
    scores: torch.Tensor,
    *,
    lengths: torch.Tensor,
    page_table: torch.Tensor,
    page_tokens: int,
    pages: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `pages` pages of each sequence and KV head, the newest page always among them.

    Returns page numbers int32 `[batch, kv_heads, pages]` in the order of the sequence (so that only
    the last may be partly filled) and how many tokens they hold, int32 `[batch, kv_heads]`.
    """
    require(pages >= 1, f"pages must be positive, got {pages}")
    batch, kv_heads, max_pages = scores.shape
    count = min(pages, max_pages)
    used = (lengths.long() + page_tokens - 1) // page_tokens
    newest = (used - 1).clamp_min(0)[:, None, None].expand(batch, kv_heads, 1)
    best, slots = scores.scatter(2, newest, float("inf")).topk(count, dim=2)
    slots = slots.masked_fill(best == float("-inf"), max_pages).sort(dim=2).values
    table = page_table[:, None].expand(batch, kv_heads, max_pages)
    chosen = table.gather(2, slots.clamp_max(max_pages - 1))
    full = (used.clamp_max(count) - 1) * page_tokens
    tokens = torch.where(lengths > 0, full + lengths - newest[:, 0, 0] * page_tokens, 0)
    return chosen.to(torch.int32), tokens.to(torch.int32)[:, None].expand(batch, kv_heads)


def quest_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    bounds: torch.Tensor,
    *,
    lengths: torch.Tensor,
    page_table: torch.Tensor,
    pages: int,
    scale: float | None = None,
    impl: Impl = "triton",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to the best `pages` pages of each KV head; the newest page is always one of them.

    `q` is `[batch, 1, q_heads, head_dim]`, the caches `[pages, kv_heads, page_tokens, head_dim]`
    and dense, `bounds` as from `page_bounds`. Returns out like `q` and lse float32
    `[batch, 1, q_heads]` over the tokens attended to. Raises `KernelInputError`.
    """
    check_shape("q", q, (None, 1, None, None), "[batch, 1, q_heads, head_dim]")
    check_shape("k_cache", k_cache, (None,) * 4, "[pages, kv_heads, page_tokens, head_dim]")
    require(
        k_cache.is_contiguous() and v_cache.is_contiguous(),
        "k_cache and v_cache must be contiguous: each KV head reads its own list of pages",
    )
    batch, _, q_heads, head_dim = q.shape
    total, kv_heads, page_tokens, _ = k_cache.shape
    scores = score_pages(
        q, bounds, lengths=lengths, page_table=page_table, page_tokens=page_tokens, impl=impl
    )
    chosen, tokens = select_pages(
        scores, lengths=lengths, page_table=page_table, page_tokens=page_tokens, pages=pages
    )
    heads = torch.arange(kv_heads, device=q.device, dtype=torch.int32)[:, None]
    group = q_heads // kv_heads
    out, lse = decode_attention(
        q.reshape(batch * kv_heads, 1, group, head_dim),
        k_cache.view(total * kv_heads, 1, page_tokens, head_dim),
        v_cache.view(total * kv_heads, 1, page_tokens, head_dim),
        lengths=tokens.flatten().contiguous(),
        page_table=(chosen * kv_heads + heads).flatten(0, 1),
        scale=scale,
        impl=impl,
    )
    require(lse is not None, f"impl={impl!r} gives no log-sum-exp")
    assert lse is not None  # noqa: S101 (for the type checker)
    return out.reshape(q.shape), lse.reshape(batch, 1, q_heads)
