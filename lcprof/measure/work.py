"""From a point to tensors, a call and a check: the kernels' own input factories and oracles.

It loads when a run begins, since it touches PyTorch and the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from lcprof.measure.counters import Counted
from lcprof.measure.points import Point
from lcprof.measure.shapes import (
    APPENDED_TOKENS,
    CHECKED_ROWS,
    CHECKED_TOKENS,
    DTYPES,
    Dimensions,
    format_of,
    needed,
    scale_dtype,
)
from lcprof_kernels import caches
from lcprof_kernels.append.api import append
from lcprof_kernels.append.inputs import draw
from lcprof_kernels.append.reference import append_eager
from lcprof_kernels.attention import cases
from lcprof_kernels.attention.api import attention
from lcprof_kernels.attention.inputs import make_inputs
from lcprof_kernels.attention.problem import check_problem
from lcprof_kernels.attention.reference import naive, reference
from lcprof_kernels.budget import errors, tolerance
from lcprof_kernels.decode.api import decode_attention
from lcprof_kernels.decode.inputs import DecodeInputs, decode_inputs
from lcprof_kernels.decode.reference import decode_reference
from lcprof_kernels.errors import KernelError
from lcprof_kernels.mla.api import DEFAULT_SCALE, mla_decode, mla_prefill
from lcprof_kernels.mla.fp8 import LATENT
from lcprof_kernels.mla.inputs import MlaInputs, mla_inputs
from lcprof_kernels.mla.reference import mla_reference, rows_of_sequence
from lcprof_kernels.quantised_decode.api import quantised_decode
from lcprof_kernels.quantised_decode.inputs import make_quantised_decode_inputs
from lcprof_kernels.quantised_decode.reference import attend, dequantise
from lcprof_kernels.selection.inputs import index_inputs, page_inputs
from lcprof_kernels.selection.pages import page_bounds, quest_decode
from lcprof_kernels.selection.tokens import score_tokens, select_tokens, sparse_mla_decode

Tensor = torch.Tensor
GEMM_PARTS = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """A call that can be repeated, and a check of its result: (error found, error allowed)."""

    run: Callable[[], Any]
    check: Callable[[Any], tuple[float, float]]


def prepare(point: Counted, place: torch.device) -> Work:
    """Draws a point's inputs. Raises what the kernels raise for a shape that they cannot take."""
    return _PREPARE[point.operation](Dimensions(point.shape), point.implementation, place)


def ends(count: int) -> list[int]:
    """The first and the last of `count`."""
    return sorted({0, count - 1})


def _prefill(shape: Dimensions, impl: str, place: torch.device) -> Work:
    drawn = make_inputs(
        **shape.counts("batch", "q_heads", "kv_heads", "query_tokens", "context_tokens"),
        head_dim=shape.count("head_dim"),
        dtype=DTYPES[shape.text("dtype")],
        device=place,
    )
    window, sinks = shape.some("window_tokens"), shape.count("sink_tokens")
    return _prefill_work(
        drawn.q,
        drawn.k,
        drawn.v,
        window,
        sinks,
        lambda q, k, v: attention(q, k, v, window_tokens=window, sink_tokens=sinks, impl=impl),
    )


def _mla_prefill(shape: Dimensions, impl: str, place: torch.device) -> Work:
    heads = shape.count("q_heads")
    drawn = make_inputs(
        **shape.counts("batch", "q_heads", "query_tokens", "context_tokens"),
        kv_heads=heads,
        head_dim=192,
        value_dim=128,
        device=place,
    )
    chosen: Any = impl
    return _prefill_work(
        drawn.q, drawn.k, drawn.v, None, 0, lambda q, k, v: mla_prefill(q, k, v, impl=chosen)[0]
    )


def _prefill_work(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    sinks: int,
    attend_all: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Work:
    """Checked on the last tokens of the first and the last KV head."""

    def check(out: Tensor) -> tuple[float, float]:
        group = q.shape[2] // k.shape[1]
        found = []
        for head in ends(k.shape[1]):
            heads = slice(head * group, (head + 1) * group)
            tail = q[:, -CHECKED_TOKENS:, heads]
            problem = check_problem(
                tail, k[:, head : head + 1], v[:, head : head + 1], causal=True,
                window_tokens=window, sink_tokens=sinks, scale=None, cu_query_tokens=None,
                cu_context_tokens=None, q_scale=1.0, k_scale=1.0, v_scale=1.0,
            )  # fmt: skip
            found.append(
                tolerance(reference(problem)[0], naive(problem)[0]).judge(
                    out[:, -CHECKED_TOKENS:, heads]
                )
            )
        worst: tuple[float, float] = max(found, key=lambda pair: pair[0] / pair[1])
        return worst

    def run() -> Tensor:
        with torch.no_grad():
            return attend_all(q, k, v)

    return Work(run=run, check=check)


def _backward(shape: Dimensions, impl: str, place: torch.device) -> Work:
    """Gradients of q, k and v from an output that is computed once."""
    drawn = make_inputs(
        **shape.counts("batch", "q_heads", "kv_heads", "query_tokens", "context_tokens"),
        head_dim=shape.count("head_dim"),
        dtype=DTYPES[shape.text("dtype")],
        device=place,
    )
    prepared = cases.Prepared(
        drawn, shape.some("window_tokens"), shape.count("sink_tokens"), {}, backward=True
    )

    def run() -> tuple[Tensor, ...]:
        # Autograd works on streams of its own, which a graph cannot capture.
        return prepared.run_backward_with(None) if impl == "triton" else prepared.run(impl)

    return Work(run=run, check=lambda found: cases.check(prepared, found))


def _decode(shape: Dimensions, impl: str, place: torch.device) -> Work:
    batch, context = shape.count("batch"), shape.count("context_tokens")
    window, sinks = shape.some("window_tokens"), shape.count("sink_tokens")
    ring = shape.text("layout") == "ring"
    room = window + sinks if ring and window else context
    paged = shape.some("page_tokens")
    ours = impl in ("triton", "naive")
    inputs = decode_inputs(
        **shape.counts("batch", "q_heads", "kv_heads", "head_dim", "query_tokens"),
        context_tokens=room,
        lengths=[context] * batch if ring or (paged and ours) else None,
        page_tokens=paged,
        window_tokens=window,
        sink_tokens=sinks,
        ring=ring,
        dtype=DTYPES[shape.text("dtype")],
        device=place,
        seed=torch.seed() % 2**31,
    )
    given = inputs.arguments()

    def check(out: Tensor) -> tuple[float, float]:
        group = inputs.q.shape[2] // inputs.k_cache.shape[1]
        found = []
        for b, head in product(ends(batch), ends(inputs.k_cache.shape[1])):
            heads = slice(head * group, (head + 1) * group)
            one = _one_sequence(inputs, b, head, heads).arguments()

            def by(low: bool, one: dict[str, Any] = one) -> Tensor:
                result: Tensor = decode_reference(**one, low_precision=low)[0]
                return result

            found.append(tolerance(by(False), by(True)).judge(out[b : b + 1, :, heads]))
        worst: tuple[float, float] = max(found, key=lambda pair: pair[0] / pair[1])
        return worst

    return Work(run=lambda: decode_attention(**given, impl=impl)[0], check=check)


def _one_sequence(inputs: DecodeInputs, b: int, head: int, heads: slice) -> DecodeInputs:
    rows = slice(b, b + 1) if inputs.page_table is None else slice(None)
    return replace(
        inputs,
        q=inputs.q[b : b + 1, :, heads],
        k_cache=inputs.k_cache[rows, head : head + 1],
        v_cache=inputs.v_cache[rows, head : head + 1],
        lengths=None if inputs.lengths is None else inputs.lengths[b : b + 1],
        page_table=None if inputs.page_table is None else inputs.page_table[b : b + 1],
    )


def _quantised(shape: Dimensions, impl: str, place: torch.device) -> Work:
    batch = shape.count("batch")
    inputs = make_quantised_decode_inputs(
        format_of(shape.text("format")),
        lengths=[shape.count("context_tokens")] * batch,
        **shape.counts("q_heads", "kv_heads", "head_dim", "query_tokens"),
        page_tokens=shape.some("page_tokens"),
        scale_dtype=scale_dtype(shape),
        device=place,
        seed=torch.seed() % 2**31,
        impl="triton" if place.type == "cuda" else "torch",
    )
    q, cache = inputs.q, inputs.cache
    scale = cache.head_dim**-0.5

    def check(out: Tensor) -> tuple[float, float]:
        picks = ends(batch)

        def by(dtype: torch.dtype) -> Tensor:
            return torch.stack(
                [attend(q[b], *dequantise(cache, b), scale, dtype)[0] for b in picks]
            )

        return tolerance(by(torch.float32), by(q.dtype)).judge(out[picks])

    return Work(run=lambda: quantised_decode(q, cache, impl=impl)[0], check=check)


def _quest(shape: Dimensions, impl: str, place: torch.device) -> Work:
    batch, page = shape.count("batch"), shape.count("page_tokens")
    x = page_inputs(
        **shape.counts("batch", "q_heads", "kv_heads", "head_dim", "context_tokens", "page_tokens"),
        device=place,
    )
    chosen: Any = impl
    where: dict[str, Any] = {"lengths": x.lengths, "page_table": x.page_table}
    bounds = page_bounds(x.k_cache, **where, impl=chosen)
    pages = min(shape.count("pages"), -(-shape.count("context_tokens") // page))

    def attended(impl: Any, q: Tensor, where: Mapping[str, Any]) -> Tensor:
        out: Tensor = quest_decode(
            q, x.k_cache, x.v_cache, bounds, **where, pages=pages, impl=impl
        )[0]
        return out

    def check(out: Tensor) -> tuple[float, float]:
        last = slice(batch - 1, batch)
        one = {name: tensor[last] for name, tensor in where.items()}
        want = attended("naive", x.q[last], one)
        return tolerance(want.double(), want).judge(out[last])

    return Work(run=lambda: attended(impl, x.q, where), check=check)


def _mla_decode(shape: Dimensions, impl: str, place: torch.device) -> Work:
    x = _mla_inputs(shape, place)
    chosen: Any = impl

    def check(out: Tensor) -> tuple[float, float]:
        picks = ends(x.q.shape[0])

        def by(low: bool) -> Tensor:
            return mla_reference(
                x.q[picks],
                x.cache if x.page_table is not None else x.cache[picks],
                lengths=x.lengths[picks],
                page_table=None if x.page_table is None else x.page_table[picks],
                scale=DEFAULT_SCALE,
                low_precision=low,
            )[0]

        return tolerance(by(False), by(True)).judge(out[picks])

    def run() -> Tensor:
        return mla_decode(x.q, x.cache, lengths=x.lengths, page_table=x.page_table, impl=chosen)[0]

    return Work(run=run, check=check)


def _mla_inputs(shape: Dimensions, place: torch.device) -> MlaInputs:
    return mla_inputs(
        **shape.counts("batch", "q_heads", "context_tokens", "query_tokens"),
        page_tokens=shape.some("page_tokens"),
        fp8=shape.text("format") == "fp8-656",
        device=place,
    )


def _sparse_mla(shape: Dimensions, impl: str, place: torch.device) -> Work:
    x = _mla_inputs(shape, place)
    batch, context = shape.count("batch"), shape.count("context_tokens")
    scores = torch.randn(batch, shape.count("query_tokens"), context, device=place)
    indices = select_tokens(scores, min(shape.count("top_tokens"), context))

    def check(out: Tensor) -> tuple[float, float]:
        last = batch - 1
        rows = rows_of_sequence(x.cache, x.page_table, last, context)[indices[last, 0].long()]

        def by(dtype: torch.dtype) -> Tensor:
            weights = torch.softmax(x.q[last, 0].float() @ rows.float().T * DEFAULT_SCALE, -1)
            return (weights.to(dtype).float() @ rows[:, :LATENT].float()).to(dtype)

        return tolerance(by(torch.float32), by(x.q.dtype)).judge(out[last, 0])

    def run() -> Tensor:
        return sparse_mla_decode(x.q, x.cache, indices, page_table=x.page_table)[0]

    return Work(run=run, check=check)


def _token_scores(shape: Dimensions, impl: str, place: torch.device) -> Work:
    x = index_inputs(
        **shape.counts("batch", "heads", "context_tokens", "query_tokens", "index_dim"),
        fp8=shape.text("format") == "fp8",
        page_tokens=shape.some("page_tokens"),
        device=place,
    )

    def scored(impl: Any) -> Tensor:
        return score_tokens(
            x.q, x.weights, x.keys, key_scales=x.key_scales, lengths=x.lengths,
            page_table=x.page_table, impl=impl,
        )  # fmt: skip

    def check(out: Tensor) -> tuple[float, float]:
        want = scored("naive")
        return tolerance(want.double(), want).judge(out)

    return Work(run=lambda: scored(impl), check=check)


def _append(shape: Dimensions, impl: str, place: torch.device) -> Work:
    layout, held, new = format_of(shape.text("format")), shape.count("held_tokens"), shape.count(
        "new_tokens"
    )  # fmt: skip
    step = layout.group_tokens or 1
    generator = torch.Generator(place)
    generator.seed()
    k, v = (
        draw(
            generator,
            **shape.counts("batch", "new_tokens", "kv_heads", "head_dim"),
            outliers=outliers,
        )
        for outliers in (True, False)
    )

    def cache_of(batch: int, tokens: int) -> caches.CompressedCache:
        made = caches.empty_cache(
            layout,
            batch=batch,
            **shape.counts("kv_heads", "head_dim"),
            capacity_tokens=-(-tokens // step) * step,
            scale_dtype=scale_dtype(shape),
            device=place,
        )
        if layout.keys == "tensor":
            made.keys.scale.fill_(60.0 / 448)
            made.values.scale.fill_(6.0 / 448)
        return made

    cache = cache_of(shape.count("batch"), held + new)
    lengths = torch.full_like(cache.lengths, new)

    def run() -> caches.CompressedCache:
        cache.lengths.fill_(held)
        append(cache, k, v, new_lengths=lengths, impl=impl)
        return cache

    def check(filled: caches.CompressedCache) -> tuple[float, float]:
        """Codes and scales of the first tokens of the first and the last sequence: they must be
        those of the reference, bit for bit."""
        count = min(new, APPENDED_TOKENS)
        groups = slice(held // step, (held + count) // step)
        largest = 0.0
        for b in ends(shape.count("batch")):
            small = cache_of(1, held + count)
            small.lengths.fill_(held)
            one = slice(b, b + 1)
            append_eager(small, k[one, :count], v[one, :count], lengths[:1].clone().fill_(count))
            for want, have, scaling in (
                (small.keys, filled.keys, layout.keys),
                (small.values, filled.values, layout.values),
            ):
                for expected, found in zip(
                    _stored(want, scaling, 0, groups, step),
                    _stored(have, scaling, b, groups, step),
                    strict=True,
                ):
                    largest = max(largest, errors(expected, found)[0])
        return largest, 0.0

    return Work(run=run, check=check)


def _stored(side: caches.Quantised, scaling: str, b: int, groups: slice, step: int) -> list[Tensor]:
    """Bytes of a sequence's codes and scales in some groups of `step` tokens, as numbers."""
    tokens = slice(groups.start * step, groups.stop * step)
    found = [side.codes[b, :, tokens]]
    if scaling != "tensor":
        where: tuple[Any, ...] = (groups,) if scaling == "channel" else (slice(None), tokens)
        scales = (side.scale, side.low)
        found += [each[b, :][:, *where] for each in scales if each is not None]
    return [each.contiguous().view(torch.uint8).float() for each in found]


def _gemm(shape: Dimensions, impl: str, place: torch.device) -> Work:
    rows, depth, columns = (shape.count(name) for name in ("rows", "depth", "columns"))
    fp8 = shape.text("format") == "fp8"
    kind = torch.bfloat16 if fp8 else DTYPES[shape.text("format")]
    x = torch.randn(rows, depth, device=place, dtype=kind)
    weights = torch.randn(columns, depth, device=place, dtype=kind)
    if fp8:
        x, weights = (each.to(torch.float8_e4m3fn) for each in (x, weights))
    # Of one row of activations and of one output channel, as engines scale fp8.
    scales = [torch.ones(shape, device=place) for shape in ((rows, 1), (1, columns))]
    picks = slice(0, CHECKED_ROWS)

    def check(out: Tensor) -> tuple[float, float]:
        """The first rows and columns in float64, beside sums of a few rounded parts: libraries
        split the depth, and may add the parts up in the type of the result."""

        def product(part: slice) -> Tensor:
            return x[picks, part].double() @ weights[picks, part].double().T

        def rounded() -> Tensor:
            step = -(-depth // GEMM_PARTS)
            total = torch.zeros_like(out[picks, picks])
            for start in range(0, depth, step):
                total = total + product(slice(start, start + step)).to(kind)
            return total

        return tolerance(product(slice(None)), rounded()).judge(out[picks, picks])

    def run() -> Tensor:
        if fp8:
            return torch._scaled_mm(
                x, weights.T, scale_a=scales[0], scale_b=scales[1], out_dtype=kind
            )
        return torch.nn.functional.linear(x, weights)

    return Work(run=run, check=check)


_PREPARE: Mapping[str, Callable[[Dimensions, str, torch.device], Work]] = {
    "prefill_attention": _prefill,
    "mla_prefill": _mla_prefill,
    "decode_attention": _decode,
    "quantised_decode": _quantised,
    "quest_decode": _quest,
    "mla_decode": _mla_decode,
    "token_scores": _token_scores,
    "sparse_mla_decode": _sparse_mla,
    "append": _append,
    "gemm": _gemm,
    "attention_backward": _backward,
}


@dataclass(frozen=True, kw_only=True)
class PointWorkshop:
    """What the runner needs to know of points on a device."""

    place: torch.device

    def prepare(self, task: Point) -> Work:
        """Draws a point's inputs."""
        return prepare(task, self.place)

    def needed_bytes(self, task: Point) -> float:
        """The most memory that it takes."""
        return needed(task).peak

    def is_refusal(self, error: BaseException) -> bool:
        """Whether a kernel said that it cannot do this, or PyTorch that none of its can."""
        return isinstance(error, KernelError) or "No available kernel" in str(error)

    def rates(self, task: Point, seconds: float) -> dict[str, float]:
        """A point is no ceiling."""
        return {}

    def tensor_rate(self, task: Point) -> float:
        """How much faster than in bf16 tensor cores work: twice in fp8."""
        return 2.0 if task.operation == "gemm" and task.shape["format"] == "fp8" else 1.0
