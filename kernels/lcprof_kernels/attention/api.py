"""`attention`: every implementation of attention over many query tokens, chosen by name."""

from __future__ import annotations

from typing import Any

import torch

from lcprof_kernels.checks import check_one_of, require

from .launch import check_triton, run_backward, run_forward
from .problem import Problem, check_problem
from .reference import naive
from .sdpa import sdpa

IMPLS = ("triton", "naive", "flash", "cudnn")


class FlashAttention(torch.autograd.Function):
    """The Triton kernels as one differentiable step."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp."""
        out, lse = run_forward(problem)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.problem = problem
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of q, k and v, from those of the output and of the log-sum-exp."""
        d_out, d_lse = gradients
        q, _, _, out, lse = ctx.saved_tensors
        if d_out is None:
            d_out = torch.zeros_like(out)
        check_triton(ctx.problem, backward=True)
        dq, dk, dv = run_backward(ctx.problem, out, lse, d_out.to(q.dtype), d_lse)
        return dq, dk, dv, None


def attention_with_lse(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    window_tokens: int | None = None,
    sink_tokens: int = 0,
    scale: float | None = None,
    cu_query_tokens: torch.Tensor | None = None,
    cu_context_tokens: torch.Tensor | None = None,
    q_scale: float = 1.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    impl: str = "triton",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention`, and the natural-log log-sum-exp of each row's scores.

    The log-sum-exp is float32 [batch, query_tokens, q_heads], minus infinity where a query sees no
    key; gradients may flow through it. impl is "triton" or "naive".
    """
    check_one_of("impl", impl, ("triton", "naive"))
    problem = check_problem(
        q,
        k,
        v,
        causal=causal,
        window_tokens=window_tokens,
        sink_tokens=sink_tokens,
        scale=scale,
        cu_query_tokens=cu_query_tokens,
        cu_context_tokens=cu_context_tokens,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    return attend_problem(problem, impl)


def attend_problem(problem: Problem, impl: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of a checked problem, by "triton" or "naive"."""
    if impl == "naive":
        return naive(problem)
    q, k, v = problem.q, problem.k, problem.v
    wanted = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    check_triton(problem, backward=wanted)
    if not wanted:
        return run_forward(problem)
    result: tuple[torch.Tensor, torch.Tensor] = FlashAttention.apply(  # type: ignore[no-untyped-call]
        q, k, v, problem
    )
    return result


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    window_tokens: int | None = None,
    sink_tokens: int = 0,
    scale: float | None = None,
    cu_query_tokens: torch.Tensor | None = None,
    cu_context_tokens: torch.Tensor | None = None,
    q_scale: float = 1.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    impl: str = "triton",
) -> torch.Tensor:
    """Attend q to k and v: prefill, chunked prefill and training. Returns [.., q_heads, D_v].

    q is [batch, query_tokens, q_heads, D], k [batch, kv_heads, context_tokens, D] and v
    [batch, kv_heads, context_tokens, D_v], with any strides whose rows are dense and start on 16
    bytes; a [batch, context_tokens, kv_heads, D] tensor goes in as its `transpose(1, 2)`. Query
    heads h * group to (h + 1) * group - 1 read KV head h.

    Queries stand at the end of the context: query t at position context_tokens - query_tokens + t.
    With `causal` a query sees keys up to its own position; with `window_tokens`, of these the last
    window_tokens (its own included) and the first `sink_tokens`. A query that sees nothing gives
    zeros. `scale` multiplies the scores, 1/sqrt(D) when None.

    Packed sequences: batch is 1, and int32 `cu_query_tokens` and `cu_context_tokens`, each
    [sequences + 1] and rising from 0, cut the tokens of q and of k and v into sequences. They are
    read on the host.

    impl="triton" takes bfloat16 and float16, head dims (D, D_v) of (64, 64), (96, 96), (128, 128),
    (192, 128) and (256, 256), and, forward only, not packed, on compute capability 9.0 or newer,
    float8_e4m3fn with one scale for each of q, k and v (`q_scale` multiplies q's codes); then the
    output is bfloat16, and a v that is not dense in its tokens is first copied to be so.
    "naive" writes all scores to memory. "flash" and "cudnn" are PyTorch's
    scaled_dot_product_attention with that backend forced.

    Raises `KernelInputError` for arguments that cannot be used, and `MissingImplementationError`
    where a PyTorch backend cannot do what was asked.
    """
    check_one_of("impl", impl, IMPLS)
    problem = check_problem(
        q,
        k,
        v,
        causal=causal,
        window_tokens=window_tokens,
        sink_tokens=sink_tokens,
        scale=scale,
        cu_query_tokens=cu_query_tokens,
        cu_context_tokens=cu_context_tokens,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    if impl in ("flash", "cudnn"):
        require(q.device.type == "cuda", f"impl={impl!r} needs a CUDA GPU, got {q.device.type}")
        return sdpa(problem, impl)
    return attend_problem(problem, impl)[0]
