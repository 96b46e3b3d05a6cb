"""From a scenario file and flags to planned rows, for every command that takes a scenario."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import Struct
from msgspec.structs import replace

from lcprof.errors import Fault, InputError, shown

if TYPE_CHECKING:
    from lcprof.domain.case import Case
    from lcprof.plan.answers import Answers
    from lcprof.plan.row import Row
    from lcprof.plan.wide import Wide
    from lcprof.scenario.measuring import Measuring
    from lcprof.scenario.schema import Scenario

AXES: dict[str, tuple[str, str]] = {
    "model": ("NAME", "catalog name, config.json, its folder, or a Hub id"),
    "gpu": ("NAME", "catalog name, or a YAML file of that form"),
    "gpus": ("N", "number of GPUs"),
    "context": ("TOKENS", "prompt length: 131072, 128K, 1M"),
    "output": ("TOKENS", "tokens of an answer"),
    "concurrency": ("N", "sequences held at once"),
    "kv": ("SPEC", "KV strategy: bf16, fp8, kivi:bits=4,group=32, fp8+window:tokens=4096"),
    "weights": ("FORMAT", "bf16, fp8, int8, int4-g128; checkpoint keeps the model's own"),
    "tp": ("N", "tensor-parallel degree"),
    "pp": ("N", "pipeline stages"),
    "cp": ("N", "context-parallel ranks of a prefill"),
    "dp": ("N", "data-parallel attention groups"),
    "ep": ("N", "expert-parallel ranks"),
    "dcp": ("N", "decode-context-parallel ranks"),
    "chunk": ("TOKENS", "prefill tokens of one step"),
    "prefix": ("TOKENS", "tokens that all prompts share"),
    "utilisation": ("SHARE", "share of memory that the engine may fill: 0.9, 90%"),
    "page": ("TOKENS", "tokens of a KV page"),
    "stack": ("NAME", "whose kernels: vllm, sglang, trtllm, lcprof, torch"),
    "price": ("USD", "US dollars for a GPU-hour; the catalog's by default"),
    "power_limit": ("WATTS", "what a GPU may draw; its TDP by default"),
}
"""The scenario keys that have a flag of their own: metavar and help."""
FILE_AXES = ("model", "gpu")
KEPT = 40
"""Rows of a wide plan that are shown."""

F = TypeVar("F", bound=Callable[..., Any])


def flag_of(key: str) -> str:
    """The flag of a scenario key."""
    return f"--{key.replace('_', '-')}"


def axis_options(command: F) -> F:
    """Gives a command the flags of `AXES`, each with several values."""
    for key, (metavar, text) in reversed(AXES.items()):
        option = click.option(flag_of(key), key, multiple=True, metavar=metavar, help=text)
        command = option(command)
    return command


class Asked(Struct, frozen=True, kw_only=True):
    """The rows that file and flags ask for, the file's question, note and `measure` block, and the
    scenario keys given, `flagged` those among them that flags gave. Of more rows than are held,
    `wide` has planned all and `rows` are those it kept."""

    rows: list[Row]
    question: str
    note: str = ""
    measure: Measuring
    keys: frozenset[str]
    flagged: frozenset[str] = frozenset()
    wide: Wide | None = None

    @property
    def planned(self) -> int:
        """How many rows were planned."""
        return len(self.rows) if self.wide is None else self.wide.planned

    @property
    def fitting(self) -> int:
        """How many of them fit."""
        if self.wide is not None:
            return self.wide.fitting
        return sum(bool(row.estimate.fits) for row in self.rows)


def plan_asked(
    scenario: str | None,
    axes: Mapping[str, tuple[str, ...]],
    settings: tuple[str, ...],
    *,
    hypothetical: bool = False,
    wide: bool = False,
) -> Asked:
    """Reads, expands and plans; `wide` allows for more rows than are held. Raises InputError with
    every fault."""
    from lcprof.scenario.files import place, read_yaml
    from lcprof.scenario.schema import COMBINATIONS_LIMIT, WIDE_LIMIT, read_scenario

    changes, places = _changes(axes, settings)
    path = Path(scenario) if scenario is not None else None
    data = read_yaml(path) if path else {}
    where = place(path) if path else "command line"
    base = path.parent if path else None
    if isinstance(data, Mapping):
        data = _changed(_without_other_prompt(data, changes), changes, places)
    most = WIDE_LIMIT if wide else COMBINATIONS_LIMIT

    def expanded(scenario: Scenario) -> list[Case]:
        from lcprof.scenario.cases import expand

        cases = expand(scenario, where=where, places=places, base=base)
        return [replace(case, hypothetical=True) for case in cases] if hypothetical else cases

    try:
        read = read_scenario(data, where=where, places=places, base=base, most=most)
        found = _planned(read, expanded)
        return replace(found, keys=frozenset(data), flagged=frozenset(changes))
    except InputError as error:
        raise InputError(map(_with_flag, error.faults)) from None


def _planned(read: Scenario, expanded: Callable[[Scenario], list[Case]]) -> Asked:
    """The rows of a scenario; those of many are planned as arrays, kind by kind."""
    from lcprof.plan.row import plan_cases
    from lcprof.scenario.schema import COMBINATIONS_LIMIT, combinations

    asked = Asked(
        rows=[], question=read.question, note=read.note, measure=read.measure, keys=frozenset()
    )
    if combinations(read) <= COMBINATIONS_LIMIT:
        return replace(asked, rows=plan_cases(expanded(read)))
    from lcprof.plan.wide import plan_wide

    # The shortest context stands for all: only a prefix is held against it.
    alone: dict[str, Any] = {"concurrency": read.concurrency[:1]}
    if read.context is not None:
        alone["context"] = (min(read.context),)
    kinds = replace(read, **alone)
    if (count := combinations(kinds)) > COMBINATIONS_LIMIT:
        raise InputError.one(
            "scenario",
            given=f"{count:,} combinations beside context and concurrency",
            expected=f"at most {COMBINATIONS_LIMIT:,}",
        )
    cases = expanded(kinds)
    contexts, sequences = map(float, read.context or ()), map(float, read.concurrency)
    found = plan_wide(cases, list(contexts), list(sequences), KEPT)
    return replace(asked, rows=found.rows, wide=found)


def answers(row: Row, asked: Asked) -> Answers:
    """What a page says of one of the rows besides its columns; the offers as flags that can be
    pasted."""
    from lcprof.plan.answers import answers_of

    found = answers_of(row, lambda offer: _flags(offer, row, asked))
    offered = {word for offer in found.offers for word in offer.flags.split()}
    again = (flag_of(key) for key in AXES if key in asked.flagged)
    return replace(found, again=tuple(flag for flag in again if flag in offered))


def _flags(offer: Row, row: Row, asked: Asked) -> str:
    """The flags that make `offer` of `row` when they follow the command as it was given: what
    differs, and of several rows also what picks this one."""
    from lcprof.plan.row import case_columns
    from lcprof.report.table import varying

    named = {f"{key}_tokens": key for key in ("context", "output", "prefix", "chunk", "page")}
    named |= {"price_usd_per_gpu_hour": "price", "power_limit_w": "power_limit"}
    old, new = case_columns(row.case), case_columns(offer.case)
    pinned = set(varying(asked.rows)) if len(asked.rows) > 1 else set()
    others = new["pp"] * new["cp"] * new["dp"]
    flags: list[str] = []
    for column, value in new.items():
        key = named.get(column, column)
        if value == old[column] and (column not in pinned or not _sayable(key, value)):
            continue
        if key == "tp" and "tp" not in asked.keys and value * others == new["gpus"]:
            continue
        text = f"{value:.10g}" if isinstance(value, float) else str(value)
        flags.append(f"{flag_of(key)} {shlex.quote(text)}")
    return " ".join(flags)


def _sayable(key: str, value: Any) -> bool:
    """Whether a flag can name what a row shows: not a model or GPU from a file or written out."""
    from lcprof.scenario.gpus import gpu_names
    from lcprof.scenario.models import model_names

    return key not in FILE_AXES or value in (model_names() if key == "model" else gpu_names())


def _changes(
    axes: Mapping[str, tuple[str, ...]], settings: tuple[str, ...]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What the flags set, by scenario key, and the flag to name in faults. Raises InputError."""
    changes: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    faults: list[Fault] = []
    given = [(flag_of(key), key, text) for key, texts in axes.items() for text in texts]
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not key.strip() or not equals:
            expected = "key=value, as concurrency=16"
            faults.append(Fault(where="--set", given=shown(setting), expected=expected))
        else:
            given.append((f"--set {shown(key.strip(), 40)[1:-1]}", key.strip(), text))
    for flag, key, text in given:
        if places.setdefault(key, flag) != flag:
            expected = f"{key} once: by {places[key]} or by {flag}"
            faults.append(Fault(where=flag, given=shown(text), expected=expected))
            continue
        try:
            changes.setdefault(key, []).extend(_several(key, text, flag) if key in AXES else [text])
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    return changes, places


def _several(key: str, text: str, flag: str) -> list[str]:
    """The values of a flag: separated by commas, except where a comma belongs to the value."""
    if text.lstrip()[:1] in ("[", "{", '"', "'") or "," not in text:
        return [_from_here(text) if key in FILE_AXES else text]
    if key in FILE_AXES and _exists(text):
        return [_from_here(text)]
    # An argument of a KV spec holds "=", and no ":" before it; anything else starts another spec.
    pieces = re.split(r",(?![^,:=]*=)" if key == "kv" else ",", text)
    if re.fullmatch(r"\d{1,3}(,\d{3})+", text, re.ASCII):
        whole = text.replace(",", "")
        expected = f"{whole} for one number, or {flag} [{', '.join(pieces)}] for several"
        raise InputError.one(flag, given=text, expected=expected)
    return [_from_here(piece) if key in FILE_AXES else piece for piece in pieces]


def _from_here(text: str) -> str:
    """A path given as a flag counts from the current folder, not from the scenario's."""
    looks_like_path = "/" in text or text.endswith((".json", ".yaml", ".yml"))
    return os.path.abspath(text) if looks_like_path and _exists(text) else text


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _without_other_prompt(
    data: Mapping[str, Any], changes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The file's data without the prompt that a flag states in another way, conversion factors
    of contents included."""
    from lcprof.scenario.schema import CONTENT_KEYS

    if "context" in changes:
        return {
            key: value for key, value in data.items() if key.partition("_")[0] not in CONTENT_KEYS
        }
    replaced = not changes.keys().isdisjoint(CONTENT_KEYS)
    return {key: value for key, value in data.items() if not (replaced and key == "context")}


def _changed(
    data: dict[str, Any], changes: Mapping[str, Sequence[str]], places: Mapping[str, str]
) -> dict[str, Any]:
    """The data with what flags set; faults name the flag that was used."""
    from lcprof.scenario.schema import override

    faults: list[Fault] = []
    for key, texts in changes.items():
        try:
            data = override(data, {key: texts})
        except InputError as error:
            faults += [replace(fault, where=places[key]) for fault in error.faults]
    if faults:
        raise InputError(faults)
    return data


def _with_flag(fault: Fault) -> Fault:
    """The fault of a missing key, with the flag that would give it."""
    if fault.given != "nothing" or fault.key not in AXES or fault.where.startswith("--"):
        return fault
    metavar, _ = AXES[fault.key]
    hint = f"{fault.expected} ({flag_of(fault.key)} {metavar}, or {fault.key}: in a scenario file)"
    return replace(fault, expected=hint)
