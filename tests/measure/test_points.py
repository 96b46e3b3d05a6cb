"""From planned cases to points: what is measured, in which shape, and what is not and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lcprof.domain.case import Case
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import STRATEGIES
from lcprof.domain.operations import GROUPED, OPERATIONS
from lcprof.errors import InputError
from lcprof.measure.floors import Prediction, floors, join
from lcprof.measure.points import (
    Point,
    chosen_operations,
    implementations,
    points_of,
)
from lcprof.scenario.cases import expand
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.schema import read_scenario

ROOT = Path(__file__).resolve().parent.parent.parent


def cases(**keys: Any) -> list[Case]:
    """Llama-3.1-8B (32 query and 8 KV heads of 128, hidden 4,096), unless said otherwise."""
    asked = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "context": "32K", "output": 16}
    return expand(read_scenario(asked | keys, where="test"), where="test")


def points(
    *,
    impls: Sequence[str] = ("triton",),
    only: Sequence[str] = (),
    device: str = "cuda",
    **keys: Any,
) -> list[Point]:
    return points_of(cases(**keys), impls=impls, only=chosen_operations(only), device=device)


def decodes(kv: str, **keys: Any) -> list[Point]:
    """The points of decode attention over a cache, in whatever operation the format has."""
    names = ("decode_attention", "quantised_decode", "quest_decode", "mla_decode")
    return points(kv=kv, only=names, **keys)


def reason(kv: str, **keys: Any) -> str:
    """Why the one point of a strategy cannot be measured."""
    (point,) = decodes(kv, **keys)
    assert point.implementation == ""
    return point.why


def test_a_dense_cache_is_decoded_contiguous_and_paged() -> None:
    first, second = decodes("bf16", concurrency=4)
    shape = {"batch": 4, "query_tokens": 1, "context_tokens": 32768, "q_heads": 32, "kv_heads": 8,
             "head_dim": 128, "window_tokens": 0, "sink_tokens": 0, "dtype": "bf16"}  # fmt: skip
    assert first.shape == {**shape, "layout": "contiguous", "page_tokens": 0}
    assert second.shape == {**shape, "layout": "paged", "page_tokens": 16}
    assert first.key.startswith("decode_attention batch=4 query_tokens=1 context_tokens=32768")
    assert first.key.endswith(" by triton")


@pytest.mark.parametrize(
    ("kv", "layout", "scale"),
    [
        ("fp8", "fp8-tensor", "fp32"),
        ("fp8:scale=token-head", "fp8-token", "fp32"),
        ("int8", "int8-token", "fp32"),
        ("int8:scale_bytes=2", "int8-token", "fp16"),
        ("int4:group=64", "int4-token-64", "fp16"),
        ("kivi:group=64,residual=64", "int4-kivi-64", "fp16"),
    ],
)
def test_each_number_format_has_its_kernel_in_both_layouts(
    kv: str, layout: str, scale: str
) -> None:
    found = decodes(kv)
    assert [point.operation for point in found] == ["quantised_decode"] * 2
    assert [point.shape["page_tokens"] for point in found] == [0, 64]
    for point in found:
        assert (point.shape["format"], point.shape["scale"]) == (layout, scale)
        assert (point.why, point.note) == ("", "")
    prefill, decode = points(kv=kv, only=["append"], concurrency=8)
    assert (prefill.shape["batch"], prefill.shape["new_tokens"]) == (1, 8192)
    assert (decode.shape["batch"], decode.shape["new_tokens"]) == (8, 1)
    assert prefill.shape["format"] == layout


def test_what_the_kernel_does_otherwise_is_noted() -> None:
    for point in decodes("kivi"):
        assert "32 tokens at most in bf16, the plan 128" in point.note
    for point in decodes("fp8+window:tokens=4096,sinks=4"):
        assert point.shape["context_tokens"] == 4100
        assert "packed" in point.note


@pytest.mark.parametrize(
    ("kv", "why"),
    [
        ("h2o", "h2o has no kernel"),
        ("snapkv", "snapkv has no kernel"),
        ("offload:fraction=50%", "offload has no kernel"),
        ("fp32", "fp32"),
        ("topk", "single tokens"),
        ("kivi:bits=2", "2 bits"),
        ("int4:group=16", "groups of 16"),
        ("fp8:scale=group", "fp8:scale=group"),
        ("int8:scale=tensor", "int8:scale=tensor"),
        ("int8:scale_bytes=1", "1 bytes"),
        ("int4:group=64,scale_bytes=8", "scale_bytes=4"),
        ("fp8+quest:page=16,top=64", "quantised cache"),
        ("quest:page=8,top=64", "pages of 8"),
        ("quest:page=16,top=64+window:tokens=1024", "window"),
    ],
)
def test_a_strategy_without_a_kernel_is_a_point_with_its_reason(kv: str, why: str) -> None:
    assert why in reason(kv)


def test_no_strategy_is_forgotten() -> None:
    for strategy in STRATEGIES:
        spec = {"share": "share:kv_heads=1", "offload": "offload:fraction=50%"}.get(
            strategy.kind, strategy.kind
        )
        found = decodes(spec)
        assert found, spec
        # What the catalog calls measurable is, but for what needs one token at a time.
        if strategy.kernel is None and strategy.kind != "share":
            assert all(point.why for point in found)
        elif strategy.kind not in ("topk", "share", "int4"):
            assert any(not point.why for point in found), spec


def test_a_head_dim_that_caches_do_not_take_is_a_reason() -> None:
    model = {"name": "tiny", "layers": 2, "hidden": 256, "q_heads": 8, "kv_heads": 2,
             "head_dim": 32, "intermediate": 512, "vocab": 1000}  # fmt: skip
    assert reason("fp8", model=model).startswith("head_dim 32")
    assert all(not point.why for point in decodes("bf16", model=model))


def test_windows_are_rings_and_pages() -> None:
    ring, paged = decodes("window:tokens=4096,sinks=4")
    assert (ring.shape["layout"], ring.shape["window_tokens"]) == ("ring", 4096)
    assert ring.shape["sink_tokens"] == 4
    assert (paged.shape["layout"], paged.shape["window_tokens"]) == ("paged", 4096)
    (prefill,) = points(kv="window:tokens=4096,sinks=4", only=["prefill_attention"])
    assert (prefill.shape["window_tokens"], prefill.shape["sink_tokens"]) == (4096, 4)
    # Before a window is full it is a plain cache.
    plain, _ = decodes("window:tokens=65536,sinks=4")
    assert (plain.shape["layout"], plain.shape["window_tokens"]) == ("contiguous", 0)


def test_models_with_windows_of_their_own_have_two_kinds_of_layers() -> None:
    found = points(model="gemma-3-27b", kv="bf16", only=["decode_attention"])
    assert {point.shape["window_tokens"] for point in found} == {0, 1024}
    assert {point.shape["layout"] for point in found} == {"contiguous", "ring", "paged"}


def test_the_last_chunk_of_a_prompt_sees_all_of_it() -> None:
    (point,) = points(kv="fp8", chunk=4096, only=["prefill_attention"])
    assert (point.shape["query_tokens"], point.shape["context_tokens"]) == (4096, 32768)
    (point,) = points(kv="fp8", context=1000, only=["prefill_attention"])
    assert (point.shape["query_tokens"], point.shape["context_tokens"]) == (1000, 1000)
    (point,) = points(kv="fp8", prefix=30768, only=["prefill_attention"])
    assert point.shape["query_tokens"] == 2000


def test_prefill_is_measured_once_for_all_formats() -> None:
    found = points(kv=["bf16", "fp8", "int8", "quest"], only=["prefill_attention"])
    assert len(found) == 1


def test_matrix_products_are_the_models_own() -> None:
    found = points(kv="bf16", only=["gemm"], concurrency=4)
    shapes = {tuple(point.shape[name] for name in ("rows", "depth", "columns")) for point in found}
    # config.json of Llama-3.1-8B: hidden 4096, 8 KV heads of 128, intermediate 14336.
    matrices = {(4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096)}
    expected = {(rows, *matrix) for rows in (8192, 4) for matrix in matrices}
    assert shapes == expected | {(4, 4096, 128256)}
    assert {point.implementation for point in found} == {"torch"}


def test_a_rank_of_tensor_parallelism_is_measured() -> None:
    found = points(gpus=8, tp=8, kv="bf16")
    shapes = {(point.shape.get("depth"), point.shape.get("columns")) for point in found}
    assert {(4096, 512), (512, 4096), (4096, 128), (4096, 1792), (1792, 4096)} <= shapes
    attention = [point for point in found if point.operation == "decode_attention"]
    assert {(point.shape["q_heads"], point.shape["kv_heads"]) for point in attention} == {(4, 1)}


def test_data_parallel_groups_share_the_sequences() -> None:
    first, *_ = decodes("bf16", gpus=2, dp=2, tp=1, concurrency=5)
    assert first.shape["batch"] == 3


def test_a_pass_through_a_pipeline_takes_its_share_of_the_sequences() -> None:
    """24 sequences in 2 batches, one a stage; each over 3 groups of data-parallel attention."""
    found = decodes("bf16", concurrency=24, gpus=6, pp=2, dp=3)
    assert {point.shape["batch"] for point in found} == {4}


def test_latent_attention_has_its_own_kernels() -> None:
    found = points(model="deepseek-v3", gpus=8, kv=["bf16", "fp8:scale=group,group=128", "fp8"])
    decode = [point for point in found if point.operation == "mla_decode"]
    assert [(point.shape["format"], point.shape["page_tokens"]) for point in decode] == [
        ("bf16", 0), ("bf16", 64), ("fp8-656", 0), ("fp8-656", 64), ("fp8", 0), ("fp8", 64),
    ]  # fmt: skip
    assert [bool(point.why) for point in decode] == [False] * 4 + [True] * 2
    assert {point.shape["q_heads"] for point in decode} == {16}
    (prefill,) = [point for point in found if point.operation == "mla_prefill"]
    assert "expanded" in prefill.note
    blocked = [point for point in found if point.operation == "gemm" and point.why]
    assert any("fp8-block" in point.why for point in blocked)
    assert any("routed experts" in point.why for point in blocked)


def test_sparse_latents_score_and_attend() -> None:
    found = points(model="deepseek-v3.2", gpus=8, kv="bf16")
    names = {point.operation for point in found if not point.why}
    assert {"token_scores", "sparse_mla_decode"} <= names
    assert "mla_decode" not in names


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("qwen3-next-80b-a3b", "RecurrentState"),
        ("deepseek-v4-flash", "CompressedAttention"),
        ("minimax-m3", "index heads"),
        ("llama-4-scout", "within chunks"),
        ("mimo-v2-flash", "keys of 192 and values of 128"),
    ],
)
def test_layers_without_a_kernel_say_so(model: str, why: str) -> None:
    found = points(model=model, gpus=8, kv="bf16")
    assert any(why in point.why for point in found)


def test_tokens_cut_over_ranks_are_not_measured_on_one() -> None:
    found = points(gpus=2, cp=2, tp=1, kv="bf16", only=["decode_attention", "prefill_attention"])
    assert found
    assert all("cut over 2 ranks" in point.why for point in found)


def test_implementations_by_stack_and_by_name() -> None:
    assert implementations((), "cuda") == ("triton",)
    assert implementations((), "cpu") == ("naive", "torch")
    assert implementations(("lcprof", "torch", "cudnn"), "cuda") == (
        "triton", "flash", "cudnn", "torch",
    )  # fmt: skip
    with pytest.raises(InputError, match="did you mean triton"):
        implementations(("tritn",), "cuda")
    with pytest.raises(InputError, match="did you mean gemm"):
        chosen_operations(("gem",))
    found = points(kv="bf16", impls=("flash", "cudnn"), only=["decode_attention"])
    assert [point.implementation for point in found] == ["flash", "cudnn"] * 2


def test_what_no_implementation_computes_says_who_could() -> None:
    (point, _) = points(model="deepseek-v3", gpus=8, kv="bf16", impls=("flash",),
                        only=["mla_decode"])  # fmt: skip
    assert point.why == "mla_decode is computed by triton, naive, not by flash"


def test_a_cpu_runs_no_gpu_library() -> None:
    found = points(kv="bf16", impls=("flash", "naive"), device="cpu", only=["decode_attention"])
    assert {point.implementation: point.why for point in found} == {
        "flash": "flash needs a CUDA GPU",
        "naive": "",
    }


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_scenario_has_points(path: Path) -> None:
    from lcprof.scenario.files import read_yaml

    found = points_of(
        expand(read_scenario(read_yaml(path), where="", base=path.parent), where=""),
        impls=("triton",), only=chosen_operations(()), device="cuda",
    )  # fmt: skip
    assert any(not point.why for point in found)
    assert len({point.key for point in found}) == len(found)
    for point in found:
        assert point.operation in OPERATIONS
        assert bool(point.why) == (point.implementation == "")
        assert all(type(value) in (int, float, str) for value in point.shape.values())


def gpu(**changes: Any) -> Gpu:
    told: dict[str, Any] = {
        "name": "test", "vendor": "", "form_factor": "", "architecture": "",
        "compute_capability": "9.0", "memory_type": "", "marketed_bytes": 1e11,
        "usable_bytes": 1e11, "bandwidth_bytes_per_s": 1e12, "peak_flops": {"bf16": 1e15},
    }  # fmt: skip
    return Gpu(**told | changes)


def floor(point: Point) -> Prediction:
    (found,) = floors([point], gpu())
    return found


def test_the_floor_of_decode_attention_by_hand() -> None:
    first, _ = decodes("bf16", concurrency=4)
    found = floor(first)
    # 4 sequences x 32,768 tokens x 8 heads x 128 x (K and V) x 2 bytes; Q in and O out once.
    kv = 4 * 32768 * 8 * 128 * 2 * 2
    around = 2 * 4 * 32 * 128 * 2
    assert found.hbm_bytes == kv + around
    # Two products of 2 FLOPs each for every query head, token and channel.
    assert found.flops == 4 * 32768 * 32 * 128 * 4
    assert found.floor_s == (kv + around) / 1e12
    assert found.floor_gpu == "test"
    assert (found.seconds, found.basis) == (None, "")


def test_the_floor_of_a_chunk_and_of_a_product_by_hand() -> None:
    (chunk,) = points(kv="fp8", chunk=4096, only=["prefill_attention"])
    found = floor(chunk)
    # Queries 28,672 to 32,767 see themselves and all before: the mean is 30,720.5 keys.
    pairs = 4096 * 30720.5
    assert found.flops == pairs * 4 * 32 * 128
    # In bf16, as the kernel reads it, whatever the cache is stored in.
    assert found.hbm_bytes == 32768 * 8 * 128 * 4 + 2 * 4096 * 32 * 128 * 2
    product = next(
        point
        for point in points(kv="bf16", only=["gemm"], concurrency=4)
        if point.shape["rows"] == 4 and point.shape["columns"] == 14336
    )
    assert floor(product).flops == 2 * 4 * 4096 * 14336
    assert floor(product).hbm_bytes == 2 * (4096 * 14336 + 4 * 4096 + 4 * 14336)


def test_a_backward_pass_is_measured_where_it_is_asked_for() -> None:
    assert "attention_backward" not in {point.operation for point in points(kv="bf16")}
    assert chosen_operations(["gemm", "all"]) == (*OPERATIONS, *GROUPED)
    (point,) = points(kv="bf16", only=["attention_backward"], context="4K", chunk=1024)
    assert (point.shape["query_tokens"], point.shape["context_tokens"]) == (4096, 4096)
    found = floor(point)
    # Five products where the forward pass has two: 2.5 times 4 x 128 for each pair and head.
    assert found.flops == 10 * 128 * 32 * (4096 * 4097 // 2)
    # q, o and their gradients, k, v and theirs.
    assert found.hbm_bytes == 2 * 4096 * 128 * (4 * 32 + 4 * 8)


def test_appending_reads_bf16_and_writes_codes() -> None:
    _, decode = points(kv="fp8", only=["append"], concurrency=8)
    # 8 tokens x 8 heads x 128 x (K and V): two bytes in, one out.
    assert floor(decode).hbm_bytes == 8 * 8 * 128 * 2 * 3
    assert floor(decode).flops == 0


def test_scoring_and_attending_add_up_to_the_plan() -> None:
    found = points(
        model="deepseek-v3.2", gpus=8, kv="bf16", only=["token_scores", "sparse_mla_decode"]
    )
    by_name = {point.operation: floor(point) for point in found}
    scores, sparse = by_name["token_scores"], by_name["sparse_mla_decode"]
    # Index keys: 128 fp8 elements and an fp32 scale a token; latents: 2,048 rows of 576 in bf16.
    assert scores.hbm_bytes == pytest.approx(32768 * 132)
    assert scores.flops == pytest.approx(2 * 64 * 128 * 32768 / 8)
    assert sparse.hbm_bytes == pytest.approx(2048 * 576 * 2 + 2 * 16 * 576 * 2)


def test_without_a_data_sheet_there_is_work_but_no_floor() -> None:
    first, _ = decodes("bf16")
    (found,) = floors([first], None)
    assert found.floor_s is None
    assert found.flops is not None


def test_every_measurable_point_has_a_floor() -> None:
    h200 = load_gpu("h200-sxm", where="test")
    for model in ("llama-3.1-8b", "deepseek-v3", "deepseek-v3.2", "gpt-oss-120b", "gemma-3-27b"):
        found = points(model=model, gpus=8, kv=["bf16", "fp8", "quest", "kivi"])
        told = join(found, floors(found, h200))
        for point in found:
            each = told[point.key]
            assert bool(point.why) == (each.floor_s is None), point.key
            assert point.why or (each.floor_s or 0.0) > 0, point.key


def test_any_record_with_a_name_joins() -> None:
    first, *_ = decodes("bf16")
    told = SimpleNamespace(name="decode_attention", seconds=1.0, low=0.5, high=2.0, basis="fit")
    found = join([first], [told])[first.key]
    assert (found.seconds, found.low, found.high, found.basis) == (1.0, 0.5, 2.0, "fit")
    assert found.floor_s is None


def test_predictions_join_by_key_name_or_operation() -> None:
    found = points(kv="bf16", impls=("triton", "naive"), only=["decode_attention", "gemm"])
    first, second = found[0], found[1]
    assert (first.name, first.implementation, second.implementation) == (
        second.name, "triton", "naive",
    )  # fmt: skip
    told = join(
        found,
        [
            Prediction(name=first.key, seconds=3.0, basis="by key"),
            Prediction(name="decode_attention", seconds=1.0, low=0.5, basis="by operation"),
            Prediction(name=first.name, seconds=2.0, high=4.0, basis="by name", held_out=False),
            Prediction(name="nothing of this name", seconds=9.0),
        ],
    )
    assert (told[first.key].seconds, told[first.key].basis) == (3.0, "by key")
    assert (told[second.key].seconds, told[second.key].basis) == (2.0, "by name")
    for each in (first, second):
        assert (told[each.key].low, told[each.key].high) == (0.5, 4.0)
        assert told[each.key].held_out is False
    paged = next(point for point in found if point.shape.get("layout") == "paged")
    assert told[paged.key].seconds == 1.0
    product = next(point for point in found if point.operation == "gemm")
    assert told[product.key].seconds is None
