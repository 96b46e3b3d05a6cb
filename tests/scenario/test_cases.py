"""From a scenario to the rows of its plan."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcprof.domain.case import Case
from lcprof.domain.weights import FP8, int4
from lcprof.errors import Fault, InputError
from lcprof.scenario.cases import AXES, expand
from lcprof.scenario.schema import Scenario, load_scenario, read_scenario

SCENARIOS = sorted((Path(__file__).resolve().parents[2] / "scenarios").glob("*.yaml"))
DENSE = {
    "name": "dense",
    "layers": 4,
    "hidden": 512,
    "q_heads": 16,
    "kv_heads": 4,
    "head_dim": 32,
    "intermediate": 1024,
    "vocab": 1000,
}
MOE = DENSE | {"name": "moe", "experts": 12, "experts_per_token": 2, "moe_intermediate": 256}
LATENT = {
    "name": "latent",
    "layers": 4,
    "hidden": 512,
    "q_heads": 16,
    "latent_dim": 128,
    "rope_dim": 16,
    "nope_dim": 32,
    "v_head_dim": 32,
    "intermediate": 1024,
    "vocab": 1000,
}
SMALL: dict[str, Any] = {"model": DENSE, "gpu": "h200-sxm", "context": "4K"}


def cases(**changes: Any) -> list[Case]:
    return expand(read_scenario(SMALL | changes, where="s.yaml"), where="s.yaml")


def faults(**changes: Any) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        cases(**changes)
    return list(caught.value.faults)


def fault(**changes: Any) -> Fault:
    (only,) = faults(**changes)
    return only


def test_one_case() -> None:
    (case,) = cases(
        gpus=2, weights="fp8", kv="fp8", utilisation="80%", page=32, chunk=512, prefix="1K",
        output=8, concurrency=3,
    )  # fmt: skip
    assert case.model.name == "dense"
    assert case.kv_spec == "fp8"
    assert case.notes == ()
    deployment, workload = case.deployment, case.workload
    assert deployment.gpu.name == "h200-sxm"
    assert (deployment.gpus, deployment.tp, deployment.utilisation) == (2, 2, 0.8)
    assert (deployment.weights, deployment.page_tokens) == (FP8, 32)
    assert (workload.context_tokens, workload.output_tokens, workload.concurrency) == (4096, 8, 3)
    assert (workload.prefix_tokens, workload.chunk_tokens) == (1024, 512)
    assert cases(weights="int4-g32")[0].deployment.weights == int4(32)
    assert cases()[0].deployment.weights is None


def test_rows_come_in_the_order_of_the_axes_with_kv_fastest() -> None:
    rows = cases(gpu=["h200", "h100"], context=["1K", "2K"], concurrency=[1, 2], kv=["bf16", "fp8"])
    found = [
        (
            row.deployment.gpu.name,
            row.workload.context_tokens,
            row.workload.concurrency,
            row.kv_spec,
        )
        for row in rows
    ]
    assert found == list(product(["h200-sxm", "h100-sxm"], [1024, 2048], [1, 2], ["bf16", "fp8"]))
    assert len({id(row.model) for row in rows}) == 1
    assert len({id(row.deployment) for row in rows}) == 2
    assert len({id(row.kv) for row in rows}) == 2


def test_the_order_names_every_axis_once() -> None:
    others = {"question", "note", "measure"}
    assert sorted(AXES) == sorted(set(Scenario.__struct_fields__) - others)


@pytest.mark.parametrize(
    ("changes", "degrees"),
    [
        ({}, (1, 1, 1, 1, 1)),
        ({"gpus": 8}, (8, 8, 1, 1, 1)),
        ({"gpus": 8, "pp": 2}, (8, 4, 2, 1, 1)),
        ({"gpus": 8, "cp": 2, "dp": 2}, (8, 2, 1, 2, 2)),
        ({"gpus": 8, "tp": 4, "pp": 2}, (8, 4, 2, 1, 1)),
        ({"tp": 4, "pp": 2}, (8, 4, 2, 1, 1)),
    ],
)
def test_degrees_multiply_to_the_gpus(
    changes: dict[str, Any], degrees: tuple[int, int, int, int, int]
) -> None:
    made = cases(**changes)[0].deployment
    assert (made.gpus, made.tp, made.pp, made.cp, made.dp) == degrees


def test_degrees_that_do_not_multiply() -> None:
    wrong = fault(gpus=8, tp=2, pp=2)
    assert wrong.key == "gpus"
    assert wrong.given == "8, but tp 2 · pp 2 · cp 1 · dp 1 = 4"
    assert wrong.expected == "gpus: 4, or degrees that multiply to 8"
    wrong = fault(gpus=6, pp=4)
    assert wrong.given == "6, which pp 4 · cp 1 · dp 1 does not divide"
    assert wrong.expected == "a multiple of 4"


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        ({"tp": 3}, "tp", "a divisor of the 16 query heads of dense"),
        ({"pp": 5}, "pp", "at most the 4 layers of dense"),
        ({"model": MOE, "tp": 4, "ep": 3}, "ep", "a divisor of tp · dp = 4"),
        ({"model": MOE, "tp": 8, "ep": 8}, "ep", "a divisor of the 12 experts of moe"),
        ({"tp": 2, "ep": 2}, "ep", "1, as dense has no routed experts"),
        ({"tp": 8, "dcp": 3}, "dcp", "a divisor of tp = 8"),
        ({"tp": 8, "dcp": 4}, "dcp", "at most 2: tp 8 holds 2 copies of each KV head of dense"),
        ({"tp": 4, "dcp": 2}, "dcp", "at most 1"),
        ({"gpus": 3}, "gpus", "a divisor of the 16 query heads of dense"),
        ({"kv": "share:kv_heads=3"}, "kv", "kv_heads that divide the 16 query heads of dense"),
        ({"prefix": "4K"}, "prefix", "less than the prompt of 4K tokens"),
        ({"prefix": "8K"}, "prefix", "less than the prompt"),
    ],
)
def test_layouts_that_a_model_does_not_allow(
    changes: dict[str, Any], key: str, expected: str
) -> None:
    wrong = fault(**changes)
    assert wrong.key == key
    assert expected in wrong.expected


def test_layouts_that_a_model_allows() -> None:
    assert cases(model=MOE, tp=2, dp=2, ep=4)[0].deployment.ep == 4
    assert cases(tp=8, dcp=2)[0].deployment.dcp == 2
    assert cases(model=LATENT, tp=16, dcp=16)[0].deployment.dcp == 16
    assert cases(pp=4)[0].deployment.gpus == 4


def test_faults_of_all_keys_come_at_once() -> None:
    found = faults(gpus=7, tp=3, pp=5, ep=2, prefix="4K")
    assert [wrong.key for wrong in found] == ["gpus", "ep", "pp", "tp", "ep", "prefix"]
    found = faults(
        model=["nosuch", DENSE], gpu=["h200", "h2000"], kv=["bf16", "fp9"], weights="int5"
    )
    assert [wrong.key for wrong in found] == ["model", "gpu[1]", "weights", "kv[1]"]
    assert all(wrong.where == "s.yaml" for wrong in found)
    assert len(faults(tp=[3, 5, 7], gpus=list(range(50, 200)))) == 20


def test_places_of_flags() -> None:
    scenario = read_scenario(SMALL | {"kv": "fp9", "gpu": "h9"}, where="s.yaml")
    with pytest.raises(InputError) as caught:
        expand(scenario, where="s.yaml", places={"kv": "--kv"})
    assert [wrong.where for wrong in caught.value.faults] == ["s.yaml", "--kv"]


def test_content_becomes_context() -> None:
    base = {"model": DENSE, "gpu": "h200-sxm"}

    def prompt(**content: Any) -> Case:
        return expand(read_scenario(base | content, where="s.yaml"), where="s.yaml")[0]

    # Gemini API documentation: one frame of 258 tokens a second, 32 tokens a second of sound.
    case = prompt(video="1h")
    assert case.workload.context_tokens == 3600 * 258 == 928_800
    (note,) = case.notes
    assert note.startswith("video: 3,600 s × 1 frames/s × 258 tokens/frame = 928,800 tokens (Goo")
    case = prompt(video="1h", audio="1h", video_tokens_per_frame=66)
    assert case.workload.context_tokens == 3600 * (66 + 32)
    assert "video_tokens_per_frame as given" in case.notes[0]
    assert prompt(text="700k words").workload.context_tokens == 931_000
    assert prompt(code="30k lines").workload.context_tokens == 300_000
    assert prompt(video="10 s", video_fps=0.25).workload.context_tokens == 3 * 258
    rows = expand(read_scenario(base | {"video": ["1h", "2h"]}, where="s.yaml"), where="s.yaml")
    assert [row.workload.context_tokens for row in rows] == [928_800, 1_857_600]


def test_relative_paths_start_at_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nmemory_marketed: 80 GB\nbandwidth: 3 TB/s\npeak: {bf16: 900 TFLOP/s}\n"
    )
    scenario = read_scenario(SMALL | {"gpu": "mine.yaml"}, where="s.yaml")
    (case,) = expand(scenario, where="s.yaml", base=tmp_path)
    assert case.deployment.gpu.name == "mine"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_expands(path: Path) -> None:
    rows = expand(load_scenario(path), where=str(path), base=path.parent)
    assert rows
    assert all(row.workload.context_tokens >= 4096 for row in rows)


def test_the_scenarios_ask_over_every_strategy() -> None:
    from lcprof.domain.kv import STRATEGIES

    (path,) = [path for path in SCENARIOS if path.stem == "llama-3.1-8b-1m-one-h200"]
    rows = expand(load_scenario(path), where=str(path))
    used = {link.kind for row in rows for link in row.kv.chain()}
    assert {strategy.kind for strategy in STRATEGIES} <= used


@given(
    tp=st.sampled_from([1, 2, 4, 8, 16]),
    pp=st.integers(1, 4),
    cp=st.integers(1, 4),
    dp=st.integers(1, 4),
)
def test_gpus_and_tp_each_follow_from_the_other(tp: int, pp: int, cp: int, dp: int) -> None:
    by_tp = cases(tp=tp, pp=pp, cp=cp, dp=dp)[0].deployment
    by_gpus = cases(gpus=tp * pp * cp * dp, pp=pp, cp=cp, dp=dp)[0].deployment
    assert by_tp == by_gpus
    assert by_tp.gpus == tp * pp * cp * dp


def test_price_and_power_limit_are_the_deployments() -> None:
    (plain,) = cases()
    assert (plain.deployment.price_usd_per_gpu_hour, plain.deployment.power_limit_w) == (None, None)
    assert plain.deployment.usd_per_gpu_hour == plain.deployment.gpu.price_usd_per_hour
    found = [case.deployment for case in cases(price=["$2.25", 4], power_limit="500 W")]
    assert [d.price_usd_per_gpu_hour for d in found] == [2.25, 4.0]
    assert [d.usd_per_gpu_hour for d in found] == [2.25, 4.0]
    assert [d.power_limit_w for d in found] == [500.0, 500.0]


@pytest.mark.parametrize("given", ["800 W", "50 W"])
def test_a_power_limit_that_no_board_can_be_held_to_is_refused(given: str) -> None:
    found = fault(power_limit=given)
    assert (found.key, found.given) == ("power_limit", given)
    assert "from 175 to 700 W" in found.expected


def test_a_power_limit_of_a_gpu_without_a_tdp_is_refused() -> None:
    assert "no limit" in fault(gpu="tpu-v5e", power_limit="100 W").expected
