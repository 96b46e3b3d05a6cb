"""`lcprof measure --device cpu` killed and resumed: RUN SCENARIO KILLS.

Everything is imported once; each run is a fork of this process. After each kill the record is
copied to `after-NUMBER.jsonl` beside RUN, and a last run goes to its end.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from lcprof.cli import main

POINTS_PART = 8
"""A run lives an eighth of what all points take at most, so that kills meet it throughout."""


def begin(run: Path, scenario: str, *more: str) -> int:
    """A run in a process of its own, by its id."""
    child = os.fork()
    if child:
        return child
    command = ["measure", scenario, "--device", "cpu", "--sustained", "0", "-o", str(run)]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os._exit(main([*command, "--only", "gemm", *more]))


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def size(record: Path) -> int:
    return record.stat().st_size if record.exists() else 0


def wait_for_a_line(record: Path, before: int) -> None:
    until = time.monotonic() + 60
    while size(record) == before and time.monotonic() < until:
        time.sleep(0.002)


def load() -> None:
    """Loads what a run loads late; what was imported is never garbage, and looking through it would
    take longer than measuring."""
    import torch

    for name in ("ceilings", "session", "work"):
        import_module(f"lcprof.measure.{name}")
    torch.set_num_threads(1)
    gc.freeze()


def work(run: Path, scenario: str, kills: int) -> int:
    load()
    whole, record = run.with_name("whole"), run / "record.jsonl"
    begun = time.monotonic()
    child = begin(whole, scenario)
    wait_for_a_line(whole / "record.jsonl", 0)
    started_s = time.monotonic() - begun
    if ended(child):
        return 1
    points_s = time.monotonic() - begun - started_s
    for number in range(kills):
        before = size(record)
        child = begin(run, scenario, *(["--resume"] if record.exists() else []))
        if number % 2:
            time.sleep(random.uniform(0.0, started_s))
        else:
            wait_for_a_line(record, before)
            time.sleep(random.uniform(0.0, points_s / POINTS_PART))
        os.kill(child, signal.SIGKILL)
        if ended(child) not in (-signal.SIGKILL, 0):
            return 2
        if record.exists():
            shutil.copy(record, run.with_name(f"after-{number:02}.jsonl"))
    return ended(begin(run, scenario, *(["--resume"] if record.exists() else [])))


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
