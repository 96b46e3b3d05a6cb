"""Accounts of expected times, of the energy and money that follow, and of what fits at most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal, TypeAlias

from lcprof.cost.expected.draw import Drawn
from lcprof.cost.expected.task import Timed
from lcprof.cost.expected.whole import WEIGHTY, Expected
from lcprof.cost.money import deployment_second_usd
from lcprof.plan.accounts.account import Account, Grounds, Term

Phase: TypeAlias = Literal["ttft", "tpot"]
HELD_SHARE = 1e-9
"""The share of a time from which waiting for the power limit is a line of its own."""


def _expected(on: Grounds, phase: Phase) -> Expected:
    return (on.passes.alone if phase == "ttft" else on.passes.step).expected


def _timed_term(part: Timed) -> Term:
    kernels = dict.fromkeys(
        f"{f.variant[0]} {f.variant[1]} on {f.measured_on}"
        + f", calibrated here on {f.calibrated}" * bool(f.calibrated)
        for f in part.found
    )
    beyond = f", x{part.distance:.3g} beyond what was measured" if part.distance > 1 else ""
    if not part.seconds:
        return Term(
            text=f"{part.operation} (hidden behind {part.hidden_behind or 'nothing'})", value=0.0
        )
    low, high = part.below_s / part.seconds, part.above_s / part.seconds
    text = f"{part.operation} (-{low:.0%} +{high:.0%}{beyond}; {', '.join(kernels)})"
    return Term(text=text, value=part.seconds)


def _parts(on: Grounds, phase: Phase) -> Iterable[Term]:
    found = _expected(on, phase)
    rest = found.seconds
    for part in found.parts:
        rest -= part.seconds
        yield _timed_term(part)
    if rest > HELD_SHARE * found.seconds:
        yield Term(text="more, as the power limit holds the clock down", value=rest)


def _time_formula(on: Grounds, phase: Phase) -> str:
    of = {"ttft": "every chunk", "tpot": "a step through all stages"}
    clock = "" if on.power is None else f", at the clock that {on.power.limit_w:,.4g} W allow"
    low, high = on.columns[f"{phase}_low_s"], on.columns[f"{phase}_high_s"]
    within = f"nine in ten lie from {low:.4g} s to {high:.4g} s"
    bubble = ", x (chunks + pp - 1) / chunks" if phase == "ttft" and on.deployment.pp > 1 else ""
    return f"kernels of {of[phase]}, one after the other{bubble}{clock}; {within}"


def _calibrations(on: Grounds, phase: Phase) -> str:
    stack, basis = on.deployment.stack, on.row.columns()[f"{phase}_basis"]
    return f"{basis}; calibrations of {stack} and what is most like it (lcprof accuracy)"


def _interval(on: Grounds, phase: Phase, end: Literal["below_s", "above_s"]) -> Iterable[Term]:
    sign = "-" if end == "below_s" else "+"
    for part in _expected(on, phase).parts:
        yield Term(text=f"{part.operation} {sign}{getattr(part, end):,.4g} s")
    if on.power is not None:
        factor = on.power.low if end == "below_s" else on.power.high
        yield Term(text=f"where the power limit bounds it, energies x {factor:.3g}")


def _distances(on: Grounds, phase: Phase) -> Iterable[Term]:
    for part in _expected(on, phase).parts:
        yield Term(text=f"{part.operation} x{part.distance:,.4g}")


def _attention_share(on: Grounds) -> Iterable[Term]:
    found = on.passes.alone.expected
    seconds = sum(part.seconds for part in found.parts if part.operation == "attention")
    return (Term(text=f"{seconds:,.6g} s of attention"), *on.entering("ttft_s"))


def _phase(phase: Phase) -> dict[str, Account]:
    """The accounts of one expected time and its interval."""
    spread = "the root of the sum of squares of what operations, their errors independent, may"
    residuals = "residuals on groups that a refit had not seen, wider beyond the measured shapes"
    floor = f"; never below {phase}_floor_s"
    return {
        f"{phase}_s": Account(
            unit="s",
            formula=lambda on: _time_formula(on, phase),
            terms=lambda on: _parts(on, phase),
            source=lambda on: _calibrations(on, phase),
        ),
        f"{phase}_low_s": Account(
            unit="s",
            formula=f"{phase}_s less {spread} take less, and what less power may save{floor}",
            terms=lambda on: _interval(on, phase, "below_s"),
            source=residuals,
        ),
        f"{phase}_high_s": Account(
            unit="s",
            formula=f"{phase}_s and {spread} take more, and what more power may cost",
            terms=lambda on: _interval(on, phase, "above_s"),
            source=residuals,
        ),
        f"{phase}_distance": Account(
            unit="times",
            formula="how far past the measured shapes the furthest operation lies that takes over "
            f"{WEIGHTY:.0%} of the time; 1: none does",
            terms=lambda on: _distances(on, phase),
            source="the boxes of the calibrations",
        ),
    }


def _request(on: Grounds) -> Iterable[Term]:
    steps = on.workload.output_tokens - 1.0
    yield Term(text="ttft_s", value=on.columns["ttft_s"])
    yield Term(text=f"{steps:,.0f} steps", value=on.passes.answer_s)


def _entering(*columns: str) -> Callable[[Grounds], Iterable[Term]]:
    return lambda on: on.entering(*columns)


def _busy(on: Grounds) -> Term:
    seconds = on.passes.busy.expected.seconds
    return Term(text=f"seconds of a prefill in each of {on.deployment.dp} dp groups {seconds:,.6g}")


def _prefill_j(on: Grounds) -> Iterable[Term]:
    return _busy(on), *on.entering("prefill_w_per_gpu", "gpus", "dp")


def _end_j(
    drawn: Literal["busy", "step"], end: Literal["low", "high"]
) -> Callable[[Grounds], Iterable[Term]]:
    """One end of an interval of energy."""

    def terms(on: Grounds) -> Iterable[Term]:
        found: Drawn = getattr(on.passes, drawn)
        seconds: float = getattr(found.expected, f"{end}_s")
        watts = getattr(found, f"joules_{end}") / seconds
        factor = getattr(on.power, end)
        yield Term(text=f"{watts:,.6g} W per GPU, with energies of {factor:.3g} times theirs")
        yield Term(text=f"{seconds:,.6g} s")

    return terms


def _watts(on: Grounds) -> Iterable[Term]:
    power = on.power
    if power is None:
        return
    yield Term(text=f"idle {power.idle_w:,.4g} W, kernels running {power.busy_w:,.4g} W")
    for compute in ("bf16", "attention bf16", "fp8", "attention fp8"):
        if compute in power.joules_per_flop:
            yield Term(text=f"{power.flop_j(compute) * 1e12:.3g} pJ a FLOP of {compute}")
    yield Term(text=f"{power.joules_per_hbm_byte * 1e12:.3g} pJ a byte of GPU memory")
    yield Term(text=f"limit {power.limit_w:,.4g} W")


def _power_source(on: Grounds) -> str:
    if on.power is None:
        return ""
    named = ("idle_w", "busy_w", "joules_per_flop.bf16", "joules_per_hbm_byte", "limit_w")
    sources = dict.fromkeys(filter(None, map(on.power.sources.get, named)))
    return f"{on.power.basis} on {', '.join(on.power.measured_on)}: {'; '.join(sources)}"


def _price(on: Grounds) -> Term:
    return Term(text=f"{on.deployment.usd_per_gpu_hour:,.10g} USD a GPU-hour")


def _price_source(on: Grounds) -> str:
    if on.deployment.price_usd_per_gpu_hour is not None:
        return "price as given"
    dated = f" ({on.gpu.price_date})" if on.gpu.price_date else ""
    return f"price: {on.gpu.sources['price_usd_per_hour']}{dated}"


def _request_usd(on: Grounds) -> Iterable[Term]:
    usd = deployment_second_usd(on.deployment.usd_per_gpu_hour or 0.0, float(on.deployment.gpus))
    prefill_s = on.passes.busy.expected.seconds / on.deployment.dp
    answer_s = on.passes.answer_s / on.workload.concurrency
    yield _price(on)
    yield _busy(on)
    yield Term(text=f"prefill, {prefill_s:,.6g} s of the deployment", value=usd * prefill_s)
    yield Term(text=f"answer, {answer_s:,.6g} s of the deployment", value=usd * answer_s)


def _input_usd(on: Grounds) -> Iterable[Term]:
    yield _price(on)
    yield _busy(on)
    yield Term(text=f"{on.workload.new_tokens:,.0f} tokens of a prompt beyond the shared prefix")
    yield from on.entering("gpus", "dp")


def _output_usd(on: Grounds) -> Iterable[Term]:
    return _price(on), *on.entering("gpus", "tpot_s", "concurrency")


JOULES = partial(Account, unit="J", source="the columns named")
USD = partial(Account, unit="USD", source=_price_source)
POWER_SPREAD = "servers left out of the power model's fit; the interval of the time"
BOARD = "idle + kernels running + FLOPs and bytes of a second x their energies, at most the limit"

TIMED: Mapping[str, Account] = {
    **_phase("ttft"),
    "ttft_attention_share": Account(
        unit="of ttft_s",
        formula="seconds of attention / ttft_s",
        terms=_attention_share,
        source="the columns named",
    ),
    **_phase("tpot"),
    "request_s": Account(
        unit="s",
        formula="ttft_s + (output - 1) x the mean of the first and the last step",
        terms=_request,
        source="the columns named; a step grows evenly with its context",
    ),
    "output_tokens_per_s": Account(
        unit="tokens/s",
        formula="sequences / tpot_s",
        terms=_entering("concurrency", "tpot_s"),
        source="the columns named",
    ),
    "output_tokens_per_s_per_gpu": Account(
        unit="tokens/s",
        formula="output_tokens_per_s / gpus",
        terms=_entering("output_tokens_per_s", "gpus"),
        source="the columns named",
    ),
    "prefill_w_per_gpu": Account(
        unit="W",
        formula=f"{BOARD}; all dp groups reading",
        terms=_watts,
        source=_power_source,
    ),
    "prefill_j": JOULES(
        formula="watts x seconds x gpus / dp, all dp groups reading",
        terms=_prefill_j,
    ),
    "prefill_low_j": JOULES(
        formula="as prefill_j, time and watts at their low ends",
        terms=_end_j("busy", "low"),
        source=POWER_SPREAD,
    ),
    "prefill_high_j": JOULES(
        formula="as prefill_j, time and watts at their high ends",
        terms=_end_j("busy", "high"),
        source=POWER_SPREAD,
    ),
    "decode_w_per_gpu": Account(
        unit="W",
        formula=BOARD,
        terms=_watts,
        source=_power_source,
    ),
    "output_token_j": JOULES(
        formula="watts x tpot_s x gpus / sequences",
        terms=_entering("decode_w_per_gpu", "tpot_s", "gpus", "concurrency"),
    ),
    "output_token_low_j": JOULES(
        formula="as output_token_j, time and watts at their low ends",
        terms=_end_j("step", "low"),
        source=POWER_SPREAD,
    ),
    "output_token_high_j": JOULES(
        formula="as output_token_j, time and watts at their high ends",
        terms=_end_j("step", "high"),
        source=POWER_SPREAD,
    ),
    "request_usd": USD(
        formula="price / 3600 x gpus x (a prefill / dp + an answer / sequences)",
        terms=_request_usd,
    ),
    "usd_per_million_input_tokens": USD(
        formula="price / 3600 x gpus x seconds / (dp x tokens) x 1e6, all dp groups reading",
        terms=_input_usd,
    ),
    "usd_per_million_output_tokens": USD(
        formula="price / 3600 x gpus x tpot_s / sequences x 1e6",
        terms=_output_usd,
    ),
}
BISECTION = "bisection over the formula of total_bytes_per_gpu, exact to one"
INVERSE: Mapping[str, Account] = {
    "max_context_tokens": Account(
        unit="tokens",
        formula="the longest prompt whose total stays within the capacity",
        terms=lambda on: [Term(text=f"at {on.workload.concurrency:,.0f} sequences")],
        source=BISECTION,
    ),
    "max_concurrency": Account(
        unit="sequences",
        formula="the most sequences whose total stays within the capacity",
        terms=lambda on: [Term(text=f"at {on.workload.context_tokens:,.0f} tokens each")],
        source=BISECTION,
    ),
}
