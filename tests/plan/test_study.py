"""What lies around a row, against plans of its points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lcprof import plan_scenario
from lcprof.domain.kv import parse_kv
from lcprof.domain.kv.strategy import RISKS
from lcprof.plan import study
from lcprof.plan.choice import chosen, risk
from lcprof.plan.row import Row, plan_cases
from lcprof.scenario.gpus import load_gpu

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
ONE_H200 = SCENARIOS / "llama-3.1-8b-1m-one-h200.yaml"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return plan_scenario(ONE_H200)


def row_of(rows: Sequence[Row], spec: str) -> Row:
    return next(row for row in rows if row.case.kv_spec == spec)


def test_the_choice_keeps_every_token_in_eight_bits(rows: list[Row]) -> None:
    assert chosen(rows).case.kv_spec == "fp8"
    dropping = [row for row in rows if "window" in row.case.kv_spec]
    assert (
        min(row.estimate.total_bytes_per_gpu for row in dropping)
        < chosen(rows).estimate.total_bytes_per_gpu
    )
    assert chosen(dropping) in dropping


def test_nothing_that_fits_leaves_the_first(rows: list[Row]) -> None:
    failing = [row for row in rows if not row.estimate.fits]
    assert chosen(failing) is failing[0]


def test_the_longest_context_comes_before_the_cheapest() -> None:
    rows = plan_scenario(ONE_H200, kv="fp8", context=["128K", "512K", "1M", "4M"])
    assert chosen(rows).case.workload.context_tokens == 2**20


@pytest.mark.parametrize(
    ("spec", "level"),
    [
        ("bf16", "none"),
        ("offload:fraction=50%", "none"),
        ("fp8", "low"),
        ("int4:group=64", "some"),
        ("kivi:bits=4,group=32,residual=128", "some"),
        ("quest:page=16,top=256", "some"),
        ("fp8+window:tokens=4096,sinks=4", "high"),
        ("snapkv:budget=4096", "high"),
        ("share:kv_heads=1", "another model"),
    ],
)
def test_the_worst_of_a_chain_is_its_risk(spec: str, level: str) -> None:
    risks = parse_kv(spec, where="test").risks()
    assert risks[0].name == level
    assert [risk.level for risk in risks] == sorted((r.level for r in risks), reverse=True)
    assert all(risk.why and risk.source for risk in risks)
    assert level in RISKS


def test_narrow_weights_are_a_risk_of_their_own() -> None:
    rows = plan_scenario(ONE_H200, kv="bf16", weights=["checkpoint", "fp8", "int4"])
    assert [risk(row.case).name for row in rows] == ["none", "low", "some"]


def test_swept_points_are_those_of_plans(rows: list[Row]) -> None:
    case = row_of(rows, "fp8").case
    contexts, sequences = [8192.0, 131072.0, 2.0**22], [1.0, 16.0]
    names = ("total_bytes_per_gpu", "ttft_s", "tpot_high_s", "tpot_basis", "max_concurrency")
    (table,) = study.swept(case, contexts, sequences, names)
    points = [(context, batch) for context in contexts for batch in sequences]
    asked = [
        replace(
            case,
            hypothetical=True,
            workload=replace(case.workload, context_tokens=context, concurrency=batch),
        )
        for context, batch in points
    ]
    for index, row in enumerate(plan_cases(asked)):
        columns = row.columns()
        for name in names:
            assert table[name][index] == columns[name], (points[index], name)


def test_operations_add_up_to_the_expected_times(rows: list[Row]) -> None:
    row = row_of(rows, "fp8")
    table, kernels = study.operations(row)
    assert kernels
    for phase, column in (("prefill", "ttft_s"), ("decode step", "tpot_s")):
        lines = [i for i, name in enumerate(table["phase"]) if name == phase]
        whole = sum(table["seconds"][i] for i in lines)
        assert whole == pytest.approx(row.columns()[column], rel=1e-9)
        assert sum(table["share"][i] for i in lines) == pytest.approx(1.0)
        assert sum(table["flops"][i] for i in lines) == pytest.approx(
            row.estimate.prefill_flops if phase == "prefill" else row.estimate.decode_step_flops
        )
        for i in lines:
            assert table["low_s"][i] <= table["seconds"][i] <= table["high_s"][i]


def test_no_operation_passes_its_roof(rows: list[Row]) -> None:
    row = row_of(rows, "fp8")
    gpu = row.case.deployment.gpu
    table, _ = study.operations(row)
    for index, compute in enumerate(table["compute"]):
        seconds, flops = table["seconds"][index], table["flops"][index]
        if compute not in ("", "vector"):
            # An 8-bit cache is read by 8-bit products, which the FLOPs' own dtype does not say.
            assert flops / seconds <= max(gpu.flops_per_s(compute), gpu.flops_per_s("fp8"))
        if table["operation"][index] == "attention":
            assert table["hbm_bytes"][index] / seconds <= gpu.bandwidth_bytes_per_s


def test_nothing_is_timed_where_nothing_was_measured(rows: list[Row]) -> None:
    table, kernels = study.operations(row_of(rows, "offload:fraction=50%"))
    assert table["phase"] == kernels == []


def test_a_grid_holds_what_its_plans_say() -> None:
    rows = plan_scenario(SCENARIOS / "llama-3.1-70b-128k-8x-h100.yaml")
    gpus = [load_gpu(name, where="test") for name in ("h100-sxm", "h200-sxm")]
    found = study.grid(rows, chosen(rows), gpus)
    assert [place.gpu.name for place in found.deployments] == ["h100-sxm", "h200-sxm"]
    assert len(found.cases) == 4
    size = len(found.cases) * 2 * len(found.contexts)
    assert {len(values) for values in found.prompt.values()} == {size}
    assert {len(values) for values in found.step.values()} == {size * len(found.sequences)}
    which, place, context, batch = 2, 1, found.contexts.index(131072.0), 3
    case = found.cases[which]
    asked: Any = replace(
        case,
        hypothetical=True,
        deployment=replace(case.deployment, gpu=gpus[1]),
        workload=replace(
            case.workload, context_tokens=131072.0, concurrency=found.sequences[batch]
        ),
    )
    (row,) = plan_cases([asked])
    prompt = (which * 2 + place) * len(found.contexts) + context
    step = prompt * len(found.sequences) + batch
    assert found.prompt["ttft_s"][prompt] == row.columns()["ttft_s"]
    assert found.step["tpot_s"][step] == row.columns()["tpot_s"]
    assert found.step["total_bytes_per_gpu"][step] == row.columns()["total_bytes_per_gpu"]
    assert found.step["request_usd"][step] == row.columns()["request_usd"]


def test_a_grid_stays_within_its_points(rows: list[Row]) -> None:
    names = study.GRID_GPUS
    found = study.grid(rows, chosen(rows), [load_gpu(n, where="test") for n in names])
    assert len(found.step["tpot_s"]) <= study.GRID_POINTS


def test_lengths_hold_what_was_planned(rows: list[Row]) -> None:
    case = row_of(rows, "fp8").case
    found = study.lengths(case, [100_000.0, 2.0**20], 2)
    assert {4096.0, 100_000.0, 2.0**20, 2.0**22} <= set(found)
    assert found == sorted(set(found))
    shared = replace(case, workload=replace(case.workload, prefix_tokens=50_000.0))
    assert min(study.lengths(shared, [2.0**20], 2)) > 50_000


def test_shares_cross_where_the_crossovers_are(rows: list[Row]) -> None:
    # "attention is most of a prefill beyond 53,251 tokens" is what the plan of this row prints.
    shares = study.context_shares(row_of(rows, "fp8").case, [53_251.0, 53_252.0])
    below, above = shares["attention_share_of_prefill_flops"]
    assert below <= 0.5 < above
