"""The arguments that a KV spec may give a strategy: text in, checked value out."""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct


class Argument(Struct, frozen=True, kw_only=True):
    """One `name=value` of a spec: the field it sets, how its text is read (ValueError when it
    cannot be), and what a good value looks like."""

    field: str
    parse: Callable[[str], object]
    expected: str


def whole(field: str, low: int, high: int = 2**31) -> Argument:
    """A whole number between `low` and `high`; K and M are powers of 1024."""

    def parse(text: str) -> int:
        scale = {"K": 1024, "M": 1024**2, "k": 1000, "m": 1000**2}.get(text[-1:], 1)
        digits = text[:-1] if scale > 1 else text
        if not digits.isascii() or not digits.isdigit() or len(digits) > 12:
            raise ValueError(text)
        value = int(digits) * scale
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return Argument(field=field, parse=parse, expected=f"a whole number from {low} to {high}")


def one_of(field: str, *choices: str) -> Argument:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return Argument(field=field, parse=parse, expected="one of " + ", ".join(choices))


def one_of_numbers(field: str, *choices: int) -> Argument:
    """One of a few whole numbers."""

    def parse(text: str) -> int:
        if text not in {str(choice) for choice in choices}:
            raise ValueError(text)
        return int(text)

    return Argument(
        field=field, parse=parse, expected="one of " + ", ".join(str(c) for c in choices)
    )


def share(field: str) -> Argument:
    """A share: "50%" or 0.5."""
    return Argument(field=field, parse=_share, expected='a share from 0 to 1, as "50%" or 0.5')


def budget(field: str) -> Argument:
    """A share of the context ("20%", 0.2) or a number of tokens ("4096", "4K")."""
    tokens = whole(field, 2)

    def parse(text: str) -> float:
        if text.endswith("%") or "." in text:
            value = _share(text)
            if value == 0:
                raise ValueError(text)
            return value
        return float(str(tokens.parse(text)))

    return Argument(field=field, parse=parse, expected='a share as "20%", or tokens as 4096')


def _share(text: str) -> float:
    value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(text)
    return value
