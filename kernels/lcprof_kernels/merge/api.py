"""Merge results of attention over disjoint parts of the keys by their log-sum-exps."""

from __future__ import annotations

from typing import Literal

import torch
import triton

from lcprof_kernels.checks import (
    check_dtype,
    check_one_of,
    check_same_device,
    check_triton_device,
    require,
)

from .reference import merge_reference
from .triton import merge_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def merge_partials(
    outs: torch.Tensor,
    lses: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    impl: Literal["triton", "torch"] = "triton",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over all keys from results over parts of them.

    `outs` is `[parts, ..., head_dim]`, each part normalised by itself; `lses` is float32
    `[parts, ...]` in natural logarithm. A part without keys has lse -inf, and whatever its rows of
    `outs` hold is ignored. Returns out `[..., head_dim]` in `dtype` (that of `outs` when None) and
    lse float32 `[...]`; a row without keys in any part is 0 with lse -inf.

    The weights are the softmax of the parts' log-sum-exps (FlashAttention, Dao et al., 2022,
    section 3.1). Raises `KernelInputError`.
    """
    check_one_of("impl", impl, ("triton", "torch"))
    require(outs.dim() >= 2, f"outs must have shape [parts, ..., head_dim], got {list(outs.shape)}")
    require(
        lses.shape == outs.shape[:-1],
        f"lses must have shape {list(outs.shape[:-1])} like outs without its last dimension, "
        f"got {list(lses.shape)}",
    )
    require(outs.shape[0] > 0, "outs must hold at least one part")
    check_dtype("outs", outs, DTYPES)
    check_dtype("lses", lses, [torch.float32])
    dtype = outs.dtype if dtype is None else dtype
    check_one_of("dtype", dtype, DTYPES)
    device = check_same_device(outs=outs, lses=lses)
    if impl == "torch":
        out, lse = merge_reference(outs, lses)
        return out.to(dtype), lse.float()
    check_triton_device(device)
    return launch_merge(outs, lses, dtype)


def launch_merge(
    outs: torch.Tensor, lses: torch.Tensor, dtype: torch.dtype, *, hidden: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`merge_partials` on arguments that are known to be right.

    A `hidden` launch overlaps the kernel before it, which must allow that (programmatic dependent
    launch, compute capability 9.0).
    """
    outs, lses = outs.contiguous(), lses.contiguous()
    parts, dim = outs.shape[0], outs.shape[-1]
    out = torch.empty(outs.shape[1:], dtype=dtype, device=outs.device)
    lse = torch.empty(lses.shape[1:], dtype=torch.float32, device=outs.device)
    rows = lse.numel()
    if rows == 0 or dim == 0:
        return out, lse
    block_d = triton.next_power_of_2(dim)
    merge_rows[(rows,)](
        outs,
        lses,
        out,
        lse,
        parts,
        rows,
        DIM=dim,
        BLOCK_D=block_d,
        BLOCK_P=min(triton.next_power_of_2(parts), max(1, 4096 // block_d)),
        PDL=hidden,
        num_warps=4,
        **({"launch_pdl": True} if hidden else {}),
    )
    return out, lse
