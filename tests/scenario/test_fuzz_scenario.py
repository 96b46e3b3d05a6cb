"""Whatever a scenario holds, it becomes rows or an InputError that can be read."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lcprof.errors import InputError
from lcprof.scenario.cases import expand
from lcprof.scenario.files import parse_json, parse_yaml, read_yaml
from lcprof.scenario.gpus import read_gpu
from lcprof.scenario.schema import (
    Scenario,
    load_scenario,
    override,
    read_scenario,
    scenario_schema,
)

SECONDS = 10.0
TINY = {
    "layers": 2,
    "hidden": 64,
    "q_heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "intermediate": 128,
    "vocab": 100,
}
KEYS = st.sampled_from(Scenario.__struct_fields__)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [
            *("128K", "1M", "90%", "1h", "30k lines", "bf16", "fp8", "int4-g64", "h200", "a/b/c"),
            *("llama-3.1-8b", "quest:page=0", "window:", "share", "fp8+int8", "h2o:budget=200%"),
            *("../..", "/dev/zero", "~", "nosuch/model", "-", "\0", "\ud800"),
        ]
    ),
    st.integers(1, 64),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)
PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXT,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.one_of(KEYS, st.text(max_size=12)), JUNK, max_size=8)
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
SCHEMA = jsonschema.Draft202012Validator(scenario_schema())


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def survives(work: Callable[[], object]) -> object:
    """What `work` returns, or None when it refuses as it should."""
    begin = time.monotonic()
    refusal: InputError | None = None
    result: object = None
    try:
        result = work()
    except InputError as error:
        refusal = error
    assert time.monotonic() - begin < SECONDS
    if refusal is not None:
        assert refusal.faults
    for fault in refusal.faults if refusal else ():
        assert fault.where
        assert fault.given
        assert fault.expected
        assert str(fault).isprintable()
        assert len(str(fault)) < 2000
    return result


def planned(data: object, base: Path | None = None) -> object:
    scenario = read_scenario(data, where="s.yaml", base=base)
    return expand(scenario, where="s.yaml", base=base)


@FUZZ
@given(data=MAPPINGS)
@example(data={"model": TINY, "gpu": "h200", "context": "1K", "gpus": [10**300]})
@example(data={"model": TINY, "gpu": "h200", "context": 10**400})
@example(data={"model": {"layers": 10**400}, "gpu": {"name": 10**400}, "context": 1})
@example(data={"model": ".", "gpu": "/", "context": 1})
@example(data={1: 2, None: 3, ("a",): 4})
def test_any_mapping(data: dict[Any, Any]) -> None:
    survives(lambda: planned(data))


@FUZZ
@given(changes=MAPPINGS)
def test_a_good_scenario_with_junk_in_it(changes: dict[str, Any]) -> None:
    good = {"model": TINY, "gpu": "h200", "context": "1K"}
    survives(lambda: planned(good | changes))


@FUZZ
@given(key=KEYS, value=JUNK)
def test_the_schema_takes_what_the_reader_takes(key: str, value: Any) -> None:
    data = {"model": TINY, "gpu": "h200", key: value}
    if key not in ("video", "audio", "code", "text"):
        data = {"context": "1K"} | data
    if survives(lambda: planned(data)) is not None:
        assert SCHEMA.is_valid(data)


@FUZZ
@given(data=JUNK)
def test_any_gpu(data: object) -> None:
    survives(lambda: read_gpu(data, where="s.yaml"))
    if isinstance(data, dict):
        base = {"name": "x", "memory_marketed": "80 GB", "bandwidth": "1 TB/s"}
        survives(lambda: read_gpu(base | {"peak": data}, where="s.yaml"))
        survives(lambda: read_gpu(base | {"peak": {"bf16": 1e12}} | data, where="s.yaml"))


@FUZZ
@given(content=st.binary(max_size=300))
@example(content=b"model: !!python/object/apply:os.system [id]")
@example(content=b"a: &a [*a]")
@example(content=b"\xff\xfe")
def test_any_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    survives(lambda: planned(read_yaml(path)))
    survives(lambda: load_scenario(path))


@FUZZ
@given(text=st.text(alphabet="ab01:-,[]{}&*!|>'\"%@`#?~<. \n\t\\xué\u2028\x85", max_size=60))
def test_any_text(text: str) -> None:
    survives(lambda: parse_yaml(text, where="s.yaml"))
    survives(lambda: parse_json(text, where="c.json"))
    survives(lambda: override({}, {"context": text, "kv": [text, text]}))


@FUZZ
@given(data=PLAIN)
def test_json_reads_the_same_as_either(data: object) -> None:
    """JSON is a part of YAML 1.2, but for line breaks and characters that YAML calls
    unprintable."""
    text = json.dumps(data, ensure_ascii=False)
    assert parse_json(text, where="c.json") == data
    assert survives(lambda: parse_yaml(text, where="s.yaml")) in (data, None)


@FUZZ
@given(spec=st.text(alphabet="bfpkiv:=,+%0123456789questhrawind-", max_size=40))
def test_any_kv_spec(spec: str) -> None:
    survives(lambda: planned({"model": TINY, "gpu": "h200", "context": "8K", "kv": spec}))
