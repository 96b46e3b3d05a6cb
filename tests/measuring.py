"""A device, a board and work that are made up, and rows to compare: tests of measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcprof.measure.board import Facts, LostDeviceError, Reading, Stranger, Utilisation
from lcprof.measure.row import Kernel, Measured, Predicted, Provenance, Row


class RefusalError(Exception):
    """A kernel's own refusal."""


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class Task:
    name: str
    seconds: float = 0.001
    bytes: float = 1e3
    fault: BaseException | None = None
    error: float = 0.0
    why: str = ""
    note: str = ""
    source: str = "made up"
    operation: str = "decode_attention"
    implementation: str = "triton"
    ranks: int = 1

    @property
    def shape(self) -> Mapping[str, int | float | str]:
        return {"name": self.name}

    @property
    def key(self) -> str:
        return self.name


@dataclass
class Work:
    run: Callable[[], Any]
    error: float

    def check(self, result: Any) -> tuple[float, float]:
        return self.error, 0.5


@dataclass
class Workshop:
    clock: Clock
    prepared: list[str] = field(default_factory=list)

    def prepare(self, task: Task) -> Work:
        self.prepared.append(task.name)
        if task.fault is not None:
            raise task.fault

        def run() -> None:
            self.clock.now_s += task.seconds

        return Work(run=run, error=task.error)

    def needed_bytes(self, task: Task) -> float:
        return task.bytes

    def is_refusal(self, error: BaseException) -> bool:
        return isinstance(error, RefusalError)

    def rates(self, task: Task, seconds: float) -> dict[str, float]:
        return {}

    def tensor_rate(self, task: Task) -> float:
        return 2.0 if task.name == "fp8" else 1.0


@dataclass
class Device:
    clock: Clock
    kind: str = "cuda"
    place: Any = None
    missing: Mapping[str, str] = field(default_factory=dict)
    free: float = 1e6
    l2_bytes: float = 50e6
    launch: str = "graph"
    graphs: list[int] = field(default_factory=list)
    profiler_fault: Exception | None = None
    release_fault: Exception | None = None

    def free_bytes(self) -> float:
        return self.free

    def ready(self, run: Callable[[], object], times: int = 1) -> tuple[Callable[[], object], str]:
        if self.launch != "graph":
            return run, self.launch
        self.graphs.append(times)

        def replay() -> None:
            for _ in range(times):
                run()

        return replay, "graph"

    def time_s(self, call: Callable[[], object]) -> float:
        begun = self.clock()
        call()
        return self.clock() - begun

    def synchronise(self) -> None:
        return

    def begin(self) -> None:
        return

    def reset_peak(self) -> None:
        return

    def peak_bytes(self) -> float | None:
        return 2e3

    def release(self) -> None:
        if self.release_fault is not None:
            raise self.release_fault

    def profile(
        self, run: Callable[[], object], trace: Path | None, timeline: Path | None = None
    ) -> tuple[Kernel, ...]:
        if self.profiler_fault is not None:
            raise self.profiler_fault
        if trace is not None:
            trace.write_text("{}")
        if timeline is not None:
            timeline.write_text("time_s\n")
        return (Kernel(name="decode", launches=2, seconds=1e-3, grid=(8, 1, 1), registers=128),)


@dataclass
class Board:
    """500 W by an energy counter, a memory of 4 TB/s half used, tensor cores a quarter."""

    missing: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[Stranger] = ()
    lost: bool = False

    def facts(self) -> Facts:
        return Facts(
            name="NVIDIA Test",
            uuid="GPU-1",
            driver="570.1",
            bandwidth_bytes_per_s=4e12,
            power_limit_w=700.0,
            mig=False,
        )

    def read(self, now_s: float) -> Reading:
        if self.lost:
            raise LostDeviceError("NVML: GPU is lost")
        return Reading(
            at_s=now_s,
            power_w=500.0,
            energy_j=500.0 * now_s,
            sm_clock_hz=1.5e9,
            memory_clock_hz=3e9,
            throttle=("power limit",),
            temperature_c=60.0,
            used_bytes=3e9,
            other_processes=0,
        )

    def strangers(self) -> Sequence[Stranger]:
        return self.others

    def mark(self) -> Any:
        return object()

    def utilisation(self, begin: Any, end: Any) -> Utilisation:
        return Utilisation(dram=0.5, tensor=0.25, occupancy=0.3)


def provenance(**changes: Any) -> Provenance:
    told: dict[str, Any] = {
        "format": 1,
        "device": "cuda",
        "gpu": "NVIDIA Test",
        "lcprof": "0.1.0",
        "python": "3.11.0",
        "scenario": "model: tiny\n",
        "scenario_sha256": "00",
        "command": ("lcprof", "measure"),
        "started": "2026-11-26T00:00:00+00:00",
    }
    return Provenance(**told | changes)


def row(key: str, **changes: Any) -> Row:
    told: dict[str, Any] = {
        "key": key,
        "operation": "gemm",
        "shape": {"rows": 1},
        "implementation": "torch",
        "device": "cuda",
        "status": "measured",
        "predicted": Predicted(),
        "measured": Measured(burst_s=1e-3),
    }
    return Row(**told | changes)
