"""Expected seconds of a whole prefill and of a decode step, from the kernel calls in them.

Calls follow each other on a GPU's stream, so their times add; the ring of context parallelism
overlaps with attention and counts where it is the longer. A prefill's chunks are a few
representative ones: a chunk's attention grows by the same for each chunk before it, until a window
is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lcprof import num
from lcprof.cost.decode import Step
from lcprof.cost.expected.attention import growing_tokens, prompt_tasks, step_tasks
from lcprof.cost.expected.exchanges import stage_exchanges
from lcprof.cost.expected.passes import Pass, end_tasks, layer_tasks
from lcprof.cost.expected.task import Fits, Task, Timed, by_operation, either, furthest, timed
from lcprof.cost.prefill import Span
from lcprof.cost.sharding import Stage, stages
from lcprof.cost.timing.ceilings import Ceilings, ceilings_of
from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import KvStrategy
from lcprof.domain.model import ModelShape
from lcprof.num import Num

WEIGHTY = 0.05
"""The share of a time from which an operation's distance from what was measured counts."""


class Clock:
    """Times tasks on one GPU. Layers that several plans share are timed once: `arrays` of tokens
    are told apart by label, so a clock serves one grid of contexts and batches."""

    def __init__(self, gpu: Gpu, fits: Fits) -> None:
        self.gpu = gpu
        self.ceilings: Ceilings = ceilings_of(gpu)
        self.fits = fits
        self._known: dict[Any, list[Timed]] = {}

    def timed(self, tasks: Iterable[Task]) -> list[Timed]:
        """Tasks timed, one entry for each operation. Raises UnmeasuredError."""
        running = (task for task in tasks if not _is_nothing(task.count))
        return by_operation(timed(task, self.fits, self.ceilings) for task in running)

    def once(self, key: Any, tasks: Callable[[], Iterable[Task]]) -> list[Timed]:
        """The same, kept under `key`."""
        if key not in self._known:
            self._known[key] = self.timed(tasks())
        return self._known[key]


def _is_nothing(count: Any) -> bool:
    return isinstance(count, float) and count == 0.0


class Expected(Struct, frozen=True, kw_only=True):
    """Expected seconds, in parts by operation. `low_s` and `high_s` end an interval that nine in
    ten measurements fall in: errors of different operations are independent, those of one
    operation's calls are not. `distance` is that of the furthest part that weighs enough."""

    parts: tuple[Timed, ...]
    seconds: Any
    low_s: Any
    high_s: Any
    distance: Any
    away_share: Any

    def scaled(self, factor: Any) -> Expected:
        """The same work `factor` times."""
        return replace(
            self,
            parts=tuple(part.scaled(factor) for part in self.parts),
            seconds=self.seconds * factor,
            low_s=self.low_s * factor,
            high_s=self.high_s * factor,
        )


def expected(parts: Iterable[Timed]) -> Expected:
    """What parts add up to."""
    held = tuple(exposed(list(parts)))
    seconds = held[0].seconds
    for part in held[1:]:
        seconds = seconds + part.seconds
    below, above = held[0].below_s ** 2, held[0].above_s ** 2
    away = held[0].away_s
    for part in held[1:]:
        below = below + part.below_s**2
        above = above + part.above_s**2
        away = away + part.away_s
    return Expected(
        parts=held,
        seconds=seconds,
        low_s=seconds - below**0.5,
        high_s=seconds + above**0.5,
        distance=furthest(held, seconds, WEIGHTY),
        away_share=away / seconds,
    )


def exposed(parts: list[Timed]) -> list[Timed]:
    """Parts with what overlaps cut down to what shows."""
    shown = []
    for part in parts:
        if part.hidden_behind:
            cover = [p.seconds for p in parts if p.operation == part.hidden_behind]
            covered = num.smaller(sum(cover[1:], cover[0]) / part.seconds, 1.0) if cover else 0.0
            shown.append(part.scaled(1.0 - covered))
        else:
            shown.append(part)
    return shown


def decode_expected(
    model: ModelShape,
    deployment: Deployment,
    kv: KvStrategy,
    step: Step[Num],
    clock: Clock,
) -> Expected:
    """One decode step. A token passes the pipeline's stages one after the other, with those in
    flight beside it (`Step.in_flight`)."""
    passing: Step[Num] = step.in_flight(deployment)
    mine = passing.rank_sequences(deployment)
    one: Pass[Num] = Pass(rank_tokens=mine, expert_tokens=passing.sequences + 0.0, prompt=False)
    rows: Any = (mine, passing.sequences) if isinstance(mine, float) else "step"
    parts: list[Timed] = []
    for index, (group, layers) in enumerate(zip(model.groups, model.group_counts(), strict=True)):
        layer = partial(layer_tasks, model, group, deployment, one)
        shared: list[Timed] = clock.once((model, deployment, index, rows), layer)
        own: list[Timed] = clock.timed(
            step_tasks(model, group, deployment, kv, mine, step.context_tokens)
        )
        parts += [part.scaled(layers) for part in (*shared, *own)]
    ends: tuple[list[Task], list[Task]] = end_tasks(model, deployment, one, mine)
    parts += clock.once((model, deployment, "ends", rows), lambda: (*ends[0], *ends[1]))
    parts += clock.timed(stage_exchanges(model, deployment, mine))
    return expected(by_operation(parts))


def prefill_expected(
    model: ModelShape,
    deployment: Deployment,
    kv: KvStrategy,
    span: Span[Num],
    clock: Clock,
) -> Expected:
    """A chunked prefill of one sequence: the slowest stage of the pipeline, kept busy by its
    chunks, and the bubble of filling it."""
    whole = [
        _stage(model, deployment, kv, stage, span, clock) for stage in stages(model, deployment.pp)
    ]
    slowest = whole[0]
    for other in whole[1:]:
        slowest = longer(slowest, other)
    return slowest.scaled(span.bubble(deployment.pp))


def longer(a: Expected, b: Expected) -> Expected:
    """The longer of two stages, point by point."""
    ahead: Any = a.seconds >= b.seconds
    if isinstance(ahead, bool):
        return a if ahead else b
    held = [{(p.operation, p.hidden_behind): p for p in each.parts} for each in (a, b)]
    parts = []
    for key in dict.fromkeys([*held[0], *held[1]]):
        one, other = (each.get(key) for each in held)
        some = one or other
        if some is not None:
            nothing = some.scaled(0.0)
            parts.append(either(ahead, one or nothing, other or nothing))

    def chosen(name: str) -> Any:
        return num.choose(ahead, getattr(a, name), getattr(b, name))

    names = [name for name in Expected.__struct_fields__ if name != "parts"]
    return Expected(parts=tuple(parts), **{name: chosen(name) for name in names})


class Chunk(Struct, frozen=True, kw_only=True):
    """`tokens` new tokens after `prefix_tokens`, `times` over; `label` tells arrays apart."""

    prefix_tokens: Any
    tokens: Any
    times: Any
    label: str


def chunks(span: Span[Num], growing_tokens: float | None = None) -> list[Chunk]:
    """A prefill as a few representative chunks. What a chunk costs grows by the same for each chunk
    before it, up to a prefix of `growing_tokens` (None: without end), and no more beyond it. Chunks
    of a scalar that do not occur are left out; of arrays they count no times."""
    size = span.chunk_tokens
    whole = num.floor(span.tokens / size)
    rest = span.tokens - whole * size
    later = num.larger(whole - 1.0, 0.0)
    rising: Any = later
    if growing_tokens is not None:
        reach = num.larger(num.floor((growing_tokens - span.start) / size), 0.0)
        rising = num.smaller(later, reach)
    found: list[Chunk] = [
        Chunk(
            prefix_tokens=span.start,
            tokens=size,
            times=num.choose(whole > 0, 1.0, 0.0),
            label="first",
        ),
        Chunk(prefix_tokens=span.start + size, tokens=size, times=rising / 2.0, label="second"),
        Chunk(
            prefix_tokens=span.start + num.larger(rising, 1.0) * size,
            tokens=size,
            times=rising / 2.0,
            label="risen",
        ),
        Chunk(
            prefix_tokens=span.start + num.larger(later, 1.0) * size,
            tokens=size,
            times=later - rising,
            label="last",
        ),
        Chunk(
            prefix_tokens=span.start + whole * size,
            tokens=num.larger(rest, 1.0),
            times=num.choose(rest > 0, 1.0, 0.0),
            label="rest",
        ),
    ]
    return [c for c in found if not isinstance(c.times, float) or c.times > 0.0]


def _stage(
    model: ModelShape,
    deployment: Deployment,
    kv: KvStrategy,
    stage: Stage,
    span: Span[Num],
    clock: Clock,
) -> Expected:
    """All chunks through one pipeline stage."""
    parts: list[Timed] = []
    for group, layers in stage.counts:
        for piece in chunks(span, growing_tokens(group, kv)):
            own: list[Timed] = clock.timed(
                prompt_tasks(model, group, deployment, kv, piece.prefix_tokens, piece.tokens)
            )
            parts += counted(own, piece.times * layers)
    for piece in chunks(span, 0.0):
        one: Pass[Any] = Pass(
            rank_tokens=piece.tokens / deployment.cp,
            expert_tokens=piece.tokens / deployment.cp * span.groups,
            prompt=True,
        )
        tokens: Any = piece.tokens if isinstance(piece.tokens, float) else piece.label
        here: list[Timed] = []
        for group, layers in stage.counts:
            key = (model, deployment, model.groups.index(group), tokens, span.groups)
            layer = partial(layer_tasks, model, group, deployment, one)
            shared: list[Timed] = clock.once(key, layer)
            here += [part.scaled(layers) for part in shared]
        begin, end = end_tasks(model, deployment, one, piece.tokens * 0.0 + 1.0)
        here += clock.timed(begin) if stage.first else []
        here += clock.timed(end) if stage.last else []
        if not stage.last:
            sent: list[Task] = stage_exchanges(model, deployment, piece.tokens / deployment.cp)
            here += clock.timed(task.times(1.0 / (deployment.pp - 1.0)) for task in sent)
        parts += counted(here, piece.times)
    return expected(by_operation(parts))


def counted(parts: list[Timed], times: Any) -> list[Timed]:
    """Parts `times` over, their distance taken where they occur."""
    return [part.scaled(times).within(times > 0) for part in parts]
