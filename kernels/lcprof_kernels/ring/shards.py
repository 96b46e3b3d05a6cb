"""How a context's tokens are dealt to the ranks of a process group."""

from __future__ import annotations

from typing import Literal

import torch

from lcprof_kernels.checks import check_one_of, require

Balance = Literal["zigzag", "contiguous"]


def chunks_of_rank(rank: int, ranks: int, balance: Balance) -> tuple[int, ...]:
    """Which chunks of the context a rank holds, in order.

    "contiguous": one of `ranks` chunks. "zigzag": chunks `rank` and `2 ranks - 1 - rank` of
    `2 ranks`, so that every rank has the same number of causal pairs (the balance of context
    parallelism in "The Llama 3 Herd of Models", 2024, section 3.3.2).
    """
    check_one_of("balance", balance, ("zigzag", "contiguous"))
    return (rank,) if balance == "contiguous" else (rank, 2 * ranks - 1 - rank)


def shard_tokens(
    whole: torch.Tensor, *, dim: int, rank: int, ranks: int, balance: Balance = "zigzag"
) -> torch.Tensor:
    """The part of `whole` that a rank holds, cut along `dim`. Raises `KernelInputError`."""
    mine = chunks_of_rank(rank, ranks, balance)
    chunks = len(mine) * ranks
    require(
        whole.shape[dim] % chunks == 0,
        f"{balance} sharding over {ranks} ranks needs a multiple of {chunks} tokens, "
        f"got {whole.shape[dim]}",
    )
    parts = whole.chunk(chunks, dim) if whole.shape[dim] else [whole] * chunks
    return torch.cat([parts[index] for index in mine], dim)


def join_tokens(
    shards: list[torch.Tensor], *, dim: int, balance: Balance = "zigzag"
) -> torch.Tensor:
    """The whole of which `shards`, one of each rank in order, are the parts."""
    ranks = len(shards)
    parts: dict[int, torch.Tensor] = {}
    for rank, shard in enumerate(shards):
        mine = chunks_of_rank(rank, ranks, balance)
        parts.update(zip(mine, shard.chunk(len(mine), dim), strict=True))
    return torch.cat([parts[index] for index in sorted(parts)], dim)
