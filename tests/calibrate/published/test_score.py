"""benchmarks/score_external.py on the held-out fixture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ROWS = ROOT / "tests" / "fixtures" / "held-out"
KEYS = {"table", "device", "framework", "subset", "rows", "declined", "median", "p90", "bias"}


def score(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/score_external.py", *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_scores_are_printed_as_objects_per_device_framework_and_subset() -> None:
    found = score(str(ROWS), "--json", "--table", "op_context_attention")
    assert found.returncode == 0, found.stderr
    objects = json.loads(found.stdout)
    assert all(set(o) >= KEYS | {"interval_coverage"} for o in objects)
    assert {o["subset"] for o in objects} == {"large", "all"}
    whole = next(o for o in objects if (o["device"], o["subset"]) == ("all", "all"))
    parts = [o for o in objects if o["device"] != "all" and o["subset"] == "all"]
    assert whole["rows"] == sum(o["rows"] for o in parts) == 100
    assert whole["declined"] == 0
    assert whole["interval_coverage"] > 0.8


def test_unknown_folders_and_tables_and_damaged_tables_are_refused(tmp_path: Path) -> None:
    assert score(str(tmp_path / "none")).returncode == 2
    unknown = score(str(ROWS), "--table", "op_gem")
    assert unknown.returncode == 2
    assert "op_gem: not one of" in unknown.stderr
    (tmp_path / "op_gemm.csv").write_text("m,n,k\n1,2,3\n")
    damaged = score(str(tmp_path))
    assert damaged.returncode == 2
    assert "op_gemm.csv" in damaged.stderr
    assert "Traceback" not in damaged.stderr


def test_what_a_stack_did_not_measure_another_stacks_calibration_predicts(tmp_path: Path) -> None:
    """Vidur has no all-reduce within a DGX A100 among the fitted rows; nccl-tests has: 67 MB over
    eight GPUs took 0.595 ms there."""
    row = "a100_dgx,all_reduce,8,8,8,67108864,0.6"
    header = "network_device,op,num_workers,devices_per_node,max_devices_per_node,size_bytes"
    (tmp_path / "vidur_network.csv").write_text(f"{header},min_over_ranks_ms\n{row}\n")
    (found, *_) = json.loads(score(str(tmp_path), "--json").stdout)
    assert (found["rows"], found["declined"], found["transported"]) == (1, 0, 1)
    assert found["median"] < 0.05


def test_an_empty_folder_has_no_scores(tmp_path: Path) -> None:
    found = score(str(tmp_path), "--json")
    assert (found.returncode, json.loads(found.stdout)) == (0, [])
