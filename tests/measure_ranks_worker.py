"""Several ranks of `lcprof measure` in forks of one process: a list of runs as JSON on stdin.

Each run is {"ranks", "arguments", "fault", "interrupt"}. It is answered by the ranks' exit statuses
and what they wrote. `fault` names what goes wrong on the last rank (on the first for "disk").
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from lcprof.cli import main


def refuse(error: BaseException) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


def break_rank(rank: int, ranks: int, fault: str) -> None:
    """Makes one rank fail where `fault` says."""
    if fault == "disk" and rank == 0:
        begun: list[int] = []

        def fsync(descriptor: int) -> None:
            begun.append(descriptor)
            # The provenance, its folder, and one row.
            if len(begun) > 3:
                raise OSError(28, "No space left on device")

        os.fsync = fsync
    if rank != ranks - 1:
        return
    group_work = import_module("lcprof.measure.group_work")
    device = import_module("lcprof.measure.device")
    if fault == "full":
        device.CpuDevice.free_bytes = lambda self: 10.0
    elif fault == "prepare":
        group_work._COLLECTIVES["all_gather"] = refuse(MemoryError())
    elif fault == "call":
        group_work.dist.all_reduce = refuse(RuntimeError("link down"))
    elif fault == "profiler":
        device.CpuDevice.profile = refuse(RuntimeError("only rank 0 profiles"))
    elif fault == "open":
        import_module("lcprof.measure.session").open_device = refuse(
            import_module("lcprof.measure.board").ImpossibleError("no GPU 1")
        )


def begin(rank: int, run: dict[str, Any], port: int, out: Path) -> int:
    child = os.fork()
    if child:
        return child
    ranks = run["ranks"]
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port,
             "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1}  # fmt: skip
    os.environ |= {name: str(value) for name, value in where.items()}
    for number, name in ((1, "out"), (2, "err")):
        target = os.open(out / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(target, number)
    break_rank(rank, ranks, run.get("fault", ""))
    status = main(["measure", *run["arguments"], "--device", "cpu"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def one(run: dict[str, Any]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        begun = time.monotonic()
        children = [begin(rank, run, port, out) for rank in range(run["ranks"])]
        if "interrupt" in run:
            record = Path(run["interrupt"]) / "record.jsonl"
            until = time.monotonic() + 60
            while not (record.exists() and record.stat().st_size) and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.5)
            os.kill(children[-1], signal.SIGINT)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = {path.name: path.read_text() for path in sorted(out.iterdir())}
    return {"codes": codes, "seconds": time.monotonic() - begun, **said}


def work() -> None:
    import torch

    for name in ("ceilings", "session", "group_work", "links", "work"):
        import_module(f"lcprof.measure.{name}")
    runner = import_module("lcprof.measure.runner")
    runner.Settings = partial(runner.Settings, burst_s=0.0, least_rounds=2)
    runner.GROUP_BATCH_S = 0.02
    import_module("lcprof.measure.links").CPU_BYTES = 1 << 16
    for name, size in (("CPU_BYTES", 1 << 16), ("CPU_SIDE", 64)):
        setattr(import_module("lcprof.measure.ceilings"), name, size)
    import_module("lcprof.measure.session").IDLE_S = 0.0
    torch.set_num_threads(1)
    # A shell starts what runs in the background deaf to Ctrl-C, and so would be its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()
    print(json.dumps([one(run) for run in json.load(sys.stdin)]))


if __name__ == "__main__":
    work()
