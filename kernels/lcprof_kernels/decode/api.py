"""Decode attention: a few new query tokens over a long cache of keys and values."""

from __future__ import annotations

import math

import torch

from lcprof_kernels.checks import (
    check_dtype,
    check_last_dim_dense,
    check_one_of,
    check_rows_aligned,
    check_same_device,
    check_shape,
    check_triton_device,
    require,
)
from lcprof_kernels.errors import MissingImplementationError

from .eager import naive_decode, sdpa_decode
from .launch import Workspace, launch

IMPLEMENTATIONS = ("triton", "flash", "cudnn", "naive")
HEAD_DIMS = (64, 96, 128, 256)
PAGE_TOKENS = (16, 32, 64, 128, 256)
MOST_QUERY_TOKENS = 8


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    window_tokens: int | None = None,
    sink_tokens: int = 0,
    ring: bool = False,
    scale: float | None = None,
    splits: int | None = None,
    workspace: Workspace | None = None,
    check_values: bool = False,
    impl: str = "triton",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Softmax attention of the newest tokens over a cache that already holds them.

    `q` is `[batch, query_tokens, q_heads, head_dim]`, bfloat16 or float16, 1 to 8 query tokens.
    The caches are `[batch, kv_heads, context_tokens, head_dim]`, or with `page_table` (int32
    `[batch, max_pages]`) pages `[pages, kv_heads, page_tokens, head_dim]` of 16 to 256 tokens.
    `lengths` (int32 `[batch]`) counts each sequence's tokens, the new ones included; without it
    every cache is full. Query token t of a sequence stands at position
    `length - query_tokens + t` and sees what is not after it.

    With `window_tokens` it sees only the newest `window_tokens` positions (itself included) and
    the first `sink_tokens` (StreamingLLM, arXiv 2309.17453). With `ring` the cache is a ring
    buffer `[batch, kv_heads, sinks + slots, head_dim]`: position p is stored at p while
    `p < sink_tokens`, else at `sink_tokens + (p - sink_tokens) % slots`, so that the next write
    goes where `lengths` says; `slots` must be at least `window_tokens + query_tokens - 1`.

    Returns the output `[batch, query_tokens, q_heads, head_dim]` in the type of `q`, and the
    float32 natural log-sum-exp of the scaled scores `[batch, query_tokens, q_heads]`. A query
    that sees no key gets zeros and -inf. `scale` defaults to 1/sqrt(head_dim).

    `impl` names who computes: "triton" (this package), "flash" and "cudnn" (PyTorch's attention
    with that backend alone; whole contiguous caches, no log-sum-exp: None), "naive" (eager steps
    that store every score). "triton" may be captured in a CUDA graph: it never waits for the
    device, and its grid depends on shapes only. `splits` overrides the number of chunks per cache;
    `workspace` gives the room for their results, else one is kept per stream. `check_values` also
    reads `lengths` and `page_table` back to the host to check them (it waits for the device).

    Raises `KernelInputError` for arguments that do not fit together and
    `MissingImplementationError` for what the named implementation cannot do.
    """
    check_one_of("impl", impl, IMPLEMENTATIONS)
    check_arguments(
        q,
        k_cache,
        v_cache,
        lengths=lengths,
        page_table=page_table,
        window_tokens=window_tokens,
        sink_tokens=sink_tokens,
        ring=ring,
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    require(scale > 0 and math.isfinite(scale), f"scale must be positive and finite, got {scale}")
    require(splits is None or splits >= 1, f"splits must be at least 1, got {splits}")
    if check_values:
        check_contents(k_cache, lengths=lengths, page_table=page_table, ring=ring)
    if impl in {"flash", "cudnn"}:
        if lengths is not None or page_table is not None or window_tokens is not None:
            raise MissingImplementationError(
                f"impl={impl!r} reads whole contiguous caches: no lengths, pages or window"
            )
        return sdpa_decode(q, k_cache, v_cache, backend=impl, scale=scale), None
    if impl == "naive":
        return naive_decode(
            q,
            k_cache,
            v_cache,
            lengths=lengths,
            page_table=page_table,
            window_tokens=window_tokens,
            sink_tokens=sink_tokens,
            ring=ring,
            scale=scale,
        )
    check_triton_device(q.device)
    check_one_of("head_dim", q.shape[-1], HEAD_DIMS)
    for name, tensor in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        check_last_dim_dense(name, tensor)
        check_rows_aligned(name, tensor)
    return launch(
        q,
        k_cache,
        v_cache,
        lengths=lengths,
        page_table=page_table,
        window_tokens=window_tokens,
        sink_tokens=sink_tokens,
        ring=ring,
        scale=scale,
        splits=splits,
        workspace=workspace,
    )


def check_arguments(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    lengths: torch.Tensor | None,
    page_table: torch.Tensor | None,
    window_tokens: int | None,
    sink_tokens: int,
    ring: bool,
) -> None:
    """Shapes, types, devices and the rules between the options; reads no tensor's values."""
    check_same_device(q=q, k_cache=k_cache, v_cache=v_cache, lengths=lengths, page_table=page_table)
    check_shape("q", q, (None,) * 4, "[batch, query_tokens, q_heads, head_dim]")
    batch, query_tokens, q_heads, head_dim = q.shape
    if page_table is None:
        words = "[batch, kv_heads, context_tokens, head_dim]"
        check_shape("k_cache", k_cache, (batch, None, None, head_dim), words)
    else:
        words = "[pages, kv_heads, page_tokens, head_dim]"
        check_shape("k_cache", k_cache, (None, None, None, head_dim), words)
        check_shape("page_table", page_table, (batch, None), "[batch, max_pages]")
        check_dtype("page_table", page_table, {torch.int32})
        check_last_dim_dense("page_table", page_table)
        check_one_of("page_tokens", k_cache.shape[2], PAGE_TOKENS)
    check_shape("v_cache", v_cache, tuple(k_cache.shape), words)
    check_dtype("q", q, {torch.bfloat16, torch.float16})
    check_dtype("k_cache", k_cache, {q.dtype})
    check_dtype("v_cache", v_cache, {q.dtype})
    kv_heads, context = k_cache.shape[1], k_cache.shape[2]
    require(
        1 <= query_tokens <= MOST_QUERY_TOKENS,
        f"query_tokens must be 1 to {MOST_QUERY_TOKENS}, got {query_tokens}",
    )
    require(
        kv_heads >= 1 and q_heads >= 1 and q_heads % kv_heads == 0,
        f"q_heads must be a multiple of kv_heads, got {q_heads} and {kv_heads}",
    )
    require(1 <= batch <= 65535, f"batch must be 1 to 65535, got {batch}")
    require(kv_heads <= 65535, f"kv_heads must be at most 65535, got {kv_heads}")
    room = context if page_table is None else page_table.shape[1] * context
    require(1 <= room < 2**31, f"the cache must have room for 1 to 2**31 - 1 tokens, got {room}")
    if lengths is not None:
        check_shape("lengths", lengths, (batch,), "[batch]")
        check_dtype("lengths", lengths, {torch.int32})
        require(lengths.is_contiguous(), "lengths must be contiguous")
    require(sink_tokens >= 0, f"sink_tokens must not be negative, got {sink_tokens}")
    if window_tokens is None:
        require(sink_tokens == 0 and not ring, "sink_tokens and ring need window_tokens")
    else:
        require(window_tokens >= 1, f"window_tokens must be at least 1, got {window_tokens}")
    if ring and window_tokens is not None:
        require(page_table is None, "a ring buffer is contiguous: ring takes no page_table")
        require(lengths is not None, "ring needs lengths: they say where the next token goes")
        slots, least = context - sink_tokens, window_tokens + query_tokens - 1
        require(
            slots >= least,
            f"the ring must have at least window_tokens + query_tokens - 1 = {least} slots "
            f"after its sinks, got {slots}",
        )


def check_contents(
    k_cache: torch.Tensor,
    *,
    lengths: torch.Tensor | None,
    page_table: torch.Tensor | None,
    ring: bool,
) -> None:
    """Lengths within the cache's room, used pages within the pool; waits for the device."""
    page_tokens = k_cache.shape[2]
    room = page_tokens if page_table is None else page_table.shape[1] * page_tokens
    if lengths is not None:
        least, most = int(lengths.min()), int(lengths.max())
        require(least >= 0, f"lengths must not be negative, got {least}")
        require(ring or most <= room, f"lengths must be at most {room}, got {most}")
    if page_table is not None:
        first = torch.arange(page_table.shape[1], device=k_cache.device) * page_tokens
        used = (
            torch.ones_like(page_table, dtype=torch.bool)
            if lengths is None
            else first[None, :] < lengths[:, None]
        )
        outside = page_table[used & ((page_table < 0) | (page_table >= k_cache.shape[0]))]
        require(
            outside.numel() == 0,
            f"page_table must hold pages 0 to {k_cache.shape[0] - 1}, "
            f"got {int(outside[0]) if outside.numel() else ''}",
        )
