from __future__ import annotations

import pytest
import torch

from lcprof_kernels.budget import errors, tolerance

ORACLE = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)


def test_allows_a_multiple_of_what_low_precision_errs() -> None:
    budget = tolerance(ORACLE, ORACLE + torch.tensor([0.0, 0.1, 0.0]), factor=3.0, resolution=1e-9)
    assert budget.largest == pytest.approx(2 * 0.3)
    assert budget.mean == pytest.approx(3 * 0.1 / 3**0.5)
    assert budget.accepts(ORACLE + torch.tensor([0.0, 0.29, 0.0]))
    assert not budget.accepts(ORACLE + torch.tensor([0.31, 0.0, 0.0]))  # the mean square binds


def test_one_large_error_among_many_is_refused() -> None:
    oracle = torch.zeros(10_000, dtype=torch.float64)
    noise = torch.full_like(oracle, 0.1)
    budget = tolerance(oracle, oracle + noise, factor=2.0, resolution=1e-9)
    single = torch.zeros_like(oracle)
    single[17] = 0.39
    assert budget.accepts(oracle + single)
    single[17] = 0.41
    assert not budget.accepts(oracle + single)


def test_many_errors_within_the_largest_are_refused() -> None:
    """One element may err by the largest allowance; all of them may not."""
    budget = tolerance(ORACLE, ORACLE + torch.tensor([0.0, 0.1, 0.0]), factor=1.0, resolution=1e-9)
    assert budget.accepts(ORACLE + torch.tensor([0.09, 0.0, 0.0]))
    assert not budget.accepts(ORACLE + 0.09)


def test_exact_low_precision_still_leaves_half_a_step() -> None:
    budget = tolerance(ORACLE, ORACLE, factor=2.0, resolution=2.0**-9)
    assert budget.largest == 2 * 2 * 4.0 * 2.0**-9


@pytest.mark.parametrize(
    ("want", "have"),
    [
        ([1.0, float("nan")], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, float("nan")]),
        ([1.0, float("-inf")], [1.0, float("inf")]),
        ([1.0, 2.0], [1.0, float("inf")]),
        ([1.0, 2.0], [1.0]),
    ],
)
def test_nan_infinity_and_shape_must_agree(want: list[float], have: list[float]) -> None:
    assert errors(torch.tensor(want), torch.tensor(have)) == (float("inf"), float("inf"))


def test_agreeing_nan_and_infinity_are_no_error() -> None:
    special = torch.tensor([float("nan"), float("-inf"), 1.0])
    assert errors(special, special.clone()) == (0.0, 0.0)
    assert errors(special[:2], special[:2].clone()) == (0.0, 0.0)
