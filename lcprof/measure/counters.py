"""Bytes and tensor FLOPs of one call by the GPU's hardware counters, through Nsight Compute.

Each point's call runs once more in a process of its own under `ncu`, which starts every kernel with
a cold cache, as often as it needs to read all counters.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from lcprof.errors import LcprofError

NAME = "Nsight Compute"
MISSING = "no ncu here: install NVIDIA Nsight Compute"
PERMISSION = (
    "let users read counters: module option NVreg_RestrictProfilingToAdminUsers=0, or "
    "--cap-add SYS_ADMIN for a container"
)
REFUSED = "ERR_NVGPUCTRPERM"
CHILD = "lcprof.measure.counted"
LIMIT_S = 300.0
READ, WRITE = "dram__bytes_read.sum", "dram__bytes_write.sum"
TENSOR = "sm__ops_path_tensor_src_"
TENSOR_METRICS: Sequence[Sequence[Sequence[str]]] = (
    (("bf16_dst_fp32",),),
    (("fp16",), ("fp16_dst_fp16", "fp16_dst_fp32")),
    (("fp8",), ("fp8_dst_fp16", "fp8_dst_fp32")),
    (("tf32_dst_fp32",),),
    (("int8",),),
)
"""Counters of tensor operations by the type of their factors, a multiplication and an addition
counted each. Which of the forms there is depends on the chip; only one may be added up."""
BYTE_UNITS = {"": 1.0, "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "Tbyte": 1e12}
REASON_LETTERS = 200


class CountersError(LcprofError):
    """The counters could not be read; the text says why."""


class Counts(Struct, frozen=True, kw_only=True):
    """What the kernels of one call did: bytes of the GPU's memory, FLOPs of tensor cores (None
    where the chip has no such counter)."""

    read_bytes: float
    write_bytes: float
    flops: float | None


class Counted(Protocol):
    """What can be counted: a point."""

    @property
    def operation(self) -> str:
        """The operation."""

    @property
    def shape(self) -> Mapping[str, int | float | str]:
        """Its shape, as plain data."""

    @property
    def implementation(self) -> str:
        """Who computes it."""


class Counter(Protocol):
    """Counts one call of a point. Raises CountersError."""

    def count(self, task: Counted) -> Counts:
        """What it did."""


Run: TypeAlias = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class NoCounter:
    """Stands in where nothing can be counted."""

    def __init__(self, why: str) -> None:
        self.why = why

    def count(self, task: Counted) -> Counts:
        raise CountersError(self.why)


class NsightCompute:
    """`ncu` at a path; `run` starts a command and waits for it."""

    def __init__(self, path: str, run: Run | None = None) -> None:
        self.path = path
        self._run = run or run_child
        self._tensor: tuple[str, ...] | None = None
        self._broken = ""

    def count(self, task: Counted) -> Counts:
        if self._broken:
            raise CountersError(self._broken)
        point = {
            "operation": task.operation,
            "shape": dict(task.shape),
            "implementation": task.implementation,
        }
        return self._count(json.dumps(point))

    def refusal(self) -> str:
        """Why the counters of a small call cannot be read, "" when they can."""
        try:
            self._count()
        except CountersError as error:
            return str(error)
        return ""

    def _count(self, *asked: str) -> Counts:
        if self._tensor is None:
            self._tensor = tensor_metrics(self._available())
        metrics = (READ, WRITE, *self._tensor)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "ncu.csv"
            command = [
                self.path,
                *("--csv", "--log-file", str(log), "--print-units", "base"),
                *("--metrics", ",".join(metrics), "--profile-from-start", "off"),
                # Clocks are left as they are: setting them needs rights, and bytes do not change.
                *("--clock-control", "none", "--target-processes", "application-only"),
                *(sys.executable, "-m", CHILD, *asked),
            ]
            done = self._ask(command)
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        text = text or done.stdout
        if REFUSED in text or REFUSED in done.stderr:
            # It will be refused for every other point as well.
            self._broken = f"{REFUSED}: {PERMISSION}"
            raise CountersError(self._broken)
        if done.returncode:
            raise CountersError(_fault(text, done))
        return counts_of(text, tensor=bool(self._tensor))

    def _available(self) -> frozenset[str]:
        """Names of the metrics that this chip has."""
        done = self._ask([self.path, "--query-metrics"])
        if done.returncode:
            raise CountersError(_fault(done.stdout, done))
        return frozenset(line.split()[0] for line in done.stdout.splitlines() if line.split())

    def _ask(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            return self._run(command)
        except subprocess.TimeoutExpired:
            raise CountersError(f"ncu took longer than {LIMIT_S:g} s") from None
        except OSError as error:
            self._broken = f"ncu: {error.strerror or error}"
            raise CountersError(self._broken) from None


def run_child(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, its numbers written in the C locale."""
    return subprocess.run(  # noqa: S603 (ncu, and lcprof itself)
        list(command),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        env={**os.environ, "LC_ALL": "C"},
    )


def tensor_metrics(available: Collection[str]) -> tuple[str, ...]:
    """The counters of tensor operations to add up, of those that a chip has."""
    found: list[str] = []
    for forms in TENSOR_METRICS:
        for form in forms:
            names = [f"{TENSOR}{name}" for name in form]
            if all(name in available for name in names):
                found += [f"{name}.sum" for name in names]
                break
    return tuple(found)


def counts_of(text: str, *, tensor: bool = True) -> Counts:
    """The sum over all kernels in what `ncu --csv` printed: a line of names (of which "ID", "Metric
    Name", "Metric Unit" and "Metric Value" are read), then one for each kernel and metric, among
    lines of its own that begin with "==". Raises CountersError where a kernel lacks its bytes."""
    kernels: dict[str, dict[str, float]] = {}
    for row in _rows(text):
        value = _number(row["Metric Value"], row["Metric Unit"])
        metrics = kernels.setdefault(row["ID"], {})
        if value is not None:
            metrics[row["Metric Name"]] = value
    if not kernels:
        raise CountersError("ncu saw no kernel")
    sums = {READ: 0.0, WRITE: 0.0}
    flops = 0.0
    for metrics in kernels.values():
        for name in sums:
            if name not in metrics:
                raise CountersError(f"ncu gave no {name}")
            sums[name] += metrics[name]
        flops += sum(value for name, value in metrics.items() if name.startswith(TENSOR))
    return Counts(
        read_bytes=sums[READ],
        write_bytes=sums[WRITE],
        flops=flops if tensor else None,
    )


NEEDED = ("ID", "Metric Name", "Metric Unit", "Metric Value")


def _rows(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("==")]
    start = next((i for i, line in enumerate(lines) if '"Metric Name"' in line), None)
    if start is None:
        return []
    found = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    return [row for row in found if all(row.get(name) is not None for name in NEEDED)]


def _number(value: str, unit: str) -> float | None:
    """A metric in its base unit, its thousands set off by commas; None for "n/a"."""
    try:
        return float(value.replace(",", "")) * BYTE_UNITS.get(unit, 1.0)
    except ValueError:
        return None


def _fault(text: str, done: subprocess.CompletedProcess[str]) -> str:
    """Why ncu or what it ran failed, in one line: its own word, else the last one of its child."""
    own = [line for line in text.splitlines() if line.startswith("==ERROR==")]
    last = [line for line in done.stderr.splitlines() if line.strip()]
    said = own[0].removeprefix("==ERROR==").strip() if own else (last or [""])[-1].strip()
    line = "".join(ch if ch.isprintable() else "?" for ch in f"ncu: {said or 'no word'}")
    return line[:REASON_LETTERS] + f" (exit status {done.returncode})"
