"""The host side of the Triton kernels: tiles, descriptors, grids, launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from lcprof_kernels.checks import check_one_of, check_rows_aligned, check_triton_device, require

from .problem import DTYPES, HEAD_DIMS, Problem
from .tiles import BACKWARD_KEYS, BACKWARD_KEYS_PACKED, BACKWARD_QUERIES, FORWARD, FORWARD_FP8, Tile
from .triton import forward
from .triton_backward import backward_keys, backward_queries, prepare

LOG2E = 1.4426950408889634
FP8_SHIFT = 8
"""fp8 probabilities are raised by 2**8: the largest, 256, still fits e4m3's 448."""
LARGE_SHARED_BYTES = 227 * 1024
PADDING = 128
"""Row statistics are padded to this many query tokens, so that tiles read them whole."""


def architecture_of(device: torch.device) -> int:
    """80 or 90: whose tiles to take. The interpreter takes those of sm_80."""
    if device.type == "cpu":
        return 80
    properties: Any = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) == (8, 0):
        return 80
    require(
        properties.major >= 9 and properties.shared_memory_per_block_optin >= LARGE_SHARED_BYTES,
        "the Triton attention has tiles for A100, H100 and GPUs with as much shared memory, "
        f"not for {properties.name}",
    )
    return 90


def check_triton(problem: Problem, *, backward: bool) -> None:
    """Raise `KernelInputError` for what the Triton kernels, or this GPU, cannot do."""
    q, k, v = problem.q, problem.k, problem.v
    check_triton_device(q.device, capability=(8, 9) if problem.fp8 else (8, 0))
    check_one_of("head dims (q and k, v)", (q.shape[3], v.shape[3]), HEAD_DIMS)
    require(
        q.dtype in DTYPES or problem.fp8,
        f"impl='triton' takes bfloat16, float16 or float8_e4m3fn, got {q.dtype}",
    )
    require(not (backward and problem.fp8), "there is no backward pass for fp8 inputs")
    require(not (problem.packed and problem.fp8), "fp8 inputs cannot be packed sequences")
    require(
        v.stride(3) == 1 or (problem.fp8 and v.stride(2) == 1),
        f"v must be dense in its last dimension, got strides {v.stride()}",
    )
    for name, tensor in (("q", q), ("k", k)):
        check_rows_aligned(name, tensor)
    check_rows_aligned("v", v if v.stride(3) == 1 else v.transpose(2, 3))
    require(
        max(problem.most_queries, problem.most_keys) < 2**30,
        "sequences must be shorter than 2**30 tokens",
    )


def parts(head_dim: int) -> tuple[int, int]:
    """A head dimension as a power of two and the rest, itself a power of two or zero."""
    largest = 1 << (head_dim.bit_length() - 1)
    return largest, head_dim - largest


def descriptors_of(
    tensor: torch.Tensor, block: int, *, tokens_at: int, head_dim: int
) -> tuple[Any, Any]:
    """Descriptors of both parts of a [batch, ., ., head_dim] tensor, `block` tokens a tile."""
    made: list[Any] = []
    for size in parts(head_dim):
        if size == 0:
            made.append(None)
            continue
        box = [1, 1, 1, size]
        box[tokens_at] = block
        made.append(TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), box))
    return made[0], made[1]


def token_dense(v: torch.Tensor) -> torch.Tensor:
    """v [batch, kv_heads, context_tokens, D] as it is, or copied, dense in its tokens."""
    if v.stride(2) == 1:
        return v
    batch, kv_heads, context, head_dim = v.shape
    pitch = triton.cdiv(context, 16) * 16
    copy = torch.empty(batch, kv_heads, head_dim, pitch, dtype=v.dtype, device=v.device)
    view = copy[..., :context].transpose(2, 3)
    return view.copy_(v)


def can_describe(tensor: torch.Tensor) -> bool:
    """Whether hardware descriptors take these strides: none may be zero."""
    return tensor.stride(3) == 1 and all(
        stride > 0 or size == 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def chunk_of(problem: Problem, bytes_at_once: int = 16 << 20) -> int:
    """How many (sequence, KV head) cells share the card at once: those whose k and v fit the L2."""
    cells = problem.sequences * problem.k.shape[1]
    head_bytes = (problem.k.shape[3] + problem.v.shape[3]) * problem.k.element_size()
    fit = max(1, bytes_at_once // max(1, problem.most_keys * head_bytes))
    return max(divisor for divisor in range(1, min(fit, cells) + 1) if cells % divisor == 0)


def common_arguments(problem: Problem) -> dict[str, Any]:
    """The arguments that every kernel takes under the same names."""
    q, k, v = problem.q, problem.k, problem.v
    return {
        "q": q,
        "k": k,
        "v": v,
        "cu_query_tokens": problem.cu_query_tokens,
        "cu_context_tokens": problem.cu_context_tokens,
        "scale_log2": problem.scale * problem.q_scale * problem.k_scale * LOG2E,
        "q_stride_b": q.stride(0),
        "q_stride_t": q.stride(1),
        "q_stride_h": q.stride(2),
        "k_stride_b": k.stride(0),
        "k_stride_h": k.stride(1),
        "k_stride_n": k.stride(2),
        "v_stride_b": v.stride(0),
        "v_stride_h": v.stride(1),
        "v_stride_n": v.stride(2),
        "query_tokens": q.shape[1],
        "context_tokens": k.shape[2],
        "kv_heads": k.shape[1],
        "window_tokens": problem.window_tokens or 0,
        "sink_tokens": problem.sink_tokens,
        "GROUP": problem.group,
        "CAUSAL": problem.causal,
        "WINDOWED": problem.window_tokens is not None,
    }


def constants(problem: Problem, tile: Tile) -> dict[str, Any]:
    """The compile-time arguments that follow from the shapes and the tile."""
    d0, d1 = parts(problem.q.shape[3])
    v0, v1 = parts(problem.v.shape[3])
    return {
        "D0": d0,
        "D1": d1,
        "V0": v0,
        "V1": v1,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "VARLEN": problem.packed,
        "STAGES": tile.num_stages,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
        **({"maxnreg": tile.registers} if tile.registers else {}),
    }


def run_forward(
    problem: Problem,
    *,
    tile: Tile | None = None,
    descriptors: bool | None = None,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp, dense. `tile`, `descriptors` and `chunk` override the tables."""
    if problem.fp8:
        problem = replace(problem, v=token_dense(problem.v))
    q, k, v = problem.q, problem.k, problem.v
    batch, query_tokens, q_heads, head_dim = q.shape
    device = q.device
    out = torch.empty(
        batch, query_tokens, q_heads, v.shape[3], dtype=problem.out_dtype, device=device
    )
    lse = torch.empty(batch, query_tokens, q_heads, dtype=torch.float32, device=device)
    if problem.packed:  # tokens past the last sequence belong to none
        out.zero_()
        lse.fill_(float("-inf"))
    if out.numel() == 0 or problem.most_queries == 0:
        return out, lse
    if problem.most_keys == 0:
        return out.zero_(), lse.fill_(float("-inf"))
    architecture = architecture_of(device)
    tile = tile or (FORWARD_FP8 if problem.fp8 else FORWARD)[architecture, head_dim]
    if descriptors is None:
        descriptors = architecture == 90
    descriptors = descriptors and all(can_describe(tensor) for tensor in (q, k, v))
    query_tiles = triton.cdiv(problem.most_queries, tile.block_m)
    grid = (query_tiles * q_heads * problem.sequences,)
    arguments = common_arguments(problem) | {
        "out": out,
        "lse": lse,
        "q_heads": q_heads,
        "query_tiles": query_tiles,
        "chunk": chunk or chunk_of(problem),
        **constants(problem, tile),
    }
    nothing: tuple[Any, Any] = (None, None)
    k_tiles = v_tiles = q_tiles = nothing
    if descriptors:
        k_tiles = descriptors_of(k, tile.block_n, tokens_at=2, head_dim=head_dim)
        v_tiles = descriptors_of(v, tile.block_n, tokens_at=2, head_dim=v.shape[3])
    with torch.cuda.device(device) if device.type == "cuda" else torch.no_grad():
        if descriptors:
            q_tiles = descriptors_of(q, tile.block_m, tokens_at=1, head_dim=head_dim)
        forward[grid](
            q_tiles0=q_tiles[0],
            q_tiles1=q_tiles[1],
            k_tiles0=k_tiles[0],
            k_tiles1=k_tiles[1],
            v_tiles0=v_tiles[0],
            v_tiles1=v_tiles[1],
            value_scale=float(problem.v_scale),
            v_stride_d=v.stride(3),
            DESCRIPTORS=descriptors,
            SHIFT=FP8_SHIFT if problem.fp8 else 0,
            **arguments,
        )
    return out, lse


def run_backward(
    problem: Problem,
    out: torch.Tensor,
    lse: torch.Tensor,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    *,
    keys_tile: Tile | None = None,
    queries_tile: Tile | None = None,
    descriptors: bool | None = None,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q (dense), k and v (strides of k and v where they are dense)."""
    q, k, v = problem.q, problem.k, problem.v
    batch, query_tokens, q_heads, head_dim = q.shape
    device = q.device
    dq = torch.empty(q.shape, dtype=q.dtype, device=device)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    if problem.packed:
        for gradient in (dq, dk, dv):
            gradient.zero_()
    if 0 in (problem.most_queries, problem.most_keys, q.numel()):
        return dq.zero_(), dk.zero_(), dv.zero_()
    architecture = architecture_of(device)
    table = BACKWARD_KEYS
    if problem.packed and architecture == 90:
        table = BACKWARD_KEYS_PACKED
    keys_tile = keys_tile or table[architecture, head_dim]
    queries_tile = queries_tile or BACKWARD_QUERIES[architecture, head_dim]
    d_out = d_out.contiguous()
    if descriptors is None:
        descriptors = architecture == 90
    descriptors = descriptors and all(can_describe(tensor) for tensor in (q, k, v))
    padded = triton.cdiv(query_tokens, PADDING) * PADDING
    delta = torch.empty(batch, q_heads, padded, dtype=torch.float32, device=device)
    lse_log2 = torch.empty_like(delta)
    common = common_arguments(problem) | {
        "d_out": d_out,
        "lse_log2": lse_log2,
        "delta": delta,
        "scale": problem.scale,
        "padded_tokens": padded,
        "DESCRIPTORS": descriptors,
        "chunk": chunk or chunk_of(problem),
    }
    with torch.cuda.device(device) if device.type == "cuda" else torch.no_grad():
        rows = 64
        prepare[(triton.cdiv(padded, rows), q_heads, batch)](
            out,
            d_out,
            lse,
            lse if d_lse is None else d_lse.contiguous(),
            lse_log2,
            delta,
            query_tokens,
            padded,
            q_heads,
            HEAD_DIM=v.shape[3],
            BLOCK_D=triton.next_power_of_2(v.shape[3]),
            BLOCK_M=rows,
            HAS_D_LSE=d_lse is not None,
            num_warps=4,
        )
        key_tiles = triton.cdiv(problem.most_keys, keys_tile.block_n)
        backward_keys[(key_tiles * k.shape[1] * problem.sequences,)](
            dk=dk,
            dv=dv,
            dk_stride_b=dk.stride(0),
            dk_stride_h=dk.stride(1),
            dk_stride_n=dk.stride(2),
            dv_stride_b=dv.stride(0),
            dv_stride_h=dv.stride(1),
            dv_stride_n=dv.stride(2),
            key_tiles=key_tiles,
            **tiles_of(problem, d_out, keys_tile, descriptors),
            lse_tiles=statistics_of(lse_log2, keys_tile) if descriptors else None,
            delta_tiles=statistics_of(delta, keys_tile) if descriptors else None,
            **common,
            **constants(problem, keys_tile),
        )
        query_tiles = triton.cdiv(problem.most_queries, queries_tile.block_m)
        backward_queries[(query_tiles * q_heads * problem.sequences,)](
            dq=dq,
            q_heads=q_heads,
            query_tiles=query_tiles,
            **tiles_of(problem, d_out, queries_tile, descriptors),
            **common,
            **constants(problem, queries_tile),
        )
    return dq, dk, dv


def tiles_of(
    problem: Problem, d_out: torch.Tensor, tile: Tile, descriptors: bool
) -> dict[str, Any]:
    """Descriptors of q, k, v and d_out by argument name, or None for each."""
    found: dict[str, Any] = {}
    named = (
        ("q", problem.q, 1, tile.block_m),
        ("k", problem.k, 2, tile.block_n),
        ("v", problem.v, 2, tile.block_n),
        ("do", d_out, 1, tile.block_m),
    )
    for name, tensor, tokens_at, block in named:
        made: tuple[Any, Any] = (None, None)
        if descriptors:
            made = descriptors_of(tensor, block, tokens_at=tokens_at, head_dim=tensor.shape[3])
        found[f"{name}_tiles0"], found[f"{name}_tiles1"] = made
    return found


def statistics_of(statistics: torch.Tensor, tile: Tile) -> TensorDescriptor:
    """A descriptor of row statistics [batch, q_heads, padded_tokens], a tile of one head."""
    flat = statistics.view(-1, statistics.shape[2])
    return TensorDescriptor.from_tensor(flat, [1, tile.block_m])
