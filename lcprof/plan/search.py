"""The inverse questions: the largest context, the most sequences, the fewest GPUs that fit.

Each is a bisection over the same memory formula that the plan itself uses; memory never shrinks
when a context or a batch grows, so the answer is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from lcprof.cost.memory import memory
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import KvStrategy
from lcprof.domain.model import ModelShape
from lcprof.domain.workload import Workload
from lcprof.num import Num, choose, floor

LIMIT_BITS = 32
LIMIT = float(2**LIMIT_BITS)
"""An answer of `LIMIT` means that nothing within 4 billion tokens or sequences is too much."""


def largest(fits: Callable[[Num], Any], like: Num) -> Num:
    """The largest whole number up to `LIMIT` for which `fits` holds, 0 when none does; element by
    element in the shape of `like`. `fits` must not come back once it has failed."""
    low = like * 0.0
    high = like * 0.0 + LIMIT
    for _ in range(LIMIT_BITS + 1):
        middle: Num = floor((low + high + 1.0) / 2.0)
        good = fits(middle)
        low, high = choose(good, middle, low), choose(good, high, middle - 1.0)
    return low


def max_context_tokens(
    model: ModelShape,
    deployment: Deployment,
    kv: KvStrategy,
    workload: Workload[Num],
    capacity_bytes: Any,
) -> Num:
    """The longest prompt that fits at `workload.concurrency`; `model` as the strategy remakes it.

    0 when no token fits beside the prefix; `LIMIT` or more when memory does not bound it.
    """
    prefix = workload.prefix_tokens

    def fits(new_tokens: Num) -> Any:
        asked = replace(workload, context_tokens=new_tokens + prefix)
        return memory(model, deployment, kv, asked).total_bytes <= capacity_bytes

    found: Num = largest(fits, workload.concurrency + capacity_bytes * 0.0)
    answer: Num = choose(found > 0.0, found + prefix, 0.0)
    return answer


def max_concurrency(
    model: ModelShape,
    deployment: Deployment,
    kv: KvStrategy,
    workload: Workload[Num],
    capacity_bytes: Any,
) -> Num:
    """The most sequences of `workload.context_tokens` that fit at once."""

    def fits(sequences: Num) -> Any:
        asked = replace(workload, concurrency=sequences)
        return memory(model, deployment, kv, asked).total_bytes <= capacity_bytes

    found: Num = largest(fits, workload.context_tokens + capacity_bytes * 0.0)
    return found
