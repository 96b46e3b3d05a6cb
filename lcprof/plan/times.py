"""Expected times of a plan: what calibrated operations add up to, and how far to trust that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.expected.draw import Drawn, drawn
from lcprof.cost.expected.kernels import prompt_attention
from lcprof.cost.expected.task import Timed, UnmeasuredError
from lcprof.cost.expected.whole import Clock, Expected, decode_expected, prefill_expected
from lcprof.cost.money import (
    million_input_tokens_usd,
    million_output_tokens_usd,
    request_usd,
)
from lcprof.cost.prefill import Span
from lcprof.cost.total import Work, prefill_work
from lcprof.domain.calibration import VOUCHED_RATIO
from lcprof.domain.deployment import Deployment
from lcprof.num import Num, choose, larger, smaller
from lcprof.plan.estimate import Counts, Estimate
from lcprof.plan.fits import power_for

BASES = ("", "measured", "interpolated", "extrapolated", "transported", "not vouched for")
"""What a number rests on; the code is the position. Measured: on this GPU. Interpolated: all that
weighs lies within the measured shapes; extrapolated: some lies beyond, by the distance beside it;
transported: kernels or a GPU other than the plan's were measured; not vouched for: too far
beyond."""
AWAY_SHARE = 0.25
"""The share of a time from which measurements of other kernels or GPUs make it transported."""
OPERATIONS = (
    "",
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

    Times are sustained ones: what the power limit slows down is slower. Energies are the GPUs' of
    the whole deployment, for one request's prefill and for one token of the batch; watts are
    averages of one GPU while it works. Money is the whole deployment's time at its GPUs' price:
    prompts alone, answers alone, and one request in a batch that is always full. Energy and money
    of prefills are those of a deployment whose data-parallel groups all read one.
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
    prefill_w_per_gpu: Num
    prefill_j: Num
    prefill_low_j: Num
    prefill_high_j: Num
    decode_w_per_gpu: Num
    output_token_j: Num
    output_token_low_j: Num
    output_token_high_j: Num
    power_basis_code: Any
    request_usd: Num
    usd_per_million_input_tokens: Num
    usd_per_million_output_tokens: Num


NAMED = {"_basis_code": BASES, "_uncertain_code": OPERATIONS}
"""Columns that hold the position of a name, by the end of their own."""


def named(column: str) -> tuple[str, tuple[str, ...]] | None:
    """The name of a coded column without its code, and what it may say; None for others."""
    for end, names in NAMED.items():
        if column.endswith(end):
            return column.removesuffix("_code"), names
    return None


class Passes(Struct, frozen=True, kw_only=True):
    """What a plan's times are made of, held to the power limit: a prefill of one request alone, one
    of all data-parallel groups at once, the first decode step, and the seconds of a whole answer's
    steps with how far the last one lies from what was measured."""

    alone: Drawn
    busy: Drawn
    step: Drawn
    answer_s: Any
    last_distance: Any


def passes(counts: Counts[Num], deployment: Deployment, clock: Clock) -> Passes:
    """The passes of a plan. Raises UnmeasuredError where no kernel that was measured is like the
    plan's, InputError for a damaged calibration or power model."""
    if deployment.gpu.vendor not in {"", "NVIDIA"}:
        raise UnmeasuredError(f"no kernel was measured on GPUs of {deployment.gpu.vendor}")
    model, kv, power = counts.model, counts.kv, power_for(deployment.gpu, deployment.power_limit_w)
    span, step = counts.span, counts.decode
    alone = _prefill(counts, deployment, clock, span, counts.prefill)
    busy = alone
    if deployment.dp > 1:
        together = replace(span, groups=float(deployment.dp))
        work = prefill_work(model, deployment, kv, together)
        busy = _prefill(counts, deployment, clock, together, work)
    first = decode_expected(model, deployment, kv, step, clock)
    last = first
    if counts.output_tokens > 2.0:
        context = step.context_tokens + (counts.output_tokens - 1.0)
        last = decode_expected(model, deployment, kv, replace(step, context_tokens=context), clock)
    # Each of `pp` batches in flight passes every GPU in the time of one step.
    in_flight = smaller(step.sequences, float(deployment.pp))
    stepping = drawn(first, counts.in_flight.stages[0], power, prompt=False, repeats=in_flight)
    slower = stepping.expected.seconds / first.seconds
    return Passes(
        alone=alone,
        busy=busy,
        step=stepping,
        answer_s=(first.seconds + last.seconds) / 2.0 * slower * (counts.output_tokens - 1.0),
        last_distance=last.distance,
    )


def _prefill(
    counts: Counts[Num],
    deployment: Deployment,
    clock: Clock,
    span: Span[Num],
    work: Work[Num],
) -> Drawn:
    """A prefill under the power limit."""
    burst = prefill_expected(counts.model, deployment, counts.kv, span, clock)
    stage = work.stages[0]
    ranks = deployment.tp * deployment.cp * deployment.pp
    return drawn(
        burst,
        stage,
        power_for(deployment.gpu, deployment.power_limit_w),
        prompt=True,
        attention_flops=smaller(
            counts.attention_flops / ranks, dict(stage.compute_flops).get("bf16", 0.0)
        ),
        attention_compute=prompt_attention(deployment, counts.kv).compute,
    )


def times(
    counts: Counts[Num], deployment: Deployment, clock: Clock, sized: Estimate[Num], shown: Any
) -> tuple[Times[Num], str]:
    """The times of a plan, and why there are none ("" where there are). They are given where
    `shown` holds: a plan that does not fit has no times. No interval begins below the floor of the
    plan as `sized`. Raises InputError for a damaged calibration or power model."""
    try:
        found = passes(counts, deployment, clock)
    except UnmeasuredError as reason:
        return _nothing(counts), str(reason)
    power = power_for(deployment.gpu, deployment.power_limit_w)
    first, step = found.alone.expected, found.step.expected
    sequences = counts.decode.sequences
    rate = sequences / step.seconds
    ttft = shown & (first.distance <= VOUCHED_RATIO)
    tpot = shown & (step.distance <= VOUCHED_RATIO)
    both = ttft & tpot & (found.last_distance <= VOUCHED_RATIO)
    price = deployment.usd_per_gpu_hour
    usd: Any = float("nan") if price is None else price
    gpus, prompts = float(deployment.gpus), float(deployment.dp)
    busy_s = found.busy.expected.seconds

    def given(value: Any, vouched: Any) -> Any:
        return choose(vouched, value, float("nan"))

    def prefill_j(joules: Any) -> Any:
        return given(joules * (gpus / prompts), ttft)

    def token_j(joules: Any) -> Any:
        return given(joules * gpus / sequences, tpot)

    return Times(
        ttft_s=given(first.seconds, ttft),
        ttft_low_s=given(larger(first.low_s, smaller(sized.ttft_floor_s, first.seconds)), ttft),
        ttft_high_s=given(first.high_s, ttft),
        ttft_distance=given(first.distance, shown),
        ttft_basis_code=basis_code(first, shown),
        ttft_uncertain_code=uncertain_code(first, ttft),
        ttft_attention_share=given(_seconds(first.parts, "attention") / first.seconds, ttft),
        tpot_s=given(step.seconds, tpot),
        tpot_low_s=given(larger(step.low_s, smaller(sized.tpot_floor_s, step.seconds)), tpot),
        tpot_high_s=given(step.high_s, tpot),
        tpot_distance=given(step.distance, shown),
        tpot_basis_code=basis_code(step, shown),
        tpot_uncertain_code=uncertain_code(step, tpot),
        request_s=given(first.seconds + found.answer_s, both),
        output_tokens_per_s=given(rate, tpot),
        output_tokens_per_s_per_gpu=given(rate / gpus, tpot),
        prefill_w_per_gpu=given(found.busy.watts, ttft),
        prefill_j=prefill_j(found.busy.joules),
        prefill_low_j=prefill_j(found.busy.joules_low),
        prefill_high_j=prefill_j(found.busy.joules_high),
        decode_w_per_gpu=given(found.step.watts, tpot),
        output_token_j=token_j(found.step.joules),
        output_token_low_j=token_j(found.step.joules_low),
        output_token_high_j=token_j(found.step.joules_high),
        power_basis_code=choose(shown, float(BASES.index(power.basis if power else "")), 0.0),
        request_usd=given(
            request_usd(
                usd,
                gpus,
                prefill_seconds=busy_s,
                prefill_sequences=prompts,
                decode_seconds=found.answer_s,
                concurrency=sequences,
            ),
            both,
        ),
        usd_per_million_input_tokens=given(
            million_input_tokens_usd(
                usd, gpus, prefill_seconds=busy_s, prefill_tokens=counts.span.tokens * prompts
            ),
            ttft,
        ),
        usd_per_million_output_tokens=given(
            million_output_tokens_usd(usd, gpus, step_seconds=step.seconds, concurrency=sequences),
            tpot,
        ),
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
    code = choose(found.distance > 1.0, 3.0, 2.0)
    code = choose(found.away_share > AWAY_SHARE, 4.0, code)
    code = choose(found.distance > VOUCHED_RATIO, 5.0, code)
    return choose(shown, code, 0.0)


def uncertain_code(found: Expected, shown: Any) -> Any:
    """The operation with the widest interval in seconds, as a position in `OPERATIONS`."""
    widest: Any = 0.0
    result: Any = 0.0
    for part in found.parts:
        width = part.below_s + part.above_s
        result = choose(width > widest, float(OPERATIONS.index(part.operation)), result)
        widest = larger(widest, width)
    return choose(shown, result, 0.0)
