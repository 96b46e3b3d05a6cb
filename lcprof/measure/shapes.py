"""What a point's shape means in tensors: types, cache formats, and the bytes that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lcprof.measure.floors import Prediction
from lcprof.measure.points import Point, Shape
from lcprof_kernels import caches
from lcprof_kernels.mla.fp8 import FP8_ROW_BYTES, LATENT, ROW

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CHECKED_TOKENS = 64
CHECKED_ROWS = 256
APPENDED_TOKENS = 512
"""How many tokens, rows and appended tokens of a result are checked."""
LEAN = ("triton", "flash", "cudnn")
"""Implementations that keep no intermediate tensors."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that a point takes: its inputs for as long as it is there, what a call allocates on
    top of them, and what the check does."""

    inputs: float
    call: float
    check: float

    @property
    def peak(self) -> float:
        """The most at any time."""
        return self.inputs + max(self.call, self.check)


class Dimensions:
    """A point's shape with whole numbers as int."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def count(self, name: str) -> int:
        """A whole number."""
        return int(self._shape[name])

    def some(self, name: str) -> int | None:
        """A whole number, None for 0."""
        return int(self._shape.get(name, 0)) or None

    def has(self, name: str) -> bool:
        """Whether the shape names it."""
        return name in self._shape

    def text(self, name: str) -> str:
        """A word."""
        return str(self._shape[name])

    def counts(self, *names: str) -> dict[str, Any]:
        """Several whole numbers as keyword arguments."""
        return {name: self.count(name) for name in names}


def format_of(name: str) -> caches.Format:
    """The kernels' format of a name in a shape."""
    if name.startswith("int4-kivi-"):
        size = int(name.removeprefix("int4-kivi-"))
        return caches.int4_kivi(size, size)
    if name.startswith("int4-token-"):
        return caches.int4_per_token(int(name.removeprefix("int4-token-")))
    return {
        "fp8-tensor": caches.fp8_per_tensor,
        "fp8-token": caches.fp8_per_token,
        "int8-token": caches.int8_per_token,
    }[name]()


def scale_dtype(shape: Dimensions) -> torch.dtype:
    """The type of scales; one for a whole tensor is always float32, whatever is asked."""
    return DTYPES[shape.text("scale")]


def needed(point: Point) -> Need:
    """Bytes that a point takes, from its shape alone."""
    shape = Dimensions(point.shape)
    if point.operation == "gemm":
        rows, depth, columns = (shape.count(name) for name in ("rows", "depth", "columns"))
        checked = 8.0 * (3 * CHECKED_ROWS * depth + 2 * CHECKED_ROWS**2)
        fp8 = shape.text("format") == "fp8"
        # fp8 numbers are drawn in bfloat16 first.
        drawing = 2.0 * depth * (rows + columns) if fp8 else 0.0
        out = 2.0 * rows * columns
        return Need(
            inputs=(1.0 if fp8 else 2.0) * depth * (rows + columns) + 4.0 * (rows + columns),
            call=out,
            check=max(out + checked, drawing),
        )
    if point.operation == "append":
        batch, heads, dim = (shape.count(name) for name in ("batch", "kv_heads", "head_dim"))
        new, held = shape.count("new_tokens"), shape.count("held_tokens")
        stored = _stored_bytes(shape, batch, heads, 2 * dim, held + new)
        small = stored / batch + 64.0 * heads * dim * min(new, APPENDED_TOKENS)
        return Need(inputs=4.0 * batch * heads * dim * new + stored, call=0.0, check=small)
    return _attention_need(point, shape)


def _attention_need(point: Point, shape: Dimensions) -> Need:
    batch, queries = shape.count("batch"), shape.count("query_tokens")
    context = shape.count("context_tokens")
    rows = batch * queries
    if not shape.has("kv_heads"):
        page = shape.some("page_tokens") or 1
        context = -(-context // page) * page
    if point.operation == "token_scores":
        dim, heads = shape.count("index_dim"), shape.count("heads")
        keys = batch * context * (dim + 4.0)
        # Keys are drawn in bfloat16 and float32 first; the check widens them again.
        scores = 4.0 * rows * context
        wide = 4.0 * batch * context * dim
        naive_call = wide + 4.0 * rows * heads * context
        call = scores + (naive_call if point.implementation == "naive" else 0.0)
        return Need(inputs=keys + 2.0 * rows * heads * dim, call=call,
                    check=scores + naive_call)  # fmt: skip
    if point.operation in ("mla_decode", "sparse_mla_decode"):
        heads = shape.count("q_heads")
        fp8 = shape.text("format") == "fp8-656"
        inputs = batch * context * (FP8_ROW_BYTES if fp8 else 2.0 * ROW) + 2.0 * rows * heads * ROW
        drawing = batch * context * 2.0 * ROW if fp8 else 0.0
        one = 4.0 * context * (2 * ROW + heads)
        return Need(inputs=inputs, call=rows * heads * (2.0 * LATENT + 4),
                    check=drawing + one)  # fmt: skip
    heads = shape.count("q_heads")
    kv_heads = heads if point.operation == "mla_prefill" else shape.count("kv_heads")
    width = (192, 128) if point.operation == "mla_prefill" else (shape.count("head_dim"),) * 2
    around = 2.0 * rows * heads
    held = context
    if shape.some("window_tokens") and point.operation == "decode_attention":
        ring = shape.text("layout") == "ring"
        held = shape.count("window_tokens") + shape.count("sink_tokens") if ring else context
    stored = _stored_bytes(shape, batch, kv_heads, sum(width), held)
    if point.operation == "attention_backward":
        return _backward_need(point, shape, stored)
    out = around * width[1] + 4.0 * rows * heads
    scores = 16.0 * rows * heads * held
    wide = 2.0 * batch * heads * held * sum(width)
    call = out + (scores + wide if point.implementation in ("naive", "torch") else 0.0)
    tail = min(queries, CHECKED_TOKENS)
    one_head = held * sum(width) * 12.0 + 16.0 * tail * (heads // kv_heads) * held
    if point.operation == "quantised_decode":
        # Keys and values are drawn in pieces of bfloat16; the check dequantises whole sequences.
        drawing = 12.0 * min(batch * kv_heads * held * width[0], 2**27)
        one_head = max(one_head * kv_heads, drawing)
    return Need(inputs=around * width[0] + stored, call=call, check=out + one_head)


def _backward_need(point: Point, shape: Dimensions, stored: float) -> Need:
    """Inputs come with the output and its gradient. The check goes backwards from the last tokens,
    in float32, with keys and values repeated for every query head."""
    batch, heads, width = (shape.count(name) for name in ("batch", "q_heads", "head_dim"))
    queries, context = shape.count("query_tokens"), shape.count("context_tokens")
    rows = batch * queries * heads
    scores = 16.0 * rows * context if point.implementation == "naive" else 0.0
    wide = 4.0 * batch * heads * context
    return Need(
        inputs=3 * 2.0 * rows * width + stored,
        call=2.0 * rows * width + stored + 8.0 * rows + scores,
        check=4 * wide * 2 * width + 8 * wide * min(queries, CHECKED_TOKENS),
    )


def _stored_bytes(shape: Dimensions, batch: int, heads: int, width: int, tokens: int) -> float:
    """Bytes of a cache of `tokens` tokens a sequence: codes, scales, and what KIVI keeps in
    bfloat16. `width` counts the channels of a key and of a value together."""
    name = shape.text("format") if shape.has("format") else "bf16"
    page = shape.some("page_tokens") or 1
    if name in DTYPES:
        return 2.0 * batch * heads * -(-tokens // page) * page * width
    layout = format_of(name)
    step = max(layout.group_tokens or 1, page)
    slots = batch * heads * -(-tokens // step) * step
    code = 0.5 if layout.code == "int4" else 1.0
    scale = scale_dtype(shape).itemsize * (2 if layout.code == "int4" else 1)
    group = layout.group_channels or width // 2
    scales = 0.0 if layout.keys == "tensor" else scale / group
    residual = 2.0 * batch * heads * (layout.group_tokens or 0) * width
    return slots * width * (code + scales) + residual


def peaks(points: Iterable[Point]) -> list[Prediction]:
    """The peak of allocated memory where a shape says it exactly: inputs and results of lean
    implementations."""
    return [
        Prediction(name=point.key, peak_bytes=need.inputs + need.call)
        for point in points
        if not point.why
        and point.ranks == 1
        and (point.implementation in LEAN or point.operation == "gemm")
        and point.operation != "attention_backward"
        for need in [needed(point)]
    ]
