"""What runs under Nsight Compute: `python -m lcprof.measure.counted [POINT]`, a point as JSON.

The profiler is on for one call, after one that compiles the kernels; without a point it is a small
sum, which shows whether counters can be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct


class Asked(Struct, frozen=True, kw_only=True):
    """The point to run."""

    operation: str
    shape: Mapping[str, int | float | str]
    implementation: str


def main(arguments: Sequence[str]) -> int:
    """Runs the call twice, the second time for the profiler."""
    import torch

    run: Callable[[], Any]
    if arguments:
        from lcprof.measure.work import prepare

        asked = Asked(**json.loads(arguments[0]))
        run = prepare(asked, torch.device("cuda", 0)).run
    else:
        run = torch.ones(1 << 20, device="cuda").sum
    run()
    torch.cuda.synchronize()
    profiler = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    profiler.cudaProfilerStart()
    run()
    torch.cuda.synchronize()
    profiler.cudaProfilerStop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
