"""Token selection by a small indexer, and MLA decode over the chosen tokens.

The shape of DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, technical report, section 2.1): 64 index
heads of 128 dimensions, the best 2,048 tokens.
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
from lcprof_kernels.device import capability_of
from lcprof_kernels.mla.api import DEFAULT_SCALE, check_cache, parts_of
from lcprof_kernels.mla.fp8 import ROW
from lcprof_kernels.mla.launch import launch

from .pages import check_table
from .reference import token_scores_reference
from .triton import score_token_tiles

INDEX_DIMS = (64, 128)


def score_tokens(
    q: torch.Tensor,
    weights: torch.Tensor,
    keys: torch.Tensor,
    *,
    key_scales: torch.Tensor | None = None,
    lengths: torch.Tensor,
    page_table: torch.Tensor | None = None,
    impl: Literal["triton", "naive"] = "triton",
) -> torch.Tensor:
    """sum_h w_h ReLU(q_h . k) of every cached token: float32 `[batch, query_tokens, tokens]`.

    - `q`: bf16 `[batch, query_tokens, index_heads, index_dim]`; `weights`: float32
      `[batch, query_tokens, index_heads]`.
    - `keys`: bf16 or float8_e4m3fn `[batch, tokens, index_dim]`, or with `page_table` (int32
      `[batch, max_pages]`) `[pages, page_tokens, index_dim]`. fp8 keys have `key_scales`, float32
      of the same shape without index_dim, which must be positive.
    - `lengths`: int32 `[batch]`. Query token t sees `lengths - (query_tokens - 1 - t)` tokens; the
      others score -inf.

    Raises `KernelInputError`.
    """
    check_one_of("impl", impl, ("triton", "naive"))
    check_shape("q", q, (None,) * 4, "[batch, query_tokens, index_heads, index_dim]")
    batch, query_tokens, heads, dim = q.shape
    check_dtype("q", q, [torch.bfloat16])
    check_one_of("index_dim", dim, INDEX_DIMS)
    check_shape("weights", weights, (batch, query_tokens, heads), "[batch, query_tokens, heads]")
    check_dtype("weights", weights, [torch.float32])
    check_shape("keys", keys, (None, None, dim), "[slots, slot_tokens, index_dim]")
    check_dtype("keys", keys, [torch.bfloat16, torch.float8_e4m3fn])
    check_last_dim_dense("q", q)
    check_last_dim_dense("keys", keys)
    fp8 = keys.dtype == torch.float8_e4m3fn
    require(fp8 == (key_scales is not None), "fp8 keys, and only they, need key_scales")
    if key_scales is not None:
        check_shape("key_scales", key_scales, tuple(keys.shape[:2]), "[slots, slot_tokens]")
        check_dtype("key_scales", key_scales, [torch.float32])
        check_last_dim_dense("key_scales", key_scales)
    if page_table is None:
        require(keys.shape[0] == batch, f"keys must hold {batch} sequences, got {keys.shape[0]}")
        context = keys.shape[1]
        check_shape("lengths", lengths, (batch,), "[batch]")
        check_dtype("lengths", lengths, [torch.int32])
    else:
        check_table(lengths, page_table, batch)
        context = page_table.shape[1] * keys.shape[1]
    device = check_same_device(
        q=q, weights=weights, keys=keys, key_scales=key_scales, lengths=lengths,
        page_table=page_table,
    )  # fmt: skip
    if impl == "naive":
        wide = keys.float()
        if key_scales is not None:
            wide = wide * key_scales[..., None]
        if page_table is not None:
            wide = wide[page_table.long()].flatten(1, 2)
        return token_scores_reference(q, weights, wide, lengths=lengths).float()
    check_triton_device(device)
    scores = torch.empty(batch, query_tokens, context, dtype=torch.float32, device=device)
    if scores.numel() == 0:
        return scores
    block_n = 128
    score_token_tiles[(triton.cdiv(context, block_n), query_tokens, batch)](
        q,
        weights.contiguous(),
        keys.view(torch.uint8) if fp8 else keys,
        scores if key_scales is None else key_scales,
        lengths if page_table is None else page_table,
        lengths,
        scores,
        context,
        query_tokens,
        q.stride(0),
        q.stride(1),
        q.stride(2),
        keys.stride(0),
        keys.stride(1),
        0 if key_scales is None else key_scales.stride(0),
        0 if page_table is None else page_table.stride(0),
        PAGE=0 if page_table is None else keys.shape[1],
        FP8=fp8,
        NATIVE=capability_of(device) >= (8, 9),
        HEADS=heads,
        BLOCK_H=max(16, triton.next_power_of_2(heads)),
        DIM=dim,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return scores


def select_tokens(scores: torch.Tensor, count: int = 2048) -> torch.Tensor:
    """Positions of the `count` best tokens, int32 `[batch, query_tokens, count]`.

    Where fewer than `count` are visible (score above -inf) the last entries are -1.
    """
    require(count >= 1, f"count must be positive, got {count}")
    best, positions = scores.topk(min(count, scores.shape[-1]), dim=-1)
    chosen = positions.masked_fill(best == float("-inf"), -1).to(torch.int32)
    return torch.nn.functional.pad(chosen, (0, count - chosen.shape[-1]), value=-1)


def sparse_mla_decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    indices: torch.Tensor,
    *,
    page_table: torch.Tensor | None = None,
    scale: float = DEFAULT_SCALE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Absorbed MLA decode in which each query token attends to its own list of tokens.

    `q` and `cache` as for `mla_decode`; `indices` int32 `[batch, query_tokens, count]` are
    positions in the sequence, -1 last where a list is shorter. Neighbouring slots of the cache
    must follow each other without gaps. Returns out and lse like `mla_decode`.

    Raises `KernelInputError`.
    """
    check_shape("q", q, (None, None, None, ROW), "[batch, query_tokens, q_heads, 576]")
    check_dtype("q", q, [torch.bfloat16])
    check_last_dim_dense("q", q)
    batch, query_tokens, heads, _ = q.shape
    check_shape("indices", indices, (batch, query_tokens, None), "[batch, query_tokens, count]")
    check_dtype("indices", indices, [torch.int32])
    check_cache(
        cache, batch=batch, lengths=torch.zeros(batch, dtype=torch.int32), page_table=page_table
    )
    slots, slot_tokens = cache.shape[:2]
    require(
        slots <= 1 or cache.stride(0) == slot_tokens * cache.stride(1),
        "the cache's slots must follow each other without gaps",
    )
    require(slots * slot_tokens < 2**31, "the cache must hold fewer than 2**31 tokens")
    device = check_same_device(q=q, cache=cache, indices=indices, page_table=page_table)
    check_triton_device(device)
    position = indices.clamp_min(0)
    if page_table is None:
        slot = torch.arange(batch, device=device, dtype=torch.int32)[:, None, None]
    else:
        pages = (position // slot_tokens).flatten(1).long()
        slot = page_table.gather(1, pages).view_as(position)
    rows = slot * slot_tokens + position % slot_tokens
    latent, rope, scales = parts_of(cache)
    step = cache.stride(1) * cache.element_size() // 16
    out, lse = launch(
        q.reshape(batch * query_tokens, 1, heads, ROW),
        latent,
        rope,
        scales,
        slot_stride=step,
        token_stride=step,
        lengths=(indices >= 0).sum(-1, dtype=torch.int32).flatten(),
        page_table=rows.flatten(0, 1).contiguous(),
        page_tokens=1,
        context_tokens=indices.shape[-1],
        scale=scale,
    )
    return (
        out.reshape(batch, query_tokens, heads, -1),
        lse.reshape(batch, query_tokens, heads),
    )
