"""Attention in plain eager steps: the oracle, its low-precision twin, the baseline."""

from __future__ import annotations

import torch

from .problem import FP8, Problem


def seen_keys(
    query_tokens: int,
    context_tokens: int,
    *,
    causal: bool,
    window_tokens: int | None,
    sink_tokens: int,
    device: torch.device,
) -> torch.Tensor:
    """Which keys each query token sees, bool [query_tokens, context_tokens].

    Query token t stands at position `context_tokens - query_tokens + t`.
    """
    index = torch.arange(context_tokens, device=device)[None, :]
    position = torch.arange(query_tokens, device=device)[:, None] + context_tokens - query_tokens
    if not causal:
        return torch.ones(query_tokens, context_tokens, dtype=torch.bool, device=device)
    seen = index <= position
    if window_tokens is not None:
        seen &= (index > position - window_tokens) | (index < sink_tokens)
    return seen


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor | None,
    scale: float,
    *,
    low: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of q [..., T, D], k and v [..., N, D], with all T x N scores at once.

    `low` rounds the probabilities to that type before the second product. Rows that see nothing
    are zero, with a log-sum-exp of minus infinity.
    """
    scores = (q @ k.transpose(-1, -2)) * scale
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(scores.float() if scores.dtype != torch.float64 else scores, -1)
    anchor = torch.where(lse == float("-inf"), 0, lse).unsqueeze(-1)
    weights = torch.exp(scores - anchor)
    if low is not None:
        weights = weights.to(low)
    return weights.to(v.dtype) @ v, lse


def reference(
    problem: Problem, *, low_precision: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle: float64 on a CPU, float32 on a GPU, one sequence and query head at a time.

    Output [batch, query_tokens, q_heads, D_v] and log-sum-exp [batch, query_tokens, q_heads]. With
    `low_precision`, probabilities and output are rounded to the types that a kernel rounds to.
    Differentiable in q, k and v.
    """
    exact = torch.float64 if problem.q.device.type == "cpu" else torch.float32
    q, k, v = (tensor.to(exact) for tensor in (problem.q, problem.k, problem.v))
    scale = problem.scale * problem.q_scale * problem.k_scale
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=exact, device=q.device)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=exact, device=q.device)
    for b, queries, keys in problem.spans():
        if queries.stop == queries.start or keys.stop == keys.start:
            continue
        seen = seen_keys(
            queries.stop - queries.start,
            keys.stop - keys.start,
            causal=problem.causal,
            window_tokens=problem.window_tokens,
            sink_tokens=problem.sink_tokens,
            device=q.device,
        )
        for head in range(q.shape[2]):
            group = head // problem.group
            result, row_lse = attend(
                q[b, queries, head],
                k[b, group, keys],
                v[b, group, keys],
                seen if problem.causal else None,
                scale,
                low=None if not low_precision else problem.q.dtype,
            )
            out[b, queries, head] = result * problem.v_scale
            lse[b, queries, head] = row_lse
    if low_precision:
        out = out.to(problem.out_dtype).to(exact)
    return out, lse


def naive(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """The baseline that FlashAttention is measured against: all T x T scores in memory.

    Written as PyTorch users write it: products in the inputs' type, softmax in float32, keys and
    values repeated over the group. fp8 inputs are widened to bfloat16 first.
    """
    q, k, v = problem.q, problem.k, problem.v
    if q.dtype == FP8:
        q, k, v = (tensor.to(torch.bfloat16) for tensor in (q, k, v))
    q = q.transpose(1, 2)
    k, v = (tensor.repeat_interleave(problem.group, 1) for tensor in (k, v))
    scale = problem.scale * problem.q_scale * problem.k_scale
    if not problem.packed:
        out, lse = _naive_block(q, k, v, problem, scale)
    else:
        out = q.new_zeros(*q.shape[:3], v.shape[3])
        lse = torch.full(q.shape[:3], float("-inf"), dtype=torch.float32, device=q.device)
        for _, queries, keys in problem.spans():
            part = _naive_block(q[:, :, queries], k[:, :, keys], v[:, :, keys], problem, scale)
            out[:, :, queries], lse[:, :, queries] = part
    return (out * problem.v_scale).transpose(1, 2), lse.transpose(1, 2)


def _naive_block(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [batch, heads, tokens, D] with one mask for all."""
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if problem.causal:
        seen = seen_keys(
            q.shape[2],
            k.shape[2],
            causal=True,
            window_tokens=problem.window_tokens,
            sink_tokens=problem.sink_tokens,
            device=q.device,
        )
        scores = scores.masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(scores, -1)
    out = torch.softmax(scores, -1).to(v.dtype) @ v
    return out.masked_fill((lse == float("-inf")).unsqueeze(-1), 0.0), lse
