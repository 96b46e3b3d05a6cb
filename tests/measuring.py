"""A device, a board and work that are made up, and rows to compare: tests of measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lcprof.measure.board import Facts, LostDeviceError, Reading, Stranger, Utilisation
from lcprof.measure.record import Writer
from lcprof.measure.row import Kernel, Measured, Moment, Predicted, Provenance, Row, Status


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


def written(folder: Path, rows: Iterable[Row], **told: Any) -> Path:
    """A run's folder with a record of these rows."""
    writer = Writer.start(folder, provenance(**told))
    for each in rows:
        writer.append(each)
    writer.close()
    return folder


GPU: Mapping[str, Any] = {
    "gpu": "NVIDIA H200",
    "gpu_uuid_sha256": "ab" * 32,
    "driver": "570.1",
    "cuda": "12.8",
    "torch": "2.8.0",
    "triton": "3.6.0",
    "commit": "0123456789ab",
    "sm_clock_max_hz": 1.98e9,
    "memory_clock_max_hz": 3.2e9,
    "memory_bytes": 150e9,
    "power_limit_w": 700.0,
    "mig": False,
    "ecc": True,
    "bandwidth_bytes_per_s": 4.8e12,
    "flops_per_cycle": 540672.0,
    "started": "2026-11-26T00:00:00+00:00",
}
"""What a run on a GPU says of where it took place."""
SHAPES: Mapping[str, Mapping[str, int | float | str]] = {
    "prefill_attention": {"batch": 1, "query_tokens": 8192, "context_tokens": 0, "q_heads": 32,
                          "kv_heads": 8, "head_dim": 128, "dtype": "bf16"},
    "decode_attention": {"batch": 4, "query_tokens": 1, "context_tokens": 0, "q_heads": 32,
                         "kv_heads": 8, "head_dim": 128, "dtype": "bf16", "layout": "paged"},
    "quantised_decode": {"batch": 4, "query_tokens": 1, "context_tokens": 0, "q_heads": 32,
                         "kv_heads": 8, "head_dim": 128, "format": "fp8-tensor"},
    "mla_decode": {"batch": 4, "context_tokens": 0, "q_heads": 128, "dtype": "bf16"},
}  # fmt: skip
OTHERS: Sequence[tuple[Status, str]] = (
    ("wrong", "error 0.5, allowed 0.001"),
    ("refused", "pages of 48 tokens"),
    ("not measurable", "h2o has no kernel: it can be planned, not measured"),
    ("does not fit", "needs 160 GB of 140 GB that are free"),
    ("out of memory", "OutOfMemoryError"),
    ("failed", "RuntimeError: no such thing"),
    ("lost", "NVML: GPU is lost"),
    ("interrupted", "Ctrl-C"),
)


def gpu_row(operation: str, shape: Mapping[str, Any], seconds: float, index: int) -> Row:
    """A row as a GPU gives it: expected up to an eighth wrongly, 1 % more bytes and 1 % fewer FLOPs
    counted than predicted, 15 % longer when sustained where tensor cores are busy."""
    off = 1.0 + (index * 7 % 11 - 5) / 40
    moved, flops = seconds * 4.2e12, seconds * 4e14
    busy = operation in ("prefill_attention", "gemm")
    begun = datetime(2026, 11, 26, tzinfo=UTC) + timedelta(seconds=5 + 3 * index)
    watts = 690.0 if busy else 480.0
    moments = (
        Moment(at_s=0.1 * i, power_w=watts - 20 * i, sm_clock_hz=1.9e9 - 2e7 * i, temperature_c=50)
        for i in range(10)
    )
    got = Measured(
        burst_s=seconds, burst_p20_s=seconds * 0.98, burst_p80_s=seconds * 1.03, rounds=20,
        launch="graph", sustained_s=seconds * (1.15 if busy else 1.0), sustained_calls=100,
        sustained_begun=begun.isoformat(timespec="milliseconds"), hbm_bytes=moved * 1.01,
        flops=flops * 0.99, dram_utilisation=0.87, tensor_utilisation=0.6 if busy else 0.05,
        sm_occupancy=0.4, peak_allocated_bytes=moved * 1.5, peak_used_bytes=moved * 2,
        energy_j=seconds * 600, energy_basis="counter", power_w=watts, sm_clock_hz=1.5e9,
        memory_clock_hz=3.2e9, throttle=("power limit",) if busy else (), temperature_c=60.0,
        other_processes=0, launches=2, error=1e-4, error_allowed=1e-3, timeline=tuple(moments),
        kernels=(Kernel(name="decode", launches=2, seconds=seconds, grid=(132, 1, 1),
                        registers=128),),
    )  # fmt: skip
    told = Predicted(
        seconds=seconds * off, low=seconds * off * 0.9, high=seconds * off * 1.1,
        basis="interpolated: lcprof triton on h200-sxm", floor_s=seconds * 0.7,
        floor_gpu="h200-sxm", hbm_bytes=moved, flops=flops, peak_bytes=moved * 1.45,
        held_out=index % 5 != 0,
    )  # fmt: skip
    key = f"{operation} {' '.join(f'{k}={v}' for k, v in shape.items())} by triton"
    return row(key, operation=operation, shape=shape, implementation="triton", predicted=told,
               measured=got)  # fmt: skip


def gpu_rows(times: float = 1.0) -> list[Row]:
    """A run on a GPU, its times multiplied by `times`: four operations at eight lengths and matrix
    products, then ceilings, then a point of every other status."""
    shapes = [
        (operation, {**shape, "context_tokens": 2**power}, 2.0**power * 1e-8)
        for operation, shape in SHAPES.items()
        for power in range(12, 20)
    ]
    product = {"depth": 4096, "columns": 14336, "dtype": "bf16"}
    shapes += [("gemm", {"rows": rows, **product}, rows * 2e-7) for rows in (1, 64, 8192)]
    found = [gpu_row(op, shape, s * times, i) for i, (op, shape, s) in enumerate(shapes)]
    for kind, got in (
        ("read", Measured(burst_s=1e-3, rate_bytes_per_s=4.6e12, power_w=500.0)),
        ("gemm bf16", Measured(burst_s=1e-3, rate_flops_per_s=7.8e14, power_w=700.0)),
        ("idle", Measured(idle_power_w=75.0, sm_clock_hz=3e8)),
    ):
        found.append(row(f"ceiling {kind}", operation="ceiling", measured=got))
    for index, (status, reason) in enumerate(OTHERS):
        found.append(row(f"other {index}", status=status, reason=reason, measured=Measured()))
    return found
