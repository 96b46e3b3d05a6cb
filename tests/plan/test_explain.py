"""Explanations: every computed column has one, and what it says is true of the row."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import fields, replace

import lcprof
from lcprof.plan.estimate import Estimate
from lcprof.plan.explain import ACCOUNTS, Explanation, explain, missing
from lcprof.plan.row import Row, case_columns, plan_cases
from lcprof.plan.times import Times

LLAMA: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "context": 131_072}
DEEPSEEK: dict[str, Any] = {**LLAMA, "model": "deepseek-v3", "gpus": 16, "kv": "fp8", "output": 9}
ASKED: dict[str, dict[str, Any]] = {
    "full": {**LLAMA, "output": 100, "concurrency": 2},
    "prefix": {**LLAMA, "prefix": 100_000, "concurrency": 5},
    "share of the bus": {**LLAMA, "kv": "fp8+offload:fraction=50%", "concurrency": 3},
    "late": {**LLAMA, "kv": "h2o:budget=20%", "concurrency": 2},
    "late, at once": {**LLAMA, "kv": "snapkv:budget=4096", "chunk": 131_072},
    "remade": {**LLAMA, "kv": "share:latent=512", "gpus": 2},
    "ring": {**LLAMA, "gpus": 8, "tp": 2, "cp": 4, "kv": "kivi:bits=4"},
    "stages": {**DEEPSEEK, "pp": 2, "concurrency": 9},
    "experts": {**DEEPSEEK, "dp": 16, "ep": 16, "concurrency": 33},
    "indexed": {**DEEPSEEK, "model": "deepseek-v3.2", "concurrency": 3},
    "hybrid": {**LLAMA, "model": "qwen3-next-80b-a3b", "gpus": 8, "pp": 4, "concurrency": 8},
    "windows": {**LLAMA, "model": "gemma-3-27b", "kv": "int8", "concurrency": 3},
    "does not fit": {**LLAMA, "context": 2_000_000},
}


def plan(keys: dict[str, Any]) -> Row:
    """The one row, with times even where it does not fit."""
    (row,) = lcprof.plan_scenario(keys)
    (found,) = plan_cases([replace(row.case, hypothetical=True)])
    return found


ROWS = {name: plan(keys) for name, keys in ASKED.items()}


def explained(row: Row) -> dict[str, Explanation]:
    return {item.column: item for item in explain(row)}


@pytest.mark.parametrize("table", [Estimate, Times, Row])
def test_every_number_has_an_account(table: type[Struct]) -> None:
    # Judgements (fits, codes of names) are declared as anything, numbers as numbers.
    numbers = {"Num", "int", "float", "float | None"}
    named = {item.name for item in fields(table) if table.__annotations__[item.name] in numbers}
    assert named
    assert named <= set(ACCOUNTS)


@pytest.mark.parametrize("name", ROWS)
def test_every_number_that_a_plan_computes_is_explained(name: str) -> None:
    row = ROWS[name]
    said = {*case_columns(row.case), "max_position_tokens"}
    numbers = {
        column
        for column, value in row.columns().items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    items = explained(row)
    assert numbers - said <= set(items)
    for column, item in items.items():
        assert item.value == row.columns()[column], column
        assert item.formula
        assert item.source


@pytest.mark.parametrize("name", ROWS)
def test_terms_that_have_values_add_up(name: str) -> None:
    summed = 0
    for column, item in explained(ROWS[name]).items():
        values = [term.value for term in item.terms if term.value is not None]
        if values:
            assert item.value is not None
            assert math.fsum(values) == pytest.approx(item.value, rel=1e-9), column
            summed += 1
    assert summed >= 15


def factors(item: Explanation) -> list[float]:
    """The number that each term ends in, or else begins with."""
    found = []
    for term in item.terms:
        words = [word.strip(",").replace(",", "") for word in term.text.split()]
        numbers = [word for word in words if word.replace(".", "").replace("e-", "").isdigit()]
        found.append(float(numbers[-1 if words[-1] == numbers[-1] else 0]))
    return found


@pytest.mark.parametrize("name", ROWS)
def test_products_are_those_of_their_factors(name: str) -> None:
    items = explained(ROWS[name])

    def product(column: str) -> float:
        return math.prod(factors(items[column]))

    def holds(column: str, value: float) -> None:
        assert items[column].value == pytest.approx(value, rel=1e-4), column

    holds("activation_bytes_per_gpu", 2 * product("activation_bytes_per_gpu"))
    if not {"prefill_j", "output_token_j"} <= set(items):
        return
    sequences, step_s = factors(items["output_tokens_per_s"])
    holds("output_tokens_per_s", sequences / step_s)
    rate, gpus = factors(items["output_tokens_per_s_per_gpu"])
    holds("output_tokens_per_s_per_gpu", rate / gpus)
    busy_s, watts, gpus, groups = factors(items["prefill_j"])
    holds("prefill_j", watts * busy_s * gpus / groups)
    watts, step_s, gpus, sequences = factors(items["output_token_j"])
    holds("output_token_j", watts * step_s * gpus / sequences)
    for end in ("low", "high"):
        watts, seconds = factors(items[f"prefill_{end}_j"])
        holds(f"prefill_{end}_j", watts * seconds * gpus / groups)
        watts, seconds = factors(items[f"output_token_{end}_j"])
        holds(f"output_token_{end}_j", watts * seconds * gpus / sequences)
    price, busy_s, tokens, gpus, groups = factors(items["usd_per_million_input_tokens"])
    usd = price / 3600 * gpus * busy_s / (groups * tokens) * 1e6
    holds("usd_per_million_input_tokens", usd)
    price, gpus, step_s, sequences = factors(items["usd_per_million_output_tokens"])
    holds("usd_per_million_output_tokens", price / 3600 * gpus * step_s / sequences * 1e6)


def test_floors_say_what_bounds_them() -> None:
    # A step of two sequences is bound by HBM: its bytes over the data sheet's 4.8 TB/s.
    row = ROWS["full"]
    item = explained(row)["tpot_floor_s"]
    moved = (
        row.estimate.decode_step_read_bytes_per_gpu + row.estimate.decode_step_write_bytes_per_gpu
    )
    assert f"HBM traffic {moved / 4.8e12:,.6g} s" in [term.text for term in item.terms]
    assert item.value == pytest.approx(moved / 4.8e12)


def test_the_price_is_the_one_that_was_used() -> None:
    given = plan({**LLAMA, "price": 2.25})
    for row, price, source in (
        (ROWS["full"], "3.5 USD", "skypilot-catalog"),
        (given, "2.25 USD", "as given"),
    ):
        item = explained(row)["usd_per_million_output_tokens"]
        assert price in item.terms[0].text
        assert source in item.source


def test_what_is_missing_has_a_reason() -> None:
    (unfit,) = lcprof.plan_scenario(ASKED["does not fit"])
    assert "does not fit" in missing(unfit, "ttft_s")
    assert "ttft_s" not in explained(unfit)
    assert "host memory" in missing(ROWS["share of the bus"], "ttft_s")
    assert "headroom_bytes_per_gpu" in explained(unfit)
