"""What the benchmark times of attention over many query tokens, and how each result is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from lcprof_kernels.bench.case import Case, Choices
from lcprof_kernels.budget import Budget, tolerance

from .api import attention
from .inputs import Inputs, make_inputs
from .launch import architecture_of, check_triton, run_backward, run_forward
from .problem import Problem, check_problem
from .reference import naive, reference
from .tiles import BACKWARD_KEYS, BACKWARD_QUERIES, BackwardTiles, other_backward_tiles

SAMPLE_TOKENS = 64
"""Query tokens at the end that a result is checked on. Of a causal pass they, and no others, see
the last keys: so the gradients of those keys are complete too."""


@dataclass
class Prepared:
    """Inputs of a case, and for backward passes the outputs whose graphs are kept."""

    inputs: Inputs
    window_tokens: int | None
    sink_tokens: int
    scales: dict[str, Any]
    backward: bool
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    leaves: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)

    def attend(self, impl: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output by one implementation."""
        q, k, v = tensors
        return attention(
            q,
            k,
            v,
            window_tokens=self.window_tokens,
            sink_tokens=self.sink_tokens,
            impl=impl,
            **self.scales,
        )

    def run(self, impl: str) -> tuple[torch.Tensor, ...]:
        """The output, or the gradients from an output that is computed once."""
        inputs = self.inputs
        if not self.backward:
            with torch.no_grad():
                return (self.attend(impl, (inputs.q, inputs.k, inputs.v)),)
        if impl not in self.outputs:
            leaves = tuple(
                tensor.detach().requires_grad_() for tensor in (inputs.q, inputs.k, inputs.v)
            )
            self.leaves[impl] = leaves
            self.outputs[impl] = self.attend(impl, leaves)
        return torch.autograd.grad(
            self.outputs[impl], self.leaves[impl], inputs.d_out, retain_graph=True
        )

    def sample(self, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The checked part of an output, or of the gradients of q, k and v."""
        first = [results[0][:, -SAMPLE_TOKENS:]]
        return first + [gradient[:, :, -SAMPLE_TOKENS:] for gradient in results[1:]]

    @cached_property
    def forward(self) -> tuple[Problem, torch.Tensor, torch.Tensor]:
        """The problem, its output and log-sum-exp, once."""
        problem = self._problem([self.inputs.q, self.inputs.k, self.inputs.v])
        check_triton(problem, backward=self.backward)
        return problem, *run_forward(problem)

    def run_backward_with(self, tiles: BackwardTiles | None) -> tuple[torch.Tensor, ...]:
        """The gradients by our kernels with given tiles, or with the table's."""
        problem, out, lse = self.forward
        return run_backward(
            problem,
            out,
            lse,
            self.inputs.d_out,
            None,
            keys_tile=tiles.keys if tiles else None,
            queries_tile=tiles.queries if tiles else None,
        )

    def _problem(self, tensors: Sequence[torch.Tensor]) -> Problem:
        return check_problem(
            *tensors,
            causal=True,
            window_tokens=self.window_tokens,
            sink_tokens=self.sink_tokens,
            scale=None,
            cu_query_tokens=None,
            cu_context_tokens=None,
            **{"q_scale": 1.0, "k_scale": 1.0, "v_scale": 1.0} | self.scales,
        )

    @cached_property
    def budgets(self) -> list[Budget]:
        """The oracle of each checked part, and the error it allows."""
        exact, low = self._tail(low_precision=False), self._tail(low_precision=True)
        return [tolerance(want, have) for want, have in zip(exact, low, strict=True)]

    def _tail(self, *, low_precision: bool) -> list[torch.Tensor]:
        """The last query tokens by the oracle, or by naive attention in the inputs' type."""
        inputs = self.inputs
        tensors = [inputs.q[:, -SAMPLE_TOKENS:], inputs.k, inputs.v]
        if self.backward:
            kind = inputs.q.dtype if low_precision else torch.float32
            tensors = [tensor.detach().to(kind).requires_grad_() for tensor in tensors]
        problem = self._problem(tensors)
        if not low_precision:
            out, _ = reference(problem)
        elif problem.fp8:
            out, _ = reference(problem, low_precision=True)
        else:
            out, _ = naive(problem)
        if not self.backward:
            return [out]
        d_out = inputs.d_out[:, -SAMPLE_TOKENS:].to(out.dtype)
        return self.sample(torch.autograd.grad(out, tensors, d_out))


def check(prepared: Prepared, results: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Error and allowance of the checked part that comes closest to its allowance."""
    parts = zip(prepared.budgets, prepared.sample(results), strict=True)
    return max((budget.judge(part) for budget, part in parts), key=lambda pair: pair[0] / pair[1])


def causal_pairs(query_tokens: int, context_tokens: int, window: int | None, sinks: int) -> int:
    """(query, key) pairs that a causal pass sees."""
    first = context_tokens - query_tokens + 1
    if window is None:
        return query_tokens * (first + context_tokens) // 2
    return sum(
        min(seen, window) + min(sinks, max(0, seen - window))
        for seen in range(first, context_tokens + 1)
    )


def attention_case(
    *,
    heads: tuple[int, int],
    query_tokens: int,
    context_tokens: int | None = None,
    head_dims: tuple[int, int] = (128, 128),
    batch: int = 1,
    window_tokens: int | None = None,
    sink_tokens: int = 0,
    fp8: bool = False,
    backward: bool = False,
    naive: bool = False,
    variant: str = "",
) -> Case:
    """One causal shape, forward or backward."""
    q_heads, kv_heads = heads
    head_dim, value_dim = head_dims
    context = query_tokens if context_tokens is None else context_tokens
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    scales = {"q_scale": 1.0, "k_scale": 1.0, "v_scale": 1.0} if fp8 else {}

    def make(device: torch.device) -> Prepared:
        drawn = make_inputs(
            batch=batch,
            q_heads=q_heads,
            kv_heads=kv_heads,
            query_tokens=query_tokens,
            context_tokens=context,
            head_dim=head_dim,
            value_dim=value_dim,
            dtype=dtype,
            device=device,
        )
        return Prepared(drawn, window_tokens, sink_tokens, scales, backward)

    def by(impl: str) -> Callable[[Prepared], tuple[torch.Tensor, ...]]:
        return lambda prepared: prepared.run(impl)

    def choices(device: torch.device) -> Choices:
        key = architecture_of(device), head_dim
        present = BackwardTiles(keys=BACKWARD_KEYS[key], queries=BACKWARD_QUERIES[key])
        return Choices(
            place=f"attention.tiles.BACKWARD_KEYS[{key!r}], BACKWARD_QUERIES[{key!r}]",
            present=present,
            others=other_backward_tiles(present),
            run=Prepared.run_backward_with,
        )

    impls = ["triton"]
    if window_tokens is None and not fp8:
        impls += ["flash"] if head_dim == value_dim else []
        impls += ["cudnn"] if context == query_tokens else []
    if naive:
        impls.append("naive")
    q_row, k_row = q_heads * head_dim, kv_heads * (head_dim + value_dim)
    out_row = q_heads * value_dim
    pairs = causal_pairs(query_tokens, context, window_tokens, sink_tokens)
    flops = 2 * batch * q_heads * (head_dim + value_dim) * pairs
    moved = batch * (query_tokens * (q_row + out_row) + context * k_row) * dtype.itemsize
    kind = str(dtype).removeprefix("torch.")
    return Case(
        op="attention",
        variant=" ".join(filter(None, ("backward" if backward else "", variant))),
        dtype=kind,
        kv_dtype=kind,
        batch=batch,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query_tokens=query_tokens,
        context_tokens=context,
        window_tokens=window_tokens,
        bytes=moved * (2 if backward else 1),
        flops=flops * 5 // 2 if backward else flops,
        make_inputs=make,
        implementations={impl: by(impl) for impl in impls},
        check=check,
        choices=choices if backward and head_dim == 256 else None,
    )


def cases(*, quick: bool) -> list[Case]:
    """Forward and backward over context and head dims; windows, chunks, fp8; naive beside ours."""
    kib = 1024
    lengths = (4, 16) if quick else (4, 16, 32, 64, 128)
    found = [attention_case(heads=(32, 8), query_tokens=n * kib) for n in lengths]
    found += [
        attention_case(heads=(32, 8), query_tokens=32 * kib, window_tokens=4096, sink_tokens=4),
        attention_case(heads=(32, 8), query_tokens=16 * kib, backward=True),
    ]
    small = (2, 4) if quick else (2, 4, 8, 16, 32, 64)
    for n in small:
        for backward in (False, True):
            found.append(
                attention_case(
                    heads=(8, 2),
                    query_tokens=n * kib,
                    backward=backward,
                    naive=n <= 16,
                    variant="naive",
                )
            )
    if quick:
        return found
    dims = (
        ((64, 64), (16, 16)),
        ((96, 96), (32, 8)),
        ((192, 128), (16, 16)),
        ((256, 256), (16, 4)),
    )
    for head_dims, heads in dims:
        for backward in (False, True):
            found.append(
                attention_case(
                    heads=heads, query_tokens=16 * kib, head_dims=head_dims, backward=backward
                )
            )
    found += [
        attention_case(heads=(32, 8), query_tokens=4 * kib, context_tokens=64 * kib),
        attention_case(heads=(32, 8), query_tokens=16 * kib, fp8=True),
        attention_case(heads=(32, 8), query_tokens=64 * kib, fp8=True),
        attention_case(heads=(32, 8), query_tokens=4 * kib, batch=4),
        attention_case(heads=(32, 8), query_tokens=4 * kib, backward=True),
        attention_case(
            heads=(32, 8), query_tokens=32 * kib, window_tokens=4096, sink_tokens=4, backward=True
        ),
    ]
    return found
