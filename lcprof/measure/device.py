"""What runs and times: a CPU or a CUDA GPU through PyTorch, behind one small interface.

PyTorch loads when a device is opened, never on import.
"""

from __future__ import annotations

import gc
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lcprof.measure.board import ImpossibleError, LostDeviceError
from lcprof.measure.ranks import Alone, Ranks
from lcprof.measure.row import Kernel

Call = Callable[[], object]

FLUSH_BYTES = 256 << 20
"""At least this much is read before a timed call; four times the L2 where that is more."""
CPU_FLUSH_BYTES = 64 << 20
LOST_WORDS = (
    "unspecified launch failure",
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "device-side assert",
    "launch timed out",
    "uncorrectable",
    "is lost",
    "devices are unavailable",
)
"""CUDA errors after which a process can do no further work on the GPU."""
CPU_MEMORY, CUDA_MEMORY = 0, 1
"""How torch.profiler numbers kinds of devices."""
OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


class Device(Protocol):
    """A device as the runner uses it. `missing` says which columns it cannot fill, and why;
    `l2_bytes` is its last cache before memory, 0 where that does not matter. Where it is one of
    several `ranks`, a call is timed from when all of them are ready."""

    kind: str
    place: Any
    l2_bytes: float
    missing: Mapping[str, str]

    def free_bytes(self) -> float:
        """Memory that a point may take now."""

    def ready(self, run: Call, times: int = 1) -> tuple[Call, str]:
        """The call to be timed, which runs `times` times where it is a graph, and how it is
        launched: "graph", "eager" or "cpu"."""

    def time_s(self, call: Call) -> float:
        """Seconds of one call with a cold L2, the device idle before and after."""

    def synchronise(self) -> None:
        """Waits until all queued work is done."""

    def begin(self) -> None:
        """A point begins: what is allocated by now is not its own."""

    def reset_peak(self) -> None:
        """Starts counting the peak of allocated memory anew."""

    def peak_bytes(self) -> float | None:
        """Peak of allocated memory since then, without what was there when the point began."""

    def release(self) -> None:
        """Gives memory that nothing holds any more back to the device."""

    def profile(
        self, run: Call, trace: Path | None, timeline: Path | None = None
    ) -> tuple[Kernel, ...]:
        """Kernels of one call; the Chrome trace is written to `trace`, what the call allocated and
        freed to `timeline`."""


class CpuDevice:
    """The processor, through PyTorch's CPU kernels."""

    ranks: Ranks = Alone()
    kind = "cpu"
    l2_bytes = 0.0
    missing: Mapping[str, str] = {"peak_allocated_bytes": "PyTorch counts no peak of CPU memory"}

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        import torch

        self._torch = torch
        self._clock = clock
        self.place = torch.device("cpu")
        self._flush = torch.ones(CPU_FLUSH_BYTES // 4)

    @property
    def name(self) -> str:
        """The processor's model and the threads in use."""
        threads = self._torch.get_num_threads()
        return f"{_processor()}, {threads} threads"

    def free_bytes(self) -> float:
        return _available_bytes()

    def ready(self, run: Call, times: int = 1) -> tuple[Call, str]:
        return run, "cpu"

    def time_s(self, call: Call) -> float:
        self._flush.sum()
        self.ranks.wait()
        begun = self._clock()
        call()
        return self._clock() - begun

    def synchronise(self) -> None:
        return

    def begin(self) -> None:
        return

    def reset_peak(self) -> None:
        return

    def peak_bytes(self) -> float | None:
        return None

    def release(self) -> None:
        gc.collect()

    def profile(
        self, run: Call, trace: Path | None, timeline: Path | None = None
    ) -> tuple[Kernel, ...]:
        return profiled(self._torch, run, trace, timeline, cuda=False)


class CudaDevice:
    """One CUDA GPU. Calls are captured in CUDA graphs where they can be, timed with events."""

    ranks: Ranks = Alone()
    kind = "cuda"
    missing: Mapping[str, str] = {}

    def __init__(self, index: int = 0) -> None:
        import torch

        self._torch = torch
        torch.cuda.set_device(index)
        self.place = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(self.place)
        self.name = str(properties.name)
        self.l2_bytes = float(properties.L2_cache_size)
        self._flush = torch.randn(int(max(4 * self.l2_bytes, FLUSH_BYTES)) // 4, device=self.place)
        self._held = 0
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def free_bytes(self) -> float:
        free, _ = self._torch.cuda.mem_get_info(self.place)
        cached = self._torch.cuda.memory_reserved(self.place)
        return float(free + cached - self._torch.cuda.memory_allocated(self.place))

    def ready(self, run: Call, times: int = 1) -> tuple[Call, str]:
        """A graph takes the host's time of a launch out of the time of the device."""
        cuda = self._torch.cuda
        self._stream.wait_stream(cuda.current_stream())
        with cuda.stream(self._stream):
            for _ in range(2):
                run()
        cuda.current_stream().wait_stream(self._stream)
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph):
                for _ in range(times):
                    run()
        except RuntimeError as error:
            if is_lost(error) or is_out_of_memory(error):
                raise
            cuda.synchronize()
            return run, "eager"
        return graph.replay, "graph"

    def time_s(self, call: Call) -> float:
        cuda = self._torch.cuda
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        self.ranks.wait()
        # Read, not written: dirty lines would be written back during the call. The read also lets
        # the host queue the call before the device gets to it.
        self._flush.sum()
        self.ranks.queue()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def synchronise(self) -> None:
        self._torch.cuda.synchronize()

    def begin(self) -> None:
        # cuBLAS keeps its workspaces for the process: they are there before the first point.
        one = self._torch.ones(16, 16, device=self.place, dtype=self._torch.bfloat16)
        one @ one
        self._torch.cuda.synchronize()
        del one
        self._held = self._torch.cuda.memory_allocated(self.place)

    def reset_peak(self) -> None:
        self._torch.cuda.reset_peak_memory_stats(self.place)

    def peak_bytes(self) -> float | None:
        return float(self._torch.cuda.max_memory_allocated(self.place) - self._held)

    def release(self) -> None:
        gc.collect()
        self._torch.cuda.empty_cache()

    def profile(
        self, run: Call, trace: Path | None, timeline: Path | None = None
    ) -> tuple[Kernel, ...]:
        return profiled(self._torch, run, trace, timeline, cuda=True)


def open_device(kind: str, index: int = 0) -> CpuDevice | CudaDevice:
    """The device of a kind, of several GPUs the one at `index`. Raises ImpossibleError where there
    is none, or no PyTorch."""
    try:
        import torch
    except ImportError:
        raise ImpossibleError(
            "no PyTorch here, which runs the kernels: pip install torch triton nvidia-ml-py"
        ) from None
    if kind == "cpu":
        return CpuDevice()
    if not torch.cuda.is_available():
        raise ImpossibleError(
            "no GPU that PyTorch can use: see lcprof doctor, or measure with --device cpu"
        )
    try:
        return CudaDevice(index)
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise ImpossibleError(f"the GPU cannot be used: {first}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the GPU or on the host."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in OUT_OF_MEMORY_WORDS)


def is_lost(error: BaseException) -> bool:
    """Whether the device can do no further work in this process."""
    if isinstance(error, LostDeviceError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in LOST_WORDS)


def profiled(
    torch: Any, run: Call, trace: Path | None, timeline: Path | None = None, *, cuda: bool
) -> tuple[Kernel, ...]:
    """Kernels of one call by torch.profiler; on a CPU the outermost operators."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, profile_memory=timeline is not None) as found:
        run()
        if cuda:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = trace if trace is not None else Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    if timeline is not None:
        timeline.write_text(memory_csv(events, cuda=cuda), encoding="utf-8")
    return kernels_of(events, cuda=cuda)


def kernels_of(events: list[dict[str, Any]], *, cuda: bool) -> tuple[Kernel, ...]:
    """Kernels by name and launch shape from the events of a Chrome trace, in order of launch."""
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if cuda else ("cpu_op",)
    chosen = [each for each in events if each.get("ph") == "X" and each.get("cat") in kinds]
    chosen.sort(key=lambda each: float(each["ts"]))
    if not cuda:
        chosen = _outermost(chosen)
    merged: dict[tuple[Any, ...], Kernel] = {}
    for each in chosen:
        told = each.get("args", {})
        grid, block = tuple(told.get("grid", ())), tuple(told.get("block", ()))
        same = merged.get((each["name"], grid, block))
        merged[each["name"], grid, block] = Kernel(
            name=str(each["name"]),
            launches=1 + (same.launches if same else 0),
            seconds=float(each["dur"]) / 1e6 + (same.seconds if same else 0.0),
            grid=grid,
            block=block,
            registers=told.get("registers per thread"),
            shared_bytes=told.get("shared memory"),
        )
    return tuple(merged.values())


def memory_csv(events: list[dict[str, Any]], *, cuda: bool) -> str:
    """What a call allocated and freed, from the events of a Chrome trace: seconds since the trace's
    first event, the change, and all that was allocated and reserved after it, in bytes."""
    begun = min((float(each["ts"]) for each in events if "ts" in each), default=0.0)
    lines = ["time_s,change_bytes,allocated_bytes,reserved_bytes"]
    kind = CUDA_MEMORY if cuda else CPU_MEMORY
    changes = [
        each
        for each in events
        if each.get("name") == "[memory]" and each["args"].get("Device Type") == kind
    ]
    for each in sorted(changes, key=lambda each: float(each["ts"])):
        told = each["args"]
        sizes = (told["Bytes"], told["Total Allocated"], told["Total Reserved"])
        lines.append(f"{(float(each['ts']) - begun) / 1e6:.9f},{','.join(map(str, sizes))}")
    return "\n".join(lines) + "\n"


def _outermost(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of events in order of their start, those that lie within no other of their thread."""
    until: dict[Any, float] = {}
    kept = []
    for each in events:
        if float(each["ts"]) >= until.get(each.get("tid"), float("-inf")):
            kept.append(each)
            until[each.get("tid")] = float(each["ts"]) + float(each["dur"])
    return kept


def _processor() -> str:
    """The processor's model as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _available_bytes() -> float:
    """Host memory that can be had without swapping; where the system does not say, no bound."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return float(found[0]) * 1024 if found else float("inf")
