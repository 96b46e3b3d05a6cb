"""Times pages and prints their sizes: three scenarios, a million rows, and the runs that are given.

Run: python benchmarks/bench_pages.py [RUN]...
Bars: under 3 s after the plan, with the libraries put together anew for each page; under 2 MB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = ("smoke", "llama-3.1-8b-1m-one-h200", "deepseek-v3-1m-16x-h200")
BAR_S, BAR_BYTES = 3.0, 2_000_000


def million(folder: Path) -> Path:
    """A scenario of 4 strategies x 500 contexts x 500 batches."""
    path = ROOT / "scenarios" / f"{SCENARIOS[1]}.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    scenario["kv"] = ["bf16", "fp8", "int8", "kivi:bits=4,group=32,residual=128"]
    scenario["context"] = [4096 + 2048 * step for step in range(500)]
    scenario["concurrency"] = list(range(1, 501))
    made = folder / "million-rows.yaml"
    made.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    return made


def timed(source: Path) -> tuple[int, float, float, float, int]:
    """Rows or points, seconds of planning or reading, of the page, those of them that the processor
    worked (others may be waiting for it too), and the page's bytes."""
    from lcprof.flags import plan_asked
    from lcprof.measure.record import read_record
    from lcprof.pages import page_record
    from lcprof.report.html.page import html_page

    begun = time.perf_counter()
    asked, runs = None, []
    if source.suffix == ".yaml":
        asked = plan_asked(str(source), {}, (), wide=True)
    else:
        runs = [read_record(source)]
    planned, worked = time.perf_counter(), time.process_time()
    page = html_page(page_record(asked, runs, f"lcprof report {source.name}"))
    done = time.perf_counter()
    rows = asked.planned if asked is not None else len(runs[0].rows)
    worked_s = time.process_time() - worked
    return rows, planned - begun, done - planned, worked_s, len(page.encode())


def main() -> int:
    """Prints a line for each page, each from a process of its own; 1 when one misses a bar."""
    if sys.argv[1:2] == ["--one"]:
        print(*timed(Path(sys.argv[2])))
        return 0
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        sources = [ROOT / "scenarios" / f"{name}.yaml" for name in SCENARIOS]
        sources += [million(Path(folder)), *map(Path, sys.argv[1:])]
        print(f"{'page of':34} {'rows':>9} {'plan':>7} {'page':>7} {'of CPU':>7} {'size':>8}")
        for source in sources:
            ran = subprocess.run(
                [sys.executable, __file__, "--one", str(source)],
                capture_output=True,
                text=True,
                check=True,
            )
            rows, plan_s, page_s, cpu_s, size = ran.stdout.split()
            missed += float(page_s) > BAR_S or int(size) > BAR_BYTES
            print(
                f"{source.stem:34} {int(rows):>9,} {float(plan_s):>5.2f} s {float(page_s):>5.2f} s "
                f"{float(cpu_s):>5.2f} s {int(size) / 1e6:>5.2f} MB"
            )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
