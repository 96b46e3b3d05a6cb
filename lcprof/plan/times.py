"""Expected times of a plan: what calibrated operations add up to, and how far to trust that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

from msgspec import Struct

from lcprof.cost.decode import Step
from lcprof.cost.expected.task import Timed, UnmeasuredError
from lcprof.cost.expected.whole import Clock, Expected, decode_expected, prefill_expected
from lcprof.domain.calibration import VOUCHED_RATIO
from lcprof.domain.deployment import Deployment
from lcprof.num import Num, choose, larger
from lcprof.plan.estimate import Counts

BASES = ("", "interpolated", "extrapolated", "transported", "not vouched for")
"""What an expected time rests on; the code is the position. Interpolated: all that weighs lies
within the measured shapes; extrapolated: some lies beyond, by the distance beside it; transported:
kernels or a GPU other than the plan's were measured; not vouched for: too far beyond."""
AWAY_SHARE = 0.25
"""The share of a time from which measurements of other kernels or GPUs make it transported."""
OPERATIONS = (
    *("attention", "projections", "feed-forward", "experts", "recurrence", "collectives"),
    *("norms and residual", "kv write", "logits", "embedding", "latents again", "select"),
)
"""What an expected time is made of."""


class Times(Struct, Generic[Num], frozen=True, kw_only=True):
    """Expected seconds of a plan, NaN where none can be given.

    `ttft_` is one request's, alone; `tpot_` one decode step of all sequences at `context_tokens`.
    `_low_s` and `_high_s` end an interval that nine in ten measurements fall in. `_distance` is how
    many times past the measured shapes the furthest weighty call lies, `_basis_code` a position
    in `BASES`, `_uncertain_code` one in `OPERATIONS`: the operation that makes most of the
    interval. `request_s` is a whole answer of one request in the batch, its steps growing as the
    context does. Throughputs are those of a steady decode batch.
    """

    ttft_s: Num
    ttft_low_s: Num
    ttft_high_s: Num
    ttft_distance: Num
    ttft_basis_code: Any
    ttft_uncertain_code: Any
    ttft_attention_share: Num
    tpot_s: Num
    tpot_low_s: Num
    tpot_high_s: Num
    tpot_distance: Num
    tpot_basis_code: Any
    tpot_uncertain_code: Any
    request_s: Num
    output_tokens_per_s: Num
    output_tokens_per_s_per_gpu: Num


NAMED = {"_basis_code": BASES, "_uncertain_code": OPERATIONS}
"""Columns that hold the position of a name, by the end of their own."""


def named(column: str) -> tuple[str, tuple[str, ...]] | None:
    """The name of a coded column without its code, and what it may say; None for others."""
    for end, names in NAMED.items():
        if column.endswith(end):
            return column.removesuffix("_code"), names
    return None


def timings(
    counts: Counts[Num], deployment: Deployment, clock: Clock
) -> tuple[Expected, Expected, Expected]:
    """A prefill, the first decode step after it, and the last. Raises UnmeasuredError."""
    model, kv = counts.model, counts.kv
    first = prefill_expected(model, deployment, kv, counts.span, clock)
    step = decode_expected(model, deployment, kv, counts.decode, clock)
    if counts.output_tokens <= 2.0:
        return first, step, step
    end: Step[Num] = Step(
        sequences=counts.decode.sequences,
        context_tokens=counts.decode.context_tokens + (counts.output_tokens - 1.0),
    )
    return first, step, decode_expected(model, deployment, kv, end, clock)


def times(
    counts: Counts[Num], deployment: Deployment, clock: Clock, shown: Any
) -> tuple[Times[Num], str]:
    """The times of a plan, and why there are none ("" where there are). They are given where
    `shown` holds: a plan that does not fit has no times."""
    try:
        first, step, last = timings(counts, deployment, clock)
    except UnmeasuredError as reason:
        return _nothing(counts), str(reason)
    mean_s = (step.seconds + last.seconds) / 2.0
    request_s = first.seconds + mean_s * (counts.output_tokens - 1.0)
    rate = counts.decode.sequences / step.seconds
    share = _seconds(first.parts, "attention") / first.seconds
    ttft = first.distance <= VOUCHED_RATIO
    tpot = step.distance <= VOUCHED_RATIO
    both = tpot & (last.distance <= VOUCHED_RATIO)

    def given(value: Any, vouched: Any) -> Any:
        return choose(shown & vouched, value, float("nan"))

    return Times(
        ttft_s=given(first.seconds, ttft),
        ttft_low_s=given(first.low_s, ttft),
        ttft_high_s=given(first.high_s, ttft),
        ttft_distance=first.distance,
        ttft_basis_code=basis_code(first, shown),
        ttft_uncertain_code=uncertain_code(first),
        ttft_attention_share=given(share, ttft),
        tpot_s=given(step.seconds, tpot),
        tpot_low_s=given(step.low_s, tpot),
        tpot_high_s=given(step.high_s, tpot),
        tpot_distance=step.distance,
        tpot_basis_code=basis_code(step, shown),
        tpot_uncertain_code=uncertain_code(step),
        request_s=given(request_s, both & ttft),
        output_tokens_per_s=given(rate, tpot),
        output_tokens_per_s_per_gpu=given(rate / deployment.gpus, tpot),
    ), ""


def _nothing(counts: Counts[Num]) -> Times[Num]:
    none = counts.decode.context_tokens * float("nan")
    zero: Any = counts.decode.context_tokens * 0.0
    codes = dict.fromkeys((n for n in Times.__struct_fields__ if n.endswith("_code")), zero)
    values = dict.fromkeys((n for n in Times.__struct_fields__ if n not in codes), none)
    return Times(**values, **codes)


def _seconds(parts: Sequence[Timed], operation: str) -> Any:
    chosen: Any = 0.0
    for part in parts:
        if part.operation == operation:
            chosen = chosen + part.seconds
    return chosen


def basis_code(found: Expected, shown: Any) -> Any:
    """What an expected time rests on, as a position in `BASES`."""
    code = choose(found.distance > 1.0, 2.0, 1.0)
    code = choose(found.away_share > AWAY_SHARE, 3.0, code)
    code = choose(found.distance > VOUCHED_RATIO, 4.0, code)
    return choose(shown, code, 0.0)


def uncertain_code(found: Expected) -> Any:
    """The operation with the widest interval in seconds, as a position in `OPERATIONS`."""
    widest, code = found.parts[0].below_s * 0.0, 0.0
    result: Any = code
    for part in found.parts:
        width = part.below_s + part.above_s
        result = choose(width > widest, float(OPERATIONS.index(part.operation)), result)
        widest = larger(widest, width)
    return result
