"""From which length attention, not the rest of the model, decides what a plan costs."""

from __future__ import annotations

from msgspec.structs import replace

from lcprof.cost.decode import Step
from lcprof.cost.prefill import Span
from lcprof.cost.total import Work, decode_work, prefill_work
from lcprof.domain.case import Case
from lcprof.num import Num
from lcprof.plan.estimate import remade
from lcprof.plan.search import LIMIT, largest


def attention_crossover_tokens(case: Case) -> float | None:
    """The longest prompt whose attention takes no more FLOPs than everything else in its prefill,
    shared prefix included; None where attention never takes more (windows, states)."""
    model, prefix = remade(case.model, case.kv), case.workload.prefix_tokens

    def rest_is_more(tokens: float) -> bool:
        asked = replace(case.workload, context_tokens=max(tokens, prefix + 1.0))
        work = prefill_work(model, case.deployment, case.kv, Span.of(asked))
        return 2.0 * work.flops("attention") <= work.flops()

    return _bounded(largest(rest_is_more, 0.0))


def kv_crossover_tokens(case: Case) -> float | None:
    """The longest context at which a decode step of `case`'s batch reads no more cache than weights
    and activations on a GPU; None where it never reads more."""
    model = remade(case.model, case.kv)

    def weights_are_more(tokens: float) -> bool:
        step: Step[float] = Step(
            sequences=case.workload.concurrency, context_tokens=max(tokens, 1.0)
        )
        work = decode_work(model, case.deployment, case.kv, step)
        return 2.0 * attention_read_bytes(work) <= work.stages[0].read_bytes

    return _bounded(largest(weights_are_more, 0.0))


def attention_read_bytes(work: Work[Num]) -> Num:
    """What the attention of the first stage reads; stages are alike."""
    read = work.stages[0].read_bytes * 0.0
    for part in work.whole:
        if part.operation.name == "attention":
            read = read + part.operation.rank_read_bytes * part.count
    return read / len(work.stages)


def _bounded(answer: float) -> float | None:
    return None if answer >= LIMIT else answer
