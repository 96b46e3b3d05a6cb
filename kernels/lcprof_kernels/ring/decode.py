"""Context-parallel decode: each rank holds some of every sequence's cached tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist

from lcprof_kernels.checks import check_dtype, check_one_of, check_shape, require
from lcprof_kernels.decode.api import decode_attention
from lcprof_kernels.merge.api import merge_partials


def context_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    lengths: torch.Tensor,
    page_table: torch.Tensor | None = None,
    scale: float | None = None,
    group: dist.ProcessGroup | None = None,
    impl: Literal["triton", "naive"] = "triton",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode over caches whose tokens are spread over the ranks of `group`.

    - `q`: `[local_batch, 1, q_heads, head_dim]`, the queries of this rank's own sequences; the
      ranks' sequences follow each other in the batch, and each rank has as many.
    - `k_cache`, `v_cache`: this rank's tokens of all sequences, `[batch, kv_heads, tokens,
      head_dim]`, or pages with `page_table` as in `decode_attention`.
    - `lengths`: int32 `[batch]`, how many tokens of each sequence this rank holds; may be 0.

    Queries are gathered, every rank attends to its tokens, the partial results return to the
    sequences' ranks and are merged there by their log-sum-exps. Returns out like `q` and lse
    float32 `[local_batch, 1, q_heads]`. Raises `KernelInputError`.
    """
    check_one_of("impl", impl, ("triton", "naive"))
    check_shape("q", q, (None, 1, None, None), "[local_batch, 1, q_heads, head_dim]")
    require(dist.is_initialized(), "torch.distributed has no process group yet")
    ranks = dist.get_world_size(group)
    batch = q.shape[0] * ranks
    check_shape("lengths", lengths, (batch,), "[batch]")
    check_dtype("lengths", lengths, [torch.int32])
    everyone = [torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(ranks)]
    dist.all_gather(everyone, q.contiguous(), group=group)
    out, lse = decode_attention(
        torch.cat(everyone),
        k_cache,
        v_cache,
        lengths=lengths,
        page_table=page_table,
        scale=scale,
        impl=impl,
    )
    require(lse is not None, f"impl={impl!r} gives no log-sum-exp")
    assert lse is not None  # noqa: S101 (for the type checker)
    # The output and its log-sum-exp travel as one float32 tensor: one exchange, not two.
    mine = torch.cat([out.float(), lse[..., None]], -1).contiguous()
    parts = torch.empty_like(mine)
    dist.all_to_all_single(parts, mine, group=group)
    parts = parts.reshape(ranks, q.shape[0], *parts.shape[1:])
    return merge_partials(
        parts[..., :-1],
        parts[..., -1].contiguous(),
        dtype=q.dtype,
        impl="triton" if impl == "triton" else "torch",
    )
