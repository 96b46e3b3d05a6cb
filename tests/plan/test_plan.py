"""Rows, tries, explanations and sweeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from msgspec.structs import replace
from shapes import H100, H200, LLAMA_8B, LLAMA_70B, deepseek_v3, hybrid, on

from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import parse_kv
from lcprof.domain.model import ModelShape
from lcprof.domain.weights import WEIGHT_FORMATS
from lcprof.domain.workload import Workload
from lcprof.plan.row import Row, case_columns, plan_case, plan_cases, time_columns
from lcprof.plan.sweep import sweep
from lcprof.plan.tries import fewest_gpus, tries


def case(
    model: ModelShape,
    deployment: Deployment,
    context: float,
    *,
    kv: str = "bf16",
    concurrency: float = 1.0,
    output: float = 1.0,
) -> Case:
    return Case(
        model=model,
        deployment=deployment,
        kv=parse_kv(kv, where="test"),
        kv_spec=kv,
        workload=Workload(context_tokens=context, concurrency=concurrency, output_tokens=output),
    )


CASES = {
    "fits": case(LLAMA_8B, on(H100), 131_072.0),
    "kv": case(LLAMA_8B, on(H200), 1_048_576.0),
    "weights": case(deepseek_v3(), on(H100), 8192.0),
    "ring": case(LLAMA_8B, on(H200, tp=2, cp=4), 131_072.0),
    "hybrid": case(hybrid(), on(H100, pp=2), 262_144.0, concurrency=7.0, output=100.0),
    "offload": case(LLAMA_8B, on(H100), 524_288.0, kv="fp8+offload:fraction=50%"),
    "h2o": case(LLAMA_8B, on(H200), 524_288.0, kv="h2o:budget=20%", concurrency=2.0),
    "latent": case(LLAMA_8B, on(H100, tp=2), 131_072.0, kv="share:latent=512"),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_adds_up(name: str) -> None:
    row = plan_case(CASES[name])
    held = row.estimate
    parts = held.weights_bytes_per_gpu + held.kv_reserved_bytes_per_gpu
    parts += held.kv_prefill_bytes_per_gpu
    parts += held.activation_bytes_per_gpu + held.logits_bytes_per_gpu
    parts += held.workspace_bytes_per_gpu + held.runtime_bytes_per_gpu
    assert held.total_bytes_per_gpu <= parts * (1 + 1e-12)
    if CASES[name].deployment.pp == 1:
        assert held.total_bytes_per_gpu == pytest.approx(parts, rel=1e-12)
    assert held.fits == (held.total_bytes_per_gpu <= held.capacity_bytes_per_gpu)
    assert held.kv_reserved_bytes_per_gpu >= held.kv_bytes_per_gpu
    json.dumps(row.columns(), allow_nan=False)


def timed(asked: Case) -> Row:
    """The row of one case with its times."""
    return plan_cases([asked])[0]


def test_cases_planned_together_are_the_same_rows() -> None:
    cases = [
        replace(
            CASES[name],
            workload=replace(
                CASES[name].workload, context_tokens=1000.0 * step, concurrency=float(step % 7 + 1)
            ),
        )
        for step in range(1, 80)
        for name in ("fits", "hybrid", "offload")
    ]
    together = plan_cases(iter(cases))
    assert [row.case for row in together] == cases
    for row, asked in zip(together, cases, strict=True):
        assert row.columns() == timed(asked).columns()


def test_what_breaks_first() -> None:
    assert plan_case(CASES["fits"]).estimate.limited_by == ""
    assert plan_case(CASES["kv"]).estimate.limited_by == "kv"
    assert plan_case(CASES["weights"]).estimate.limited_by == "weights"
    wide = replace(CASES["fits"].workload, chunk_tokens=1_000_000.0, context_tokens=1_000_000.0)
    unchunked = plan_case(replace(CASES["fits"], workload=wide))
    assert unchunked.estimate.limited_by == "activations"


@pytest.mark.parametrize("name", CASES)
def test_tries_do_what_they_say(name: str) -> None:
    row = plan_case(CASES[name])
    offers, asked = tries(row), case_columns(row.case)
    assert offers
    for offer in offers:
        assert offer.row.estimate.fits
        assert plan_case(offer.row.case).columns() == offer.row.columns()
        changed = {
            name for name, value in case_columns(offer.row.case).items() if value != asked[name]
        }
        assert changed


def test_fewest_gpus_is_the_fewest() -> None:
    fewest = fewest_gpus(case(LLAMA_70B, on(H100), 131_072.0))
    assert fewest is not None
    # 141 GB of weights and 43 GB of KV against 77 GB a GPU: two hold the weights but not the
    # rest (92 GB each), three 61 GB each and a stage's own needs.
    assert fewest.case.deployment.gpus == 3
    assert (fewest.case.deployment.tp, fewest.case.deployment.pp) == (1, 3)
    assert not plan_case(case(LLAMA_70B, on(H100, tp=2), 131_072.0)).estimate.fits


@pytest.mark.parametrize(
    ("model", "gpu", "context", "concurrency"),
    [
        (LLAMA_8B, H100, 1_048_576.0, 1.0),
        (LLAMA_70B, H100, 131_072.0, 20.0),
        (LLAMA_8B, H100, 8192.0, 1.0),
    ],
)
def test_no_layout_of_fewer_gpus_fits(
    model: ModelShape, gpu: Gpu, context: float, concurrency: float
) -> None:
    asked = case(model, on(gpu), context, concurrency=concurrency)
    fewest = fewest_gpus(asked)
    assert fewest is not None
    assert fewest.estimate.fits
    for gpus in range(1, fewest.case.deployment.gpus):
        for tp in (1, 2, 4, 8):
            if gpus % tp:
                continue
            laid_out = replace(asked.deployment, gpus=gpus, tp=tp, pp=gpus // tp)
            assert not plan_case(replace(asked, deployment=laid_out)).estimate.fits


def test_tensor_parallelism_across_nodes_is_offered_as_stages_of_a_node() -> None:
    across = plan_case(case(LLAMA_70B, on(H100, tp=16), 131_072.0))
    offered = [each.row.case.deployment for each in tries(across)]
    assert (8, 2) in [(each.tp, each.pp) for each in offered if each.gpus == 16]


def test_copies_of_kv_heads_are_offered_to_be_sharded() -> None:
    """One latent for all heads lies on each of eight ranks; sharded it leaves room for more."""
    fp8 = replace(on(H200, tp=8), weights=WEIGHT_FORMATS["fp8"])
    copied = plan_case(case(deepseek_v3(), fp8, 131_072.0, kv="fp8", concurrency=8.0))
    sharded = [each.row for each in tries(copied) if each.row.case.deployment.dcp == 8]
    assert copied.max_concurrency is not None
    assert any((row.max_concurrency or 0) > 4 * copied.max_concurrency for row in sharded)


def test_more_than_every_layout_holds_has_no_answer() -> None:
    asked = case(LLAMA_8B, on(H100), 1_048_576.0, concurrency=1000.0)
    assert fewest_gpus(asked) is None


def test_offload_moves_bytes_and_is_bound_by_the_bus() -> None:
    here = plan_case(case(LLAMA_8B, on(H100), 131_072.0)).estimate
    away = plan_case(case(LLAMA_8B, on(H100), 131_072.0, kv="offload:fraction=50%")).estimate
    assert away.kv_bytes_per_gpu == here.kv_bytes_per_gpu / 2
    assert away.kv_host_bytes_per_gpu == here.kv_bytes_per_gpu / 2
    # 8.6 GB over a 64 GB/s bus.
    assert away.tpot_floor_s == pytest.approx(131_072 * 131_072 / 2 / 64e9, rel=1e-6)


def test_eviction_after_the_prompt_holds_the_prompt_first() -> None:
    snap = case(LLAMA_8B, on(H200), 262_144.0, kv="snapkv:budget=4096", concurrency=3.0)
    chunked = plan_case(snap).estimate
    assert chunked.kv_bytes_per_gpu == 3 * 4096 * 131_072
    assert chunked.kv_prefill_bytes_per_gpu == (262_144 - 4096) * 131_072
    at_once = replace(snap, workload=replace(snap.workload, chunk_tokens=262_144.0))
    # One of 32 layers at a time.
    unchunked = plan_case(at_once).estimate
    assert unchunked.kv_prefill_bytes_per_gpu == (262_144 - 4096) * 131_072 / 32


def test_a_shared_prefix_is_stored_once_and_not_computed_again() -> None:
    alone = case(LLAMA_8B, on(H200), 100_000.0, concurrency=4.0)
    shared = replace(alone, workload=replace(alone.workload, prefix_tokens=80_000.0))
    one, other = plan_case(alone).estimate, plan_case(shared).estimate
    assert one.kv_bytes_per_gpu - other.kv_bytes_per_gpu == 3 * 80_000 * 131_072
    assert other.prefill_attention_flops < one.prefill_attention_flops
    assert other.decode_step_flops == one.decode_step_flops


def test_a_sweep_is_the_same_rows() -> None:
    models, contexts, batches = [LLAMA_8B, hybrid()], [4096.0, 1e6], [1.0, 8.0, 64.0]
    deployments = [on(H100, tp=2), on(H200, tp=2), on(H200)]
    specs = ["bf16", "kivi:bits=4,group=32", "share:latent=512"]
    table = sweep(
        models=models,
        deployments=deployments,
        kv=specs,
        context_tokens=contexts,
        concurrency=batches,
        output_tokens=10.0,
    )
    assert len(table) == 2 * 3 * 3 * 2 * 3
    records = iter(table.to_dict("records"))
    for model in models:
        for deployment in deployments:
            for spec in specs:
                for context in contexts:
                    for batch in batches:
                        asked = case(
                            model, deployment, context, kv=spec, concurrency=batch, output=10.0
                        )
                        expected = timed(asked).columns()
                        found = next(records)
                        assert list(found) == list(expected)
                        for name, value in expected.items():
                            if value is None:
                                assert found[name] == "" or np.isnan(found[name])
                            else:
                                assert found[name] == value, name


def test_a_sweep_without_times_has_the_other_columns() -> None:
    asked = {
        "models": [LLAMA_8B],
        "deployments": [on(H100)],
        "kv": ["bf16"],
        "context_tokens": [4096.0, 1e6],
        "concurrency": [1.0],
    }
    whole, sized = sweep(**asked), sweep(**asked, with_times=False)
    left_out = {"no_times", *time_columns(None)}
    assert list(sized) == [name for name in whole if name not in left_out]
    for name in sized:
        assert sized[name].equals(whole[name]), name
