from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch

from lcprof_kernels.attention import attention, attention_with_lse
from lcprof_kernels.attention.cases import SAMPLE_TOKENS, attention_case, causal_pairs
from lcprof_kernels.attention.inputs import Inputs, make_inputs, make_packed_inputs
from lcprof_kernels.attention.launch import check_triton, parts
from lcprof_kernels.attention.problem import HEAD_DIMS, Problem, check_problem
from lcprof_kernels.attention.reference import reference, seen_keys
from lcprof_kernels.attention.tiles import (
    BACKWARD_KEYS,
    BACKWARD_QUERIES,
    FORWARD,
    FORWARD_FP8,
    Tile,
)
from lcprof_kernels.budget import HALF_STEP, tolerance
from lcprof_kernels.errors import KernelInputError, MissingImplementationError
from lcprof_kernels.offline import Job, compile_elsewhere

PLAIN: dict[str, Any] = {
    "causal": True,
    "window_tokens": None,
    "sink_tokens": 0,
    "scale": None,
    "cu_query_tokens": None,
    "cu_context_tokens": None,
    "q_scale": 1.0,
    "k_scale": 1.0,
    "v_scale": 1.0,
}


def options_of(inputs: Inputs, given: dict[str, Any]) -> dict[str, Any]:
    return given | {
        "cu_query_tokens": inputs.cu_query_tokens,
        "cu_context_tokens": inputs.cu_context_tokens,
    }


def problem_of(inputs: Inputs, **given: Any) -> Problem:
    return check_problem(inputs.q, inputs.k, inputs.v, **PLAIN | options_of(inputs, given))


def assert_forward(inputs: Inputs, impl: str = "triton", **given: Any) -> None:
    problem = problem_of(inputs, **given)
    out, lse = attention_with_lse(
        inputs.q, inputs.k, inputs.v, impl=impl, **options_of(inputs, given)
    )
    want, want_lse = reference(problem)
    # To bfloat16 and e4m3 the interpreter cuts off where a card rounds: twice the error and more,
    # all to one side. To float16 it rounds.
    factor = {torch.bfloat16: 4.0, torch.float16: 2.0}.get(inputs.q.dtype, 6.0)
    budget = tolerance(
        want,
        reference(problem, low_precision=True)[0],
        factor=factor if inputs.q.device.type == "cpu" or inputs.q.dtype.itemsize == 1 else 2.0,
        resolution=HALF_STEP[problem.out_dtype],
    )
    assert out.dtype == problem.out_dtype
    assert budget.accepts(out), budget.explain(out)
    seen = torch.isfinite(want_lse)
    assert torch.equal(torch.isfinite(lse), seen)
    atol = 1e-4 if impl == "triton" else 4e-2  # naive rounds its scores to the inputs' type
    torch.testing.assert_close(lse[seen].double(), want_lse[seen], atol=atol, rtol=1e-5)


def assert_backward(inputs: Inputs, *, with_lse: bool = False, **given: Any) -> None:
    """Against float64 autograd; the budget is the same backward pass in the inputs' precision."""

    def gradients(kind: str) -> list[torch.Tensor]:
        dtype = torch.float64 if kind == "exact" else inputs.q.dtype
        leaves = [
            tensor.detach().to(dtype).requires_grad_() for tensor in (inputs.q, inputs.k, inputs.v)
        ]
        if kind == "exact":
            out, lse = reference(check_problem(*leaves, **PLAIN | options_of(inputs, given)))
        else:
            out, lse = attention_with_lse(*leaves, impl=kind, **options_of(inputs, given))
        loss = (out * inputs.d_out.to(out.dtype)).sum()
        if with_lse:
            loss = loss + torch.where(torch.isfinite(lse), lse, 0).sum()
        return list(torch.autograd.grad(loss, leaves))

    exact, low, ours = (gradients(kind) for kind in ("exact", "naive", "triton"))
    for name, want, rounded, have in zip("qkv", exact, low, ours, strict=True):
        budget = tolerance(
            want,
            rounded,
            resolution=HALF_STEP[inputs.q.dtype],
        )
        assert budget.accepts(have), f"d{name}: {budget.explain(have)}"


SHAPES = {
    "one token": ({"query_tokens": 1}, {}),
    "one token, long context": ({"query_tokens": 1, "context_tokens": 90}, {}),
    "off the tile": ({"query_tokens": 133}, {}),
    "full, off the tile": ({"query_tokens": 70, "context_tokens": 150}, {"causal": False}),
    "chunk": ({"query_tokens": 50, "context_tokens": 177}, {}),
    "rows without keys": ({"query_tokens": 40, "context_tokens": 13}, {}),
    "window below a tile": ({"query_tokens": 150}, {"window_tokens": 7}),
    "window of one": ({"query_tokens": 40}, {"window_tokens": 1, "sink_tokens": 1}),
    "window and sinks": ({"query_tokens": 200}, {"window_tokens": 70, "sink_tokens": 4}),
    "many sinks": ({"query_tokens": 260}, {"window_tokens": 20, "sink_tokens": 100}),
    "window over all": ({"query_tokens": 60}, {"window_tokens": 500, "sink_tokens": 3}),
    "chunk and window": (
        {"query_tokens": 30, "context_tokens": 190},
        {"window_tokens": 33, "sink_tokens": 5},
    ),
    "scale": ({"query_tokens": 40}, {"scale": 0.5}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_forward_of_shapes(name: str) -> None:
    shape, given = SHAPES[name]
    inputs = make_inputs(q_heads=2, kv_heads=1, head_dim=64, dtype=torch.float16, **shape)
    assert_forward(inputs, **given)


@pytest.mark.parametrize(
    "name", ["off the tile", "chunk", "rows without keys", "window and sinks", "many sinks"]
)
def test_backward_of_shapes(name: str) -> None:
    shape, given = SHAPES[name]
    inputs = make_inputs(q_heads=2, kv_heads=1, head_dim=64, dtype=torch.float16, **shape)
    assert_backward(inputs, with_lse=name == "chunk", **given)


@pytest.mark.parametrize(("head_dim", "value_dim"), HEAD_DIMS)
def test_head_dims(head_dim: int, value_dim: int) -> None:
    shape = {"query_tokens": 70, "head_dim": head_dim, "value_dim": value_dim}
    assert_forward(make_inputs(q_heads=2, kv_heads=1, dtype=torch.bfloat16, **shape))
    assert_backward(make_inputs(q_heads=2, kv_heads=1, dtype=torch.float16, **shape))


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_groups_and_batch(kv_heads: int) -> None:
    inputs = make_inputs(
        batch=2, q_heads=6, kv_heads=kv_heads, query_tokens=20, head_dim=64, dtype=torch.float16
    )
    assert_forward(inputs)
    assert_backward(inputs)


def test_tokens_first_and_strided_views() -> None:
    inputs = make_inputs(
        q_heads=4, kv_heads=2, query_tokens=60, head_dim=64, dtype=torch.float16, tokens_first=True
    )
    assert not inputs.k.is_contiguous()
    assert_forward(inputs)
    assert_backward(inputs)
    wide = make_inputs(q_heads=4, kv_heads=2, query_tokens=80, head_dim=64, dtype=torch.float16)
    view = Inputs(
        q=wide.q[:, ::2, 1:3], k=wide.k[:, 1:, 8:72], v=wide.v[:, 1:, :64], d_out=wide.d_out
    )
    assert_forward(view)
    shared = dataclasses.replace(wide, k=wide.k[:, :1].expand(1, 2, 80, 64))
    assert_forward(shared)


def test_packed_sequences() -> None:
    spans = [(40, 40), (0, 10), (30, 75), (5, 0), (1, 1)]
    inputs = make_packed_inputs(spans, q_heads=2, kv_heads=1, head_dim=64, dtype=torch.float16)
    assert_forward(inputs)
    assert_forward(inputs, window_tokens=9, sink_tokens=2)
    assert_backward(inputs)
    assert_forward(inputs, impl="naive")


def test_a_neighbour_with_nan_stays_apart() -> None:
    inputs = make_packed_inputs(
        [(20, 20), (24, 24)], q_heads=1, kv_heads=1, head_dim=64, dtype=torch.float16
    )
    inputs.v[:, :, 20:] = float("nan")
    inputs.k[:, :, 20:] = float("nan")
    out = attention(
        inputs.q,
        inputs.k,
        inputs.v,
        cu_query_tokens=inputs.cu_query_tokens,
        cu_context_tokens=inputs.cu_context_tokens,
    )
    assert torch.isfinite(out[:, :20]).all()
    assert torch.isnan(out[:, 20:]).all()


def test_outlier_channels() -> None:
    inputs = make_inputs(q_heads=2, kv_heads=1, query_tokens=100, head_dim=64, outlier=30.0)
    assert_forward(inputs)


def test_fp8() -> None:
    inputs = make_inputs(
        q_heads=2,
        kv_heads=1,
        query_tokens=60,
        context_tokens=96,
        head_dim=64,
        dtype=torch.float8_e4m3fn,
    )
    assert_forward(inputs, q_scale=0.5, k_scale=0.8, v_scale=0.3)
    turned = inputs.v.transpose(2, 3).contiguous().transpose(2, 3)
    args = inputs.q, inputs.k
    assert torch.equal(attention(*args, inputs.v), attention(*args, turned))


@pytest.mark.parametrize("empty", [{"query_tokens": 0}, {"query_tokens": 3, "context_tokens": 0}])
def test_nothing_to_attend(empty: dict[str, int]) -> None:
    inputs = make_inputs(q_heads=2, kv_heads=1, head_dim=64, **empty)
    out, lse = attention_with_lse(inputs.q, inputs.k, inputs.v)
    assert out.shape == inputs.q.shape
    assert not out.any()
    assert (lse == float("-inf")).all()


def test_naive_is_the_same_operation() -> None:
    inputs = make_inputs(q_heads=4, kv_heads=2, query_tokens=30, context_tokens=20, head_dim=64)
    assert_forward(inputs, impl="naive")
    assert_forward(inputs, impl="naive", window_tokens=4, sink_tokens=1)


def test_seen_keys_by_hand() -> None:
    seen = seen_keys(2, 5, causal=True, window_tokens=2, sink_tokens=1, device=torch.device("cpu"))
    assert seen.tolist() == [[True, False, True, True, False], [True, False, False, True, True]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"impl": "magic"}, "impl"),
        ({"window_tokens": 0}, "window_tokens"),
        ({"window_tokens": 4, "causal": False}, "causal"),
        ({"sink_tokens": 4}, "window"),
        ({"scale": -1.0}, "scale"),
        ({"k_scale": 2.0}, "fp8"),
        ({"impl": "cudnn"}, "CUDA"),
        ({"cu_query_tokens": torch.tensor([0, 8], dtype=torch.int32)}, "together"),
    ],
)
def test_options_that_cannot_be(change: dict[str, Any], words: str) -> None:
    inputs = make_inputs(q_heads=2, kv_heads=1, query_tokens=8, head_dim=64)
    with pytest.raises(KernelInputError, match=words):
        attention(inputs.q, inputs.k, inputs.v, **change)


def test_tensors_that_cannot_be() -> None:
    x = make_inputs(q_heads=3, kv_heads=1, query_tokens=8, head_dim=64)
    wrong = [
        (x.q[0], x.k, x.v, "q must be"),
        (x.q, x.k[..., :32], x.v, "k must have shape"),
        (x.q, x.k, x.v[:, :, :4], "v must have shape"),
        (x.q, x.k.half(), x.v, "k must be bfloat16"),
        (x.q[:, :, :, ::2], x.k[..., :32], x.v, "dense"),
        (x.q, x.k.expand(1, 2, 8, 64), x.v.expand(1, 2, 8, 64), "multiple of kv_heads"),
        (x.q[..., :32], x.k[..., :32], x.v, "head dims"),
        (x.q.float(), x.k.float(), x.v.float(), "bfloat16, float16"),
        (x.q.to("meta"), x.k, x.v, "one device"),
    ]
    for q, k, v, words in wrong:
        with pytest.raises(KernelInputError, match=words):
            attention(q, k, v)


def test_cumulative_lengths_that_cannot_be() -> None:
    x = make_inputs(q_heads=1, kv_heads=1, query_tokens=8, head_dim=64)
    good = torch.tensor([0, 3, 8], dtype=torch.int32)
    for bad in ([0, 9], [1, 8], [0, 5, 4]):
        with pytest.raises(KernelInputError, match="cu_query_tokens"):
            attention(
                x.q,
                x.k,
                x.v,
                cu_query_tokens=torch.tensor(bad, dtype=torch.int32),
                cu_context_tokens=good[: len(bad)],
            )
    low = dataclasses.replace(
        x,
        q=x.q.to(torch.float8_e4m3fn),
        k=x.k.to(torch.float8_e4m3fn),
        v=x.v.to(torch.float8_e4m3fn),
    )
    packed = dataclasses.replace(low, cu_query_tokens=good, cu_context_tokens=good)
    with pytest.raises(KernelInputError, match="packed"):
        check_triton(problem_of(packed), backward=False)
    with pytest.raises(KernelInputError, match="backward"):
        check_triton(problem_of(low), backward=True)


def test_sdpa_says_what_it_cannot_do() -> None:
    from lcprof_kernels.attention.sdpa import sdpa

    inputs = make_inputs(q_heads=2, kv_heads=1, query_tokens=8, context_tokens=16, head_dim=64)
    with pytest.raises(MissingImplementationError, match="longer context"):
        sdpa(problem_of(inputs), "cudnn")
    with pytest.raises(MissingImplementationError, match="window"):
        sdpa(problem_of(inputs, window_tokens=4), "flash")


@pytest.mark.parametrize("window", [None, (6, 2)])
def test_case_counts_pairs_and_checks(window: tuple[int, int] | None) -> None:
    size, sinks = window or (None, 0)
    seen = seen_keys(
        20, 33, causal=True, window_tokens=size, sink_tokens=sinks, device=torch.device("cpu")
    )
    assert causal_pairs(20, 33, size, sinks) == int(seen.sum())
    for backward in (False, True):
        case = attention_case(
            heads=(2, 1),
            query_tokens=SAMPLE_TOKENS + 20,
            head_dims=(64, 64),
            window_tokens=size,
            sink_tokens=sinks,
            backward=backward,
            naive=True,
        )
        prepared = case.make_inputs(torch.device("cpu"))
        results = case.implementations["naive"](prepared)
        error, allowed = case.check(prepared, results)
        assert error <= allowed
        wrong = tuple(result + 0.5 for result in results)
        error, allowed = case.check(prepared, wrong)
        assert error > allowed


def job(
    kernel: str,
    arch: int,
    dims: tuple[int, int],
    tile: Tile,
    *,
    windowed: bool = False,
    packed: bool = False,
    fp8: bool = False,
) -> Job:
    (d0, d1), (v0, v1) = parts(dims[0]), parts(dims[1])
    kind = "fp8e4nv" if fp8 else "bf16"
    described = arch == 90 and not fp8
    pointers = ("q", "k", "v", "d_out", "dq", "dk", "dv")
    signature = dict.fromkeys(pointers, f"*{kind}")
    signature |= {"out": "*bf16", "lse": "*fp32", "lse_log2": "*fp32", "delta": "*fp32"}
    signature |= {"cu_query_tokens": "*i32", "cu_context_tokens": "*i32"}
    signature |= dict.fromkeys(("scale", "scale_log2", "value_scale"), "fp32")
    constants: dict[str, Any] = {
        "GROUP": 4,
        "D0": d0,
        "D1": d1,
        "V0": v0,
        "V1": v1,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "CAUSAL": True,
        "WINDOWED": windowed,
        "VARLEN": packed,
        "DESCRIPTORS": described,
        "SHIFT": 8 if fp8 else 0,
        "STAGES": tile.num_stages,
        "v_stride_n" if fp8 else "v_stride_d": 1,
    }
    rows, keys = f"1, {tile.block_m}, 1", f"1, 1, {tile.block_n}"
    for name, box, sizes in (
        ("q", rows, (d0, d1)),
        ("k", keys, (d0, d1)),
        ("v", keys, (v0, v1)),
        ("do", rows, (v0, v1)),
    ):
        for part, size in enumerate(sizes):
            if described and size:
                signature[f"{name}_tiles{part}"] = f"tensordesc<{kind}[{box}, {size}]>"
            else:
                constants[f"{name}_tiles{part}"] = None
    for name in ("lse_tiles", "delta_tiles"):
        if described:
            signature[name] = f"tensordesc<fp32[1, {tile.block_m}]>"
        else:
            constants[name] = None
    module, _, function = kernel.partition(":")
    names = getattr(
        importlib.import_module(f"lcprof_kernels.attention.{module}"), function
    ).arg_names
    for name in names:
        if name not in signature and name not in constants:
            signature[name] = "i32"
    signature = {n: t for n, t in signature.items() if n in names and n not in constants}
    return Job(
        kernel=f"lcprof_kernels.attention.{kernel}",
        signature=signature,
        constants={n: value for n, value in constants.items() if n in names},
        aligned=[
            n
            for n, kind_of in signature.items()
            if kind_of.startswith("*") or "_stride_" in n or n == "padded_tokens"
        ],
        arch=arch,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        options={"maxnreg": tile.registers} if tile.registers else {},
    )


@pytest.mark.parametrize("arch", [80, 90])
def test_compiles_without_a_card(arch: int) -> None:
    """Head dim 128, every kernel: shared memory, no spills, the matrix instructions meant."""
    wide = (128, 128)
    jobs = [
        job("triton:forward", arch, wide, FORWARD[arch, 128]),
        job("triton_backward:backward_keys", arch, wide, BACKWARD_KEYS[arch, 128], windowed=True),
        job("triton_backward:backward_queries", arch, wide, BACKWARD_QUERIES[arch, 128]),
    ]
    if arch == 90:
        jobs.append(job("triton:forward", arch, wide, FORWARD_FP8[arch, 128], fp8=True))
    family = {80: {"HMMA"}, 90: {"HGMMA", "QGMMA"}}[arch]
    for task, found in zip(jobs, compile_elsewhere(jobs), strict=True):
        assert not found.faults(), (task.kernel, found.faults())
        assert family & set(found.instructions), task.kernel
