"""The record of a run: JSON lines, appended and synced row by row, readable while it grows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from lcprof.errors import Fault, InputError, shown
from lcprof.measure.row import FORMAT, Line, Provenance, Resumption, Row

NAME = "record.jsonl"
BEGINNING = b'{"line":"'
LONGEST_LINE_BYTES = 16 << 20
CONDITIONS = {
    "device": "device",
    "gpu": "GPU",
    "gpu_uuid_sha256": "GPU (by its UUID)",
    "driver": "driver",
    "cuda": "CUDA",
    "torch": "torch",
    "triton": "triton",
    "lcprof": "lcprof",
    "commit": "lcprof commit",
    "power_limit_w": "power limit",
    "ranks": "ranks",
    "scenario_sha256": "scenario (by its hash)",
}
"""What must not differ between the parts of one record."""


class _Version(Struct, frozen=True):
    """The number of a record's format, whatever else its first line holds."""

    format: int | None = None


_DECODER: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
_VERSION = msgspec.json.Decoder(_Version)


class Record(Struct, frozen=True, kw_only=True):
    """A record as read. `rows` holds the last row of each key, in the order of their first ones.

    `torn_bytes` counts what follows the last whole line: a run that was killed while writing, or
    one that is writing now. `kept_bytes` is the length of the file without it; `closed` is False
    when its last line is whole but for the newline.
    """

    path: str
    provenance: Provenance
    rows: Mapping[str, Row]
    resumptions: tuple[Resumption, ...] = ()
    torn_bytes: int = 0
    kept_bytes: int = 0
    closed: bool = True

    @property
    def finished(self) -> frozenset[str]:
        """The keys that need no further run."""
        return frozenset(key for key, row in self.rows.items() if row.finished)


def record_path(run: Path) -> Path:
    """The file of a run, given as its folder or as the file itself."""
    itself = run.suffix == ".jsonl" or run.is_file()
    return run if itself else run / NAME


def read_record(run: Path) -> Record:
    """Reads a record. Raises InputError with the line and the reason of whatever is not one."""
    path = record_path(run)
    try:
        with path.open("rb") as file:
            found = _read(file, str(path))
    except OSError as error:
        raise _unusable(path, error, "the record of a run") from None
    if found is None:
        expected = "the provenance of an lcprof record on line 1"
        raise InputError.one(str(path), given="no whole line", expected=expected)
    return found


def _read(file: BinaryIO, where: str) -> Record | None:
    """The record in an open file; None when not even its first line is whole."""
    provenance: Provenance | None = None
    rows: dict[str, Row] = {}
    resumptions: list[Resumption] = []
    kept, number, torn, closed = 0, 0, 0, True
    while text := file.readline(LONGEST_LINE_BYTES):
        number += 1
        whole = text.endswith(b"\n")
        try:
            line = _line(text, number, where)
        except InputError:
            # A write that was cut short is the end of the file and lacks its newline.
            begun = text.startswith(BEGINNING) or BEGINNING.startswith(text)
            if whole or not begun or len(text) == LONGEST_LINE_BYTES:
                raise
            torn = len(text)
            break
        if isinstance(line, Provenance):
            provenance = line
        elif isinstance(line, Row):
            rows[line.key] = line
        else:
            resumptions.append(line)
        kept, closed = kept + len(text), whole
    if provenance is None:
        return None
    return Record(
        path=where,
        provenance=provenance,
        rows=rows,
        resumptions=tuple(resumptions),
        torn_bytes=torn,
        kept_bytes=kept,
        closed=closed,
    )


def _line(text: bytes, number: int, where: str) -> Line:
    """One line; InputError says why it is none of a record."""
    wanted = "the provenance of an lcprof record" if number == 1 else "a row of an lcprof record"
    given = shown(text[:200].decode("utf-8", "replace").rstrip("\n"))

    def refuse(reason: str) -> InputError:
        fault = Fault(
            where=where, key=f"line {number}", given=given, expected=f"{wanted} ({reason})"
        )
        return InputError([fault])

    try:
        # Another format may lack fields, or have others: its number comes first.
        if number == 1 and (found := _VERSION.decode(text).format) not in (None, FORMAT):
            raise refuse(f"format {found}; this lcprof reads format {FORMAT}")
        line = _DECODER.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(" ".join(str(error).split()) or type(error).__name__) from None
    if isinstance(line, Provenance) != (number == 1):
        raise refuse("provenance stands on the first line, and nowhere else")
    return line


def _unusable(path: Path, error: OSError, expected: str) -> InputError:
    reason = error.strerror or str(error)
    return InputError.one(str(path), given=reason, expected=expected)


class Writer:
    """Appends lines to a record and syncs each one to the disk, under an exclusive lock.

    Raises InputError when the record cannot be written; what could be written of a line is cut off
    again, so that the file ends with a whole one.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def start(cls, run: Path, provenance: Provenance) -> Writer:
        """A new record. An old one of the same name is refused."""
        path = record_path(run)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError:
            expected = "a folder without a record, or --resume to go on with this one"
            raise InputError.one("-o", given=str(path), expected=expected) from None
        except (OSError, ValueError) as error:
            raise _not_written(path, error) from None
        writer = cls(path, descriptor)
        writer._lock()
        writer.append(provenance)
        _sync_folder(path.parent)
        return writer

    @classmethod
    def resume(cls, run: Path, provenance: Provenance) -> tuple[Writer, Record | None]:
        """Goes on with a record, which must have been measured under the same conditions.

        Returns what it holds; None when it was killed before its first line was whole, and starts
        anew.
        """
        path = record_path(run)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            expected = "a record to go on with; leave out --resume to start one"
            raise InputError.one("--resume", given=str(path), expected=expected) from None
        except OSError as error:
            raise _not_written(path, error) from None
        writer = cls(path, descriptor)
        try:
            writer._lock()
            with path.open("rb") as file:
                found = _read(file, str(path))
            if found is None:
                os.ftruncate(descriptor, 0)
                writer.append(provenance)
                return writer, None
            _same_conditions(found, provenance)
            os.ftruncate(descriptor, found.kept_bytes)
            if not found.closed:
                os.write(descriptor, b"\n")
            writer.append(
                Resumption(
                    started=provenance.started,
                    command=provenance.command,
                    dropped_bytes=found.torn_bytes,
                )
            )
        except OSError as error:
            writer.close()
            raise _not_written(path, error) from None
        except BaseException:
            writer.close()
            raise
        return writer, found

    def append(self, line: Line) -> None:
        """Writes one line to the disk."""
        text = msgspec.json.encode(line) + b"\n"
        begun = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(text):
                written += os.write(self._descriptor, text[written:])
            os.fsync(self._descriptor)
        except OSError as error:
            _quietly(lambda: os.ftruncate(self._descriptor, begun))
            raise _not_written(self.path, error) from None

    def close(self) -> None:
        """Lets go of the record."""
        os.close(self._descriptor)

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            expected = "a record that no other lcprof measure is writing"
            raise InputError.one("-o", given=str(self.path), expected=expected) from None


def _same_conditions(found: Record, now: Provenance) -> None:
    faults = [
        Fault(
            where="--resume",
            key=words,
            given=shown(getattr(now, name)),
            expected=f"{shown(getattr(found.provenance, name))} as in {found.path}",
        )
        for name, words in CONDITIONS.items()
        if getattr(now, name) != getattr(found.provenance, name)
    ]
    if faults:
        raise InputError(faults)


def _not_written(path: Path, error: OSError | ValueError) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    expected = f"a record that can be written ({reason})"
    return InputError.one("-o", given=str(path), expected=expected)


def _sync_folder(folder: Path) -> None:
    """Makes a new file's name as durable as its lines."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    _quietly(lambda: os.fsync(descriptor))
    os.close(descriptor)


def _quietly(do: Callable[[], None]) -> None:
    try:
        do()
    except OSError:
        return
