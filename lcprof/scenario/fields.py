"""Field-by-field conversion of what a user wrote, so that every fault is found at once.

msgspec checks each value against its field's type; the quantity types here parse text with units.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import msgspec
from msgspec import Meta

from lcprof import units
from lcprof.errors import Fault, nearest, shown

TOKENS_LIMIT = 2**30

_NUMBER_PATTERN = r"([0-9][0-9,_]*(\.[0-9]+)?|\.[0-9]+)([eE][-+]?[0-9]+)?"


class Tokens(int):
    """A number of tokens, at least one."""

    low = 1

    @classmethod
    def read(cls, value: object) -> Tokens:
        """Raises ValueError with a sentence on what is expected."""
        tokens = units.parse_tokens(value)
        if not cls.low <= tokens <= TOKENS_LIMIT:
            raise ValueError(f"from {cls.low} to {TOKENS_LIMIT:,} {units.TOKENS_EXPECTED}")
        return cls(tokens)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON Schema of what `read` takes."""
        return {
            "type": ["integer", "string"],
            "minimum": cls.low,
            "maximum": TOKENS_LIMIT,
            "pattern": rf"^ *{_NUMBER_PATTERN} *[kKmMgG]? *(tokens?)? *$",
        }


class SomeTokens(Tokens):
    """A number of tokens, perhaps none."""

    low = 0


class _Quantity(float):
    """A float in base SI units, read by `parse`."""

    parse: Callable[[object], float]
    pattern: str

    @classmethod
    def read(cls, value: object) -> Self:
        """Raises ValueError with a sentence on what is expected."""
        return cls(cls.parse(value))

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON Schema of what `read` takes."""
        return {"type": ["number", "string"], "minimum": 0, "pattern": cls.pattern}


class Bytes(_Quantity):
    """Bytes."""

    parse = staticmethod(units.parse_bytes)
    pattern = rf"^ *{_NUMBER_PATTERN} *([kKMGTP]B|[KMGTP]iB|B)? *$"


class Rate(_Quantity):
    """Bytes per second."""

    parse = staticmethod(units.parse_rate)
    pattern = rf"^ *{_NUMBER_PATTERN} *(([kKMGTP]?|[KMGTP]i)B/s)? *$"


class Flops(_Quantity):
    """Operations per second."""

    parse = staticmethod(units.parse_flops)
    pattern = rf"^ *{_NUMBER_PATTERN} *([kMGTP]?(FL)?OP(S|/s))? *$"


class Hertz(_Quantity):
    """Hertz."""

    parse = staticmethod(units.parse_hertz)
    pattern = rf"^ *{_NUMBER_PATTERN} *([kMGTP]?Hz)? *$"


class Watts(_Quantity):
    """Watts."""

    parse = staticmethod(units.parse_watts)
    pattern = rf"^ *{_NUMBER_PATTERN} *([kMGTP]?W)? *$"


class PowerLimit(Watts):
    """Watts that a board may draw, above one (a bare 0.7 surely lacks its unit)."""

    @staticmethod
    def parse(value: object) -> float:
        """Watts, at least one."""
        watts = units.parse_watts(value)
        if watts < 1:
            raise ValueError(f"{units.WATTS_EXPECTED}, at least 1 W")
        return watts

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON Schema of what `read` takes."""
        return {**super().schema(), "minimum": 1}


class Price(_Quantity):
    """US dollars."""

    parse = staticmethod(units.parse_price)
    pattern = rf"^ *\$? *{_NUMBER_PATTERN} *(USD(/h)?)? *$"


class Seconds(_Quantity):
    """A duration that is not nothing."""

    pattern = r"^[0-9. _,dayhourminutesec]+$"

    @staticmethod
    def parse(value: object) -> float:
        """Seconds above zero."""
        seconds = units.parse_duration(value)
        if seconds <= 0:
            raise ValueError(f"{units.DURATION_EXPECTED}, above zero")
        return seconds

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON Schema of what `read` takes."""
        return {"type": ["number", "string"], "exclusiveMinimum": 0, "pattern": cls.pattern}


class Duration(_Quantity):
    """A duration, perhaps none."""

    parse = staticmethod(units.parse_duration)
    pattern = Seconds.pattern


class Share(_Quantity):
    """A share above 0, at most 1."""

    pattern = rf"^ *{_NUMBER_PATTERN} *%? *$"

    @staticmethod
    def parse(value: object) -> float:
        """A fraction above zero."""
        share = units.parse_fraction(value)
        if share <= 0:
            raise ValueError(f"{units.FRACTION_EXPECTED}, above zero")
        return share

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON Schema of what `read` takes."""
        pattern = cls.pattern
        return {
            "type": ["number", "string"],
            "exclusiveMinimum": 0,
            "maximum": 1,
            "pattern": pattern,
        }


class Lines(int):
    """A number of lines of code."""

    unit = "lines"

    @classmethod
    def read(cls, value: object) -> Lines:
        """Raises ValueError with a sentence on what is expected."""
        count = units.parse_count(value, unit=cls.unit)
        if count < 1:
            raise ValueError(f"at least one of {cls.unit}")
        return cls(count)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON Schema of what `read` takes."""
        return {
            "type": ["integer", "string"],
            "minimum": 1,
            "pattern": rf"^ *{_NUMBER_PATTERN} *[kKmMgG]? *({cls.unit}?)? *$",
        }


class Words(Lines):
    """A number of words of text."""

    unit = "words"


Factor = Annotated[float, Meta(gt=0, le=1e6)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Degree = Annotated[int, Meta(ge=1, le=65_536)]

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "object": "a mapping",
    "array": "a list",
    "bool": "true or false",
}


def convert(value: object, kind: Any, *, where: str, key: str, faults: list[Fault]) -> Any:
    """`value` as `kind`, or None after adding a fault."""
    try:
        return msgspec.convert(value, kind, dec_hook=_read_quantity)
    except (msgspec.ValidationError, ValueError, OverflowError, RecursionError) as error:
        message = str(error)
        if path := re.search(r" - at `\$(.*)`$", message):
            message = message[: path.start()]
            key += path[1].replace("[...]", "")
            value = _inside(value, path[1])
        if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
            fault = Fault(
                where=where, key=f"{key}.{missing[1]}", given="nothing", expected="a value"
            )
        elif unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message):
            given = f"the unknown key {shown(unknown[1])}"
            fault = Fault(where=where, key=key, given=given, expected="only the keys it knows")
        elif message.startswith("Invalid enum value"):
            names = f"one of {', '.join(_choices(kind))}"
            fault = Fault(where=where, key=key, given=given_text(value), expected=names)
        else:
            fault = Fault(where=where, key=key, given=given_text(value), expected=_plain(message))
        faults.append(fault)
        return None


def _choices(kind: Any) -> list[str]:
    """The names that a kind allows, however it is wrapped."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [name for part in get_args(kind) for name in _choices(part)]


def check_keys(
    mapping: Mapping[str, Any],
    known: Iterable[str],
    *,
    where: str | Callable[[str], str],
    prefix: str = "",
    faults: list[Fault],
) -> None:
    """Adds a fault for every key that is not `known`, with the nearest names."""
    names = list(known)
    for key in mapping:
        if key in names:
            continue
        name = key if isinstance(key, str) else str(key)
        hint = f"a known key; {nearest(name, names) or ', '.join(names)}"
        place = where if isinstance(where, str) else where(name)
        path = prefix + shown(name, 40)[1:-1]
        faults.append(Fault(where=place, key=path, given="an unknown key", expected=hint))


def given_text(value: object) -> str:
    """What a user gave, as faults show it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    return shown(value)


def quantity_schema(kind: Any) -> dict[str, Any]:
    """msgspec's schema hook: it asks for the types that are not its own, which are quantities."""
    schema: dict[str, Any] = kind.schema()
    return schema


def _read_quantity(kind: Any, value: object) -> Any:
    return kind.read(value)


def _inside(value: object, path: str) -> object:
    for name in re.findall(r"\.(\w+)", path):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _plain(message: str) -> str:
    text = message.removeprefix("Expected ").split(", got ")[0]
    return re.sub(r"`([^`]*)`", lambda found: _type_words(found[1]), text)


def _type_words(types: str) -> str:
    return " or ".join(_WORDS.get(name.strip(), name.strip()) for name in types.split("|"))
