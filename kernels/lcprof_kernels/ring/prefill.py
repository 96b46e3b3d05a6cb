"""Context-parallel prefill: every rank holds a part of the tokens and attends to all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist

from lcprof_kernels.attention.api import attention_with_lse
from lcprof_kernels.checks import check_one_of, check_same_device, check_shape, require
from lcprof_kernels.merge.api import merge_partials

from .shards import Balance, chunks_of_rank, join_tokens

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], "Partial"]
Partial = tuple[torch.Tensor, torch.Tensor]


def context_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    balance: Balance = "zigzag",
    exchange: Literal["ring", "all_gather"] = "ring",
    group: dist.ProcessGroup | None = None,
    impl: Literal["triton", "naive"] = "triton",
) -> Partial:
    """Attention over a context whose tokens are dealt to the ranks of `group`.

    Each rank gives its own shard, as `shard_tokens` deals it: `q` `[batch, local_tokens, q_heads,
    head_dim]`, `k` and `v` `[batch, kv_heads, local_tokens, head_dim]`, of the same size on every
    rank. Returns its shard of the output and of the log-sum-exp (float32, natural logarithm).

    `exchange="ring"` passes keys and values from rank to rank while it computes, and merges the
    results by their log-sum-exps (Ring Attention, Liu et al., 2023); it holds two shards of keys
    and values at a time. "all_gather" first collects all of them. `balance="zigzag"` gives every
    rank the same causal work. `impl` names the attention within a rank, as in `attention`.

    Raises `KernelInputError`.
    """
    check_one_of("exchange", exchange, ("ring", "all_gather"))
    check_one_of("impl", impl, ("triton", "naive"))
    check_shape("q", q, (None,) * 4, "[batch, local_tokens, q_heads, head_dim]")
    batch, tokens, _, head_dim = q.shape
    check_shape("k", k, (batch, None, tokens, head_dim), "[batch, kv_heads, tokens, head_dim]")
    check_shape("v", v, (batch, k.shape[1], tokens, None), "[batch, kv_heads, tokens, head_dim]")
    check_same_device(q=q, k=k, v=v)
    require(dist.is_initialized(), "torch.distributed has no process group yet")
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    held = len(chunks_of_rank(rank, ranks, balance))
    require(tokens % held == 0, f"{balance} shards hold an even number of tokens, got {tokens}")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> Partial:
        return attention_with_lse(q, k, v, causal=causal, scale=scale, impl=impl)

    if exchange == "all_gather":
        return gather_and_attend(q, k, v, causal, balance, group, attend)
    return pass_and_attend(q, k, v, causal, balance, group, attend, impl)


def gather_and_attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    balance: Balance,
    group: dist.ProcessGroup | None,
    attend: Attend,
) -> Partial:
    """Collect all keys and values, then attend with each chunk of queries to what it may see."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    whole = []
    for mine in (k.contiguous(), v.contiguous()):
        shards = [torch.empty_like(mine) for _ in range(ranks)]
        dist.all_gather(shards, mine, group=group)
        whole.append(join_tokens(shards, dim=2, balance=balance))
    keys, values = whole
    if not causal:
        return attend(q, keys, values, False)
    mine_chunks = chunks_of_rank(rank, ranks, balance)
    size = q.shape[1] // len(mine_chunks)
    results = []
    for place, chunk in enumerate(mine_chunks):
        queries = q[:, place * size : (place + 1) * size]
        end = (chunk + 1) * size
        results.append(attend(queries, keys[:, :, :end], values[:, :, :end], True))
    return torch.cat([out for out, _ in results], 1), torch.cat([lse for _, lse in results], 1)


def pass_and_attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    balance: Balance,
    group: dist.ProcessGroup | None,
    attend: Attend,
    impl: str,
) -> Partial:
    """Pass keys and values around the ring; add each arriving shard's result to the rows it meets.

    While a shard is attended to, the next one travels.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    half = q.shape[1] // 2
    out: torch.Tensor | None = None
    lse: torch.Tensor | None = None
    shard = (k.contiguous(), v.contiguous())
    for step in range(ranks):
        source = (rank - step) % ranks
        arriving = shard
        transfers: list[dist.Work] = []
        if step + 1 < ranks:
            arriving, transfers = pass_on(shard, rank, ranks, group)
        keys, values = shard
        rows = slice(None)
        part: Partial | None
        if not causal or source == rank:
            # A shard's chunks are in order, so its own queries meet its own keys causally.
            part = attend(q, keys, values, causal)
        elif balance == "contiguous":
            part = attend(q, keys, values, False) if source < rank else None
        elif source < rank:
            # The source's early chunk precedes both of this rank's, its late chunk follows both.
            part = attend(q, keys[:, :, :half], values[:, :, :half], False)
        else:
            # Both chunks of the source lie between this rank's early and late chunk.
            rows = slice(half, None)
            part = attend(q[:, rows], keys, values, False)
        if part is not None:
            if out is None or lse is None:
                out, lse = part[0].float(), part[1].clone()
            else:
                add_part(out, lse, rows, part, "triton" if impl == "triton" else "torch")
        for transfer in transfers:
            transfer.wait()
        shard = arriving
    require(out is not None and lse is not None, "a ring needs at least one rank")
    assert out is not None  # noqa: S101 (for the type checker)
    assert lse is not None  # noqa: S101 (for the type checker)
    return out.to(q.dtype), lse


def add_part(
    out: torch.Tensor,
    lse: torch.Tensor,
    rows: slice,
    part: Partial,
    impl: Literal["triton", "torch"],
) -> None:
    """Merge a result for some of the rows into `out` (float32) and `lse`, in place."""
    merged, total = merge_partials(
        torch.stack([out[:, rows], part[0].float()]),
        torch.stack([lse[:, rows], part[1]]),
        impl=impl,
    )
    out[:, rows] = merged
    lse[:, rows] = total


def pass_on(
    shard: tuple[torch.Tensor, torch.Tensor],
    rank: int,
    ranks: int,
    group: dist.ProcessGroup | None,
) -> tuple[tuple[torch.Tensor, torch.Tensor], list[dist.Work]]:
    """Begin to send a shard to the next rank and to receive that of the one before."""
    arriving = (torch.empty_like(shard[0]), torch.empty_like(shard[1]))
    after, before = (rank + 1) % ranks, (rank - 1) % ranks
    if group is not None:
        after, before = dist.get_global_rank(group, after), dist.get_global_rank(group, before)
    wishes = [dist.P2POp(dist.isend, part, after, group) for part in shard]
    wishes += [dist.P2POp(dist.irecv, part, before, group) for part in arriving]
    return arriving, dist.batch_isend_irecv(wishes)
