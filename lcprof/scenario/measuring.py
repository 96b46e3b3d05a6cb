"""The `measure:` block of a scenario: which of its points a measuring run takes, and for how long.

Its keys are the flags of `lcprof measure`; a plan has no use for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from lcprof.domain.operations import implementation_names, operation_names
from lcprof.errors import Fault, nearest, shown
from lcprof.scenario.fields import (
    Count,
    Duration,
    Seconds,
    Tokens,
    check_keys,
    convert,
    given_text,
    quantity_schema,
)


def _one_of(names: Iterable[str], description: str) -> Any:
    return Meta(description=description, extra_json_schema={"enum": list(names)})


class Measuring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a scenario is measured: empty tuples and None leave the choice to the flags and their
    defaults. `max_batch` and `max_context` leave out rows with more sequences or longer prompts."""

    only: tuple[
        Annotated[str, _one_of(operation_names(), "operations to measure: --only")], ...
    ] = ()
    impl: tuple[
        Annotated[str, _one_of(implementation_names(), "who computes them: --impl")], ...
    ] = ()
    budget: (
        Annotated[Seconds, Meta(description="begin no point after this long: --budget")] | None
    ) = None
    sustained: (
        Annotated[
            Duration,
            Meta(description="how long calls follow each other, 0 for none: --sustained"),
        ]
        | None
    ) = None
    max_batch: (
        Annotated[Count, Meta(description="sequences held at once, at most: --max-batch")] | None
    ) = None
    max_context: (
        Annotated[Tokens, Meta(description="tokens of a prompt, at most: --max-context")] | None
    ) = None

    def under(self, flags: Measuring) -> Measuring:
        """The block with what flags say in its place."""
        said = msgspec.structs.asdict(flags)
        told = {name: value for name, value in said.items() if value not in ((), None)}
        return msgspec.structs.replace(self, **told)


_FIELDS = {item.name: item for item in msgspec.structs.fields(Measuring)}
NAMES = {"only": operation_names, "impl": implementation_names}


def read_measuring(data: object, *, where: str, key: str, faults: list[Fault]) -> Measuring | None:
    """The block from plain data, or None after adding its faults: unknown keys and names, values
    that are no durations, counts or tokens."""
    if not isinstance(data, Mapping):
        expected = f"a mapping of {', '.join(_FIELDS)}"
        faults.append(Fault(where=where, key=key, given=given_text(data), expected=expected))
        return None
    before = len(faults)
    check_keys(data, _FIELDS, where=where, prefix=f"{key}.", faults=faults)
    values: dict[str, Any] = {}
    for name, item in _FIELDS.items():
        if name not in data:
            continue
        inside = f"{key}.{name}"
        if name in NAMES:
            given = data[name] if isinstance(data[name], list) else [data[name]]
            known = NAMES[name]()
            values[name] = tuple(given)
            for each in given:
                if each not in known:
                    _unknown(each, known, where=where, key=inside, faults=faults)
        else:
            kind = _kind(item)
            values[name] = convert(data[name], kind, where=where, key=inside, faults=faults)
    return Measuring(**values) if len(faults) == before else None


def _unknown(
    given: object, known: Iterable[str], *, where: str, key: str, faults: list[Fault]
) -> None:
    names = list(known)
    hint = nearest(given, names) if isinstance(given, str) else ""
    expected = f"a known name; {hint or ', '.join(names)}"
    said = shown(given) if isinstance(given, str) else given_text(given)
    faults.append(Fault(where=where, key=key, given=said, expected=expected))


def measuring_schema() -> dict[str, Any]:
    """JSON Schema of the block."""
    properties = {}
    for name, item in _FIELDS.items():
        one = msgspec.json.schema(_kind(item), schema_hook=quantity_schema)
        said = one.pop("description")
        if name in NAMES:
            one = {"anyOf": [one, {"type": "array", "items": one}]}
        properties[name] = {"description": said, **one}
    return {
        "type": "object",
        "description": "what `lcprof measure` takes of this scenario; its flags win",
        "properties": properties,
        "additionalProperties": False,
    }


def _kind(item: msgspec.structs.FieldInfo) -> Any:
    """The type of one value: that within the tuple, or without None."""
    return get_args(item.type)[0]
