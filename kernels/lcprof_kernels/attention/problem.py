"""What is attended to what: the arguments of one attention, checked."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from lcprof_kernels.checks import (
    check_dtype,
    check_last_dim_dense,
    check_same_device,
    check_shape,
    require,
)

HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (256, 256))
"""(query and key, value) head dimensions that the Triton kernels take."""
DTYPES = (torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One checked attention; see `attention` for the layouts.

    `sequences` is the batch, or with variable lengths the number of sequences packed into the one
    row of q, k and v; `most_queries` and `most_keys` are the longest of them.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    causal: bool
    window_tokens: int | None
    sink_tokens: int
    scale: float
    cu_query_tokens: torch.Tensor | None
    cu_context_tokens: torch.Tensor | None
    sequences: int
    most_queries: int
    most_keys: int
    q_scale: float
    k_scale: float
    v_scale: float

    @property
    def group(self) -> int:
        """Query heads of one KV head."""
        return self.q.shape[2] // self.k.shape[1]

    @property
    def packed(self) -> bool:
        """Whether sequences of variable lengths are packed into one row."""
        return self.cu_query_tokens is not None

    @property
    def fp8(self) -> bool:
        """Whether q, k and v are e4m3 codes."""
        return self.q.dtype == FP8

    @property
    def out_dtype(self) -> torch.dtype:
        """The output's type: the inputs', or bfloat16 for fp8 inputs."""
        return torch.bfloat16 if self.fp8 else self.q.dtype

    def spans(self) -> list[tuple[int, slice, slice]]:
        """(row of the batch, its query tokens, its context tokens) of each sequence."""
        if self.cu_query_tokens is None or self.cu_context_tokens is None:
            whole = slice(0, self.q.shape[1]), slice(0, self.k.shape[2])
            return [(b, *whole) for b in range(self.q.shape[0])]
        queries, keys = self.cu_query_tokens.tolist(), self.cu_context_tokens.tolist()
        return [
            (0, slice(*queries[i : i + 2]), slice(*keys[i : i + 2])) for i in range(self.sequences)
        ]


def check_cumulative(name: str, cumulative: torch.Tensor, tokens: int) -> int:
    """Check int32 [sequences + 1] from 0 up to `tokens`, never falling; return the longest step."""
    require(
        cumulative.dim() == 1 and cumulative.numel() >= 2 and cumulative.dtype == torch.int32,
        f"{name} must be int32 [sequences + 1], got {cumulative.dtype} {list(cumulative.shape)}",
    )
    require(cumulative.is_contiguous(), f"{name} must be contiguous")
    bounds: list[int] = cumulative.tolist()
    steps = [after - before for before, after in pairwise(bounds)]
    require(
        bounds[0] == 0 and bounds[-1] <= tokens and min(steps) >= 0,
        f"{name} must rise from 0 to at most {tokens}, got {bounds[0]} to {bounds[-1]}",
    )
    return max(steps)


def check_problem(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    window_tokens: int | None,
    sink_tokens: int,
    scale: float | None,
    cu_query_tokens: torch.Tensor | None,
    cu_context_tokens: torch.Tensor | None,
    q_scale: float,
    k_scale: float,
    v_scale: float,
) -> Problem:
    """Raise `KernelInputError` for arguments that no implementation can use."""
    require(q.dim() == 4, f"q must be [batch, query_tokens, q_heads, D], got {list(q.shape)}")
    require(k.dim() == 4, f"k must be [batch, kv_heads, context_tokens, D], got {list(k.shape)}")
    batch, query_tokens, q_heads, head_dim = q.shape
    kv_heads, context = k.shape[1], k.shape[2]
    check_shape("k", k, (batch, None, None, head_dim), "[batch, kv_heads, context_tokens, D]")
    check_shape("v", v, (batch, kv_heads, context, None), "[batch, kv_heads, context_tokens, D_v]")
    require(
        kv_heads > 0 and q_heads > 0 and q_heads % kv_heads == 0,
        f"q_heads must be a multiple of kv_heads, got {q_heads} and {kv_heads}",
    )
    check_dtype("q", q, (*DTYPES, torch.float32, torch.float64, FP8))
    check_dtype("k", k, (q.dtype,))
    check_dtype("v", v, (q.dtype,))
    check_last_dim_dense("q", q)
    check_last_dim_dense("k", k)
    check_same_device(
        q=q, k=k, v=v, cu_query_tokens=cu_query_tokens, cu_context_tokens=cu_context_tokens
    )
    require(
        window_tokens is None or (window_tokens >= 1 and causal),
        f"window_tokens must be at least 1, of causal attention; got {window_tokens}",
    )
    require(
        sink_tokens >= 0 and (sink_tokens == 0 or window_tokens is not None),
        f"sink_tokens must be 0 or more, beside a window; got {sink_tokens}",
    )
    scale = head_dim**-0.5 if scale is None else scale
    require(scale > 0, f"scale must be positive, got {scale}")
    scales = (q_scale, k_scale, v_scale)
    require(
        all(value > 0 for value in scales) and (q.dtype == FP8 or scales == (1.0, 1.0, 1.0)),
        f"q_scale, k_scale and v_scale must be positive, and 1 without fp8 inputs; got {scales}",
    )
    require(
        (cu_query_tokens is None) == (cu_context_tokens is None),
        "cu_query_tokens and cu_context_tokens must be given together",
    )
    sequences, most_queries, most_keys = batch, query_tokens, context
    if cu_query_tokens is not None and cu_context_tokens is not None:
        require(batch == 1, f"variable lengths are packed into a batch of 1, got {batch}")
        require(
            cu_query_tokens.shape == cu_context_tokens.shape,
            "cu_query_tokens and cu_context_tokens must have the same length",
        )
        sequences = cu_query_tokens.numel() - 1
        most_queries = check_cumulative("cu_query_tokens", cu_query_tokens, query_tokens)
        most_keys = check_cumulative("cu_context_tokens", cu_context_tokens, context)
    return Problem(
        q=q,
        k=k,
        v=v,
        causal=causal,
        window_tokens=window_tokens,
        sink_tokens=sink_tokens,
        scale=scale,
        cu_query_tokens=cu_query_tokens,
        cu_context_tokens=cu_context_tokens,
        sequences=sequences,
        most_queries=most_queries,
        most_keys=most_keys,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
    )
