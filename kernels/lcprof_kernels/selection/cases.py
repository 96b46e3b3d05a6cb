"""What the benchmark times of selection: pages, tokens, and attention over those chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lcprof_kernels.bench.case import Case
from lcprof_kernels.decode.api import decode_attention
from lcprof_kernels.mla.fp8 import LATENT, ROW
from lcprof_kernels.mla.inputs import MlaInputs, mla_inputs

from .inputs import IndexInputs, PageInputs, index_inputs, page_inputs
from .pages import page_bounds, quest_decode, score_pages
from .tokens import score_tokens, select_tokens, sparse_mla_decode

K = 1024
KEPT = 2048


def quest_case(*, batch: int, context_tokens: int, page_tokens: int, kept_tokens: int) -> Case:
    """Quest over 32/8 heads: scoring, choosing and attending, beside attending to every page."""
    q_heads, kv_heads, head_dim = 32, 8, 128
    pages = kept_tokens // page_tokens
    Inputs = tuple[PageInputs, torch.Tensor]  # noqa: N806 (a type)

    def make_inputs(device: torch.device) -> Inputs:
        x = page_inputs(
            batch=batch, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim,
            context_tokens=context_tokens, page_tokens=page_tokens, device=device,
        )  # fmt: skip
        return x, page_bounds(x.k_cache, lengths=x.lengths, page_table=x.page_table)

    def quest(inputs: Inputs) -> tuple[str, torch.Tensor]:
        x, bounds = inputs
        where: dict[str, Any] = {"lengths": x.lengths, "page_table": x.page_table}
        return "quest", quest_decode(x.q, x.k_cache, x.v_cache, bounds, **where, pages=pages)[0]

    def score(inputs: Inputs) -> tuple[str, torch.Tensor]:
        x, bounds = inputs
        where: dict[str, Any] = {"lengths": x.lengths, "page_table": x.page_table}
        return "score", score_pages(x.q, bounds, **where, page_tokens=page_tokens)

    def every_page(inputs: Inputs) -> tuple[str, torch.Tensor]:
        x, _ = inputs
        where: dict[str, Any] = {"lengths": x.lengths, "page_table": x.page_table}
        return "all", decode_attention(x.q, x.k_cache, x.v_cache, **where)[0]

    def check(inputs: Inputs, result: tuple[str, torch.Tensor]) -> tuple[float, float]:
        (x, bounds), (name, found) = inputs, result
        first = slice(0, 1)
        where: dict[str, Any] = {"lengths": x.lengths[first], "page_table": x.page_table[first]}
        if name == "score":
            want = score_pages(x.q[first], bounds, **where, page_tokens=page_tokens, impl="naive")
            return (found[first] - want).abs().max().item(), 1e-3 * want.abs().max().item()
        if name == "quest":
            want, _ = quest_decode(
                x.q[first], x.k_cache, x.v_cache, bounds, **where, pages=pages, impl="naive"
            )
        else:
            want, _ = decode_attention(x.q[first], x.k_cache, x.v_cache, **where, impl="naive")
        return (found[first].float() - want.float()).abs().max().item(), 0.02

    kept = batch * kv_heads * kept_tokens * head_dim * 2 * 2
    bounds_bytes = batch * kv_heads * (context_tokens // page_tokens) * 2 * head_dim * 2
    return Case(
        op="selection", variant="quest", dtype="bfloat16", kv_dtype="bfloat16", batch=batch,
        q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, query_tokens=1,
        context_tokens=context_tokens, window_tokens=kept_tokens, page_tokens=page_tokens,
        bytes=kept + bounds_bytes,
        flops=4 * batch * q_heads * head_dim * (kept_tokens + context_tokens // page_tokens),
        make_inputs=make_inputs,
        implementations={"triton": quest, "triton-score": score, "triton-all": every_page},
        check=check,
    )  # fmt: skip


def index_case(*, batch: int, context_tokens: int, fp8: bool) -> Case:
    """The indexer's scores over 64 heads of 128, and the choice of the best 2,048 tokens."""
    heads, dim = 64, 128

    def make_inputs(device: torch.device) -> IndexInputs:
        return index_inputs(
            batch=batch, heads=heads, context_tokens=context_tokens, fp8=fp8, page_tokens=64,
            device=device,
        )  # fmt: skip

    def scores_of(x: IndexInputs) -> torch.Tensor:
        return score_tokens(
            x.q, x.weights, x.keys, key_scales=x.key_scales, lengths=x.lengths,
            page_table=x.page_table,
        )  # fmt: skip

    def check(x: IndexInputs, result: torch.Tensor) -> tuple[float, float]:
        if result.dtype == torch.int32:
            best = scores_of(x).topk(KEPT).indices.sort().values
            return float((result.sort().values != best).sum().item()), 0.0
        want = score_tokens(
            x.q, x.weights, x.keys, key_scales=x.key_scales, lengths=x.lengths,
            page_table=x.page_table, impl="naive",
        )  # fmt: skip
        return (result - want).abs().max().item(), 1e-4 * want.abs().max().item()

    return Case(
        op="selection", variant="index", dtype="bfloat16", kv_dtype="fp8" if fp8 else "bfloat16",
        batch=batch, q_heads=heads, kv_heads=1, head_dim=dim, query_tokens=1,
        context_tokens=context_tokens, page_tokens=64,
        bytes=batch * context_tokens * (dim + 4 if fp8 else 2 * dim) + batch * context_tokens * 4,
        flops=2 * batch * heads * dim * context_tokens,
        make_inputs=make_inputs,
        implementations={
            "triton": scores_of,
            "triton-top": lambda x: select_tokens(scores_of(x), KEPT),
        },
        check=check,
    )  # fmt: skip


def sparse_case(*, batch: int, q_heads: int, context_tokens: int) -> Case:
    """MLA decode over 2,048 tokens of a paged cache."""
    Inputs = tuple[MlaInputs, torch.Tensor]  # noqa: N806 (a type)

    def make_inputs(device: torch.device) -> Inputs:
        x = mla_inputs(
            batch=batch, q_heads=q_heads, context_tokens=context_tokens, page_tokens=64,
            device=device,
        )  # fmt: skip
        return x, select_tokens(torch.randn(batch, 1, context_tokens, device=device), KEPT)

    def run(inputs: Inputs) -> torch.Tensor:
        x, indices = inputs
        return sparse_mla_decode(x.q, x.cache, indices, page_table=x.page_table)[0]

    def check(inputs: Inputs, out: torch.Tensor) -> tuple[float, float]:
        x, indices = inputs
        assert x.page_table is not None  # noqa: S101 (for the type checker)
        rows = x.cache[x.page_table[0].long()].flatten(0, 1)[indices[0, 0].long()].float()
        scores = x.q[0, 0].float() @ rows.T * (128 + 64) ** -0.5
        want = torch.softmax(scores, -1) @ rows[:, :LATENT]
        return (out[0, 0].float() - want).abs().max().item(), 0.02

    make: Callable[[torch.device], Inputs] = make_inputs
    return Case(
        op="selection", variant="sparse-mla", dtype="bfloat16", kv_dtype="bfloat16", batch=batch,
        q_heads=q_heads, kv_heads=1, head_dim=ROW, query_tokens=1, context_tokens=context_tokens,
        window_tokens=KEPT, page_tokens=64, bytes=batch * KEPT * 2 * ROW,
        flops=2 * batch * q_heads * KEPT * (ROW + LATENT),
        make_inputs=make, implementations={"triton": run}, check=check,
    )  # fmt: skip


def cases(*, quick: bool) -> list[Case]:
    """Pages and tokens chosen of 32 K and 128 K."""
    if quick:
        return [
            quest_case(batch=8, context_tokens=128 * K, page_tokens=64, kept_tokens=4 * K),
            index_case(batch=8, context_tokens=128 * K, fp8=True),
        ]
    return [
        *(
            quest_case(batch=8, context_tokens=128 * K, page_tokens=page, kept_tokens=4 * K)
            for page in (16, 64)
        ),
        *(index_case(batch=8, context_tokens=128 * K, fp8=fp8) for fp8 in (False, True)),
        *(sparse_case(batch=64, q_heads=heads, context_tokens=32 * K) for heads in (128, 16)),
    ]
