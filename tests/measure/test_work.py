"""Every operation runs on a CPU, its check tells right from wrong, and it takes what was said."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from lcprof.domain.kv.dense import Dense
from lcprof.domain.operations import OPERATIONS
from lcprof.measure.points import Part, Point
from lcprof.measure.shapes import needed, peaks
from lcprof.measure.work import PointWorkshop, prepare
from lcprof_kernels.caches import CompressedCache
from lcprof_kernels.errors import KernelInputError, MissingImplementationError

CPU = torch.device("cpu")
DECODE = {"batch": 2, "query_tokens": 1, "context_tokens": 300, "q_heads": 4, "kv_heads": 2,
          "head_dim": 64, "window_tokens": 0, "sink_tokens": 0, "dtype": "bf16",
          "layout": "contiguous", "page_tokens": 0}  # fmt: skip
PREFILL = {"batch": 1, "query_tokens": 96, "context_tokens": 160, "q_heads": 4, "kv_heads": 2,
           "head_dim": 64, "window_tokens": 0, "sink_tokens": 0, "dtype": "bf16"}  # fmt: skip
CODED = {"batch": 2, "query_tokens": 1, "context_tokens": 200, "q_heads": 4, "kv_heads": 2,
         "head_dim": 64, "format": "fp8-token", "scale": "fp32", "page_tokens": 0}  # fmt: skip
APPEND = {"batch": 2, "new_tokens": 40, "held_tokens": 0, "kv_heads": 2, "head_dim": 64,
          "format": "int8-token", "scale": "fp16"}  # fmt: skip
LATENT = {"batch": 2, "query_tokens": 1, "context_tokens": 200, "q_heads": 4, "format": "bf16",
          "page_tokens": 0}  # fmt: skip
SCORES = {"batch": 2, "query_tokens": 1, "context_tokens": 192, "heads": 4, "index_dim": 64,
          "format": "fp8", "page_tokens": 64}  # fmt: skip
QUEST = {"batch": 2, "query_tokens": 1, "context_tokens": 256, "q_heads": 4, "kv_heads": 2,
         "head_dim": 64, "page_tokens": 16, "pages": 4, "dtype": "bf16"}  # fmt: skip
GEMM = {"rows": 300, "depth": 128, "columns": 320, "format": "bf16"}

SHAPES: list[tuple[str, str, dict[str, Any]]] = [
    ("prefill_attention", "naive", PREFILL),
    ("prefill_attention", "naive", {**PREFILL, "window_tokens": 32, "sink_tokens": 4}),
    ("prefill_attention", "naive", {**PREFILL, "head_dim": 32, "dtype": "fp16"}),
    ("mla_prefill", "naive", {"batch": 1, "query_tokens": 80, "context_tokens": 96, "q_heads": 4}),
    ("decode_attention", "naive", DECODE),
    ("decode_attention", "naive", {**DECODE, "dtype": "fp16", "head_dim": 96}),
    ("decode_attention", "naive", {**DECODE, "layout": "paged", "page_tokens": 16}),
    ("decode_attention", "naive", {**DECODE, "layout": "ring", "window_tokens": 60,
                                   "sink_tokens": 4}),
    ("decode_attention", "naive", {**DECODE, "layout": "paged", "page_tokens": 64,
                                   "window_tokens": 60, "sink_tokens": 4}),
    *(("quantised_decode", impl, {**CODED, "format": name, "scale": scale, "page_tokens": page})
      for impl in ("naive", "torch")
      for name, scale, page in (("fp8-tensor", "fp32", 0), ("fp8-token", "fp32", 64),
                                ("int8-token", "fp16", 0), ("int4-token-64", "fp16", 64),
                                ("int4-kivi-64", "fp16", 0), ("int4-kivi-32", "fp16", 64))),
    *(("append", "torch", {**APPEND, "format": name, "scale": "fp16", "held_tokens": held,
                           "new_tokens": new})
      for name in ("fp8-tensor", "fp8-token", "int8-token", "int4-token-64", "int4-kivi-64")
      for held, new in ((0, 100), (127, 1))),
    ("quest_decode", "naive", QUEST),
    ("mla_decode", "naive", LATENT),
    ("mla_decode", "naive", {**LATENT, "format": "fp8-656", "page_tokens": 64}),
    ("token_scores", "naive", SCORES),
    ("attention_backward", "naive", {**PREFILL, "query_tokens": 160}),
    ("attention_backward", "naive", {**PREFILL, "query_tokens": 160, "window_tokens": 32,
                                     "sink_tokens": 4}),
    ("gemm", "torch", GEMM),
    ("gemm", "torch", {**GEMM, "rows": 1, "format": "fp16"}),
    ("gemm", "torch", {**GEMM, "format": "fp8"}),
]  # fmt: skip


def point(operation: str, impl: str, shape: Mapping[str, Any]) -> Point:
    nothing: Any = None
    part = Part(case=nothing, group=None, phase="decode", kv=Dense())
    return Point(operation=operation, shape=shape, part=part, implementation=impl)


def named(case: tuple[str, str, dict[str, Any]]) -> str:
    operation, impl, shape = case
    return " ".join([operation, impl, *(str(value) for value in shape.values())])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def spoiled(result: Any) -> Any:
    """A result that is wrong everywhere."""
    if isinstance(result, tuple):
        return tuple(spoiled(each) for each in result)
    if isinstance(result, CompressedCache):
        result.keys.codes.view(torch.uint8).bitwise_xor_(0x11)
        return result
    return result + (0.5 if result.dtype.is_floating_point else 1) * (1 + result.abs().max())


@pytest.mark.parametrize("case", SHAPES, ids=named)
def test_a_right_result_passes_and_a_wrong_one_does_not(case: tuple[str, str, Any]) -> None:
    work = prepare(point(*case), CPU)
    first = work.run()
    error, allowed = work.check(first)
    assert error <= allowed
    # It can be repeated, and gives the same.
    error, allowed = work.check(work.run())
    assert error <= allowed
    error, allowed = work.check(spoiled(work.run()))
    assert error > allowed


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_sparse_latents_are_checked_too() -> None:
    """Only a Triton kernel has them: it runs in the interpreter."""
    shape = {**LATENT, "context_tokens": 96, "page_tokens": 64, "top_tokens": 32}
    work = prepare(point("sparse_mla_decode", "triton", {**shape, "context_tokens": 128}), CPU)
    out = work.run()
    error, allowed = work.check(out)
    assert error <= allowed
    error, allowed = work.check(out + 1)
    assert error > allowed


TRITON = [
    (operation, "triton", shape)
    for operation, impl, shape in SHAPES
    if "triton" in OPERATIONS[operation]
    and impl in ("naive", OPERATIONS[operation][-1])
    and shape.get("head_dim") != 32
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("case", TRITON, ids=named)
def test_our_kernels_take_the_same_inputs(case: tuple[str, str, Any]) -> None:
    """In the interpreter, which rounds otherwise than a GPU: errors are judged there."""
    work = prepare(point(*case), CPU)
    result = work.run()
    error, allowed = work.check(result)
    if isinstance(result, torch.Tensor):
        assert torch.isfinite(result[..., :1]).all()
        assert work.check(spoiled(result))[0] > allowed
    elif isinstance(result, tuple):
        assert all(torch.isfinite(each).all() for each in result)
        assert work.check(spoiled(result))[0] > allowed
    else:
        assert (error, allowed) == (0.0, 0.0)


def test_each_corner_is_checked() -> None:
    """The last head of the first sequence, the first head of the last."""
    work = prepare(point("decode_attention", "naive", DECODE), CPU)
    for b, head in ((0, 0), (0, 3), (1, 0), (1, 3)):
        out = work.run().clone()
        out[b, :, head] += 1
        error, allowed = work.check(out)
        assert error > allowed


@pytest.mark.parametrize("name", ["int8-token", "int4-token-64", "int4-kivi-32"])
@pytest.mark.parametrize("b", [0, 1])
def test_scales_of_appended_tokens_are_checked(name: str, b: int) -> None:
    shape = {**APPEND, "format": name, "new_tokens": 64}
    for side, part in (("keys", "scale"), ("values", "scale"), ("values", "low")):
        work = prepare(point("append", "torch", shape), CPU)
        filled = work.run()
        assert work.check(filled) == (0.0, 0.0)
        spoilt = getattr(getattr(filled, side), part)
        if spoilt is not None:
            spoilt[b] += 1
            assert work.check(filled)[0] > 0


def test_every_operation_is_covered() -> None:
    assert {case[0] for case in SHAPES} | {"sparse_mla_decode"} == set(OPERATIONS)


def tensors(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that a call can reach through its closure."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif callable(thing) and getattr(thing, "__closure__", None):
        for cell in thing.__closure__:
            yield from tensors(cell.cell_contents, seen)
    elif dataclasses.is_dataclass(thing):
        for each in vars(thing).values():
            yield from tensors(each, seen)
    elif isinstance(thing, dict):
        for each in thing.values():
            yield from tensors(each, seen)
    elif isinstance(thing, list | tuple):
        for each in thing:
            yield from tensors(each, seen)


@pytest.mark.parametrize("case", SHAPES, ids=named)
def test_bytes_are_those_of_the_tensors(case: tuple[str, str, Any]) -> None:
    made = point(*case)
    work = prepare(made, CPU)
    result = work.run()
    stored = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
              for each in tensors(work.run, set())}  # fmt: skip
    inputs = sum(stored.values())
    need = needed(made)
    # Tables and lengths come on top; three pages of decode attention that nothing uses, and for
    # Quest the bounds of each page, a key and a key of 16.
    spare = 3 * 2 * 64 * 64 * 2 * 2 if case[2].get("layout") == "paged" else 0
    bounds = 2 * need.inputs / 16 if case[0] == "quest_decode" else 0
    assert need.inputs * 0.99 - 512 <= inputs <= need.inputs * 1.01 + 512 + spare + bounds
    if isinstance(result, torch.Tensor):
        assert need.call >= result.numel() * result.element_size()
    assert need.peak == need.inputs + max(need.call, need.check)


def test_what_a_kernel_refuses_is_a_refusal() -> None:
    workshop = PointWorkshop(place=CPU)
    with pytest.raises(KernelInputError) as caught:
        workshop.prepare(point("quantised_decode", "naive", {**CODED, "head_dim": 32}))
    assert workshop.is_refusal(caught.value)
    assert workshop.is_refusal(MissingImplementationError("no"))
    assert not workshop.is_refusal(ValueError("no"))
    work = workshop.prepare(point("decode_attention", "flash", {**DECODE, "layout": "paged",
                                                                "page_tokens": 16}))  # fmt: skip
    with pytest.raises(MissingImplementationError):
        work.run()


def test_the_peak_is_predicted_where_nothing_else_is_allocated() -> None:
    ours = point("decode_attention", "triton", DECODE)
    (found,) = peaks([ours, point("decode_attention", "naive", DECODE)])
    assert found.name == ours.key
    # 2 sequences x 300 tokens x 2 heads x 64 x (K and V) x 2 bytes, Q, O and fp32 log-sum-exps.
    rows = 2 * 4
    assert found.peak_bytes == 2 * 300 * 2 * 64 * 4 + rows * (64 * 2 * 2 + 4)
    (flash,) = peaks([point("decode_attention", "flash", DECODE)])
    assert flash.peak_bytes == found.peak_bytes


def test_random_data_differs_between_calls() -> None:
    for case in SHAPES:
        if case[0] in ("decode_attention", "gemm", "prefill_attention", "mla_decode"):
            first, second = (prepare(point(*case), CPU).run() for _ in range(2))
            assert not torch.equal(first, second), named(case)
