"""An account of a column: unit, formula, terms and source; and what a row's accounts draw on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TypeAlias

from msgspec import Struct

from lcprof.cost.expected.whole import Clock
from lcprof.cost.memory import Memory, StageContent, stage_contents, stage_memory
from lcprof.cost.sharding import Stage, stages
from lcprof.domain.power import PowerModel
from lcprof.plan.estimate import Counts, count
from lcprof.plan.fits import fits_for, power_for
from lcprof.plan.row import Row
from lcprof.plan.times import Passes, passes


class Term(Struct, frozen=True, kw_only=True):
    """A value that enters a formula: what it is, and how much of the result it makes (None for a
    factor or a choice rather than a summand)."""

    text: str
    value: float | None = None


class StageHeld(Struct, frozen=True, kw_only=True):
    """A pipeline stage: its layers, what it holds whatever is asked, and its fullest GPU."""

    stage: Stage
    content: StageContent
    memory: Memory[float]


class Grounds:
    """What the numbers of a row are made of, each computed when an account first asks for it."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.case = row.case
        self.kv, self.workload = row.case.kv, row.case.workload
        self.deployment, self.gpu = row.case.deployment, row.case.deployment.gpu

    @cached_property
    def columns(self) -> dict[str, float]:
        """The row's columns that hold numbers."""
        return {
            name: value
            for name, value in self.row.columns().items()
            if isinstance(value, (int, float))
        }

    @cached_property
    def counts(self) -> Counts[float]:
        return count(self.case.model, self.deployment, self.kv, self.workload)

    @cached_property
    def held(self) -> list[StageHeld]:
        """The pipeline's stages."""
        model = self.counts.model
        contents = stage_contents(model, self.deployment)
        return [
            StageHeld(
                stage=stage,
                content=content,
                memory=stage_memory(content, self.deployment, self.kv, self.workload),
            )
            for stage, content in zip(stages(model, self.deployment.pp), contents, strict=True)
        ]

    def fullest(self, figure: str) -> StageHeld:
        """The stage where a figure of `Memory` is largest."""
        return max(self.held, key=lambda held: float(getattr(held.memory, figure)))

    @cached_property
    def passes(self) -> Passes:
        """The passes that the expected times are made of. Raises UnmeasuredError."""
        return passes(self.counts, self.deployment, Clock(self.gpu, fits_for(self.gpu)))

    @cached_property
    def power(self) -> PowerModel | None:
        return power_for(self.gpu, self.deployment.power_limit_w)

    def entering(self, *columns: str) -> list[Term]:
        """Columns as factors of a formula."""
        return [Term(text=f"{name} {self.columns[name]:,.10g}") for name in columns]


Text: TypeAlias = str | Callable[[Grounds], str]


def no_terms(_: Grounds) -> Iterable[Term]:
    """A formula that says all there is."""
    return ()


class Account(Struct, frozen=True, kw_only=True):
    """How a column comes about: its formula in words, the terms, and the formula's source."""

    unit: str
    formula: Text
    source: Text
    terms: Callable[[Grounds], Iterable[Term]] = no_terms
