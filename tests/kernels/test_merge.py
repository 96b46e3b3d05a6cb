"""Merging partial results by their log-sum-exps."""

from __future__ import annotations

import itertools

import pytest
import torch

from lcprof_kernels.errors import KernelInputError
from lcprof_kernels.merge import merge_partials
from lcprof_kernels.merge.reference import merge_reference
from lcprof_kernels.offline import Job, compile_elsewhere


def draw(parts: int, rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(parts, rows, dim), torch.randn(parts, rows) * 20


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize(("parts", "dim"), [(1, 64), (2, 80), (7, 128), (130, 512)])
def test_merge_of_any_number_of_parts(parts: int, dim: int, impl: str) -> None:
    outs, lses = draw(parts, 5, dim)
    lses[0, 1] = float("-inf")
    lses[:, 2] = float("-inf")
    out, lse = merge_partials(outs, lses, impl=impl)  # type: ignore[arg-type]
    want, want_lse = merge_reference(outs, lses)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-4, rtol=1e-6)
    assert bool((out[2] == 0).all())
    assert lse[2] == float("-inf")


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_rows_of_a_part_without_keys_are_ignored(impl: str) -> None:
    outs, lses = draw(3, 4, 64)
    lses[1] = float("-inf")
    without, _ = merge_partials(outs[[0, 2]], lses[[0, 2]], impl=impl)  # type: ignore[arg-type]
    outs[1] = float("nan")
    found, _ = merge_partials(outs, lses, impl=impl)  # type: ignore[arg-type]
    torch.testing.assert_close(found, without)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_merge_equals_attention_over_all_keys(impl: str) -> None:
    scores, values = torch.randn(6, 40), torch.randn(40, 64)
    cuts = [0, 7, 7, 40]
    outs, lses = [], []
    for begin, end in itertools.pairwise(cuts):
        lses.append(torch.logsumexp(scores[:, begin:end], -1))
        outs.append(torch.softmax(scores[:, begin:end], -1) @ values[begin:end])
    out, lse = merge_partials(torch.stack(outs), torch.stack(lses), impl=impl)  # type: ignore[arg-type]
    torch.testing.assert_close(out, torch.softmax(scores, -1) @ values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1))


def test_output_type_and_layout() -> None:
    outs = torch.randn(2, 3, 1, 4, 64).transpose(1, 3)
    lses = torch.randn(2, 4, 1, 3)
    out, lse = merge_partials(outs, lses, dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert out.shape == (4, 1, 3, 64)
    assert lse.shape == (4, 1, 3)


@pytest.mark.parametrize(
    ("outs", "lses", "words"),
    [
        (torch.zeros(2, 3, 64), torch.zeros(2, 4), "lses must have shape"),
        (torch.zeros(0, 3, 64), torch.zeros(0, 3), "at least one part"),
        (torch.zeros(2, 3, 64), torch.zeros(2, 3, dtype=torch.float64), "lses must be float32"),
        (torch.zeros(2, 3, 64, dtype=torch.int32), torch.zeros(2, 3), "outs must be"),
    ],
)
def test_wrong_arguments_are_refused(outs: torch.Tensor, lses: torch.Tensor, words: str) -> None:
    with pytest.raises(KernelInputError, match=words):
        merge_partials(outs, lses)


def test_binaries_for_ampere_and_hopper() -> None:
    jobs = [
        Job(
            kernel="lcprof_kernels.merge.triton:merge_rows",
            signature={
                "outs_ptr": "*fp32", "lses_ptr": "*fp32", "out_ptr": "*bf16", "lse_ptr": "*fp32",
                "parts": "i32", "rows": "i32",
            },
            constants={"DIM": 512, "BLOCK_D": 512, "BLOCK_P": 8, "PDL": arch >= 90},
            aligned=("outs_ptr", "out_ptr"),
            arch=arch,
        )
        for arch in (80, 90)
    ]  # fmt: skip
    for resources in compile_elsewhere(jobs):
        assert resources.faults() == [], resources
