from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcprof.cost.decode import Step
from lcprof.cost.expected.attention import growing_tokens, prompt_tasks
from lcprof.cost.expected.task import UnmeasuredError
from lcprof.cost.expected.whole import (
    Clock,
    Expected,
    chunks,
    decode_expected,
    expected,
    longer,
    prefill_expected,
)
from lcprof.cost.prefill import Span, attention_flops
from lcprof.cost.timing.prefill_attention import PREFILL_ATTENTION, flops
from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import parse_kv
from lcprof.domain.model import ModelShape
from lcprof.plan.estimate import remade
from lcprof.plan.fits import fits_for
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.models import load_model

H100 = load_gpu("h100-sxm", where="test")
LLAMA_8B = load_model("llama-3.1-8b", where="test")
MODELS = {
    "dense": LLAMA_8B,
    "windows": load_model("gpt-oss-20b", where="test"),
    "latent": load_model("deepseek-v2-lite", where="test"),
    "recurrent": load_model("qwen3-next-80b-a3b", where="test"),
    "chunked": load_model("llama-4-scout", where="test"),
}


def clock(gpu: Gpu = H100) -> Clock:
    return Clock(gpu, fits_for(gpu))


def prefill(
    model: ModelShape, tokens: Any, *, start: Any = 0.0, chunk: float = 8192.0, **degrees: Any
) -> Expected:
    kv = parse_kv(degrees.pop("kv", "bf16"), where="test")
    gpu = degrees.pop("gpu", H100)
    deployment = Deployment(gpu=gpu, **degrees)
    span = Span(start=start, tokens=tokens, chunk_tokens=chunk)
    return prefill_expected(remade(model, kv), deployment, kv, span, clock(gpu))


def decode(
    model: ModelShape, context: Any, sequences: Any = 1.0, *, kv: str = "bf16", **degrees: Any
) -> Expected:
    strategy = parse_kv(kv, where="test")
    deployment = Deployment(gpu=H100, **degrees)
    step = Step(sequences=sequences, context_tokens=context)
    return decode_expected(remade(model, strategy), deployment, strategy, step, clock())


def part(found: Expected, operation: str) -> Any:
    return sum(p.seconds for p in found.parts if p.operation == operation)


@given(tokens=st.integers(1, 3_000_000), chunk=st.sampled_from([512.0, 8192.0, 1e7]))
def test_representative_chunks_hold_every_token_once(tokens: int, chunk: float) -> None:
    found = chunks(Span(start=0.0, tokens=float(tokens), chunk_tokens=chunk))
    assert sum(c.tokens * c.times for c in found) == tokens


@pytest.mark.parametrize("name", MODELS)
def test_a_prefill_is_the_sum_of_its_chunks(name: str) -> None:
    model, size, count = MODELS[name], 4096.0, 24
    whole = prefill(model, size * count + 1000.0, chunk=size, gpus=2, tp=2)
    each = [
        prefill(model, size, start=index * size, chunk=size, gpus=2, tp=2) for index in range(count)
    ]
    last = prefill(model, 1000.0, start=size * count, chunk=size, gpus=2, tp=2)
    total = sum(part(one, "attention") for one in [*each, last])
    assert part(whole, "attention") == pytest.approx(total, rel=0.01)
    projections = sum(part(one, "feed-forward") for one in [*each, last])
    assert part(whole, "feed-forward") == pytest.approx(projections, rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_longer_and_fuller_takes_longer(name: str) -> None:
    model = MODELS[name]
    contexts = [1000.0, 8192.0, 20_000.0, 131_072.0]
    times = [prefill(model, context, gpus=2, tp=2).seconds for context in contexts]
    assert times == sorted(times)
    steps = [decode(model, context, gpus=2, tp=2).seconds for context in contexts]
    assert steps == sorted(steps)
    batches = [decode(model, 8192.0, n, gpus=2, tp=2).seconds for n in (1.0, 8.0, 64.0)]
    assert batches == sorted(batches)


def test_a_prefix_is_not_computed_again() -> None:
    whole, rest = prefill(LLAMA_8B, 65_536.0), prefill(LLAMA_8B, 32_768.0, start=32_768.0)
    first = prefill(LLAMA_8B, 32_768.0)
    assert rest.seconds + first.seconds == pytest.approx(whole.seconds, rel=0.01)


def test_pipeline_stages_fill_with_a_bubble_and_decode_passes_them_all() -> None:
    # 16 chunks through two stages: each does half of the layers, 17/16 of the time.
    one, two = prefill(LLAMA_8B, 131_072.0), prefill(LLAMA_8B, 131_072.0, gpus=2, pp=2)
    halves = part(one, "attention") / 2 * 17 / 16
    assert part(two, "attention") == pytest.approx(halves, rel=1e-9)
    alone, through = decode(LLAMA_8B, 8192.0), decode(LLAMA_8B, 8192.0, gpus=2, pp=2)
    assert through.seconds == pytest.approx(alone.seconds + part(through, "collectives"), rel=1e-9)


def test_the_ring_hides_behind_attention_where_it_can() -> None:
    long = prefill(LLAMA_8B, 1_048_576.0, chunk=1_048_576.0, gpus=4, tp=1, cp=4)
    (ring,) = [p for p in long.parts if p.hidden_behind]
    assert ring.seconds == 0.0
    alone = prefill(LLAMA_8B, 1_048_576.0, chunk=1_048_576.0)
    assert part(long, "attention") == pytest.approx(part(alone, "attention") / 4, rel=0.05)


def test_errors_of_operations_add_up_as_independent_ones() -> None:
    found = prefill(LLAMA_8B, 32_768.0)
    below = sum(p.below_s**2 for p in found.parts) ** 0.5
    assert found.seconds - found.low_s == pytest.approx(below)
    assert found.low_s < found.seconds < found.high_s
    assert found.seconds == pytest.approx(sum(p.seconds for p in found.parts))


def test_farther_from_what_was_measured_is_less_certain() -> None:
    near, far = prefill(LLAMA_8B, 16_384.0), prefill(LLAMA_8B, 1_000_000.0)
    assert far.distance > near.distance
    assert far.high_s / far.seconds > near.high_s / near.seconds


def test_an_unmeasured_gpu_is_predicted_from_others_and_says_so() -> None:
    l4 = load_gpu("l4", where="test")
    assert prefill(LLAMA_8B, 8192.0, gpu=l4).away_share == 1.0
    assert prefill(LLAMA_8B, 8192.0).away_share < 0.2


def test_a_cache_that_no_stack_reads_is_predicted_from_what_is_most_like_it() -> None:
    fp8, int4 = decode(LLAMA_8B, 131_072.0, kv="fp8"), decode(LLAMA_8B, 131_072.0, kv="int4")
    assert fp8.away_share < 0.2
    assert int4.away_share > 0.25
    assert part(int4, "attention") < part(fp8, "attention")


@pytest.mark.parametrize(
    ("model", "kv"),
    [
        ("llama-3.1-8b", "offload:fraction=50%"),
        ("deepseek-v4-flash", "bf16"),
        ("minimax-m3", "bf16"),
    ],
)
def test_what_nothing_measured_is_like_has_no_time(model: str, kv: str) -> None:
    with pytest.raises(UnmeasuredError, match="measured"):
        decode(load_model(model, where="test"), 8192.0, kv=kv)


def test_the_longer_stage_is_chosen_point_by_point() -> None:
    contexts = np.array([1000.0, 200_000.0])
    a, b = prefill(MODELS["dense"], contexts), prefill(MODELS["windows"], contexts)
    both = longer(a, b)
    assert list(both.seconds) == list(np.maximum(a.seconds, b.seconds))
    totals = sum(p.seconds for p in both.parts)
    assert totals == pytest.approx(both.seconds)


def test_parts_sum_up() -> None:
    found = decode(LLAMA_8B, 8192.0, 4.0)
    assert expected(found.parts).seconds == found.seconds


def call_flops(model: ModelShape, chunk: float, tokens: float, **degrees: Any) -> float:
    """FLOPs of the attention calls that stand for a prefill."""
    kv, deployment = parse_kv("bf16", where="test"), Deployment(gpu=H100, **degrees)
    span = Span(start=0.0, tokens=tokens, chunk_tokens=chunk)
    total = 0.0
    for group, layers in zip(model.groups, model.group_counts(), strict=True):
        for piece in chunks(span, growing_tokens(group, kv)):
            for task in prompt_tasks(
                model, group, deployment, kv, piece.prefix_tokens, piece.tokens
            ):
                if task.family is PREFILL_ATTENTION:
                    total += flops(task.call) * piece.times * layers
    return total


@pytest.mark.parametrize("chunk", [512.0, 2048.0, 8192.0, 65_536.0])
@pytest.mark.parametrize("name", ["dense", "windows", "chunked"])
def test_calls_of_attention_compute_every_visible_pair(name: str, chunk: float) -> None:
    model, tokens = MODELS[name], 65_536.0
    span = Span(start=0.0, tokens=tokens, chunk_tokens=chunk)
    exact = sum(
        attention_flops(group.mixer, None, span) * layers
        for group, layers in zip(model.groups, model.group_counts(), strict=True)
    )
    assert call_flops(model, chunk, tokens) == pytest.approx(exact, rel=0.02)


def test_a_window_fills_over_several_chunks() -> None:
    # A chunk's time rises until its prefix fills the window, which takes 16 of the 64.
    window = prefill(LLAMA_8B, 131_072.0, chunk=2048.0, kv="window:tokens=32768,sinks=4")
    each = [
        prefill(LLAMA_8B, 2048.0, start=i * 2048.0, chunk=2048.0, kv="window:tokens=32768,sinks=4")
        for i in range(64)
    ]
    total = sum(part(one, "attention") for one in each)
    assert part(window, "attention") == pytest.approx(total, rel=0.05)


def test_pipelines_keep_a_batch_in_every_stage() -> None:
    # 16 sequences through 8 stages are 8 batches of 2: a step takes as long as one of 2 does alone.
    sixteen = decode(LLAMA_8B, 8192.0, 16.0, gpus=8, pp=8)
    two = decode(LLAMA_8B, 8192.0, 2.0)
    alone = two.seconds + part(sixteen, "collectives")
    assert sixteen.seconds == pytest.approx(alone, rel=1e-9)


def test_wider_expert_parallelism_is_not_slower_for_as_many_sequences_a_gpu() -> None:
    model = load_model("qwen3-30b-a3b", where="test")
    experts = [
        part(decode(model, 4096.0, 64.0 * n, gpus=n, tp=1, dp=n, ep=n), "experts")
        for n in (2, 4, 8)
    ]
    assert experts == sorted(experts, reverse=True)


def test_experts_between_nodes_are_reached_at_the_networks_pace_and_said_to_be() -> None:
    model = load_model("deepseek-v3", where="test")
    near, far = (
        prefill(model, 8192.0, gpus=n, tp=1, dp=n, ep=n, gpu=load_gpu("h200-sxm", where="test"))
        for n in (8, 16)
    )
    # 58 layers, 8,192 tokens, 1 byte there and 2 back of 7,168 each, to most of one other node, at
    # 50 GB/s: at least 58 x 8,192 x 7,168 x 3 x 0.49 / 50e9 = 0.1 s.
    assert part(far, "collectives") > 0.1
    assert part(far, "collectives") > part(near, "collectives")
    assert far.away_share > near.away_share


def test_sharding_latents_over_ranks_projects_each_head_once() -> None:
    model = load_model("deepseek-v3", where="test")
    times = [decode(model, 262_144.0, 8.0, gpus=8, tp=8, dcp=n).seconds for n in (1, 2, 4)]
    assert times == sorted(times, reverse=True)


def test_gpus_on_the_bus_exchange_at_its_pace() -> None:
    pcie, sxm = (
        part(
            prefill(LLAMA_8B, 8192.0, gpu=load_gpu(name, where="test"), gpus=4, tp=4), "collectives"
        )
        for name in ("a100-80gb-pcie", "a100-80gb-sxm")
    )
    # NVLink3 moves 300 GB/s one way, PCIe 4.0 32 GB/s.
    assert pcie > 5 * sxm


def test_a_full_window_costs_the_same_wherever_the_chunk_lies() -> None:
    spec = "window:tokens=4096,sinks=4"
    near, far = (
        prefill(LLAMA_8B, 2048.0, start=start, chunk=2048.0, kv=spec) for start in (8192.0, 1e6)
    )
    assert far.seconds == near.seconds
    assert far.distance == near.distance


@pytest.mark.parametrize("kv", ["quest:page=16,top=256", "topk:tokens=4096", "window:tokens=4096"])
def test_a_sparse_module_was_measured_with_its_own_selection(kv: str) -> None:
    model = load_model("deepseek-v3.2", where="test")
    decode(model, 8192.0, gpus=8, tp=8)
    with pytest.raises(UnmeasuredError, match="selection"):
        decode(model, 8192.0, gpus=8, tp=8, kv=kv)


def test_the_link_joins_as_many_gpus_as_the_catalog_says() -> None:
    names = ("gb200", "h100-sxm", "h200-nvl", "h100-nvl", "l40s")
    joined = [load_gpu(name, where="test").link_gpus for name in names]
    assert joined == [72, 8, 4, 2, 1]
