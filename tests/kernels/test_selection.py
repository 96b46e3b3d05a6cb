"""Page bounds, page scores, chosen pages; the indexer, chosen tokens, sparse MLA."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcprof_kernels.decode.reference import decode_reference
from lcprof_kernels.errors import KernelInputError
from lcprof_kernels.mla.api import DEFAULT_SCALE
from lcprof_kernels.mla.fp8 import unpack_fp8
from lcprof_kernels.mla.inputs import mla_inputs
from lcprof_kernels.mla.reference import mla_reference
from lcprof_kernels.offline import Job, compile_elsewhere
from lcprof_kernels.selection import (
    page_bounds,
    quest_decode,
    score_pages,
    score_tokens,
    select_pages,
    select_tokens,
    sparse_mla_decode,
)
from lcprof_kernels.selection.inputs import index_inputs, page_inputs
from lcprof_kernels.selection.reference import bounds_reference, page_scores_reference


@pytest.mark.parametrize(("head_dim", "page_tokens"), [(64, 16), (96, 16), (128, 64)])
def test_bounds_cover_only_written_tokens(head_dim: int, page_tokens: int) -> None:
    x = page_inputs(
        batch=3, q_heads=4, kv_heads=2, head_dim=head_dim, context_tokens=3 * page_tokens,
        page_tokens=page_tokens, lengths=[3 * page_tokens, page_tokens + 3, 0],
    )  # fmt: skip
    x.k_cache[x.page_table[1, 1].long(), :, 3:] = float("nan")
    found = page_bounds(x.k_cache, lengths=x.lengths, page_table=x.page_table)
    assert torch.equal(
        found, bounds_reference(x.k_cache, lengths=x.lengths, page_table=x.page_table)
    )


def test_new_tokens_update_the_pages_they_touch_and_no_other() -> None:
    x = page_inputs(
        batch=2, q_heads=2, kv_heads=2, head_dim=64, context_tokens=80, page_tokens=16,
        lengths=[30, 64],
    )  # fmt: skip
    bounds = page_bounds(x.k_cache, lengths=x.lengths, page_table=x.page_table)
    old_page = int(x.page_table[0, 0])
    old = bounds[old_page].clone()
    x.k_cache[old_page] = 0
    longer = x.lengths + 5
    updated = page_bounds(
        x.k_cache, lengths=longer, page_table=x.page_table, bounds=bounds, new_tokens=5
    )
    whole = bounds_reference(x.k_cache, lengths=longer, page_table=x.page_table)
    whole[old_page] = old
    assert updated is bounds
    assert torch.equal(bounds, whole)


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"), [(4, 4, 64), (16, 2, 128), (5, 1, 96)]
)
def test_page_scores(q_heads: int, kv_heads: int, head_dim: int) -> None:
    x = page_inputs(
        batch=2, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, context_tokens=160,
        page_tokens=16, lengths=[160, 33],
    )  # fmt: skip
    bounds = page_bounds(x.k_cache, lengths=x.lengths, page_table=x.page_table)
    arguments = {"lengths": x.lengths, "page_table": x.page_table, "page_tokens": 16}
    found = score_pages(x.q, bounds, **arguments)
    expected = page_scores_reference(x.q, bounds, **arguments)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    assert bool((found[1, :, 3:] == float("-inf")).all())


def test_a_page_score_bounds_every_key_of_the_page() -> None:
    x = page_inputs(batch=1, q_heads=2, kv_heads=2, head_dim=64, context_tokens=64, page_tokens=16)
    bounds = page_bounds(x.k_cache, lengths=x.lengths, page_table=x.page_table)
    scores = score_pages(x.q, bounds, lengths=x.lengths, page_table=x.page_table, page_tokens=16)
    keys = x.k_cache[x.page_table[0].long()].float()
    true = torch.einsum("hd,phnd->hpn", x.q[0, 0].float(), keys).amax(-1)
    assert bool((true <= scores[0] + 1e-4).all())


def test_the_newest_page_is_always_chosen_and_comes_last() -> None:
    table = torch.tensor([[7, 3, 9, 1], [0, 2, 4, 6]], dtype=torch.int32)
    lengths = torch.tensor([16 * 3 + 2, 5], dtype=torch.int32)
    scores = torch.tensor([[[4.0, 9.0, 8.0, -5.0]], [[1.0] + [float("-inf")] * 3]])
    chosen, tokens = select_pages(
        scores, lengths=lengths, page_table=table, page_tokens=16, pages=2
    )
    assert chosen[0].tolist() == [[3, 1]]
    assert chosen[1, 0, 0] == 0
    assert tokens.tolist() == [[18], [5]]


@pytest.mark.parametrize("pages", [2, 10])
def test_quest_attends_to_the_chosen_pages(pages: int) -> None:
    x = page_inputs(
        batch=3, q_heads=4, kv_heads=2, head_dim=64, context_tokens=160, page_tokens=16,
        lengths=[160, 37, 0],
    )  # fmt: skip
    arguments = {"lengths": x.lengths, "page_table": x.page_table}
    bounds = page_bounds(x.k_cache, **arguments)
    out, lse = quest_decode(x.q, x.k_cache, x.v_cache, bounds, **arguments, pages=pages)
    scores = page_scores_reference(x.q, bounds, **arguments, page_tokens=16)
    chosen, tokens = select_pages(scores, **arguments, page_tokens=16, pages=pages)
    for h in range(2):
        heads = slice(2 * h, 2 * h + 2)
        want, want_lse = decode_reference(
            x.q[:, :, heads],
            x.k_cache[:, h : h + 1],
            x.v_cache[:, h : h + 1],
            lengths=tokens[:, h],
            page_table=chosen[:, h],
        )
        torch.testing.assert_close(out[:, :, heads].double(), want, atol=0.02, rtol=0.02)
        torch.testing.assert_close(lse[:, :, heads].double(), want_lse, atol=1e-3, rtol=1e-4)
    if pages == 10:
        whole, _ = decode_reference(x.q, x.k_cache, x.v_cache, **arguments)
        torch.testing.assert_close(out.double(), whole, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("page_tokens", [None, 16])
@pytest.mark.parametrize("fp8", [False, True])
def test_token_scores(page_tokens: int | None, fp8: bool) -> None:
    x = index_inputs(
        batch=2, heads=12, query_tokens=2, context_tokens=160, fp8=fp8, page_tokens=page_tokens,
        lengths=[160, 41],
    )  # fmt: skip
    arguments = {
        "key_scales": x.key_scales, "lengths": x.lengths, "page_table": x.page_table
    }  # fmt: skip
    found = score_tokens(x.q, x.weights, x.keys, **arguments)
    expected = score_tokens(x.q, x.weights, x.keys, **arguments, impl="naive")
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)
    assert bool((found[1, 0, 40:] == float("-inf")).all())


def test_selected_tokens_are_the_best_visible_ones() -> None:
    scores = torch.tensor([[[1.0, 5.0, float("-inf"), 3.0]]])
    assert select_tokens(scores, 2).tolist() == [[[1, 3]]]
    assert select_tokens(scores, 6).tolist() == [[[1, 3, 0, -1, -1, -1]]]


@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize("fp8", [False, True])
def test_sparse_mla_attends_to_the_listed_tokens(page_tokens: int | None, fp8: bool) -> None:
    x = mla_inputs(
        batch=2, q_heads=16, query_tokens=2, context_tokens=128, page_tokens=page_tokens, fp8=fp8
    )
    indices = torch.stack([torch.randperm(128)[:48] for _ in range(4)]).reshape(2, 2, 48)
    indices[1, 1, 20:] = -1
    indices[0, 1] = -1
    indices = indices.to(torch.int32)
    out, lse = sparse_mla_decode(x.q, x.cache, indices, page_table=x.page_table)
    for b in range(2):
        rows = x.cache[b] if x.page_table is None else x.cache[x.page_table[b].long()].flatten(0, 1)
        rows = unpack_fp8(rows) if fp8 else rows
        for t in range(2):
            listed = indices[b, t][indices[b, t] >= 0].long()
            want, want_lse = mla_reference(
                x.q[b : b + 1, t : t + 1],
                rows[listed][None],
                lengths=torch.tensor([listed.numel()]),
                scale=DEFAULT_SCALE,
            )
            torch.testing.assert_close(out[b, t].double(), want[0, 0], atol=0.03, rtol=0.03)
            # The interpreter cuts widened fp8 to bfloat16 where a GPU rounds to the nearest.
            slack = 0.05 if fp8 else 1e-3
            torch.testing.assert_close(lse[b, t].double(), want_lse[0, 0], atol=slack, rtol=1e-4)


def test_wrong_arguments_are_refused() -> None:
    x = page_inputs(batch=1, q_heads=4, kv_heads=2, head_dim=64, context_tokens=32, page_tokens=16)
    where = {"lengths": x.lengths, "page_table": x.page_table}
    bounds = page_bounds(x.k_cache, **where)
    with pytest.raises(KernelInputError, match="given together"):
        page_bounds(x.k_cache, **where, bounds=bounds)
    with pytest.raises(KernelInputError, match="bounds must have shape"):
        score_pages(x.q[..., :32], bounds, **where, page_tokens=16)
    with pytest.raises(KernelInputError, match="contiguous"):
        quest_decode(x.q, x.k_cache.transpose(0, 1).contiguous().transpose(0, 1), x.v_cache,
                     bounds, **where, pages=1)  # fmt: skip
    y = index_inputs(batch=1, heads=4, context_tokens=32)
    with pytest.raises(KernelInputError, match="need key_scales"):
        score_tokens(y.q, y.weights, y.keys, key_scales=torch.ones(1, 32), lengths=y.lengths)
    m = mla_inputs(batch=1, q_heads=16, context_tokens=32)
    with pytest.raises(KernelInputError, match="indices must be int32"):
        sparse_mla_decode(m.q, m.cache, torch.zeros(1, 1, 4))


def test_binaries_for_ampere_and_hopper() -> None:
    pages = Job(
        kernel="lcprof_kernels.selection.triton:score_page_tiles",
        signature={
            "q_ptr": "*bf16", "bounds_ptr": "*bf16", "table_ptr": "*i32", "lengths_ptr": "*i32",
            "scores_ptr": "*fp32", "stride_q_batch": "i32", "stride_q_token": "i32",
            "stride_q_head": "i32", "stride_table": "i32", "max_pages": "i32", "kv_heads": "i32",
        },
        constants={
            "GROUP": 4, "ROWS": 4, "BLOCK_R": 16, "DIM": 128, "BLOCK_D": 128, "PAGE": 16,
            "BLOCK_N": 64,
        },
        aligned=("q_ptr", "bounds_ptr", "stride_q_batch", "stride_q_token", "stride_q_head"),
    )  # fmt: skip
    counts = (
        "context_tokens", "query_tokens", "stride_q_batch", "stride_q_token", "stride_q_head",
        "stride_slot", "stride_token", "stride_scale", "stride_table",
    )  # fmt: skip

    def tokens(arch: int, fp8: bool) -> Job:
        pointers = {
            "q_ptr": "*bf16",
            "weights_ptr": "*fp32",
            "k_ptr": "*u8" if fp8 else "*bf16",
            "scale_ptr": "*fp32",
            "table_ptr": "*i32",
            "lengths_ptr": "*i32",
            "scores_ptr": "*fp32",
        }
        constants = {"PAGE": 64, "FP8": fp8, "NATIVE": arch >= 89, "HEADS": 64, "BLOCK_H": 64}
        return Job(
            kernel="lcprof_kernels.selection.triton:score_token_tiles",
            signature={**pointers, **dict.fromkeys(counts, "i32")},
            constants={**constants, "DIM": 128, "BLOCK_N": 128},
            aligned=("q_ptr", "k_ptr", *counts[2:7]),
            arch=arch,
        )

    jobs = [replace(pages, arch=arch) for arch in (80, 90)]
    jobs += [tokens(arch, fp8) for arch in (80, 90) for fp8 in (False, True)]
    for resources in compile_elsewhere(jobs):
        assert resources.faults() == [], resources
        assert resources.matrix_instructions > 0, resources
