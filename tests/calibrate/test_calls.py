"""Rows as calls: what is arithmetic of a shape, and that a plan asks for what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from lcprof.calibrate.calls import Called, UncalledError, called, stacked
from lcprof.cost.expected.attention import prompt_tasks, step_tasks
from lcprof.cost.expected.own import OWN
from lcprof.cost.timing.families import FAMILIES
from lcprof.cost.timing.gemm import GemmCall
from lcprof.cost.timing.prefill_attention import KERNELS
from lcprof.domain.case import Case
from lcprof.domain.kv import STRATEGIES
from lcprof.domain.operations import OPERATIONS
from lcprof.measure.points import Point, chosen_operations, points_of
from lcprof.scenario.cases import expand
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.schema import read_scenario

H200 = load_gpu("h200-sxm", where="test")
A100 = load_gpu("a100-80gb-sxm", where="test")
HEADS = {"q_heads": 32, "kv_heads": 8, "head_dim": 128}
STEP = {"batch": 4, "query_tokens": 1, "context_tokens": 131072, **HEADS}
DENSE = STEP | {"window_tokens": 0, "sink_tokens": 0, "dtype": "bf16"}
PROMPT = {"batch": 1, "query_tokens": 8192, "context_tokens": 131072, **HEADS,
          "window_tokens": 0, "sink_tokens": 0, "dtype": "bf16"}  # fmt: skip


def call(operation: str, shape: dict[str, Any], implementation: str = "triton") -> Called:
    return called(operation, shape, implementation, H200)


def case(**keys: Any) -> Case:
    asked = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "context": "128K", "stack": "lcprof"}
    (found,) = expand(read_scenario(asked | keys, where="test"), where="test")
    return found


def points(given: Case, *only: str) -> list[Point]:
    return points_of([given], impls=("triton",), only=chosen_operations(only), device="cuda")


def test_a_chunk_of_a_prompt() -> None:
    made = call("prefill_attention", PROMPT)
    assert made.variant == ("lcprof", "prompt bf16, heads of 128")
    assert made.call.prefix_tokens == 131072 - 8192
    assert (made.call.window_tokens, made.call.kernel) == (0.0, "triton")
    windowed = PROMPT | {"window_tokens": 4096, "sink_tokens": 4}
    assert call("prefill_attention", windowed).call.window_tokens == 4100
    assert called("prefill_attention", PROMPT, "triton", A100).call.kernel == "triton_ampere"
    by = {impl: call("prefill_attention", PROMPT, impl) for impl in ("flash", "cudnn")}
    assert by["flash"].variant == ("torch", "flash prompt bf16, heads of 128")
    assert [by[impl].call.kernel for impl in ("flash", "cudnn")] == ["fa2", "cudnn"]


def test_the_tiles_are_the_kernels() -> None:
    """Two of ten are rounded, as `KERNELS` says."""
    from lcprof_kernels.attention.tiles import FORWARD

    for name, architecture in (("triton", 90), ("triton_ampere", 80)):
        kernel = KERNELS[name]
        assert kernel.head_dims == tuple(float(dim) for arch, dim in FORWARD if arch == 80)
        for dim in (64, 96, 128, 192, 256):
            if (architecture, dim) in ((90, 96), (80, 256)):
                continue
            rows = kernel.small_head_rows if dim < 128 else kernel.rows
            rows = kernel.wide_rows or rows if dim > 128 else rows
            assert rows == FORWARD[architecture, dim].block_m


def test_expanded_latents() -> None:
    shape = {"batch": 1, "query_tokens": 4096, "context_tokens": 4096, "q_heads": 16}
    made = call("mla_prefill", shape)
    assert (made.call.qk_dim, made.call.v_dim, made.call.kv_heads) == (192.0, 128.0, 16.0)


def test_pytorchs_flash_splits_few_sequences_only() -> None:
    """Its two kernels have rates of their own; 0.8 of two tiles for each of 132 SMs are 211.2."""
    plain = DENSE | {"layout": "contiguous", "page_tokens": 0}
    few = call("decode_attention", plain | {"batch": 26}, "flash")  # 26 x 8 heads
    many = call("decode_attention", plain | {"batch": 27}, "flash")
    assert few.variant == ("torch", "flash bf16 cache, contiguous")
    assert many.variant == ("torch", "flash unsplit bf16 cache, contiguous")
    assert few.variant in many.variants
    assert call("decode_attention", plain | {"batch": 27}, "cudnn").variant[1].startswith("cudnn")


def test_steps_over_a_dense_cache() -> None:
    paged = call("decode_attention", DENSE | {"layout": "paged", "page_tokens": 16})
    assert paged.variant == ("lcprof", "bf16 cache, pages of 16")
    assert (paged.call.context_tokens, paged.call.kv_bytes_per_element) == (131072.0, 2.0)
    whole = DENSE | {"layout": "contiguous", "page_tokens": 0}
    assert call("decode_attention", whole).variant[1] == "bf16 cache, contiguous"
    assert call("decode_attention", whole, "cudnn").variant == (
        "torch", "cudnn bf16 cache, contiguous",
    )  # fmt: skip
    window = {"window_tokens": 4096, "sink_tokens": 4}
    ring = call("decode_attention", whole | window | {"layout": "ring"})
    assert ring.variant[1] == "bf16 cache, ring"
    assert ring.call.context_tokens == 4100.0
    # Half precision is read at bf16's pace.
    assert call("decode_attention", whole | {"dtype": "fp16"}).variant[1] == paged.variant[
        1
    ].replace("pages of 16", "contiguous")


@pytest.mark.parametrize(
    ("name", "scale", "each"),
    [
        ("fp8-tensor", "fp32", 1.0),
        # One scale for a head of 128 elements.
        ("fp8-token", "fp16", (128 + 2) / 128),
        ("int8-token", "fp32", (128 + 4) / 128),
        # Half a byte, an fp16 scale and an fp16 zero for 64 channels.
        ("int4-token-64", "fp16", 0.5 + 4 / 64),
        # All keys of 131,072 tokens in full groups; the last 64 values in bf16.
        (
            "int4-kivi-64",
            "fp16",
            ((2 * 131072 - 64) * (0.5 + 4 / 64) + 64 * 2) / (2 * 131072),
        ),
    ],
)
def test_bytes_of_a_quantised_element(name: str, scale: str, each: float) -> None:
    shape = STEP | {"format": name, "scale": scale, "page_tokens": 64}
    made = call("quantised_decode", shape)
    assert made.variant == ("lcprof", f"{name} cache, pages of 64")
    assert made.call.kv_bytes_per_element == pytest.approx(each, rel=1e-12)


def test_chosen_pages_and_their_bounds() -> None:
    made = call("quest_decode", STEP | {"page_tokens": 16, "pages": 256, "dtype": "bf16"})
    assert made.variant == ("lcprof", "bf16 cache, chosen pages of 16")
    assert made.call.context_tokens == 4096.0
    # 8,192 pages of two key vectors in bf16, over 4,096 tokens of a key and a value.
    assert made.call.kv_bytes_per_element == 2.0 + 8192 * 2 * 2 / (4096 * 2)


@pytest.mark.parametrize(
    ("heads", "name", "tile"),
    [(16, "bf16", 16), (32, "bf16", 32), (32, "fp8-656", 64), (128, "bf16", 64)],
)
def test_latents(heads: int, name: str, tile: int) -> None:
    shape = {"batch": 8, "query_tokens": 1, "context_tokens": 32768, "q_heads": heads,
             "format": name, "page_tokens": 64}  # fmt: skip
    made = call("mla_decode", shape)
    short = name.partition("-")[0]
    assert made.variant == ("lcprof", f"{short} latents, pages of 64")
    assert made.call.kv_bytes_per_element == {"bf16": 2.0, "fp8": 656 / 576}[short]
    assert made.call.tile_heads == tile
    sparse = call("sparse_mla_decode", shape | {"top_tokens": 2048})
    assert sparse.call.context_tokens == 2048.0
    assert sparse.variant == ("lcprof", f"{short} latents, chosen tokens")


def test_scores_and_appending_move_bytes() -> None:
    shape = {"batch": 2, "query_tokens": 1, "context_tokens": 1000, "heads": 64,
             "index_dim": 128, "format": "fp8", "page_tokens": 64}  # fmt: skip
    # A key of 128 bytes with its scale, and a score of 4 bytes.
    assert call("token_scores", shape).call.moved_bytes == 2 * 1000 * (128 + 4 + 4)
    shape = {"batch": 2, "new_tokens": 100, "held_tokens": 0, "kv_heads": 8, "head_dim": 128,
             "format": "int8-token", "scale": "fp32"}  # fmt: skip
    moved = 2 * 100 * 2 * 8 * (2 * 128 + 128 + 4)
    made = call("append", shape)
    assert (made.variant[1], made.call.moved_bytes) == ("append int8-token", moved)
    assert call("append", shape, "torch").variant[0] == "torch"
    # The 4,096th token closes a group of 64.
    one = shape | {"new_tokens": 1, "held_tokens": 4095, "format": "int4-kivi-64", "scale": "fp16"}
    moved = 2 * 64 * 2 * 8 * 128 * (2 + 0.5 + 4 / 64)
    assert call("append", one).call.moved_bytes == moved


@pytest.mark.parametrize(
    ("name", "variant", "each"),
    [("bf16", "bfloat16", 2), ("fp16", "float16", 2), ("fp8", "fp8", 1)],
)
def test_products(name: str, variant: str, each: float) -> None:
    shape = {"rows": 8192, "depth": 4096, "columns": 6144, "format": name}
    made = call("gemm", shape, "torch")
    assert made.variant == ("torch", variant)
    assert isinstance(made.call, GemmCall)
    assert (made.call.weight_bytes, made.call.activation_bytes) == (each, each)


@pytest.mark.parametrize(
    ("operation", "shape", "implementation", "why"),
    [
        ("decode_attention", DENSE, "naive", "no stack has decode_attention by naive"),
        ("quantised_decode", STEP, "torch", "no stack has quantised_decode by torch"),
        ("ceiling", {}, "torch", "no family describes ceiling"),
        ("decode_attention", DENSE | {"query_tokens": 4}, "triton", "one new token a sequence"),
        ("decode_attention", DENSE | {"layout": 1}, "triton", "no layout"),
        ("prefill_attention", {}, "triton", "no query_tokens"),
        ("prefill_attention", PROMPT | {"batch": 0}, "triton", "no batch"),
        ("prefill_attention", PROMPT | {"batch": "1"}, "triton", "no batch"),
        ("prefill_attention", PROMPT | {"batch": float("nan")}, "triton", "no batch"),
        ("prefill_attention", PROMPT | {"dtype": "int2"}, "triton", "type int2"),
        ("quantised_decode", STEP | {"format": "int4-kivi-x", "scale": "fp16"}, "triton", "int4"),
        ("quantised_decode", STEP | {"format": "int8-token", "scale": "x"}, "triton", "x scales"),
        ("gemm", {"rows": 1, "depth": 1, "columns": 1, "format": "fp4"}, "torch", "fp4"),
    ],
)
def test_what_is_no_call_says_why(
    operation: str, shape: dict[str, Any], implementation: str, why: str
) -> None:
    with pytest.raises(UncalledError, match=why):
        call(operation, shape, implementation)


@pytest.mark.parametrize("model", ["llama-3.1-8b", "deepseek-v3", "deepseek-v3.2", "gemma-3-27b"])
def test_every_point_of_every_strategy_has_a_call(model: str) -> None:
    kinds = dict.fromkeys(["bf16", "fp16", *(each.kind for each in STRATEGIES)])
    specs = [kind for kind in kinds if kind not in ("share", "offload")]
    keys = {"model": model, "gpu": "h200-sxm", "context": "32K", "kv": specs}
    cases = expand(read_scenario(keys, where="test"), where="test")
    impls = [impl for able in OPERATIONS.values() for impl in able if impl != "naive"]
    made = points_of(cases, impls=impls, only=chosen_operations(()), device="cuda")
    measurable = [point for point in made if not point.why]
    assert measurable
    for point in measurable:
        if (point.operation, point.implementation) == ("quantised_decode", "torch"):
            continue
        found = called(point.operation, point.shape, point.implementation, H200)
        assert found.variant[0] in OWN
        assert found.family.name in FAMILIES
        assert found.family.features(found.call)


@pytest.mark.parametrize(
    "kv",
    [
        *("bf16", "fp8", "fp8:scale=token-head", "int8:scale=token-head", "int4:group=64"),
        *("kivi:bits=4,group=64,residual=64", "window:tokens=4096,sinks=4"),
        "quest:page=16,top=256",
    ],
)
def test_a_plan_asks_for_the_kernel_and_the_call_that_were_measured(kv: str) -> None:
    given = case(kv=kv, page=64, concurrency=4)
    wanted = ("ring",) if kv.startswith("window") else ("paged",)
    steps = points(given, "decode_attention", "quantised_decode", "quest_decode")
    (step,) = (
        point
        for point in steps
        if point.shape.get("layout", wanted[0]) in wanted
        and (point.shape["page_tokens"] or wanted == ("ring",))
    )
    made = called(step.operation, step.shape, step.implementation, H200)
    (group,) = given.model.groups
    task = step_tasks(given.model, group, given.deployment, given.kv, 4.0, 131072.0)[0]
    assert task.family is made.family
    assert task.variants[0] == made.variant
    for name in made.call.__struct_fields__:
        assert getattr(task.call, name) == pytest.approx(getattr(made.call, name)), name
    (chunk,) = points(given, "prefill_attention")
    made = called(chunk.operation, chunk.shape, chunk.implementation, H200)
    tokens = float(chunk.shape["query_tokens"])
    (task,) = prompt_tasks(
        given.model, group, given.deployment, given.kv, 131072.0 - tokens, tokens
    )
    assert task.variants[0] == made.variant
    assert task.call == made.call


def test_calls_are_stacked() -> None:
    shapes = [PROMPT, PROMPT | {"context_tokens": 65536}]
    one = stacked([call("prefill_attention", shape).call for shape in shapes])
    assert one.prefix_tokens.tolist() == [131072.0 - 8192, 65536.0 - 8192]
    assert (one.kernel, one.compute) == ("triton", "bf16")


def test_groups_leave_out_what_varies() -> None:
    first = call("prefill_attention", PROMPT).groups
    longer = call("prefill_attention", PROMPT | {"context_tokens": 262144}).groups
    more = call("prefill_attention", PROMPT | {"batch": 2}).groups
    wider = call("prefill_attention", PROMPT | {"q_heads": 64}).groups
    assert first[0] == longer[0] == more[0] != wider[0]
    assert first[1] == longer[1] != more[1]
    assert first[2] != longer[2]


def test_kernels_that_are_like_one_another_stand_in_before_published_ones() -> None:
    wide = call("prefill_attention", PROMPT | {"head_dim": 256}).variants
    names = [name for stack, name in wide if stack == "lcprof"]
    assert names == [f"prompt bf16, heads of {dim}" for dim in (256, 192, 128, 96, 64)]
    assert wide[len(names)] == ("vllm", "vllm_flash_attn_fa3 bf16, bf16 cache")
    paged = call("decode_attention", DENSE | {"layout": "paged", "page_tokens": 64}).variants
    layouts = ("pages of 64", "pages of 32", "pages of 16", "pages of 128", "pages of 256")
    assert [name for _, name in paged[:7]] == [
        f"bf16 cache, {each}" for each in (*layouts, "contiguous", "ring")
    ]
    assert paged[7][0] == "vllm"
