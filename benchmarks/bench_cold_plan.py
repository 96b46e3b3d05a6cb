"""How long `lcprof plan` takes from a cold start, beside importing its libraries alone.

Run: python benchmarks/bench_cold_plan.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
YARDSTICK = [sys.executable, "-c", "import click, rich.table, yaml"]
PLAN = [sys.executable, "-m", "lcprof", "plan", "scenarios/smoke.yaml"]
RUNS = 15


def best_s(commands: list[list[str]], environ: Mapping[str, str], runs: int = RUNS) -> list[float]:
    """The shortest wall time of each command, the commands taking turns."""
    best = [float("inf")] * len(commands)
    for _ in range(runs):
        for index, command in enumerate(commands):
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, check=True)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def compiled(folder: str) -> dict[str, str]:
    """An environment in which Python keeps compiled modules, as an installed package has them."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**environ, "PYTHONPYCACHEPREFIX": folder}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        yardstick_s, plan_s = best_s([YARDSTICK, PLAN], compiled(folder))
    print(f"import click, rich.table, yaml   {yardstick_s * 1e3:6.1f} ms")
    print(f"lcprof plan scenarios/smoke.yaml {plan_s * 1e3:6.1f} ms")
    print(f"ratio                            {plan_s / yardstick_s:6.2f} (bar: 3)")
