"""What the power limit makes of an expected time, and the energy it takes.

Kernel times were measured in short loops, at clocks that a long pass does not hold: where the work
would draw more than the limit allows, what the SMs bound takes longer (`lcprof.cost.power`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.expected.task import Timed
from lcprof.cost.expected.whole import Expected
from lcprof.cost.power import burst_w, sustained
from lcprof.cost.total import StageTotals
from lcprof.domain.power import PowerModel

STRETCHED = frozenset(
    {"attention", "projections", "feed-forward", "experts", "recurrence", "latents again"}
)
"""Operations of a prefill that the SM clock bounds."""


class Held(Struct, frozen=True, kw_only=True):
    """Work under the power limit: seconds and joules with the intervals that nine in ten
    measurements fall in, and average watts."""

    seconds: Any
    low_s: Any
    high_s: Any
    watts: Any
    joules: Any
    joules_low: Any
    joules_high: Any


class Drawn(Struct, frozen=True, kw_only=True):
    """A pass under the power limit: its times, and for one GPU the average watts and the joules
    with the interval that nine in ten measurements fall in (NaN where no power is known)."""

    expected: Expected
    watts: Any
    joules: Any
    joules_low: Any
    joules_high: Any


def drawn(
    found: Expected,
    work: StageTotals[Any],
    power: PowerModel | None,
    *,
    prompt: bool,
    repeats: Any = 1.0,
    attention_flops: Any = 0.0,
    attention_compute: str = "bf16",
) -> Drawn:
    """`repeats` passes of `work` on one GPU in `found` seconds, `attention_flops` of it attention,
    counted among its bf16 work though the kernel multiplies in `attention_compute`. A prefill is
    bound by the SMs where its operations are; a decode step by memory throughout."""
    if power is None:
        unknown = found.seconds * float("nan")
        return Drawn(
            expected=found, watts=unknown, joules=unknown, joules_low=unknown, joules_high=unknown
        )
    flops = {c: count * repeats for c, count in work.compute_flops if c != "vector"}
    flops["bf16"] = flops.get("bf16", 0.0) - attention_flops
    flops[f"attention {attention_compute}"] = attention_flops
    moved_bytes = (work.read_bytes + work.write_bytes) * repeats
    bound: Any = 0.0
    if prompt:
        for part in found.parts:
            bound = bound + part.seconds if part.operation in STRETCHED else bound
    under = held(power, found.seconds, found.low_s, found.high_s, bound, flops, moved_bytes)
    seconds = under.seconds
    factor = 1.0 + (seconds - found.seconds) / num.larger(bound, 1e-12)
    stretched = Expected(
        parts=tuple(_stretched(part, factor, prompt=prompt) for part in found.parts),
        seconds=seconds,
        low_s=under.low_s,
        high_s=under.high_s,
        distance=found.distance,
        away_share=found.away_share,
    )
    return Drawn(
        expected=stretched,
        watts=under.watts,
        joules=under.joules,
        joules_low=under.joules_low,
        joules_high=under.joules_high,
    )


def held(
    power: PowerModel,
    seconds: Any,
    low_s: Any,
    high_s: Any,
    bound: Any,
    flops: Mapping[str, Any],
    moved_bytes: Any,
) -> Held:
    """Work of one GPU that takes `seconds` at boost clock, with the interval from `low_s` to
    `high_s`: FLOPs by compute dtype, bytes of its memory. `bound` of the seconds stretch as the
    SM clock falls."""
    ends = [power.scaled(factor) for factor in (power.low, 1.0, power.high)]
    found = [_held(model, seconds, bound, flops, moved_bytes) for model in ends]
    (fast_s, fast_w), (under_s, watts), (slow_s, slow_w) = found
    below, above, times = seconds - low_s, high_s - seconds, under_s / seconds
    least_s = under_s - ((below * times) ** 2 + (under_s - fast_s) ** 2) ** 0.5
    most_s = under_s + ((above * times) ** 2 + (slow_s - under_s) ** 2) ** 0.5
    return Held(
        seconds=under_s,
        low_s=least_s,
        high_s=most_s,
        watts=watts,
        joules=watts * under_s,
        joules_low=fast_w * least_s,
        joules_high=slow_w * most_s,
    )


def _held(
    model: PowerModel, seconds: Any, bound: Any, flops: Mapping[str, Any], moved_bytes: Any
) -> tuple[Any, Any]:
    """Seconds and watts under the limit; quick where nothing comes near it."""
    free_w = burst_w(model, seconds, flops, moved_bytes)
    over: Any = free_w > model.limit_w
    if not (over if isinstance(over, bool) else over.any()):
        return seconds, free_w
    under = sustained(model, seconds, bound, flops, moved_bytes)
    return under.seconds, under.watts


def _stretched(part: Timed, factor: Any, *, prompt: bool) -> Timed:
    return part.scaled(factor) if prompt and part.operation in STRETCHED else part
