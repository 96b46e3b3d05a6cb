"""Context-parallel prefill and decode with several gloo processes, against one process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lcprof_kernels.errors import KernelInputError
from lcprof_kernels.ring import context_prefill, shard_tokens
from lcprof_kernels.ring.shards import chunks_of_rank

HERE = Path(__file__).resolve().parent


def test_two_and_four_ranks_agree_with_one_process(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    paths = [str(HERE.parent.parent / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", str(HERE / "ring_worker.py"), "2,4",
            str(tmp_path / "store"), str(seed),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr[-2000:]}"


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_zigzag_gives_every_rank_the_same_causal_work(ranks: int) -> None:
    work = {sum(chunks_of_rank(rank, ranks, "zigzag")) for rank in range(ranks)}
    assert work == {2 * ranks - 1}
    held = sorted(c for rank in range(ranks) for c in chunks_of_rank(rank, ranks, "zigzag"))
    assert held == list(range(2 * ranks))


def test_tokens_that_cannot_be_dealt_are_refused() -> None:
    with pytest.raises(KernelInputError, match="multiple of 4"):
        shard_tokens(torch.zeros(1, 6), dim=1, rank=0, ranks=2)


def test_a_missing_process_group_is_refused() -> None:
    q = torch.zeros(1, 2, 2, 32, dtype=torch.bfloat16)
    with pytest.raises(KernelInputError, match="process group"):
        context_prefill(q, q.transpose(1, 2), q.transpose(1, 2), impl="naive")
