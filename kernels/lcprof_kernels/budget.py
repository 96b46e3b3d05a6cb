"""How much error a kernel may have: what the same operation costs in low precision, times a factor.

The budget is not set by hand. The oracle (float64, or float32 on a GPU) is compared with a plain
eager version of the same operation that rounds where a kernel must round (inputs, probabilities,
output); the kernel may err by a small stated multiple of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

HALF_STEP = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
"""Half a step of an output format of 8 or 11 significant bits, relative to a power of two."""

TAIL = 2.0
"""How much further the largest error may go than the root mean square.

The largest of many errors is one draw from a tail, in the low-precision version as in the kernel:
two right backward passes of few keys may differ in it by more than the factor, while their root
mean squares are alike. So the latter judges; the former catches a single wrong element.
"""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The oracle's result and the error allowed against it.

    `largest` bounds the largest absolute error, `mean` its root mean square; both over finite
    elements. Where the oracle is NaN or infinite the result must be the same.
    """

    oracle: torch.Tensor
    largest: float
    mean: float

    def errors(self, result: torch.Tensor) -> tuple[float, float]:
        """Largest and root-mean-square error of `result`; infinite where NaN or inf differ."""
        return errors(self.oracle, result)

    def accepts(self, result: torch.Tensor) -> bool:
        """Whether `result` stays within the budget."""
        largest, allowed = self.judge(result)
        return largest <= allowed

    def judge(self, result: torch.Tensor) -> tuple[float, float]:
        """Largest error (infinite where the root mean square is refused) and largest allowed."""
        largest, mean = self.errors(result)
        return (largest if mean <= self.mean else float("inf")), self.largest

    def explain(self, result: torch.Tensor) -> str:
        """One line for an assertion: the errors found beside those allowed."""
        largest, mean = self.errors(result)
        return (
            f"largest error {largest:.3g} (allowed {self.largest:.3g}), "
            f"rms {mean:.3g} (allowed {self.mean:.3g})"
        )


def errors(oracle: torch.Tensor, result: torch.Tensor) -> tuple[float, float]:
    """Largest absolute and root-mean-square error over the oracle's finite elements.

    Both are infinite when the shapes differ or when NaN and infinities are not in the same places.
    """
    if oracle.shape != result.shape:
        return float("inf"), float("inf")
    want, have = oracle.double(), result.to(oracle.device).double()
    finite = torch.isfinite(want)
    special_same = torch.equal(
        torch.nan_to_num(want[~finite], nan=0.5), torch.nan_to_num(have[~finite], nan=0.5)
    ) and torch.equal(torch.isnan(want), torch.isnan(have))
    if not special_same or not bool(torch.isfinite(have[finite]).all()):
        return float("inf"), float("inf")
    if not bool(finite.any()):
        return 0.0, 0.0
    difference = (want[finite] - have[finite]).abs()
    return difference.max().item(), difference.square().mean().sqrt().item()


def tolerance(
    oracle: torch.Tensor,
    low_precision: torch.Tensor,
    *,
    factor: float = 2.0,
    resolution: float = HALF_STEP[torch.bfloat16],
) -> Budget:
    """The budget of an operation: `factor` times what its low-precision eager version errs.

    `low_precision` is the result of the oracle's operation in the precision that a kernel works in.
    The largest error gets `TAIL` times as much. The allowed error is never below half a step of the
    output format at the oracle's scale (`resolution`, see `HALF_STEP`), since a result may differ
    by that in rounding alone when the low-precision version happens to be exact.
    """
    largest, mean = errors(oracle, low_precision)
    finite = oracle[torch.isfinite(oracle)].double()
    top = finite.abs().max().item() if finite.numel() else 0.0
    rms = finite.square().mean().sqrt().item() if finite.numel() else 0.0
    return Budget(
        oracle=oracle,
        largest=TAIL * factor * max(largest, resolution * top),
        mean=factor * max(mean, resolution * rms),
    )
