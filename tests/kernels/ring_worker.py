"""The ranks of the ring tests: each computes, compares with the whole, prints what is wrong.

    python ring_worker.py RANKS STORE SEED

One process imports everything once and forks the ranks.
"""

from __future__ import annotations

import multiprocessing
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from lcprof_kernels.attention.api import attention_with_lse
from lcprof_kernels.decode.reference import decode_reference
from lcprof_kernels.ring import context_decode, context_prefill, join_tokens, shard_tokens


def compare(name: str, found: torch.Tensor, want: torch.Tensor, faults: list[str]) -> None:
    error = (found.double() - want.double()).abs().nan_to_num(nan=0.0).max().item()
    same = torch.equal(torch.isinf(found), torch.isinf(want))
    if found.shape != want.shape or not same or error > 0.02:
        faults.append(f"{name}: {list(found.shape)} for {list(want.shape)}, error {error}")


def prefill(rank: int, ranks: int, faults: list[str]) -> None:
    batch, tokens, q_heads, kv_heads, dim = 2, 16 * ranks, 4, 2, 32
    q = torch.randn(batch, tokens, q_heads, dim).to(torch.bfloat16)
    k, v = torch.randn(2, batch, kv_heads, tokens, dim).to(torch.bfloat16)
    for causal in (True, False):
        want, want_lse = attention_with_lse(q, k, v, causal=causal, impl="naive")
        for balance in ("zigzag", "contiguous"):
            where = {"rank": rank, "ranks": ranks, "balance": balance}
            mine = shard_tokens(q, dim=1, **where)
            keys, values = (shard_tokens(x, dim=2, **where) for x in (k, v))
            for exchange in ("ring", "all_gather"):
                out, lse = context_prefill(
                    mine, keys, values, causal=causal, balance=balance, exchange=exchange,
                    impl="naive",
                )  # fmt: skip
                name = f"prefill {exchange} {balance} causal={causal}"
                compare(name, out, shard_tokens(want, dim=1, **where), faults)
                compare(name + " lse", lse, shard_tokens(want_lse, dim=1, **where), faults)
    shards = [shard_tokens(q, dim=1, rank=r, ranks=ranks) for r in range(ranks)]
    if not torch.equal(join_tokens(shards, dim=1), q):
        faults.append("join_tokens does not undo shard_tokens")


def decode(rank: int, ranks: int, faults: list[str]) -> None:
    batch, q_heads, kv_heads, dim, slots = 2 * ranks, 4, 2, 64, 16
    q = torch.randn(batch, 1, q_heads, dim).to(torch.bfloat16)
    k, v = torch.randn(2, batch, kv_heads, ranks * slots, dim).to(torch.bfloat16)
    held = torch.randint(0, slots + 1, (ranks, batch), dtype=torch.int32)
    held[:, 0] = 0
    held[0, 1] = 0
    here = slice(rank * slots, (rank + 1) * slots)
    local = slice(rank * 2, rank * 2 + 2)
    out, lse = context_decode(
        q[local], k[:, :, here], v[:, :, here], lengths=held[rank], impl="naive"
    )
    for b in range(local.start, local.stop):
        seen = [r * slots + t for r in range(ranks) for t in range(int(held[r, b]))]
        want, want_lse = decode_reference(
            q[b : b + 1], k[b : b + 1, :, seen], v[b : b + 1, :, seen]
        )
        row = slice(b - local.start, b - local.start + 1)
        compare(f"decode {b}", out[row], want.to(out.dtype), faults)
        compare(f"decode {b} lse", lse[row], want_lse.float(), faults)


def run_rank(rank: int, ranks: int, store: str, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )
    faults: list[str] = []
    prefill(rank, ranks, faults)
    decode(rank, ranks, faults)
    dist.destroy_process_group()
    for fault in faults:
        print(f"rank {rank} of {ranks}: {fault}")
    sys.exit(1 if faults else 0)


def main() -> None:
    fork = multiprocessing.get_context("fork")
    wrong = 0
    for ranks in map(int, sys.argv[1].split(",")):
        settings = (ranks, f"{sys.argv[2]}-{ranks}", int(sys.argv[3]))
        workers = [fork.Process(target=run_rank, args=(rank, *settings)) for rank in range(ranks)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            wrong += worker.exitcode != 0
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
