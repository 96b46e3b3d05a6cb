"""Committed results say what their commands print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_kernel_bars_are_those_of_the_timings() -> None:
    folder = ROOT / "reports" / "kernels-h200"
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kernel_bars.py"), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.count("\n") > 15
    assert ran.stdout in (folder / "README.md").read_text(encoding="utf-8")
