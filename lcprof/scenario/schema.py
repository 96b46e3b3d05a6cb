"""What a scenario may say, its validation and its JSON Schema, from one list of fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from lcprof.errors import Fault, InputError
from lcprof.scenario.content import FACTORS
from lcprof.scenario.fields import (
    Count,
    Degree,
    Factor,
    Lines,
    PowerLimit,
    Price,
    Seconds,
    Share,
    SomeTokens,
    Tokens,
    Words,
    check_keys,
    convert,
    given_text,
    quantity_schema,
)
from lcprof.scenario.files import parse_scalar, parse_yaml, place, read_yaml
from lcprof.scenario.gpus import gpu_names, gpu_schema
from lcprof.scenario.measuring import Measuring, measuring_schema, read_measuring
from lcprof.scenario.models import model_names
from lcprof.scenario.names import NAMED, load_named
from lcprof.scenario.weights import WEIGHTS_PATTERN

COMBINATIONS_LIMIT = 100_000
WIDE_LIMIT = 2_000_000
"""The most combinations of a plan whose contexts and batches are planned as arrays."""
CONTENT_KEYS = ("video", "audio", "code", "text")

Name = Annotated[str, Meta(min_length=1, max_length=4096)]
Spec = Annotated[str, Meta(min_length=1, max_length=500)]
Prose = Annotated[str, Meta(max_length=10_000)]
Inline = dict[str, Any]

_OF_LAYOUT = "; gpus = tp · pp · cp · dp"


def _axis(description: str, *examples: Any) -> Meta:
    return Meta(description=description, examples=list(examples))


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A validated scenario. Every key but `question`, `note` and `measure` is an axis: a tuple of
    one or more values, None when the scenario does not give it and the meaning depends on other
    keys."""

    model: tuple[
        Annotated[
            Name | Inline,
            _axis(
                "catalog name, Hub id, config.json (file or folder), or a mapping that "
                "describes the shape",
                "llama-3.1-8b",
            ),
        ],
        ...,
    ]
    gpu: tuple[
        Annotated[
            Name | Inline,
            _axis("catalog name, YAML file of the catalog's form, or such a mapping", "h200-sxm"),
        ],
        ...,
    ]
    gpus: tuple[Annotated[Degree, _axis(f"number of GPUs{_OF_LAYOUT}", 8)], ...] | None = None
    context: (
        tuple[
            Annotated[
                Tokens,
                _axis(
                    "prompt length in tokens; K, M, G are powers of 1,024, k, m, g of 1,000",
                    "128K",
                    1_000_000,
                ),
            ],
            ...,
        ]
        | None
    ) = None
    output: tuple[Annotated[Tokens, _axis("tokens of an answer", 1024)], ...] = (Tokens(1),)
    concurrency: tuple[Annotated[Count, _axis("sequences held at once", 16)], ...] = (1,)
    kv: tuple[
        Annotated[
            Spec,
            _axis(
                "KV cache strategy, kind[:argument=value,...], joined by + to wrap; quote a spec "
                "with a comma inside [...]",
                "bf16",
                "fp8:scale=token-head",
                "fp8+window:tokens=4096,sinks=4",
            ),
        ],
        ...,
    ] = ("bf16",)
    tp: (
        tuple[
            Annotated[
                Degree,
                _axis("tensor-parallel degree; default gpus / (pp · cp · dp)", 8),
            ],
            ...,
        ]
        | None
    ) = None
    pp: tuple[Annotated[Degree, _axis(f"pipeline stages{_OF_LAYOUT}", 2)], ...] = (1,)
    cp: tuple[
        Annotated[Degree, _axis(f"context-parallel ranks of a prefill{_OF_LAYOUT}", 2)], ...
    ] = (1,)
    dp: tuple[Annotated[Degree, _axis(f"data-parallel attention groups{_OF_LAYOUT}", 8)], ...] = (
        1,
    )
    ep: tuple[
        Annotated[Degree, _axis("ranks over which whole experts spread; divides tp · dp", 8)], ...
    ] = (1,)
    dcp: tuple[
        Annotated[
            Degree,
            _axis(
                "decode-context parallel: ranks that hold copies of a KV head shard its tokens "
                "instead; divides tp, adds no GPUs",
                2,
            ),
        ],
        ...,
    ] = (1,)
    weights: tuple[
        Annotated[
            str,
            Meta(
                description="weight format; checkpoint keeps the checkpoint's own",
                examples=["checkpoint", "fp8", "int4-g64"],
                extra_json_schema={"pattern": WEIGHTS_PATTERN},
            ),
        ],
        ...,
    ] = ("checkpoint",)
    utilisation: tuple[
        Annotated[
            Share, _axis("share of the driver's memory that the engine may fill", 0.9, "90%")
        ],
        ...,
    ] = (Share(0.9),)
    page: tuple[
        Annotated[int, Meta(ge=1, le=65_536, description="tokens of a KV page", examples=[16])],
        ...,
    ] = (16,)
    stack: tuple[
        Annotated[
            Literal["vllm", "sglang", "trtllm", "lcprof", "torch"],
            Meta(description="whose kernels expected times are those of", examples=["vllm"]),
        ],
        ...,
    ] = ("vllm",)
    price: (
        tuple[
            Annotated[
                Price,
                _axis("US dollars for a GPU-hour; default the catalog's", 3.5, "$3.50"),
            ],
            ...,
        ]
        | None
    ) = None
    power_limit: (
        tuple[
            Annotated[
                PowerLimit, _axis("watts that a GPU may draw; default its TDP", "500 W", 500)
            ],
            ...,
        ]
        | None
    ) = None
    chunk: tuple[
        Annotated[Tokens, _axis("prefill tokens of one step, over all sequences", "8K")], ...
    ] = (Tokens(8192),)
    prefix: tuple[
        Annotated[
            SomeTokens,
            _axis("tokens that every prompt begins with, stored once per replica", "4K"),
        ],
        ...,
    ] = (SomeTokens(0),)
    video: (
        tuple[Annotated[Seconds, _axis("video in the prompt, instead of context", "1h")], ...]
        | None
    ) = None
    video_fps: tuple[Annotated[Factor, _axis("frames sampled per second", 1)], ...] = (
        FACTORS["video_fps"].value,
    )
    video_tokens_per_frame: tuple[Annotated[Factor, _axis("tokens of a frame", 258)], ...] = (
        FACTORS["video_tokens_per_frame"].value,
    )
    audio: (
        tuple[Annotated[Seconds, _axis("sound in the prompt, instead of context", "2h")], ...]
        | None
    ) = None
    audio_tokens_per_s: tuple[Annotated[Factor, _axis("tokens of a second of sound", 32)], ...] = (
        FACTORS["audio_tokens_per_s"].value,
    )
    code: (
        tuple[
            Annotated[Lines, _axis("source code in the prompt, instead of context", "30k lines")],
            ...,
        ]
        | None
    ) = None
    code_tokens_per_line: tuple[Annotated[Factor, _axis("tokens of a line of code", 10)], ...] = (
        FACTORS["code_tokens_per_line"].value,
    )
    text: (
        tuple[Annotated[Words, _axis("prose in the prompt, instead of context", "700k words")], ...]
        | None
    ) = None
    text_tokens_per_word: tuple[
        Annotated[Factor, _axis("tokens of an English word", 1.33)], ...
    ] = (FACTORS["text_tokens_per_word"].value,)
    question: Annotated[Prose, Meta(description="what the scenario asks, in a sentence")] = ""
    note: Annotated[Prose, Meta(description="anything worth keeping beside it")] = ""
    measure: Measuring = Measuring()

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Every axis that has values, by key."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if isinstance(value, tuple)}


PROSE_KEYS = ("question", "note")
MEASURE = "measure"
_FIELDS = {item.name: item for item in msgspec.structs.fields(Scenario)}


def load_scenario(path: Path) -> Scenario:
    """The scenario in a YAML file. Raises InputError with every fault."""
    return read_scenario(read_yaml(path), where=place(path), base=path.parent)


def read_scenario(
    data: object,
    *,
    where: str,
    places: Mapping[str, str] | None = None,
    base: Path | None = None,
    most: int = COMBINATIONS_LIMIT,
) -> Scenario:
    """A scenario from plain data, defaults filled in.

    `where` names the source in faults, `places` the source of single keys (flags), `base` is the
    folder of relative paths, `most` how many combinations it may have. Raises InputError with every
    fault: when one is found, the names of models, GPUs, KV strategies and weight formats are
    checked as well.
    """
    if not isinstance(data, Mapping):
        expected = "a mapping of scenario keys (model: ..., gpu: ..., context: ...)"
        raise InputError([Fault(where=where, given=given_text(data), expected=expected)])

    def place_of(key: str) -> str:
        return (places or {}).get(key, where)

    faults: list[Fault] = []
    check_keys(data, _FIELDS, where=place_of, faults=faults)
    values: dict[str, Any] = {}
    for key, item in _FIELDS.items():
        if key not in data:
            if item.required:
                expected = f"a value; {_description(item)}"
                faults.append(Fault(where=where, key=key, given="nothing", expected=expected))
        elif key in PROSE_KEYS:
            values[key] = convert(data[key], item.type, where=place_of(key), key=key, faults=faults)
        elif key == MEASURE:
            values[key] = read_measuring(data[key], where=place_of(key), key=key, faults=faults)
        else:
            values[key] = _read_axis(data[key], key, where=place_of(key), faults=faults)
    given = [key for key in CONTENT_KEYS if key in data]
    if "context" in data and given:
        together = f"beside context: {', '.join(given)}"
        expected = "either context or content (several contents add up)"
        faults.append(
            Fault(where=place_of(given[0]), key=given[0], given=together, expected=expected)
        )
    if "context" not in data and not given:
        expected = f"a prompt length in tokens, or content: {', '.join(CONTENT_KEYS)}"
        faults.append(Fault(where=where, key="context", given="nothing", expected=expected))
    if (count := _combinations(values)) > most:
        given_rows = f"{count:,} combinations"
        expected = f"at most {most:,} (lcprof.sweep in Python plans millions)"
        faults.append(Fault(where=where, given=given_rows, expected=expected))
    if faults:
        raise InputError([*faults, *_name_faults(values, place_of, base)])
    return Scenario(**values)


def combinations(scenario: Scenario) -> int:
    """How many rows a scenario makes."""
    return _combinations(msgspec.structs.asdict(scenario))


def _combinations(values: Mapping[str, Any]) -> int:
    return math.prod(len(value) for value in values.values() if isinstance(value, tuple))


def override(
    data: Mapping[str, Any],
    changes: Mapping[str, str | Sequence[str]],
    *,
    places: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`data` with keys replaced by flag texts, as `--set context=[128K,1M]` gives them.

    A text that starts like a YAML list, mapping or quoted string is read as YAML, any other as
    one scalar; several texts for one key make a list. `places` names the flag of a key where it
    is not `--set KEY`. Raises InputError.
    """
    changed = dict(data)
    faults: list[Fault] = []
    for key, texts in changes.items():
        try:
            values = [
                _flag_value(text, where=(places or {}).get(key, f"--set {key}"))
                for text in ([texts] if isinstance(texts, str) else texts)
            ]
        except InputError as error:
            faults += error.faults
            continue
        changed[key] = values[0] if len(values) == 1 else values
    if faults:
        raise InputError(faults)
    return changed


def scenario_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a scenario, for editors."""
    properties = {key: _field_schema(key, item) for key, item in _FIELDS.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lcprof scenario",
        "description": "A long-context workload to plan. Any key but question, note and "
        "measure may be a list; the plan is then a table, one row a combination.",
        "type": "object",
        "properties": properties,
        "required": [key for key, item in _FIELDS.items() if item.required],
        "oneOf": [
            {"required": ["context"]},
            {"anyOf": [{"required": [key]} for key in CONTENT_KEYS]},
        ],
        "additionalProperties": False,
    }


def _read_axis(
    value: object, key: str, *, where: str, faults: list[Fault]
) -> tuple[Any, ...] | None:
    items = value if isinstance(value, list) else [value]
    if not items:
        expected = "at least one value"
        faults.append(Fault(where=where, key=key, given="an empty list", expected=expected))
        return None
    kind = _item_type(_FIELDS[key])
    count = len(faults)
    read = tuple(
        convert(
            item,
            kind,
            where=where,
            key=f"{key}[{index}]" if isinstance(value, list) else key,
            faults=faults,
        )
        for index, item in enumerate(items)
    )
    return read if len(faults) == count else None


def _name_faults(
    values: Mapping[str, Any], place_of: Callable[[str], str], base: Path | None
) -> list[Fault]:
    """Faults of the values that name something, among those that could be read."""
    faults: list[Fault] = []
    for key in NAMED:
        if refs := values.get(key):
            faults += load_named(key, refs, where=place_of(key), base=base)[1]
    return faults


def _flag_value(text: str, *, where: str) -> Any:
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        return parse_yaml(text, where=where)
    try:
        return parse_scalar(text.strip())
    except ValueError as error:
        raise InputError.one(where, given=text, expected=str(error)) from None


def _item_type(item: msgspec.structs.FieldInfo) -> Any:
    """The type of one value of an axis: the first argument of the tuple, None put aside."""
    kind = item.type
    tuples = [part for part in get_args(kind) if part is not type(None)]
    if len(tuples) < len(get_args(kind)):
        kind = tuples[0]
    return get_args(kind)[0]


def _description(item: msgspec.structs.FieldInfo) -> str:
    kind = item.type if item.name in PROSE_KEYS else _item_type(item)
    metas = [part for part in get_args(kind)[1:] if isinstance(part, Meta)]
    return next((meta.description for meta in metas if meta.description), "")


def _field_schema(key: str, item: msgspec.structs.FieldInfo) -> dict[str, Any]:
    if key in PROSE_KEYS:
        return msgspec.json.schema(item.type)
    if key == MEASURE:
        return measuring_schema()
    one = msgspec.json.schema(_item_type(item), schema_hook=quantity_schema)
    shown: dict[str, Any] = {
        part: one.pop(part) for part in ("description", "examples") if part in one
    }
    if key == "gpu":
        one = {"anyOf": [{"type": "string", "minLength": 1}, gpu_schema()]}
        shown["examples"] = gpu_names()
    if key == "model":
        shown["examples"] = model_names()
    if not item.required and item.default:
        shown["default"] = item.default[0]
    return {**shown, "anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
