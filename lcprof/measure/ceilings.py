"""What the device can do at best: the ground that calibrations stand on.

Memory read, written and copied, matrix products by type, copies between host and device, and the
cost of launching nothing. Idle and full power come with them: idle by sampling a board at rest,
full as the power of the sustained matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lcprof.measure.board import Board, Sampler, summarise
from lcprof.measure.points import Shape
from lcprof.measure.row import Measured, Row

GPU_BYTES = 4 << 30
CPU_BYTES = 256 << 20
GPU_SIDE, CPU_SIDE = 8192, 1024
HOST_BYTES = 256 << 20
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One ceiling: what is moved (bytes of a call) or multiplied (FLOPs of a call)."""

    kind: str
    moved_bytes: float = 0.0
    flops: float = 0.0
    held_bytes: float = 0.0
    make: Callable[[torch.device], Callable[[], Any]]
    operation: str = "ceiling"
    implementation: str = "torch"
    why: str = ""
    note: str = ""
    source: str = "--ceilings"
    shape: Shape = field(default_factory=dict)
    ranks: int = 1

    @property
    def key(self) -> str:
        """What identifies its row."""
        return f"ceiling {self.kind}"


def ceilings_of(device: str) -> list[Ceiling]:
    """The ceilings of a kind of device, memory first."""
    cuda = device == "cuda"
    size, side = (GPU_BYTES, GPU_SIDE) if cuda else (CPU_BYTES, CPU_SIDE)
    found = [
        _moved("read", size, 1.0, lambda source, target: source.sum()),
        _moved("write", size, 1.0, lambda source, target: target.zero_()),
        _moved("copy", size, 2.0, lambda source, target: target.copy_(source)),
        *(_product(name, side) for name in (TYPES if cuda else ("bf16", "fp32"))),
    ]
    if cuda:
        found += [_fp8_product(side)]
        found += [_crossed("host to device", to_device=True)]
        found += [_crossed("device to host", to_device=False)]
    return [*found, _nothing()]


def _moved(kind: str, size: int, times: float, do: Callable[[Any, Any], Any]) -> Ceiling:
    def make(place: torch.device) -> Callable[[], Any]:
        source = torch.randn(size // 4, device=place)
        target = torch.empty_like(source)
        return lambda: do(source, target)

    return Ceiling(
        kind=kind, moved_bytes=times * size, held_bytes=2.0 * size, make=make, shape={"bytes": size}
    )


def _product(name: str, side: int) -> Ceiling:
    dtype = TYPES.get(name, torch.float32)

    def make(place: torch.device) -> Callable[[], Any]:
        a, b = (torch.randn(side, side, device=place, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)

        def run() -> Any:
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            try:
                return torch.mm(a, b, out=out)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before

        return run

    return Ceiling(
        kind=f"gemm {name}",
        flops=2.0 * side**3,
        held_bytes=3.0 * side * side * dtype.itemsize,
        make=make,
        shape={"rows": side, "depth": side, "columns": side},
    )


def _fp8_product(side: int) -> Ceiling:
    def make(place: torch.device) -> Callable[[], Any]:
        a, b = (torch.randn(side, side, device=place).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=place)
        return lambda: torch._scaled_mm(
            a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return Ceiling(
        kind="gemm fp8",
        flops=2.0 * side**3,
        held_bytes=8.0 * side * side,
        make=make,
        shape={"rows": side, "depth": side, "columns": side},
    )


def _crossed(kind: str, *, to_device: bool) -> Ceiling:
    def make(place: torch.device) -> Callable[[], Any]:
        host = torch.empty(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
        device = torch.empty(HOST_BYTES, dtype=torch.uint8, device=place)
        source, target = (host, device) if to_device else (device, host)
        return lambda: target.copy_(source, non_blocking=True)

    return Ceiling(
        kind=kind,
        moved_bytes=float(HOST_BYTES),
        held_bytes=float(HOST_BYTES),
        make=make,
        shape={"bytes": HOST_BYTES},
    )


def _nothing() -> Ceiling:
    def make(place: torch.device) -> Callable[[], Any]:
        one = torch.zeros(1, device=place)
        return lambda: one.add_(0.0)

    return Ceiling(kind="launch", make=make, held_bytes=4.0, note="one element, added to in place")


@dataclass(frozen=True, kw_only=True)
class CeilingWorkshop:
    """What the runner needs to know of ceilings."""

    place: torch.device

    def prepare(self, task: Ceiling) -> _Run:
        """Draws a ceiling's tensors; there is nothing to check."""
        return _Run(run=task.make(self.place))

    def needed_bytes(self, task: Ceiling) -> float:
        """Bytes of its tensors."""
        return task.held_bytes

    def is_refusal(self, error: BaseException) -> bool:
        """No kernel of ours runs."""
        return False

    def rates(self, task: Ceiling, seconds: float) -> dict[str, float]:
        """Bytes or FLOPs a second."""
        rates = {
            "rate_bytes_per_s": task.moved_bytes / seconds,
            "rate_flops_per_s": task.flops / seconds,
        }
        return {name: rate for name, rate in rates.items() if rate > 0}

    def tensor_rate(self, task: Ceiling) -> float:
        """How much faster than in bf16 tensor cores work: half as fast in tf32, twice in fp8."""
        return {"gemm tf32": 0.5, "gemm fp8": 2.0}.get(task.kind, 1.0)


@dataclass(frozen=True, kw_only=True)
class _Run:
    run: Callable[[], Any]

    def check(self, result: Any) -> tuple[float, float]:
        """Nothing to be wrong about."""
        return 0.0, 0.0


def idle_row(
    board: Board,
    device: str,
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Row:
    """The board at rest for some seconds: its idle power and clocks."""
    with Sampler(board, clock) as sampler:
        sleep(seconds)
    seen = summarise(sampler.readings, 1, seconds)
    measured = Measured(
        idle_power_w=seen.power_w,
        sm_clock_hz=seen.sm_clock_hz,
        memory_clock_hz=seen.memory_clock_hz,
        temperature_c=seen.temperature_c,
        peak_used_bytes=seen.peak_used_bytes,
        other_processes=seen.other_processes,
    )
    able = seen.power_w is not None
    return Row(
        key="ceiling idle",
        operation="ceiling",
        shape={"seconds": seconds},
        implementation="rest",
        device=device,
        status="measured" if able else "not measurable",
        reason="" if able else board.missing.get("power_w", "the board gave no value"),
        source="--ceilings",
        measured=measured,
    )
