"""PyTorch's scaled_dot_product_attention with one backend forced."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from lcprof_kernels.errors import MissingImplementationError

from .problem import DTYPES, Problem

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def refusal(problem: Problem, backend: str) -> str | None:
    """Why this backend cannot do the problem, or None."""
    if problem.window_tokens is not None:
        return "a window"
    if problem.packed:
        return "packed sequences"
    if problem.q.dtype not in DTYPES:
        return f"{problem.q.dtype} inputs"
    if backend == "cudnn" and problem.causal and problem.most_queries != problem.most_keys:
        return "causal queries at the end of a longer context"
    return None


def sdpa(problem: Problem, backend: str) -> torch.Tensor:
    """The output [batch, query_tokens, q_heads, D_v].

    Raises `MissingImplementationError` for what the backend has no way to say, and whatever
    PyTorch raises when the backend does not run on this GPU.
    """
    reason = refusal(problem, backend)
    if reason is not None:
        raise MissingImplementationError(f"torch's {backend} attention cannot do {reason}")
    q = problem.q.transpose(1, 2)
    shifted = problem.causal and problem.most_queries != problem.most_keys
    with sdpa_kernel([BACKENDS[backend]]):
        out = scaled_dot_product_attention(
            q,
            problem.k,
            problem.v,
            attn_mask=causal_lower_right(q.shape[2], problem.k.shape[2]) if shifted else None,
            is_causal=problem.causal and not shifted,
            scale=problem.scale,
            enable_gqa=problem.group > 1,
        )
    return out.transpose(1, 2)
