"""What a plan answers of one row beside its columns: what breaks first, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from lcprof.plan.crossover import attention_crossover_tokens, kv_crossover_tokens
from lcprof.plan.row import Row, plan_case
from lcprof.plan.tries import fewest_gpus, tries


class Offer(Struct, frozen=True, kw_only=True):
    """Flags to paste after the same command, why one would, and the row that they give."""

    flags: str
    why: str
    row: Row


class Answers(Struct, frozen=True, kw_only=True):
    """Answers about one row: `offers` to try, the row with the `fewest` GPUs that fits (None when
    there is none), what runs out first (`breaks`) when `grows` grows ("" for the plan as it is),
    and the lengths up to which the rest of the model outweighs attention (None for any length).
    `again` are flags of offers that the command had already: theirs stand in place of those."""

    row: Row
    offers: Sequence[Offer]
    fewest: Row | None
    breaks: str
    grows: str = ""
    attention_crossover_tokens: float | None = None
    kv_crossover_tokens: float | None = None
    again: Sequence[str] = ()


def answers_of(row: Row, flags: Callable[[Row], str]) -> Answers:
    """The answers about a row; `flags` says what makes an offered row of it."""
    breaks, grows = first_to_break(row)
    return Answers(
        row=row,
        offers=[Offer(flags=flags(each.row), why=each.why, row=each.row) for each in tries(row)],
        fewest=fewest_gpus(row.case),
        breaks=breaks,
        grows=grows,
        attention_crossover_tokens=attention_crossover_tokens(row.case),
        kv_crossover_tokens=kv_crossover_tokens(row.case),
    )


def first_to_break(row: Row) -> tuple[str, str]:
    """What runs out, and of which growth: none for a plan that does not fit as it is; both "" where
    memory bounds neither context nor batch."""
    if not row.estimate.fits:
        return row.estimate.limited_by, ""
    workload = row.case.workload
    if row.max_context_tokens is not None:
        grown = replace(workload, context_tokens=row.max_context_tokens + 1)
        return plan_case(replace(row.case, workload=grown)).estimate.limited_by, "the context"
    if row.max_concurrency is not None:
        grown = replace(workload, concurrency=row.max_concurrency + 1)
        return plan_case(replace(row.case, workload=grown)).estimate.limited_by, "the batch"
    return "", ""
