"""What a fresh process loads, and how long it takes to plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"numpy", "pandas", "torch", "triton", "altair", "vl_convert", "pynvml", "lcprof_kernels"}
UNASKED = ("lcprof.cost.engine", "lcprof.calibrate", "lcprof.report.launch",
           "lcprof.report.engine", "lcprof.report.accuracy", "lcprof.scenario.engines",
           "lcprof.scenario.accuracy", "lcprof.report.html", "lcprof.report.markdown",
           "lcprof.plan.study")  # fmt: skip
SLOW = {"importlib.metadata", "asyncio", "http.client", "huggingface_hub"}
PLAN = [sys.executable, "-m", "lcprof", "plan", "scenarios/smoke.yaml"]
YARDSTICK = [sys.executable, "-c", "import click, rich.table, yaml"]
MOST_TIMES = 3.0
TRIES = 6


def loaded(code: str) -> set[str]:
    """The modules of a fresh interpreter after `code`."""
    program = f"import json, sys\n{code}\nprint(json.dumps(list(sys.modules)), file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(ran.stderr.splitlines()[-1]))


def plan_code(*arguments: str) -> str:
    return f"from lcprof.cli import main\nmain({['plan', *arguments]!r})"


def test_importing_the_package_loads_nothing_of_it() -> None:
    modules = loaded("import lcprof")
    assert {name for name in modules if name.startswith("lcprof")} == {"lcprof"}
    assert not modules & {"msgspec", "yaml", "click", "rich"}


def test_a_plan_from_python_loads_no_heavy_library() -> None:
    modules = loaded("import lcprof\nlcprof.plan_scenario('scenarios/smoke.yaml')[0].columns()")
    assert "lcprof.plan.row" in modules
    assert not modules & (HEAVY | SLOW)


@pytest.mark.parametrize(
    "arguments",
    [
        ["scenarios/smoke.yaml"],
        ["scenarios/llama-3.1-8b-1m-one-h200.yaml"],
        ["scenarios/smoke.yaml", "--json"],
        ["scenarios/smoke.yaml", "--explain"],
        ["scenarios/smoke.yaml", "--kv", "nonsense"],
    ],
    ids=" ".join,
)
def test_a_plan_loads_no_heavy_library(arguments: list[str]) -> None:
    modules = loaded(plan_code(*arguments))
    assert "lcprof.plan.row" in modules
    assert not modules & (HEAVY | SLOW)
    assert not {name for name in modules if name.startswith(UNASKED)}


def test_engines_and_accuracy_load_no_heavy_library() -> None:
    modules = loaded(plan_code("scenarios/smoke.yaml", "--engine", "vllm"))
    assert "lcprof.cost.engine.reserve" in modules
    assert not modules & (HEAVY | SLOW)
    assert not loaded("from lcprof.cli import main\nmain(['accuracy'])") & (HEAVY | SLOW)


def test_markdown_needs_no_charts() -> None:
    modules = loaded(plan_code("scenarios/smoke.yaml", "--markdown"))
    assert "lcprof.report.markdown" in modules
    assert not modules & HEAVY


def test_json_needs_no_terminal_library() -> None:
    modules = loaded(plan_code("scenarios/smoke.yaml", "--json"))
    assert not {name for name in modules if name.partition(".")[0] == "rich"}


def best_s(command: list[str], environ: dict[str, str]) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, check=True)
        best = min(best, time.perf_counter() - start)
    return best


def test_a_cold_plan_is_quick(tmp_path: Path) -> None:
    # Modules are compiled beforehand, as those of an installed package are.
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    ratios = []
    for _ in range(TRIES):
        ratios.append(best_s(PLAN, environ) / best_s(YARDSTICK, environ))
        if ratios[-1] <= MOST_TIMES:
            return
    pytest.fail(f"a cold plan takes {min(ratios):.2f} times the imports alone, more than 3")
