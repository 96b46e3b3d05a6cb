"""Validation of scenarios, and the JSON Schema that editors use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lcprof.errors import Fault, InputError
from lcprof.scenario.content import FACTORS
from lcprof.scenario.fields import Duration, Seconds, Tokens
from lcprof.scenario.files import read_yaml
from lcprof.scenario.measuring import Measuring
from lcprof.scenario.schema import (
    Scenario,
    load_scenario,
    override,
    read_scenario,
    scenario_schema,
)

SCENARIOS = sorted((Path(__file__).resolve().parents[2] / "scenarios").glob("*.yaml"))
SMALL: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "context": "128K"}
SCHEMA = scenario_schema()
BEYOND_A_SCHEMA = {"'2G'", "'90'"}
"""Texts whose form is right and whose size is not."""


def read(**changes: Any) -> Scenario:
    return read_scenario(SMALL | changes, where="s.yaml")


def faults(data: object, **more: Any) -> dict[str, Fault]:
    with pytest.raises(InputError) as caught:
        read_scenario(data, where="s.yaml", **more)
    assert all(fault.given and fault.expected for fault in caught.value.faults)
    return {fault.key: fault for fault in caught.value.faults}


def accepts(data: object) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(data)


def test_defaults() -> None:
    scenario = read()
    assert scenario.context == (131_072,)
    assert (scenario.output, scenario.concurrency, scenario.prefix) == ((1,), (1,), (0,))
    assert (scenario.kv, scenario.weights) == (("bf16",), ("checkpoint",))
    assert (scenario.utilisation, scenario.page, scenario.chunk) == ((0.9,), (16,), (8192,))
    assert (scenario.gpus, scenario.tp) == (None, None)
    assert (scenario.price, scenario.power_limit) == (None, None)
    assert (scenario.pp, scenario.cp, scenario.dp, scenario.ep, scenario.dcp) == ((1,),) * 5
    assert scenario.video_tokens_per_frame == (258,)
    assert scenario.text_tokens_per_word == (1.33,)
    assert set(scenario.axes()) >= {"model", "kv", "context", "concurrency"}
    assert "question" not in scenario.axes()
    assert "video" not in scenario.axes()


def test_what_is_measured_of_a_scenario() -> None:
    assert read().measure == Measuring()
    data = SMALL | {"measure": {"only": "gemm", "impl": ["lcprof", "torch"], "budget": "5m",
                                "sustained": 0, "max_batch": 8, "max_context": "64K"}}  # fmt: skip
    told = read_scenario(data, where="s.yaml").measure
    assert told == Measuring(
        only=("gemm",), impl=("lcprof", "torch"), budget=Seconds(300), sustained=Duration(0),
        max_batch=8, max_context=Tokens(65_536),
    )  # fmt: skip
    assert accepts(data)
    assert "measure" not in read(measure={}).axes()
    flags = Measuring(impl=("naive",), sustained=Duration(2))
    assert told.under(flags) == Measuring(
        only=("gemm",), impl=("naive",), budget=Seconds(300), sustained=Duration(2),
        max_batch=8, max_context=Tokens(65_536),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("block", "key", "given", "expected"),
    [
        ([], "measure", "an empty list", "a mapping of only, impl, budget"),
        ({"onyl": "gemm"}, "measure.onyl", "an unknown key", "did you mean only"),
        ({"only": "gem"}, "measure.only", "'gem'", "did you mean gemm"),
        ({"impl": {"a": 1}}, "measure.impl", "a mapping", "lcprof, torch, naive"),
        ({"budget": 0}, "measure.budget", "0", "above zero"),
        ({"sustained": "1 parsec"}, "measure.sustained", "'1 parsec'", "a duration"),
        ({"max_batch": 0}, "measure.max_batch", "0", ">= 1"),
        ({"max_context": -1}, "measure.max_context", "-1", "tokens, as"),
    ],
)
def test_faults_of_the_measure_block(block: object, key: str, given: str, expected: str) -> None:
    data = SMALL | {"measure": block}
    (fault,) = faults(data).values()
    assert (fault.key, fault.given) == (key, given)
    assert expected in fault.expected
    assert not accepts(data)


def test_every_key_may_be_a_list() -> None:
    data = {
        "model": ["llama-3.1-8b", {"layers": 2}],
        "gpu": ["h200", "h100"],
        "gpus": [1, 2],
        "context": ["128K", 1_000_000, "1m"],
        "utilisation": [0.9, "95%"],
        "price": [3, "$3.50", "2.5 USD/h"],
        "power_limit": [500, "0.6 kW"],
        "kv": ["bf16", "fp8"],
        "weights": ["checkpoint", "int4-g32"],
    }
    scenario = read_scenario(data, where="s.yaml")
    assert scenario.context == (131_072, 1_000_000, 1_000_000)
    assert scenario.model[1] == {"layers": 2}
    assert scenario.utilisation == (0.9, 0.95)
    assert scenario.price == (3.0, 3.5, 2.5)
    assert scenario.power_limit == (500.0, 600.0)
    assert accepts(data)


@pytest.mark.parametrize("data", [None, [], ["model"], "model", 3, True])
def test_a_mapping_is_meant(data: object) -> None:
    (fault,) = faults(data).values()
    assert "a mapping of scenario keys" in fault.expected
    assert not accepts(data)


@pytest.mark.parametrize(
    ("changes", "key", "given", "expected"),
    [
        ({"contxt": 1}, "contxt", "an unknown key", "did you mean context"),
        ({"kv_dtype": "fp8"}, "kv_dtype", "an unknown key", "a known key; "),
        ({"context": -1}, "context", "-1", "tokens, as 131072"),
        ({"context": 0}, "context", "0", "from 1 to"),
        ({"context": "2G"}, "context", "'2G'", "to 1,073,741,824"),
        ({"context": 10**40}, "context", "1" + "0" * 40, "tokens, as"),
        ({"context": "12 apples"}, "context", "'12 apples'", "tokens, as"),
        ({"context": math.nan}, "context", "nan", "tokens, as"),
        ({"context": None}, "context", "nothing", "tokens, as"),
        ({"context": {}}, "context", "a mapping", "tokens, as"),
        ({"context": []}, "context", "an empty list", "at least one value"),
        ({"context": ["1K", "x"]}, "context[1]", "'x'", "tokens, as"),
        ({"context": [["1K"]]}, "context[0]", "a list of 1", "tokens, as"),
        ({"output": 1.5}, "output", "1.5", "tokens, as"),
        ({"concurrency": 0}, "concurrency", "0", "a whole number >= 1"),
        ({"concurrency": 10**9}, "concurrency", "1000000000", "<= 1000000"),
        ({"concurrency": "many"}, "concurrency", "'many'", "a whole number"),
        ({"concurrency": True}, "concurrency", "true", "a whole number"),
        ({"gpus": 1.5}, "gpus", "1.5", "a whole number"),
        ({"tp": -8}, "tp", "-8", ">= 1"),
        ({"tp": None}, "tp", "nothing", "a whole number"),
        ({"page": 0}, "page", "0", ">= 1"),
        ({"chunk": 0}, "chunk", "0", "from 1 to"),
        ({"prefix": -1}, "prefix", "-1", "tokens, as"),
        ({"utilisation": 0}, "utilisation", "0", "above zero"),
        ({"utilisation": 1.1}, "utilisation", "1.1", "a share from 0 to 1"),
        ({"utilisation": "90"}, "utilisation", "'90'", "a share from 0 to 1"),
        ({"price": -1}, "price", "-1", "US dollars for a GPU for an hour"),
        ({"price": "3 EUR"}, "price", "'3 EUR'", "US dollars for a GPU for an hour"),
        ({"price": None}, "price", "nothing", "US dollars for a GPU for an hour"),
        ({"power_limit": 0.7}, "power_limit", "0.7", "at least 1 W"),
        ({"power_limit": "500 MHz"}, "power_limit", "'500 MHz'", "a power, as 700 W"),
        ({"model": 3}, "model", "3", "text or a mapping"),
        ({"model": ""}, "model", "''", "length >= 1"),
        ({"gpu": None}, "gpu", "nothing", "text or a mapping"),
        ({"kv": 8}, "kv", "8", "text"),
        ({"weights": 8}, "weights", "8", "text"),
        ({"question": ["a"]}, "question", "a list of 1", "text"),
        ({"video_fps": 0}, "video_fps", "0", "a number > 0"),
    ],
)
def test_a_fault_names_key_given_and_expected(
    changes: dict[str, Any], key: str, given: str, expected: str
) -> None:
    found = faults(SMALL | changes)
    assert set(found) == {key}
    assert found[key].where == "s.yaml"
    assert found[key].given == given
    assert expected in found[key].expected
    assert accepts(SMALL | changes) == (given in BEYOND_A_SCHEMA)


def test_all_faults_come_at_once_with_those_of_names() -> None:
    data = {
        "model": "llama-3.1-8x",
        "gpu": ["h200", "h300"],
        "contxt": "128K",
        "context": ["128K", "x"],
        "kv": ["bf16", "fp9"],
        "weights": "int5",
        "tp": 0,
    }
    found = faults(data, places={"tp": "--tp", "kv": "--kv"})
    assert set(found) >= {"gpu[1]", "contxt", "context[1]", "kv[1]", "weights", "tp", "model"}
    assert found["tp"].where == "--tp"
    assert found["kv[1]"].where == "--kv"
    assert found["gpu[1]"].where == "s.yaml"
    assert "h200" in found["gpu[1]"].expected
    assert "int4" in found["weights"].expected


def test_missing_keys_say_what_they_mean() -> None:
    found = faults({})
    assert set(found) == {"model", "gpu", "context"}
    assert "catalog name" in found["gpu"].expected
    assert "video" in found["context"].expected
    assert not accepts({})


def test_context_or_content_but_not_both() -> None:
    found = faults(SMALL | {"video": "1h", "code": "30k lines"})
    assert "video, code" in found["video"].given
    assert not accepts(SMALL | {"video": "1h"})
    content = {"model": "m", "gpu": "h200", "video": "1h30m", "audio": 60, "text": "700k words"}
    scenario = read_scenario(content, where="s.yaml")
    assert (scenario.video, scenario.audio, scenario.text) == ((5400,), (60,), (700_000,))
    assert accepts(content)
    found = faults({"model": "m", "gpu": "h200", "video": "0 s", "code": "30k words", "text": 0})
    assert set(found) >= {"video", "code", "text"}


def test_too_many_combinations() -> None:
    many = SMALL | {key: list(range(1, 101)) for key in ("concurrency", "output", "tp", "page")}
    (fault,) = faults(many).values()
    assert fault.given == "100,000,000 combinations"
    assert fault.expected.startswith("at most 100,000")


def test_flags_replace_keys() -> None:
    changed = override(
        SMALL,
        {
            "context": "[128K, 1M]",
            "utilisation": "95%",
            "gpus": "8",
            "kv": ["fp8", "kivi:bits=4,group=32"],
            "model": "./my: model #1",
            "question": "'quoted'",
        },
    )
    assert changed == {
        "model": "./my: model #1",
        "gpu": "h200-sxm",
        "context": ["128K", "1M"],
        "utilisation": "95%",
        "gpus": 8,
        "kv": ["fp8", "kivi:bits=4,group=32"],
        "question": "quoted",
    }
    assert SMALL["context"] == "128K"
    with pytest.raises(InputError) as caught:
        override(SMALL, {"context": "[128K", "gpus": ".nan", "kv": "[!x 1]", "tp": "8"})
    with pytest.raises(InputError, match="--context: given"):
        override(SMALL, {"context": ".inf"}, places={"context": "--context"})
    places = [fault.where.split(",")[0] for fault in caught.value.faults]
    assert places == ["--set context", "--set gpus", "--set kv"]


def test_a_file_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("model: llama-3.1-8b\ngpu: h200\ncontext: 1M\n")
    assert load_scenario(path).context == (1_048_576,)
    path.write_text("- a\n")
    with pytest.raises(InputError, match=r"s\.yaml: given a list of 1; expected a mapping"):
        load_scenario(path)


def test_the_schema_is_one_and_says_everything() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(SCHEMA["properties"]) == set(Scenario.__struct_fields__)
    assert SCHEMA["required"] == ["model", "gpu"]
    for key, field in SCHEMA["properties"].items():
        assert field["description"], key
    assert "h200-sxm" in SCHEMA["properties"]["gpu"]["examples"]
    assert SCHEMA["properties"]["utilisation"]["default"] == 0.9
    assert "1,024" in SCHEMA["properties"]["context"]["description"]
    for field in SCHEMA["properties"].values():
        validator = jsonschema.Draft202012Validator(field)
        values = [*field.get("examples", ()), *([field["default"]] if "default" in field else ())]
        assert all(validator.is_valid(value) for value in values), values


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_validates(path: Path) -> None:
    assert accepts(read_yaml(path))
    scenario = load_scenario(path)
    assert scenario.question.endswith("?") or "?" in scenario.question


def test_every_factor_has_a_source() -> None:
    assert all(factor.source and factor.value > 0 for factor in FACTORS.values())
    assert set(FACTORS) <= set(Scenario.__struct_fields__)
