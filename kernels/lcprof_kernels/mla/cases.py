"""What the benchmark times of MLA decode, and how each result is checked."""

from __future__ import annotations

import torch

from lcprof_kernels.bench.case import Case, Choices
from lcprof_kernels.budget import tolerance
from lcprof_kernels.device import capability_of

from . import choices as launch_choices
from .api import DEFAULT_SCALE, mla_decode, mla_decode_with
from .fp8 import FP8_ROW_BYTES, LATENT, ROW
from .inputs import MlaInputs, mla_inputs
from .launch import Tile, tile_for
from .reference import mla_reference

K = 1024


def run(x: MlaInputs) -> torch.Tensor:
    """Our kernel."""
    return mla_decode(x.q, x.cache, lengths=x.lengths, page_table=x.page_table)[0]


def run_with(x: MlaInputs, tile: Tile) -> torch.Tensor:
    """What `run` launches, by another tile."""
    return mla_decode_with(
        tile, x.q, x.cache, lengths=x.lengths, page_table=x.page_table, scale=DEFAULT_SCALE
    )[0]


def check(x: MlaInputs, out: torch.Tensor) -> tuple[float, float]:
    """Largest error on the first and the last sequence, and the largest allowed."""
    picks = sorted({0, x.q.shape[0] - 1})

    def reference(low_precision: bool) -> torch.Tensor:
        return mla_reference(
            x.q[picks],
            x.cache if x.page_table is not None else x.cache[picks],
            lengths=x.lengths[picks],
            page_table=None if x.page_table is None else x.page_table[picks],
            scale=DEFAULT_SCALE,
            low_precision=low_precision,
        )[0]

    return tolerance(reference(False), reference(True)).judge(out[picks])


def mla_case(
    *,
    batch: int,
    q_heads: int,
    context_tokens: int,
    query_tokens: int = 1,
    page_tokens: int | None = None,
    fp8: bool = False,
) -> Case:
    """One shape."""

    def make_inputs(device: torch.device) -> MlaInputs:
        return mla_inputs(
            batch=batch,
            q_heads=q_heads,
            context_tokens=context_tokens,
            query_tokens=query_tokens,
            page_tokens=page_tokens,
            fp8=fp8,
            device=device,
        )

    def choices(device: torch.device) -> Choices:
        capability, kind = capability_of(device), {"fp8": fp8, "paged": page_tokens is not None}
        own_rows = q_heads * query_tokens
        return Choices(
            place=launch_choices.place(own_rows, **kind),
            present=tile_for(capability, own_rows, **kind),
            others=launch_choices.others(capability, own_rows, **kind),
            run=run_with,
        )

    rows = batch * query_tokens * q_heads
    row_bytes = FP8_ROW_BYTES if fp8 else 2 * ROW
    return Case(
        op="mla",
        dtype="bfloat16",
        kv_dtype="fp8-656" if fp8 else "bfloat16",
        batch=batch,
        q_heads=q_heads,
        kv_heads=1,
        head_dim=ROW,
        query_tokens=query_tokens,
        context_tokens=context_tokens,
        page_tokens=page_tokens,
        bytes=batch * context_tokens * row_bytes + rows * (2 * ROW + 2 * LATENT + 4),
        flops=2 * rows * context_tokens * (ROW + LATENT),
        make_inputs=make_inputs,
        implementations={"triton": run},
        check=check,
        choices=choices,
    )


def cases(*, quick: bool) -> list[Case]:
    """128 heads from 8 K to 128 K, fewer heads, pages, several query tokens, the fp8 layout."""
    if quick:
        return [
            mla_case(batch=8, q_heads=128, context_tokens=128 * K),
            mla_case(batch=64, q_heads=16, context_tokens=32 * K),
        ]
    many = [(1, 128 * K), (8, 8 * K), (8, 32 * K), (8, 128 * K), (64, 8 * K), (64, 32 * K),
            (128, 8 * K), (128, 32 * K)]  # fmt: skip
    found = [mla_case(batch=b, q_heads=128, context_tokens=n) for b, n in many]
    for q_heads in (64, 32, 16):
        for batch, context in ((1, 128 * K), (8, 128 * K), (64, 8 * K), (64, 32 * K)):
            found.append(mla_case(batch=batch, q_heads=q_heads, context_tokens=context))
    for q_heads in (128, 32, 16):
        found.append(mla_case(batch=64, q_heads=q_heads, context_tokens=32 * K, page_tokens=64))
        found.append(mla_case(batch=8, q_heads=q_heads, context_tokens=128 * K, fp8=True))
    found.append(mla_case(batch=64, q_heads=16, context_tokens=32 * K, query_tokens=4))
    return found
