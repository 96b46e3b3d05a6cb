"""What several ranks measure together: which operations of a plan, at which sizes."""

from __future__ import annotations

from typing import Any

import pytest

from lcprof.calibrate.predictions import expectations, uncalibrated
from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.operations import GROUPED
from lcprof.errors import InputError
from lcprof.measure.floors import join
from lcprof.measure.group_work import needed_group
from lcprof.measure.groups import check_ranks, group_floors, group_points
from lcprof.measure.points import Point, chosen_operations, points_of
from lcprof.plan.fits import finder, power_for, published_fits
from lcprof.scenario.cases import expand
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.schema import read_scenario
from lcprof.scenario.transport import Calibrations

H200 = load_gpu("h200-sxm", where="test")


def points(*, device: Any = "cuda", only: tuple[str, ...] = (), **keys: Any) -> list[Point]:
    """Llama-3.1-70B (hidden 8,192; 64 query and 8 KV heads of 128), unless said otherwise."""
    asked = {"model": "llama-3.1-70b", "gpu": "h200-sxm", "context": "128K", "concurrency": 16}
    cases = expand(read_scenario(asked | keys, where="test"), where="test")
    chosen = chosen_operations(only)
    return group_points(cases, impls=("triton",), only=chosen, device=device)


def sizes(found: list[Point]) -> dict[str, list[Any]]:
    by_name: dict[str, list[Any]] = {}
    for point in found:
        by_name.setdefault(point.operation, []).append(point.shape.get("buffer_bytes"))
    return by_name


def test_tensor_parallel_ranks_reduce_the_hidden_state_of_a_pass() -> None:
    found = points(gpus=8, tp=8)
    # A chunk of 8 K tokens, and 16 sequences, of 8,192 elements in bf16.
    each = [8192 * 8192 * 2, 16 * 8192 * 2]
    assert sizes(found) == {"all_reduce": each, "reduce_scatter": each, "all_gather": each}
    assert {point.implementation for point in found} == {"nccl"}
    assert {point.ranks for point in found} == {8}
    assert {point.implementation for point in points(gpus=8, tp=8, device="cpu")} == {"gloo"}
    assert points() == []


def test_stages_and_experts_exchange_what_a_plan_gives_them() -> None:
    handed = points(gpus=8, tp=4, pp=2, only=("send_recv",))
    # A fourth of the state from each tensor rank; half of the sequences are with each stage.
    assert sizes(handed) == {"send_recv": [8192 * 8192 * 2 // 4, 8 * 8192 * 2 // 4]}
    assert {point.ranks for point in handed} == {2}
    moe: dict[str, Any] = {"model": "deepseek-v3", "gpus": 8, "tp": 1, "dp": 8}
    # Hidden 7,168, eight experts a token; two sequences with each group of attention.
    routed = points(**moe, ep=8, only=("all_to_all", "all_gather"))
    assert sizes(routed) == {"all_to_all": [8192 * 8 * 7168 * 2, 2 * 8 * 7168 * 2]}
    cut = points(**moe, only=("all_to_all", "all_gather", "reduce_scatter"))
    each = [8 * 8192 * 7168 * 2, 8 * 2 * 7168 * 2]
    assert sizes(cut) == {"all_gather": each, "reduce_scatter": each}


def test_contexts_are_cut_over_ranks() -> None:
    ring, gathered = points(gpus=8, tp=2, cp=4, only=("context_prefill",))
    shape = {"ranks": 4, "batch": 1, "context_tokens": 131_072, "q_heads": 32, "kv_heads": 4,
             "head_dim": 128, "exchange": "ring", "dtype": "bf16"}  # fmt: skip
    assert ring.shape == shape
    assert gathered.shape == {**shape, "exchange": "all_gather"}
    assert ring.implementation == "triton"
    # The reduced state is that of a rank's fourth of a chunk.
    reduced = points(gpus=8, tp=2, cp=4, only=("all_reduce",))
    assert sizes(reduced)["all_reduce"][0] == 2048 * 8192 * 2
    (step,) = points(gpus=16, tp=16, dcp=2, only=("context_decode",))
    # Pairs of ranks share a KV head and the eight query heads on it.
    assert step.shape == {"ranks": 2, "batch": 16, "context_tokens": 131_072, "q_heads": 8,
                          "kv_heads": 1, "head_dim": 128, "dtype": "bf16"}  # fmt: skip


def test_what_no_kernel_cuts_is_a_row_with_its_reason() -> None:
    (latent, *_) = points(model="deepseek-v3", gpus=8, tp=2, cp=4, only=("context_prefill",))
    assert "no kernel cuts LatentAttention layers" in latent.why
    asked = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "gpus": 4, "cp": 4, "context": "8K"}
    cases = expand(read_scenario(asked, where="t"), where="t")
    (alone,) = points_of(cases, impls=("triton",), only=("prefill_attention",), device="cuda")
    assert alone.why == "tokens are cut over 4 ranks: started by torchrun, it measures them"
    torch = group_points(cases, impls=("flash",), only=tuple(GROUPED), device="cuda")
    assert "computed by triton, naive, not by flash" in torch[0].why


def test_there_must_be_as_many_ranks_as_the_largest_group() -> None:
    found = points(gpus=8, tp=8)
    check_ranks(found, 8)
    with pytest.raises(InputError, match="given '2 ranks'; expected --nproc-per-node=8"):
        check_ranks(found, 2)
    with pytest.raises(InputError, match="a scenario with tp, cp"):
        check_ranks([], 2)


def test_floors_and_expectations_of_collectives() -> None:
    found = points(gpus=4, tp=4)
    power = power_for(H200, 700.0)
    fits = finder(Calibrations(PARAMETERS), H200)
    told = join(found, [*group_floors(found, H200), *expectations(found, H200, fits, power),
                        *uncalibrated(found, H200, published_fits(H200), power)])  # fmt: skip
    reduced = next(p for p in found if p.operation == "all_reduce")
    each = told[reduced.key]
    # 128 MiB, of which 2 x 3/4 cross each link at 450 GB/s in one direction.
    assert each.floor_s == pytest.approx(2 * 0.75 * 8192 * 8192 * 2 / 450e9)
    assert each.seconds is not None
    assert 1.0 < each.seconds / each.floor_s < 2.0
    assert each.basis == "interpolated: nccl nccl on h200-sxm"
    assert each.uncalibrated_basis == "transported: nccl nccl on h100-sxm"
    assert (each.energy_j, each.sustained_s) == (None, None)
    gathered = told[next(p for p in found if p.operation == "all_gather").key]
    assert gathered.floor_s == pytest.approx(each.floor_s / 2)
    assert join(found, group_floors(found, None))[reduced.key].floor_s is None


def test_a_ranks_memory_covers_its_tensors_and_the_check() -> None:
    (reduced, *_) = points(gpus=8, tp=8, only=("all_reduce",))
    # The buffer, and for the check the sum and every rank's words.
    assert needed_group(reduced) >= 10 * 8192 * 8192 * 2
    ring, _ = points(model="llama-3.1-8b", gpus=8, tp=1, cp=8, context="1M",
                     only=("context_prefill",))  # fmt: skip
    # All keys and values of a layer are drawn again: 1 M tokens of 8 heads of 128, in bf16.
    whole = 2**20 * 8 * 128 * 2 * 2
    assert whole < needed_group(ring) < 10 * whole


def test_floors_of_contexts_are_a_ranks_part() -> None:
    (ring, _) = points(model="llama-3.1-8b", gpus=4, tp=1, cp=4, context="8K",
                       only=("context_prefill",))  # fmt: skip
    (floor,) = group_floors([ring], H200)
    # Causal pairs of 8,192 tokens, 32 heads of 128, two products, on each of four ranks.
    assert floor.flops == 8192 * 8193 / 2 * 32 * 128 * 4 / 4
    # All keys and values once, and queries and outputs of its own tokens.
    assert floor.hbm_bytes == 8192 * 8 * 128 * 2 * 2 + 2048 * 32 * 128 * 2 * 2
