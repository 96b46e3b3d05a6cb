"""What this card can do at best, measured in the run that it is held against."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from .nvml import Nvml
from .timing import Flush, interleaved


@triton.jit
def _read(source, out, n, block: tl.constexpr, steps: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * block * steps
    total = tl.zeros((block,), tl.int32)
    for step in tl.range(steps, num_stages=1, loop_unroll_factor=4):
        offsets = start + step * block + tl.arange(0, block)
        total ^= tl.load(source + offsets, mask=offsets < n, other=0, eviction_policy="evict_first")
    folded = tl.xor_sum(total, 0)
    if folded == 0x5EED5EED:  # keeps the loads alive; random data almost never folds to this
        tl.store(out, folded)


@triton.jit
def _copy(source, target, block: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    tl.store(target + offsets, tl.load(source + offsets))


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Measured rates: bytes read per second, bytes read plus written, bf16 GEMM FLOP/s."""

    read_bytes_per_s: float
    copy_bytes_per_s: float
    gemm_flops: float


def measure_ceilings(device: torch.device, flush: Flush, nvml: Nvml) -> Ceilings:
    """Read 4 GiB, copy 2 GiB, multiply two random bf16 8192 x 8192 matrices; medians."""
    source = torch.randint(-(2**31), 2**31 - 1, (1 << 30,), dtype=torch.int32, device=device)
    out = torch.zeros(1, dtype=torch.int32, device=device)
    block, steps = 4096, 16
    grid = (triton.cdiv(source.numel(), block * steps),)
    half = source.numel() // 2
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    b = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    product = torch.empty_like(a)
    runs: dict[str, Callable[[], Any]] = {
        "read": lambda: _read[grid](source, out, source.numel(), block, steps, num_warps=8),
        "copy": lambda: _copy[(half // block,)](source[half:], source, block, num_warps=8),
        "gemm": lambda: torch.mm(a, b, out=product),
    }
    timed = interleaved(runs, flush=flush, nvml=nvml, limit_s=1.0, least=9)
    return Ceilings(
        read_bytes_per_s=source.numel() * 4 / timed["read"].median_s,
        copy_bytes_per_s=source.numel() * 4 / timed["copy"].median_s,
        gemm_flops=2 * 8192**3 / timed["gemm"].median_s,
    )
