"""Reading YAML and JSON that a stranger wrote, in bounded time and memory.

YAML is read as plain data: the core schema of YAML 1.2 (`yes`, `1:30` and dates are text), one
document, no tags, anchors or merge keys, text keys, each given once. Nothing in it is executed.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from msgspec import Struct

from lcprof.errors import Fault, InputError, shown

YAML_LIMIT_BYTES = 4 << 20
JSON_LIMIT_BYTES = 16 << 20
DEPTH_LIMIT = 64
DIGITS_LIMIT = 300
VALUES_LIMIT = 100_000
FAULTS_LIMIT = 20

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def read_yaml(path: Path) -> Any:
    """The data in a YAML file. Raises InputError with every fault found."""
    return parse_yaml(_read_text(path, YAML_LIMIT_BYTES, "YAML"), where=place(path))


def read_json(path: Path) -> Any:
    """The data in a JSON file. Raises InputError."""
    return parse_json(_read_text(path, JSON_LIMIT_BYTES, "JSON"), where=place(path))


def place(path: Path) -> str:
    """A path as it is shown in faults: one printable line."""
    return "".join(ch if ch.isprintable() else "?" for ch in str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """The data in a YAML document that is already in memory. Raises InputError."""
    try:
        return _build(yaml.parse(text, Loader=_LOADER), where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        given = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError([Fault(where=at, given=_plain(given), expected="YAML")]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        given = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise InputError([Fault(where=where, given=_plain(given), expected="YAML")]) from None


def parse_json(text: str, *, where: str) -> Any:
    """The data in a JSON text that is already in memory. Raises InputError."""
    faults: list[Fault] = []

    def fault(key: str, given: str, expected: str) -> None:
        if len(faults) < FAULTS_LIMIT:
            faults.append(Fault(where=where, key=key, given=given, expected=expected))

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(items)
        if len(mapping) < len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    fault(_key_text(key), "twice in one object", "each key once")
                seen.add(key)
        return mapping

    def constant(name: str) -> None:
        fault("", name, "finite numbers (JSON has no NaN or Infinity)")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            fault("", shown(digits, 40), "a number that a 64-bit float can hold")
        return value

    def integer(digits: str) -> int:
        if len(digits) > DIGITS_LIMIT:
            fault("", f"a number of {len(digits)} digits", f"at most {DIGITS_LIMIT} digits")
            return 0
        return int(digits)

    try:
        data = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
            parse_int=integer,
        )
    except json.JSONDecodeError as error:
        given = f"{error.msg} at line {error.lineno}, column {error.colno}"
        if error.pos >= len(text.rstrip()):
            given = f"a text that breaks off at line {error.lineno}"
        raise InputError([*faults, Fault(where=where, given=given, expected="JSON")]) from None
    except RecursionError:
        _too_deep(where)
    _check_json(data, where)
    if faults:
        raise InputError(faults)
    return data


def _read_text(path: Path, limit: int, kind: str) -> str:
    where = place(path)
    expected = f"a {kind} text file of at most {limit >> 20} MiB"

    def refuse(given: str) -> NoReturn:
        raise InputError([Fault(where=where, given=given, expected=expected)]) from None

    try:
        # Looking before opening keeps devices untouched; not blocking covers a change between.
        _refuse_special(os.stat(path), limit, refuse)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            _refuse_special(os.fstat(descriptor), limit, refuse)
            raw = file.read(limit + 1) or b""
    except FileNotFoundError:
        refuse("no such file")
    except PermissionError:
        refuse("a file that may not be read (permission denied)")
    except (OSError, ValueError) as error:
        refuse(_plain(getattr(error, "strerror", None) or str(error)))
    if len(raw) > limit:
        refuse(f"more than {limit >> 20} MiB")
    if (zero := raw.find(b"\0")) >= 0:
        refuse(f"binary data (a NUL at byte {zero})")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"bytes that are not UTF-8 (at byte {error.start})")
    if not text.strip():
        refuse("an empty file")
    return text


def _refuse_special(status: os.stat_result, limit: int, refuse: Any) -> None:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    if not stat.S_ISREG(status.st_mode):
        refuse(kinds.get(stat.S_IFMT(status.st_mode), "not a file"))
    if status.st_size > limit:
        refuse(f"a file of {status.st_size / (1 << 20):,.0f} MiB")


class _Open(Struct):
    """A mapping or list whose end has not been read. `lines` says where each key stood."""

    value: dict[str, Any] | list[Any]
    path: str
    lines: dict[str, int] = {}
    key: str | None = None

    def child_path(self) -> str:
        if isinstance(self.value, list):
            return f"{self.path}[{len(self.value)}]"
        key = _key_text(self.key or "")
        return f"{self.path}.{key}" if self.path else key


def _build(events: Iterator[Any], where: str) -> Any:
    """Plain data from parser events, iteratively: nesting costs no Python stack, and a fault
    stops an endless or exploding document before it is held in memory."""
    stack: list[_Open] = []
    faults: list[Fault] = []
    documents = 0
    values = 0
    result: Any = None

    def fault(line: int, key: str, given: str, expected: str) -> None:
        place = f"{where}, line {line}"
        faults.append(Fault(where=place, key=key, given=given, expected=expected))
        if len(faults) >= FAULTS_LIMIT:
            raise InputError(faults)

    def put(value: Any) -> None:
        nonlocal result
        if not stack:
            result = value
        elif isinstance(holder := stack[-1].value, list):
            holder.append(value)
        else:
            holder[stack[-1].key or ""] = value
            stack[-1].key = None

    for event in events:
        line = event.start_mark.line + 1
        path = stack[-1].child_path() if stack else ""
        if isinstance(event, yaml.NodeEvent):
            values += 1
            if values > VALUES_LIMIT:
                given = f"more than {VALUES_LIMIT:,} values"
                fault(line, "", given, "a document that a person could write")
                raise InputError(faults)
            tag = getattr(event, "tag", None)
            if event.anchor is not None:
                what = "the alias *" if isinstance(event, yaml.AliasEvent) else "the anchor &"
                fault(line, path, what + _key_text(event.anchor), "values written out")
            if tag is not None:
                fault(line, path, f"the tag {shown(tag)}", "plain values without tags")

        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                fault(line, "", "a second document (---)", "one document")
                raise InputError(faults)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            put(stack.pop().value)
        elif not isinstance(event, yaml.NodeEvent):
            continue
        elif stack and isinstance(stack[-1].value, dict) and stack[-1].key is None:
            _read_key(event, stack[-1], line, fault, faults)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            if len(stack) >= DEPTH_LIMIT:
                _too_deep(f"{where}, line {line}", faults)
            empty: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
            stack.append(_Open(value=empty, path=path))
        elif isinstance(event, yaml.ScalarEvent):
            try:
                put(parse_scalar(event.value) if event.implicit[0] else _checked_text(event.value))
            except ValueError as error:
                fault(line, path, shown(event.value, 40), str(error))
                put(None)
        else:
            put(None)
    if documents == 0:
        faults.append(Fault(where=where, given="nothing but comments", expected="a document"))
    if faults:
        raise InputError(faults)
    return result


def _read_key(event: Any, holder: _Open, line: int, fault: Any, faults: list[Fault]) -> None:
    if not isinstance(event, yaml.ScalarEvent):
        fault(line, holder.path, "a list, a mapping or an alias as a key", "text keys")
        raise InputError(faults)
    key = event.value
    plain = event.implicit[0]
    holder.key = key
    if plain and key == "<<":
        fault(line, holder.path, "a merge key (<<)", "keys written out")
    elif plain and not isinstance(_scalar_or_text(key), str):
        fault(line, holder.path, f"the key {_key_text(key) or 'null'}", "text keys")
    elif key in holder.lines:
        given = f"again (first on line {holder.lines[key]})"
        fault(line, holder.child_path(), given, "each key once")
    holder.lines.setdefault(key, line)


def _scalar_or_text(text: str) -> Any:
    try:
        return parse_scalar(text)
    except ValueError:
        return None


def parse_scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema, with `_` allowed between digits.

    Raises ValueError with what is expected instead.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("a finite number")
    whole = _INT.fullmatch(text)
    if not whole and not _FLOAT.fullmatch(text):
        return _checked_text(text)
    if len(text) > DIGITS_LIMIT:
        raise ValueError(f"a number of at most {DIGITS_LIMIT} digits")
    if whole:
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that a 64-bit float can hold")
    return value


def _checked_text(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("text in valid Unicode") from None
    return text


def _check_json(data: Any, where: str) -> None:
    """Bounds the depth of parsed JSON and refuses lone surrogates, which cannot be printed."""
    level = [data]
    depth = 0
    while level:
        if depth >= DEPTH_LIMIT and any(isinstance(value, (dict, list)) for value in level):
            _too_deep(where)
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                try:
                    _checked_text(value)
                except ValueError as error:
                    raise InputError.one(where, given=value, expected=str(error)) from None
        level = below
        depth += 1


def _too_deep(where: str, faults: list[Fault] | None = None) -> NoReturn:
    given = f"data nested more than {DEPTH_LIMIT} levels deep"
    expected = f"at most {DEPTH_LIMIT} levels"
    fault = Fault(where=where, given=given, expected=expected)
    raise InputError([*(faults or []), fault]) from None


def _key_text(key: str) -> str:
    """A key as part of a fault: printable and short, without quotes."""
    return shown(key, 40)[1:-1] if key else ""


def _plain(text: str) -> str:
    """A library's message on one printable line."""
    return shown(" ".join(text.split()), 120)[1:-1]
