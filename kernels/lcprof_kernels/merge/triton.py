"""One program a row: weigh the parts by their log-sum-exps and add them."""

# Capital names are compile-time constants; arguments of kernels have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from lcprof_kernels.checks import interpreting

INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def narrow(x, kind: tl.constexpr):
    """fp32 rounded to `kind`. The interpreter cuts to bfloat16: there it is rounded by hand."""
    if INTERPRETED and kind == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return x.to(kind)


@triton.jit(do_not_specialize=["parts", "rows"])
def merge_rows(
    outs_ptr, lses_ptr, out_ptr, lse_ptr, parts, rows,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (rows,). outs [parts, rows, DIM], lses [parts, rows], all dense.

    With PDL it was launched as the kernel before it began to end, and waits for what that wrote.
    """
    if PDL:
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    top = tl.full([], float("-inf"), tl.float32)
    for first in tl.range(0, parts, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        lse = tl.load(lses_ptr + p.to(tl.int64) * rows + row, mask=p < parts, other=float("-inf"))
        top = tl.maximum(top, tl.max(lse, 0))
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for first in tl.range(0, parts, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        place = p.to(tl.int64) * rows + row
        lse = tl.load(lses_ptr + place, mask=p < parts, other=float("-inf"))
        weight = tl.exp(lse - base)
        some = (p < parts) & (lse != float("-inf"))
        part = tl.load(
            outs_ptr + place[:, None] * DIM + d[None, :],
            mask=some[:, None] & (d < DIM)[None, :],
            other=0.0,
        )
        acc += tl.sum(part.to(tl.float32) * weight[:, None], 0)
        total += tl.sum(weight, 0)
    mass = tl.where(total == 0.0, 1.0, total)
    out = acc / mass
    tl.store(out_ptr + row * DIM + d, narrow(out, out_ptr.dtype.element_ty), mask=d < DIM)
    tl.store(lse_ptr + row, tl.where(total == 0.0, float("-inf"), base + tl.log(mass)))
