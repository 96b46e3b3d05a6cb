"""Rows of a plan for programs: JSON and CSV, with the same columns."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcprof.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from lcprof.plan.row import Row

EXACT = 2.0**53
"""Floats below it that are whole are integers to the last digit."""


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A mapping a row: counts, bytes and FLOPs that are whole become ints, times and shares stay
    floats, what is unbounded or unknown is None."""
    return [{name: _plain(name, value) for name, value in row.columns().items()} for row in rows]


def json_text(rows: Sequence[Row], engines: Sequence[Mapping[str, Any]] = ()) -> str:
    """A JSON list of the rows; `engines`, where given, has what an engine makes of each."""
    table = records(rows)
    for row, engine in zip(table, engines, strict=bool(engines)):
        row["engine"] = engine
    return json.dumps(table, indent=2, allow_nan=False)


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header; None is an empty cell."""
    table = records(rows)
    return csv_table(list(table[0]) if table else [], table)


def csv_table(names: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    """Mappings by column name as CSV with a header; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    return buffer.getvalue()


def write_text(path: str, text: str, *, where: str) -> None:
    """Writes a file whole or not at all. Raises InputError when it cannot be written."""
    _write(path, [text], where)


def write_frames(path: str, frames: Iterable[pd.DataFrame], *, where: str) -> None:
    """Writes DataFrames of the same columns as one CSV, each as it comes; numbers that are whole
    stand without a point, as in `csv_text`. Raises InputError when it cannot be written."""
    texts = (
        _whole(frame).to_csv(index=False, header=number == 0, lineterminator="\n")
        for number, frame in enumerate(frames)
    )
    _write(path, texts, where)


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts and bytes as integers, where they may be missing too; truth in small letters."""
    changed: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        if column.dtype == bool:
            changed[name] = column.map({True: "true", False: "false"})
        elif column.dtype == float and not name.endswith("_s") and name != "utilisation":
            known = column[column.notna()]
            if ((known % 1 == 0) & (known.abs() < EXACT)).all():
                changed[name] = column.astype("Int64")
    return frame.assign(**changed)


def _write(path: str, texts: Iterable[str], where: str) -> None:
    """Writes texts one after the other. A device or a pipe is written in place, since a rename
    would replace it."""
    try:
        if (given := Path(path)).exists() and not given.is_file():
            with given.open("w", encoding="utf-8", newline="") as file:
                file.writelines(texts)
            return
        target = given.resolve()
        draft = target.with_name(f".{target.name[:200]}.{os.getpid()}.tmp")
        try:
            with draft.open("x", encoding="utf-8", newline="") as file:
                file.writelines(texts)
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        expected = f"a file that can be written ({reason})"
        raise InputError.one(where, given=path, expected=expected) from None


def write_folder(folder: Path, texts: Mapping[str, str], *, where: str) -> None:
    """Writes files into a folder, made where it is not there. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror or error})"
        raise InputError.one(where, given=str(folder), expected=expected) from None
    for name, text in texts.items():
        write_text(str(folder / name), text, where=where)


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    whole = value.is_integer() and not name.endswith("_s") and name != "utilisation"
    return int(value) if whole else value


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
