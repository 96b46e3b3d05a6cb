"""The bar of a run that is being measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from lcprof.report.screen import printable, shorten
from lcprof.units import show_seconds

if TYPE_CHECKING:
    from lcprof.measure.runner import Progress

NAME_LETTERS = 48


@contextmanager
def measuring(stream: TextIO) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on a terminal, with the point at hand and the time left; nothing elsewhere."""
    if not stream.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("", total=None)

        def observe(progress: Progress) -> None:
            left = f"{show_seconds(progress.left_s)} left"
            name = printable(shorten(progress.now, NAME_LETTERS))
            bar.update(
                task, total=progress.total, completed=progress.done, description=f"{left}  {name}"
            )

        yield observe
