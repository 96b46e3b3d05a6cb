"""The errors a user can cause. Each ends in one clear line and exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from msgspec import Struct


class Fault(Struct, frozen=True, kw_only=True):
    """One thing that is wrong in what a user gave.

    `where` names the file, flag or argument, `key` the entry inside it ("" when the whole is at
    fault), `given` what was found, `expected` what would be right. All are text to be shown.
    """

    where: str
    key: str = ""
    given: str
    expected: str

    def __str__(self) -> str:
        flag = self.where.removeprefix("--set ").removeprefix("--").replace("-", "_")
        place = f"{self.where}: {self.key}" if self.key and self.key != flag else self.where
        return f"{place}: given {self.given}; expected {self.expected}"


class LcprofError(Exception):
    """Base of every error that lcprof raises on purpose."""


class InputError(LcprofError):
    """Input that cannot be used. Carries every fault found, not only the first."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    @classmethod
    def one(cls, where: str, key: str = "", *, given: object, expected: str) -> InputError:
        """An error of a single fault; `given` is shortened to what fits a terminal line."""
        return cls([Fault(where=where, key=key, given=shown(given), expected=expected)])


class UnsupportedModelError(InputError):
    """A config.json whose attention or caching lcprof does not model; the faults name the keys."""


def shown(value: object, limit: int = 60) -> str:
    """`value` as one printable line of at most `limit` characters."""
    text = value if isinstance(value, str) else repr(value)
    line = "".join(ch if ch.isprintable() else "?" for ch in text[: limit * 4])
    if len(line) > limit or len(text) > limit * 4:
        line = line[: limit - 1] + "…"
    return repr(line) if isinstance(value, str) else line


def nearest(given: str, known: Iterable[str], count: int = 3) -> str:
    """The names in `known` closest to `given`, as "did you mean ...?" text, or ""."""
    close = get_close_matches(given[:80].lower(), list(known), n=count, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else ""
