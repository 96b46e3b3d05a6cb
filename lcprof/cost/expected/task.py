"""Kernel calls of one pass, and what is expected of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Fit, Found, Variant, spread


class Task(Struct, frozen=True, kw_only=True):
    """`count` equal calls of an operation family.

    `operation` is the plan's name for the work. `variants` are those that may predict it, the
    kernel meant first, stand-ins after it. `hidden_behind` names the operation that a transfer
    overlaps with, "" when it is exposed.
    """

    operation: str
    family: Family
    variants: tuple[Variant, ...]
    call: Any
    count: float = 1.0
    hidden_behind: str = ""

    def times(self, count: float) -> Task:
        """The same calls, `count` times as many."""
        return replace(self, count=self.count * count)


Fits: TypeAlias = Callable[[str, tuple[Variant, ...]], Found | None]
"""Finds the fit of a family for the first of some variants that was measured."""


class Timed(Struct, frozen=True, kw_only=True):
    """Expected seconds of tasks of one operation. `below_s` and `above_s` reach to the ends of an
    interval that nine in ten measurements fall in; `distance` is how many times past the measured
    shapes the furthest call lies (1: inside); `away_s` is the part of `seconds` that another
    kernel's or GPU's measurements predict."""

    operation: str
    seconds: Any
    below_s: Any
    above_s: Any
    distance: Any
    away_s: Any
    found: tuple[Found, ...] = ()
    hidden_behind: str = ""

    def scaled(self, factor: Any) -> Timed:
        """The same work `factor` times."""
        return replace(
            self,
            seconds=self.seconds * factor,
            below_s=self.below_s * factor,
            above_s=self.above_s * factor,
            away_s=self.away_s * factor,
        )

    def within(self, counts: Any) -> Timed:
        """The same, its distance taken where it `counts`."""
        return replace(self, distance=num.choose(counts, self.distance, 1.0))


LAUNCH_DISTANCE = 8.0
"""The most that the distance of a call bound by launching counts: it takes about the same time
however small it is."""
WEIGHTY = 0.1
"""The share of an operation's time from which one of its calls counts in its distance."""


class UnmeasuredError(Exception):
    """No kernel that was measured is like the one that a plan would run."""


def timed(task: Task, fits: Fits, ceilings: Ceilings) -> Timed:
    """What is expected of a task. Raises UnmeasuredError."""
    found = fits(task.family.name, task.variants)
    if found is None:
        raise UnmeasuredError(f"no measured kernel for {task.operation}")
    seconds = task.family.seconds(task.call, ceilings, found.fit.parameters) * task.count
    large = task.family.large(task.call)
    distance = found.fit.distance(task.family.features(task.call))
    distance = num.choose(large, distance, num.smaller(distance, LAUNCH_DISTANCE))
    low, high = bounds(found.fit, large, distance)
    return Timed(
        operation=task.operation,
        seconds=seconds,
        below_s=seconds * (1.0 - low),
        above_s=seconds * (high - 1.0),
        distance=distance,
        away_s=seconds * float(found.stands_in),
        found=(found,),
        hidden_behind=task.hidden_behind,
    )


def bounds(fit: Fit, large: Any, distance: Any) -> tuple[Any, Any]:
    """What to multiply seconds by for the ends of the interval; `large` chooses the residuals."""
    wider = spread(distance)
    if isinstance(large, bool):
        return fit.bounds("large" if large else "small", wider)
    work, launch = fit.bounds("large", wider), fit.bounds("small", wider)
    return num.choose(large, work[0], launch[0]), num.choose(large, work[1], launch[1])


def together(parts: Sequence[Timed]) -> Timed:
    """The sum of parts of one operation, their errors taken as one and the same."""
    first = parts[0]
    seconds, below, above, away = first.seconds, first.below_s, first.above_s, first.away_s
    for part in parts[1:]:
        seconds = seconds + part.seconds
        below = below + part.below_s
        above = above + part.above_s
        away = away + part.away_s
    distance = furthest(parts, seconds, WEIGHTY) if len(parts) > 1 else first.distance
    return Timed(
        operation=first.operation,
        seconds=seconds,
        below_s=below,
        above_s=above,
        distance=distance,
        away_s=away,
        found=tuple(dict.fromkeys(found for part in parts for found in part.found)),
        hidden_behind=first.hidden_behind,
    )


def either(condition: Any, a: Timed, b: Timed) -> Timed:
    """Of one operation `a` where a condition holds, else `b`."""
    sizes = ("seconds", "below_s", "above_s", "distance", "away_s")
    return Timed(
        operation=a.operation,
        found=tuple(dict.fromkeys((*a.found, *b.found))),
        hidden_behind=a.hidden_behind,
        **{name: num.choose(condition, getattr(a, name), getattr(b, name)) for name in sizes},
    )


def furthest(parts: Iterable[Timed], seconds: Any, share: float) -> Any:
    """The largest distance of the parts that take more than a share of `seconds`; 1 at least."""
    distance: Any = 1.0
    for part in parts:
        counts = part.seconds > share * seconds
        distance = num.larger(distance, num.choose(counts, part.distance, 1.0))
    return distance


def by_operation(parts: Iterable[Timed]) -> list[Timed]:
    """One entry for each operation, in order of first appearance."""
    held: dict[tuple[str, str], list[Timed]] = {}
    for part in parts:
        held.setdefault((part.operation, part.hidden_behind), []).append(part)
    return [together(same) for same in held.values()]
