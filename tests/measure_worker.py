"""A run of made-up points in a process of its own, to be killed: RUN LOG resume|start [LIMIT]."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

from measuring import Board, Clock, Device, Task, Workshop, provenance

from lcprof.errors import InputError
from lcprof.measure.record import Writer
from lcprof.measure.runner import Runner, Settings

POINTS = 1000


class Slow(Workshop):
    """Takes real time, and notes each point that it begins."""

    def __init__(self, log: Path) -> None:
        super().__init__(clock=Clock())
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def prepare(self, task: Task):  # type: ignore[no-untyped-def]
        os.write(self.log, f"{task.name}\n".encode())
        time.sleep(0.001)
        return super().prepare(task)


def main(run: Path, log: Path, how: str, limit: int) -> int:
    tasks = [Task(f"point {number}") for number in range(POINTS)]
    print("ready", flush=True)
    finished: frozenset[str] = frozenset()
    if how == "resume":
        writer, found = Writer.resume(run, provenance())
        finished = found.finished if found is not None else frozenset()
    else:
        writer = Writer.start(run, provenance())
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    workshop = Slow(log)
    runner = Runner(
        device=Device(workshop.clock),
        board=Board(),
        workshop=workshop,
        append=writer.append,
        settings=Settings(burst_s=0.0, sustained_s=0.0),
        clock=workshop.clock,
    )
    try:
        runner.run(tasks, {}, finished=finished)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
