"""The processor as a device, the kernels of a trace, and which errors mean what."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from measuring import Clock

from lcprof.measure.board import ImpossibleError, LostDeviceError
from lcprof.measure.device import (
    CpuDevice,
    CudaDevice,
    is_lost,
    is_out_of_memory,
    kernels_of,
    memory_csv,
    open_device,
)
from lcprof.measure.row import Kernel


def test_a_processor_is_timed_by_the_clock() -> None:
    clock = Clock()
    device = CpuDevice(clock)

    def call() -> None:
        clock.now_s += 0.25

    assert device.time_s(call) == 0.25
    assert device.ready(call) == (call, "cpu")
    assert device.free_bytes() > 1e6
    assert "threads" in device.name
    assert device.peak_bytes() is None
    assert "peak_allocated_bytes" in device.missing


def test_operators_of_a_processor(tmp_path: Path) -> None:
    x = torch.ones(8, 8)
    trace = tmp_path / "trace.json"
    found = CpuDevice().profile(lambda: torch.softmax(x @ x, -1), trace)
    names = [each.name for each in found]
    assert names == ["aten::matmul", "aten::softmax"]
    assert all(each.seconds > 0 and each.launches == 1 for each in found)
    assert trace.exists()


def event(name: str, ts: float, dur: float, cat: str = "kernel", **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": 7, "args": args}


def test_what_a_call_allocates_is_a_timeline(tmp_path: Path) -> None:
    x = torch.randn(256, 256)
    trace, timeline = tmp_path / "trace.json", tmp_path / "memory.csv"
    CpuDevice().profile(lambda: (x @ x) + 1.0, trace, timeline)
    assert "[memory]" in trace.read_text()
    with timeline.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # The product, 256 x 256 numbers of 4 bytes, comes and goes; so does the sum, at the end.
    changes = [int(row["change_bytes"]) for row in rows]
    assert 256 * 256 * 4 in changes
    assert -256 * 256 * 4 in changes
    times = [float(row["time_s"]) for row in rows]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 10
    CpuDevice().profile(lambda: x @ x, trace)
    assert "[memory]" not in trace.read_text()


def test_a_timeline_is_that_of_the_gpu_alone() -> None:
    def change(ts: float, kind: int, size: int, total: int) -> dict[str, object]:
        args = {"Device Type": kind, "Bytes": size, "Total Allocated": total,
                "Total Reserved": 4096}  # fmt: skip
        return {"name": "[memory]", "ts": ts, "ph": "i", "args": args}

    events = [event("decode", 10.0, 5.0), change(30.0, 1, -512, 1024), change(20.0, 1, 512, 1536),
              change(25.0, 0, 64, 64)]  # fmt: skip
    assert memory_csv(events, cuda=True).splitlines() == [
        "time_s,change_bytes,allocated_bytes,reserved_bytes",
        "0.000010000,512,1536,4096",
        "0.000020000,-512,1024,4096",
    ]


def test_kernels_of_a_trace_are_merged_by_name_and_launch() -> None:
    told = {"grid": [132, 1, 1], "block": [256, 1, 1], "registers per thread": 168,
            "shared memory": 1024}  # fmt: skip
    events = [
        event("merge", 30.0, 2.0, grid=[8, 1, 1]),
        event("decode", 10.0, 5.0, **told),
        event("decode", 20.0, 6.0, **told),
        event("decode", 25.0, 1.0, grid=[4, 1, 1]),
        event("Memset (Device)", 5.0, 1.0, "gpu_memset"),
        event("aten::sum", 0.0, 90.0, "cpu_op"),
        {"ph": "M", "name": "process_name"},
    ]
    first, second, third, fourth = kernels_of(events, cuda=True)
    assert first.name == "Memset (Device)"
    assert second == Kernel(
        name="decode", launches=2, seconds=pytest.approx(11e-6), grid=(132, 1, 1),
        block=(256, 1, 1), registers=168, shared_bytes=1024,
    )  # fmt: skip
    assert (third.name, third.launches, third.grid) == ("decode", 1, (4, 1, 1))
    assert fourth.name == "merge"
    assert kernels_of([], cuda=True) == ()


def test_operators_within_others_are_not_counted_twice() -> None:
    events = [
        event("aten::linear", 0.0, 10.0, "cpu_op"),
        event("aten::matmul", 1.0, 8.0, "cpu_op"),
        event("aten::add", 10.0, 2.0, "cpu_op"),
    ]
    assert [each.name for each in kernels_of(events, cuda=False)] == ["aten::linear", "aten::add"]


def test_errors_say_what_they_mean() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert is_lost(LostDeviceError("gone"))
    assert not is_lost(RuntimeError("shape mismatch"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_there_is_no_device() -> None:
    with pytest.raises(ImpossibleError, match="--device cpu"):
        open_device("cuda")


def test_a_gpu_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: int) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nCompile with ...")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("lcprof.measure.device.CudaDevice", refuse)
    with pytest.raises(ImpossibleError, match=r"cannot be used: .* are busy$"):
        open_device("cuda")


def test_without_pytorch_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImpossibleError, match="pip install torch triton"):
        open_device("cpu")


class Cuda:
    """`torch.cuda` as far as a device uses it; capturing raises `fault`."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.queued: list[str] = []
        self.allocated, self.peak, self.reserved = 500, 0, 700

    def current_stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: None)

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def synchronize(self) -> None:
        self.queued.append("wait")

    def CUDAGraph(self) -> Any:  # noqa: N802 (PyTorch's name)
        return SimpleNamespace(replay=lambda: self.queued.append("replay"))

    @contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        yield
        if self.fault is not None:
            raise self.fault

    def Event(self, *, enable_timing: bool) -> Any:  # noqa: N802 (PyTorch's name)
        assert enable_timing
        return SimpleNamespace(
            record=lambda: self.queued.append("event"),
            synchronize=lambda: None,
            elapsed_time=lambda end: 2.5,
        )

    def memory_allocated(self, place: Any) -> int:
        return self.allocated

    def max_memory_allocated(self, place: Any) -> int:
        return self.peak

    def memory_reserved(self, place: Any) -> int:
        return self.reserved

    def mem_get_info(self, place: Any) -> tuple[int, int]:
        return 1000, 4000


def cuda_device(cuda: Cuda) -> CudaDevice:
    device = CudaDevice.__new__(CudaDevice)
    device._torch = SimpleNamespace(cuda=cuda, bfloat16=None, ones=lambda *_, **__: Product())
    device.place = "cuda:0"
    device._flush = SimpleNamespace(sum=lambda: cuda.queued.append("flush"))
    device._stream = cuda.current_stream()
    device._held = 0
    return device


class Product:
    def __matmul__(self, other: Product) -> Product:
        return self


def test_a_call_is_replayed_as_a_graph_after_the_l2_was_read_over() -> None:
    cuda = Cuda()
    device = cuda_device(cuda)
    call, launch = device.ready(lambda: cuda.queued.append("run"))
    assert launch == "graph"
    # Twice beside, to settle what is allocated and compiled, and once to be captured.
    assert cuda.queued.count("run") == 3
    cuda.queued.clear()
    assert device.time_s(call) == 0.0025
    assert cuda.queued == ["flush", "event", "replay", "event"]


def test_what_cannot_be_captured_is_launched_eagerly() -> None:
    cuda = Cuda(RuntimeError("CUDA error: operation not permitted when stream is capturing"))
    call, launch = cuda_device(cuda).ready(lambda: cuda.queued.append("run"))
    cuda.queued.clear()
    call()
    assert (launch, cuda.queued) == ("eager", ["run"])


@pytest.mark.parametrize("text", ["CUDA out of memory.", "an illegal memory access"])
def test_a_capture_that_ends_the_point_is_raised(text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        cuda_device(Cuda(RuntimeError(text))).ready(lambda: None)


def test_memory_of_a_gpu_is_counted_from_where_a_point_begins() -> None:
    cuda = Cuda()
    device = cuda_device(cuda)
    # 1,000 free by the driver, and 200 that PyTorch holds without using them.
    assert device.free_bytes() == 1200
    device.begin()
    cuda.peak = 800
    assert device.peak_bytes() == 300


@pytest.mark.gpu
def test_a_gpu_is_timed_with_events_and_graphs() -> None:
    device = open_device("cuda")
    x = torch.randn(4096, 4096, device=device.place)
    call, launch = device.ready(lambda: x @ x)
    assert launch == "graph"
    assert 1e-5 < device.time_s(call) < 1.0
    device.reset_peak()
    x @ x
    assert device.peak_bytes() == pytest.approx(2 * 4096 * 4096 * 4, rel=0.01)
    kernels = device.profile(lambda: x @ x, None)
    assert kernels
    assert all(each.grid and each.registers for each in kernels)
