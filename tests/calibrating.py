"""Records of made-up GPUs' kernels, whose times follow from known parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from measuring import provenance, row
from msgspec.structs import replace

from lcprof.calibrate.calls import called
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.measure.record import Record, Writer, read_record
from lcprof.measure.row import Measured, Predicted, Row
from lcprof.scenario.gpus import load_gpu

GPU = load_gpu("h200-sxm", where="test")
DECODE = {
    "launch_s": 4e-6,
    "stream": 0.8,
    "cta_bytes_per_s": 5e10,
    "token_s": 2e-10,
    "group_s": 2e-11,
    "wide_cost": 0.05,
    "cta_start_s": 2e-6,
    "serial": 0.2,
    "cold_s": 5e-6,
}
PREFILL = {
    "launch_s": 6e-6,
    "compute": 0.6,
    "softmax": 0.4,
    "tile_start_s": 1e-6,
    "diagonal": 0.8,
    "tail": 0.5,
    "imbalance": 0.1,
    "solo": 1.3,
    "split_s": 2e-7,
    "stream": 0.7,
}
NOISE = 0.01


def noise(text: str) -> float:
    """Between -1 and 1, the same for the same text."""
    return crc32(text.encode()) / 2**31 - 1.0


def rows(
    operation: str,
    shapes: Iterable[Mapping[str, Any]],
    parameters: Mapping[str, float],
    implementation: str = "triton",
) -> list[Row]:
    """Rows that take what a family says for some parameters, within `NOISE`."""
    found = []
    for shape in shapes:
        words = " ".join(f"{name}={value}" for name, value in shape.items())
        key = f"{operation} {words} by {implementation}"
        made = called(operation, shape, implementation, GPU)
        seconds = made.family.seconds(made.call, ceilings_of(GPU), parameters)
        found.append(
            row(
                key,
                operation=operation,
                shape=shape,
                implementation=implementation,
                predicted=Predicted(floor_s=seconds / 2.0),
                measured=Measured(burst_s=seconds * (1.0 + NOISE * noise(key))),
            )
        )
    return found


def decode_shapes(
    heads: Iterable[tuple[int, int]] = ((32, 8), (64, 8), (16, 4), (8, 8)), **fixed: Any
) -> list[dict[str, Any]]:
    """Steps of some batches and contexts over pages of 16, in the order of a point's shape."""
    grid = itertools.product(heads, (1, 4, 16), (4096, 32768, 131072))
    return [
        {
            "batch": batch,
            "query_tokens": 1,
            "context_tokens": context,
            "q_heads": q_heads,
            "kv_heads": kv_heads,
            "head_dim": 128,
            "window_tokens": 0,
            "sink_tokens": 0,
            "dtype": "bf16",
            "layout": "paged",
            "page_tokens": 16,
        }
        | fixed
        for (q_heads, kv_heads), batch, context in grid
    ]


def prefill_shapes() -> list[dict[str, Any]]:
    """Whole prompts, chunks of 8,192 after a prefix, and windows."""
    grid = itertools.product((4096, 16384, 65536, 131072), (16, 32, 64), (0, 4096))
    return [
        {
            "batch": 1,
            "query_tokens": min(tokens, 8192) if heads == 64 else tokens,
            "context_tokens": tokens,
            "q_heads": heads,
            "kv_heads": 8,
            "head_dim": 128,
            "window_tokens": window,
            "sink_tokens": 0,
            "dtype": "bf16",
        }
        for tokens, heads, window in grid
    ]


def standard_rows() -> list[Row]:
    """Steps and prompts by our kernels."""
    return [
        *rows("decode_attention", decode_shapes(), DECODE),
        *rows("prefill_attention", prefill_shapes(), PREFILL),
    ]


def record(path: str, given: Iterable[Row], **changes: Any) -> Record:
    """A record in memory, of an H200 unless said otherwise."""
    told = {"gpu": "NVIDIA H200", "driver": "580.1", "torch": "2.11", "commit": "abc"} | changes
    held = {each.key: each for each in given}
    return Record(path=path, provenance=provenance(**told), rows=held)


def written(folder: Path, given: Record) -> Record:
    """The same on the disk, read back."""
    writer = Writer.start(folder, given.provenance)
    for each in given.rows.values():
        writer.append(each)
    writer.close()
    return replace(read_record(folder))
