"""The committed summary of errors on held-out groups of published measurements."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from lcprof.catalog import CATALOG
from lcprof.errors import InputError
from lcprof.scenario.files import place
from lcprof.scenario.gpus import gpu_names, load_gpu

PATH = CATALOG / "accuracy.csv"
POOLED = "all"
"""The device and the framework of a score over all of them."""


class Accuracy(Struct, frozen=True, kw_only=True):
    """Errors of one subset ("large" calls or "all") of a published table's held-out rows.

    `median` and `p90` are of |predicted / measured - 1|, `bias` is the median of
    predicted / measured - 1, `interval_coverage` the share of measurements inside the predicted
    90 % interval. `declined` are rows that nothing predicts (for times of operations, of the whole
    table, as no group is known of them).
    """

    table: str
    device: str
    framework: str
    subset: str
    rows: int
    declined: int
    median: float | None
    p90: float | None
    bias: float | None
    interval_coverage: float | None


FIELDS = Accuracy.__struct_fields__


def load_accuracy(path: Path = PATH) -> list[Accuracy]:
    """The summary's scores. Raises InputError for a damaged file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                {name: value or None for name, value in row.items()} for row in csv.DictReader(file)
            ]
        return msgspec.convert(rows, list[Accuracy], strict=False)
    except (OSError, ValueError, TypeError) as error:
        expected = f"a CSV of {', '.join(FIELDS)}"
        raise InputError.one(place(path), given=str(error), expected=expected) from None


def write_accuracy(scores: Iterable[Accuracy], path: Path) -> None:
    """Writes what `load_accuracy` reads; None is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows([getattr(score, name) for name in FIELDS] for score in scores)


def pooled(scores: Iterable[Accuracy]) -> list[Accuracy]:
    """The scores over all devices and frameworks."""
    return [score for score in scores if score.device == POOLED]


def on_gpu(scores: Iterable[Accuracy], name: str, *, where: str) -> list[Accuracy]:
    """The scores on one GPU, by framework. Raises InputError for a GPU without any."""
    gpu = load_gpu(name, where=where, key="").name
    listed = list(scores)
    found = [score for score in listed if score.device == gpu]
    if not found:
        # Start-up logs call devices as they like; those are not of the catalog.
        known = ", ".join(sorted({score.device for score in listed} & set(gpu_names())))
        raise InputError.one(where, given=gpu, expected=f"a GPU with measurements: {known}")
    return sorted(found, key=lambda score: score.framework)
