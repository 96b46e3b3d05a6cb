"""Properties that hold for every model, strategy and workload."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from shapes import H100, H200, LLAMA_8B, LLAMA_70B, deepseek_v3, hybrid, on

from lcprof.cost.memory import memory
from lcprof.cost.prefill import Span
from lcprof.cost.total import prefill_work
from lcprof.domain.kv import STRATEGIES, parse_kv
from lcprof.domain.kv.sparse import Quest, TopK
from lcprof.domain.kv.stream import streams
from lcprof.domain.workload import Workload
from lcprof.plan.estimate import capacity_bytes, estimate, remade
from lcprof.plan.search import max_concurrency, max_context_tokens

MODELS = {"llama": LLAMA_8B, "deepseek": deepseek_v3(), "hybrid": hybrid()}
SPECS = (
    "bf16",
    "fp8",
    "fp8:scale=group,group=64",
    "int8",
    "int4:group=64",
    "kivi:bits=4,group=32,residual=128",
    "window:tokens=500,sinks=4",
    "h2o:budget=20%",
    "snapkv:budget=1024",
    "quest:page=16,top=64",
    "topk:tokens=2048",
    "share:kv_heads=1",
    "share:latent=512",
    "offload:fraction=50%",
    "kivi:bits=2,group=32+window:tokens=300,sinks=4",
    "fp8+quest:page=32,top=32+offload:fraction=0.25",
)

models = st.sampled_from(sorted(MODELS))
specs = st.sampled_from(SPECS)
contexts = st.integers(1, 3_000_000)
batches = st.integers(1, 300)


def test_every_strategy_is_exercised() -> None:
    used = {type(link) for spec in SPECS for link in parse_kv(spec, where="test").chain()}
    assert used == set(STRATEGIES)


@settings(max_examples=60, deadline=None)
@given(
    models,
    specs,
    st.lists(contexts, min_size=1, max_size=4),
    st.lists(batches, min_size=1, max_size=3),
)
def test_a_scalar_equals_its_place_in_a_grid_bit_for_bit(
    name: str, spec: str, lengths: list[int], sizes: list[int]
) -> None:
    model, kv, deployment = MODELS[name], parse_kv(spec, where="test"), on(H200, tp=2, pp=2)
    grid = Workload(
        context_tokens=np.array(lengths, dtype=np.float64).reshape(-1, 1),
        concurrency=np.array(sizes, dtype=np.float64).reshape(1, -1),
        output_tokens=33.0,
    )
    table = estimate(model, deployment, kv, grid)
    for i, length in enumerate(lengths):
        for j, size in enumerate(sizes):
            point = replace(grid, context_tokens=float(length), concurrency=float(size))
            row = estimate(model, deployment, kv, point)
            for field in row.__struct_fields__:
                cell = np.broadcast_to(getattr(table, field), (len(lengths), len(sizes)))
                assert cell[i, j] == getattr(row, field), field


@settings(max_examples=60, deadline=None)
@given(models, specs, st.lists(st.integers(1, 400_000), min_size=1, max_size=5))
def test_prefill_flops_add_up_over_chunks(name: str, spec: str, chunks: list[int]) -> None:
    model, kv, deployment = MODELS[name], parse_kv(spec, where="test"), on(H200)
    model = remade(model, kv)

    def work(start: int, tokens: int) -> float:
        span = Span(start=float(start), tokens=float(tokens), chunk_tokens=1e9)
        counted = prefill_work(model, deployment, kv, span)
        return counted.flops() - counted.flops("logits")

    done, total = 0, 0.0
    for chunk in chunks:
        total += work(done, chunk)
        done += chunk
    assert total == pytest.approx(work(0, done), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(models, specs, contexts, st.integers(0, 5000), batches, st.integers(0, 50))
def test_more_context_or_sequences_never_take_less_memory(
    name: str, spec: str, context: int, more: int, batch: int, others: int
) -> None:
    model, kv, deployment = MODELS[name], parse_kv(spec, where="test"), on(H200, tp=2)
    less = Workload(context_tokens=float(context), concurrency=float(batch))
    longer = replace(less, context_tokens=float(context + more))
    wider = replace(less, concurrency=float(batch + others))
    held = memory(model, deployment, kv, less).total_bytes
    assert memory(model, deployment, kv, longer).total_bytes >= held
    assert memory(model, deployment, kv, wider).total_bytes >= held


@settings(max_examples=150, deadline=None)
@given(models, specs, contexts)
def test_no_strategy_stores_more_than_what_it_wraps(name: str, spec: str, context: int) -> None:
    strategy = parse_kv(spec, where="test")
    model = remade(MODELS[name], strategy)
    for group in model.groups:
        for stream in streams(group.mixer):
            for link in strategy.chain()[1:]:
                inner = link.wrapped()
                tokens = float(context)
                assert link.stored_tokens(stream, tokens) <= inner.stored_tokens(stream, tokens)
                assert link.read_tokens(stream, tokens) <= inner.read_tokens(stream, tokens)
                if not isinstance(link, Quest | TopK):
                    held = link.stored_bytes(stream, tokens)
                    assert held <= inner.stored_bytes(stream, tokens) * (1 + 1e-12)


@pytest.mark.parametrize("spec", ["quest:page=16,top=64", "topk:tokens=2048"])
def test_sparse_reads_store_their_index_and_nothing_else(spec: str) -> None:
    strategy = parse_kv(spec, where="test")
    stream = streams(LLAMA_8B.groups[0].mixer)[0]
    # 131,072 tokens of 8 heads x 128 key elements: Quest keeps 2 vectors of 2 B for 16 tokens,
    # the index 128 fp8 elements and 4 B for each.
    index = {"quest": 131_072 / 16 * 2 * 8 * 128 * 2, "topk": 131_072 * 132.0}
    added = strategy.stored_bytes(stream, 131_072.0) - strategy.wrapped().stored_bytes(
        stream, 131_072.0
    )
    assert added == index[strategy.kind]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), contexts, st.integers(1, 8))
def test_ranks_sum_to_the_whole_when_nothing_is_copied(
    tp: int, cp: int, context: int, batch: int
) -> None:
    kv = parse_kv("bf16", where="test")
    workload = Workload(context_tokens=float(context), concurrency=float(batch))
    one = estimate(LLAMA_70B, on(H100), kv, workload)
    cut = estimate(LLAMA_70B, on(H100, tp=tp, cp=cp), kv, workload)
    assert cut.kv_bytes_per_gpu * tp * cp == pytest.approx(one.kv_bytes_per_gpu, rel=1e-12)
    assert cut.prefill_flops == one.prefill_flops
    assert cut.decode_step_flops == one.decode_step_flops
    # Norm gains are the only weights that every tensor rank copies.
    copied = LLAMA_70B.layers * 2 * 8192 * 2 + 8192 * 2
    whole = (cut.weights_bytes_per_gpu - copied) * tp + copied
    assert whole == pytest.approx(one.weights_bytes_per_gpu, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), contexts)
def test_pipeline_stages_hold_every_layer_once(pp: int, context: int) -> None:
    kv = parse_kv("bf16", where="test")
    workload = Workload(context_tokens=float(context), concurrency=1.0)
    one = estimate(LLAMA_8B, on(H100), kv, workload)
    cut = estimate(LLAMA_8B, on(H100, pp=pp), kv, workload)
    assert cut.kv_bytes_per_gpu <= one.kv_bytes_per_gpu
    assert cut.kv_bytes_per_gpu * pp >= one.kv_bytes_per_gpu * (1 - 1e-12)
    assert cut.prefill_flops == pytest.approx(one.prefill_flops, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(models, specs, st.integers(1, 500_000), st.integers(1, 64), st.integers(0, 500))
def test_inverse_answers_are_exact(
    name: str, spec: str, context: int, batch: int, prefix: int
) -> None:
    kv, deployment = parse_kv(spec, where="test"), on(H200, tp=8)
    model = remade(MODELS[name], kv)
    workload = Workload(
        context_tokens=float(context + prefix),
        concurrency=float(batch),
        prefix_tokens=float(prefix),
    )
    capacity = capacity_bytes(deployment)

    def fits(asked: Workload[float]) -> bool:
        return memory(model, deployment, kv, asked).total_bytes <= capacity

    longest = max_context_tokens(model, deployment, kv, workload, capacity)
    if longest:
        assert fits(replace(workload, context_tokens=longest))
    beyond = max(longest, float(prefix)) + 1
    if longest < 2**32:
        assert not fits(replace(workload, context_tokens=beyond))
    most = max_concurrency(model, deployment, kv, workload, capacity)
    if most:
        assert fits(replace(workload, concurrency=most))
    if most < 2**32:
        assert not fits(replace(workload, concurrency=most + 1))


@pytest.mark.parametrize("first", ["window:tokens=300,sinks=4", "fp8"])
def test_wrapping_order_does_not_matter(first: str) -> None:
    parts = [first, *({"window:tokens=300,sinks=4", "fp8"} - {first})]
    stream = streams(LLAMA_8B.groups[0].mixer)[0]
    strategy = parse_kv("+".join(parts), where="test")
    assert strategy.stored_bytes(stream, 1000.0) == 304 * 8 * 256
