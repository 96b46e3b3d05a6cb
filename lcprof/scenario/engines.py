"""Engines from the catalog, and what their checkpoints hold beside the text model."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from lcprof.catalog import CATALOG
from lcprof.domain.engine import CONSTANTS, ENGINES, Checkpoint, Engine, EngineName, Since, Version
from lcprof.errors import Fault, InputError, shown
from lcprof.scenario.files import place, read_yaml
from lcprof.units import parse_bytes

FOLDER = CATALOG / "engines"
_RELEASE = re.compile(r"v?(\d{1,6}(?:\.\d{1,6}){0,3})")


class _Step(Struct, frozen=True, forbid_unknown_fields=True):
    since: str
    value: float | int | str
    source: Annotated[str, Meta(min_length=1)]


class _EngineFile(Struct, frozen=True, forbid_unknown_fields=True):
    name: EngineName
    title: str
    date: str
    constants: dict[str, list[_Step]]
    fitted_on: list[str] = []


class _Family(Struct, frozen=True, forbid_unknown_fields=True):
    match: str
    source: Annotated[str, Meta(min_length=1)]
    encoder: float = 0.0
    encoder_split: bool = True
    rotary: float = 1.0
    position_tables: int = 1
    positions: int | None = None
    draft_layers: int = 1


class _CheckpointFile(Struct, frozen=True, forbid_unknown_fields=True):
    families: list[_Family]


def parse_version(text: str, *, where: str) -> Version:
    """A release number: "0.19.0", "v0.6.3.post1". Raises InputError."""
    found = _RELEASE.match(text.strip())
    if found is None:
        raise InputError.one(where, "version", given=text, expected="a release such as 0.19.0")
    return tuple(int(part) for part in found[1].split("."))


@cache
def load_engine(name: str, *, where: str = "engine") -> Engine:
    """A serving engine by name. Raises InputError for an unknown one or a damaged file."""
    if name not in ENGINES:
        raise InputError.one(where, given=name, expected=f"one of {', '.join(ENGINES)}")
    path = FOLDER / f"{name}.yaml"
    return read_engine(read_yaml(path), where=place(path))


def read_engine(data: object, *, where: str) -> Engine:
    """An engine from the mapping of its file; every constant once, steps in order of release.

    Raises InputError with every fault.
    """
    try:
        entry = msgspec.convert(data, _EngineFile)
    except msgspec.ValidationError as error:
        raise InputError.one(where, given=str(error), expected="an engine's file") from error
    faults = [
        Fault(where=where, key=key, given="nothing", expected=meaning)
        for key, meaning in CONSTANTS.items()
        if not entry.constants.get(key)
    ]
    faults += [
        Fault(where=where, key=key, given=shown(key), expected="a known constant")
        for key in entry.constants
        if key not in CONSTANTS
    ]
    constants: dict[str, tuple[Since, ...]] = {}
    for key, steps in entry.constants.items():
        read: list[Since] = []
        for step in steps:
            value = step.value
            number = parse_bytes(value) if isinstance(value, str) else float(value)
            read.append(
                Since(
                    since=parse_version(step.since, where=where), value=number, source=step.source
                )
            )
        if read != sorted(read, key=lambda step: step.since):
            faults.append(
                Fault(
                    where=where,
                    key=key,
                    given="steps out of order",
                    expected="steps in order of release",
                )
            )
        constants[key] = tuple(read)
    if faults:
        raise InputError(faults)
    return Engine(
        name=entry.name,
        title=entry.title,
        date=entry.date,
        constants=constants,
        fitted_on=tuple(entry.fitted_on),
    )


@cache
def _families() -> tuple[_Family, ...]:
    path = FOLDER / "_checkpoints.yaml"
    try:
        return tuple(msgspec.convert(read_yaml(path), _CheckpointFile).families)
    except msgspec.ValidationError as error:
        raise InputError.one(place(path), given=str(error), expected="families") from error


def read_checkpoint(name: str) -> Checkpoint:
    """What the checkpoint of a model so named holds beside its text model: the family whose pattern
    matches the longest start of `name` (its organisation aside), or nothing."""
    plain = name.rpartition("/")[2].lower()
    found: list[tuple[int, _Family]] = []
    for family in _families():
        start = re.match(family.match, plain)
        if start is not None:
            found.append((start.end(), family))
    if not found:
        return Checkpoint()
    _, family = max(found, key=lambda pair: pair[0])
    return Checkpoint(
        encoder_params=family.encoder,
        encoder_split=family.encoder_split,
        rotary_share=family.rotary,
        position_tables=family.position_tables,
        positions=family.positions,
        draft_layers=family.draft_layers,
    )
