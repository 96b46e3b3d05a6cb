"""The implementations that are not ours: PyTorch's attention by backend, and plain eager steps."""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from lcprof_kernels.errors import MissingImplementationError

from .reference import gather_tokens, visible_keys


def sdpa_decode(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, backend: str, scale: float
) -> torch.Tensor:
    """`scaled_dot_product_attention` with the named backend ("flash", "cudnn") and no other.

    Whole contiguous caches. Several query tokens need PyTorch's lower-right causal mask, which its
    cuDNN backend does not take.
    """
    query_tokens = q.shape[1]
    if backend == "cudnn" and query_tokens > 1:
        raise MissingImplementationError(
            "impl='cudnn' has no right-aligned causal mask: one query token only"
        )
    chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[backend]
    mask = causal_lower_right(query_tokens, k.shape[2]) if query_tokens > 1 else None
    with sdpa_kernel([chosen]):
        out = functional.scaled_dot_product_attention(
            q.transpose(1, 2),
            k,
            v,
            attn_mask=mask,
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[1],
        )
    return out.transpose(1, 2)


def naive_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    lengths: torch.Tensor | None,
    page_table: torch.Tensor | None,
    window_tokens: int | None,
    sink_tokens: int,
    ring: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, softmax and weighted sum as separate steps over the whole cache, all stored.

    Scores and softmax are in float32.
    """
    k = k_cache if page_table is None else gather_tokens(k_cache, page_table)
    v = v_cache if page_table is None else gather_tokens(v_cache, page_table)
    batch, query_tokens, q_heads, head_dim = q.shape
    kv_heads, slots = k.shape[1], k.shape[2]
    group = q_heads // kv_heads
    rows = q.view(batch, query_tokens, kv_heads, group, head_dim).permute(0, 2, 1, 3, 4)
    scores = rows.reshape(batch, kv_heads, -1, head_dim).float() @ k.transpose(-1, -2).float()
    scores = scores.view(batch, kv_heads, query_tokens, group, slots) * scale
    whole = lengths is None and window_tokens is None and query_tokens == 1
    if not whole:
        each = [slots] * batch if lengths is None else lengths.tolist()
        seen = torch.stack(
            [
                visible_keys(
                    length,
                    slots,
                    query_tokens,
                    window_tokens=window_tokens,
                    sink_tokens=sink_tokens,
                    ring=ring,
                    device=q.device,
                )
                for length in each
            ]
        )
        scores.masked_fill_(~seen[:, None, :, None, :], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    weights = torch.softmax(scores, -1)
    if not whole:
        weights = torch.where(torch.isinf(lse)[..., None], 0.0, weights)
        present = seen.any(1)[:, None, :, None]
        v = torch.where(present, v, torch.zeros((), dtype=v.dtype, device=v.device))
    out = weights.to(v.dtype).view(batch, kv_heads, -1, slots) @ v
    out = out.view(batch, kv_heads, query_tokens, group, head_dim).permute(0, 2, 1, 3, 4)
    return (
        out.reshape(q.shape),
        lse.permute(0, 2, 1, 3).reshape(batch, query_tokens, q_heads),
    )
