"""Plans one million rows into a DataFrame and prints the time and the peak memory, without and with
expected times, intervals, energy and cost.

    python benchmarks/bench_sweep.py [--repeat 5]

Five models (dense, MLA + MoE, sliding-window, hybrid, chunked) x five GPUs x four strategies x
100 contexts x 100 batch sizes = 1,000,000 rows with every column of a plan.
"""

from __future__ import annotations

import argparse
import resource
import time

import pandas as pd

from lcprof.domain.deployment import Deployment
from lcprof.plan.sweep import sweep
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.models import load_model

MODELS = ("llama-3.1-8b", "deepseek-v3", "gemma-3-27b", "qwen3-next-80b-a3b", "llama-4-scout")
GPUS = ("h100-sxm", "h200-sxm", "a100-80gb-sxm", "b200", "l40s")
KV = ("bf16", "fp8", "kivi:bits=4,group=32", "window:tokens=4096,sinks=4")


def rows(*, with_times: bool) -> pd.DataFrame:
    models = [load_model(name, where="bench") for name in MODELS]
    gpus = [load_gpu(name, where="bench") for name in GPUS]
    return sweep(
        models=models,
        deployments=[Deployment(gpu=gpu, gpus=8, tp=8) for gpu in gpus],
        kv=KV,
        context_tokens=[8192.0 * step for step in range(1, 101)],
        concurrency=[float(batch) for batch in range(1, 101)],
        with_times=with_times,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    repeats = parser.parse_args().repeat
    for with_times in (False, True):
        times, shape = [], (0, 0)
        for _ in range(repeats):
            begin = time.perf_counter()
            table = rows(with_times=with_times)
            times.append(time.perf_counter() - begin)
            shape = table.shape
            del table
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        middle = sorted(times)[len(times) // 2]
        print(f"{'with' if with_times else 'without'} expected times:", end=" ")
        print(f"{shape[0]:,} rows x {shape[1]} columns")
        print(f"  median {middle:.3f} s of {len(times)}, the first {times[0]:.3f} s")
        print(f"  peak memory so far {peak_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
