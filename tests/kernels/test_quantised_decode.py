from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lcprof_kernels import caches
from lcprof_kernels.budget import tolerance
from lcprof_kernels.caches import Format
from lcprof_kernels.errors import KernelInputError
from lcprof_kernels.offline import Job, compile_elsewhere
from lcprof_kernels.quantised_decode import quantised_decode
from lcprof_kernels.quantised_decode.inputs import make_quantised_decode_inputs
from lcprof_kernels.quantised_decode.launch import (
    TUNINGS,
    Tuning,
    choose_splits,
    choose_tuning,
    most_rows,
    quantised_decode_triton,
)
from lcprof_kernels.quantised_decode.reference import (
    dequantise,
    quantised_decode_naive,
    quantised_decode_reference,
)

FORMATS = [
    caches.fp8_per_tensor(),
    caches.fp8_per_token(),
    caches.int8_per_token(),
    caches.int4_per_token(64),
    caches.int4_per_token(32),
    caches.int4_kivi(64, 64),
    caches.int4_kivi(32, 32),
]
NAMES = [layout.name for layout in FORMATS]


def check(inputs, softmax_scale: float, **options: object) -> None:
    budget = tolerance(
        quantised_decode_reference(inputs.q, inputs.cache, softmax_scale)[0],
        quantised_decode_naive(inputs.q, inputs.cache, softmax_scale)[0],
    )
    out, lse = quantised_decode(inputs.q, inputs.cache, softmax_scale=softmax_scale, **options)
    assert budget.accepts(out), budget.explain(out)
    oracle = quantised_decode_reference(inputs.q, inputs.cache, softmax_scale)[1]
    torch.testing.assert_close(lse.double(), oracle, atol=8e-3, rtol=1e-4)


@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize("layout", FORMATS, ids=NAMES)
def test_ragged_lengths_empty_and_one_token(layout: Format, page_tokens: int | None) -> None:
    inputs = make_quantised_decode_inputs(
        layout,
        lengths=[70, 0, 1],
        q_heads=2,
        kv_heads=1,
        head_dim=64,
        page_tokens=page_tokens,
    )
    check(inputs, 0.125)
    out, lse = quantised_decode(inputs.q, inputs.cache)
    assert bool((out[1] == 0).all())
    assert bool((lse[1] == -math.inf).all())


@pytest.mark.parametrize("query_tokens", [2, 5])
@pytest.mark.parametrize("layout", [FORMATS[2], FORMATS[3], FORMATS[5]], ids=lambda f: f.name)
def test_query_tokens_are_causal(layout: Format, query_tokens: int) -> None:
    inputs = make_quantised_decode_inputs(
        layout, lengths=[67, 3], q_heads=4, kv_heads=1, head_dim=64, query_tokens=query_tokens
    )
    check(inputs, 0.2)


@pytest.mark.parametrize("length", [63, 64, 65, 127, 128])
def test_boundaries_of_groups_and_residual(length: int) -> None:
    inputs = make_quantised_decode_inputs(
        caches.int4_kivi(64, 64), lengths=[length], q_heads=2, kv_heads=2, head_dim=64
    )
    check(inputs, 0.125)


def test_many_splits_merge() -> None:
    inputs = make_quantised_decode_inputs(
        caches.int8_per_token(), lengths=[700], q_heads=2, kv_heads=1, head_dim=64
    )
    check(inputs, 0.125)


def test_head_dim_128_group_128_float16_queries() -> None:
    inputs = make_quantised_decode_inputs(
        caches.int4_per_token(128),
        lengths=[70],
        q_heads=8,
        kv_heads=1,
        head_dim=128,
        dtype=torch.float16,
        scale_dtype=torch.bfloat16,
    )
    check(inputs, 0.1)


def test_values_of_very_different_size() -> None:
    inputs = make_quantised_decode_inputs(
        caches.int8_per_token(), lengths=[96], q_heads=4, kv_heads=1, head_dim=64
    )
    inputs.cache.values.scale[..., :40] *= 200
    inputs.cache.values.scale[..., 40:80] *= 1e-3
    check(inputs, 0.125)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy's word for it in the interpreter
def test_nan_only_where_the_reference_has_it() -> None:
    inputs = make_quantised_decode_inputs(
        caches.int8_per_token(), lengths=[40, 40], q_heads=4, kv_heads=2, head_dim=64
    )
    inputs.cache.keys.scale[0, 1, 0, 7] = math.nan
    check_nan = quantised_decode(inputs.q, inputs.cache)[0].isnan()
    oracle = quantised_decode_reference(inputs.q, inputs.cache, 0.125)[0].isnan()
    assert torch.equal(check_nan, oracle)
    assert bool(check_nan.any())
    assert not bool(check_nan.all())


def test_strided_queries() -> None:
    inputs = make_quantised_decode_inputs(
        caches.fp8_per_token(), lengths=[50], q_heads=4, kv_heads=2, head_dim=64
    )
    wide = torch.randn(1, 1, 8, 64, dtype=torch.bfloat16)
    check(dataclasses.replace(inputs, q=wide[:, :, ::2]), 0.125)


@pytest.mark.parametrize("impl", ["torch", "naive"])
def test_other_implementations_agree(impl: str) -> None:
    inputs = make_quantised_decode_inputs(
        caches.int4_kivi(32, 64), lengths=[75], q_heads=4, kv_heads=2, head_dim=64
    )
    check_impl, _ = quantised_decode(inputs.q, inputs.cache, impl=impl)
    oracle, _ = quantised_decode_reference(inputs.q, inputs.cache, 0.125)
    torch.testing.assert_close(check_impl.double(), oracle, atol=0.1, rtol=0.1)


def test_dequantised_keys_are_near_what_was_appended() -> None:
    inputs = make_quantised_decode_inputs(
        caches.int8_per_token(), lengths=[33], q_heads=2, kv_heads=1, head_dim=64
    )
    k, v = dequantise(inputs.cache, 0)
    assert k.shape == v.shape == (1, 33, 64)
    assert float(k.abs().amax()) > 5 * float(v.abs().amax())  # outlier channels survive


def test_bad_input_is_refused() -> None:
    inputs = make_quantised_decode_inputs(
        caches.int8_per_token(), lengths=[64], q_heads=4, kv_heads=2, head_dim=64, page_tokens=64
    )
    q, cache = inputs.q, inputs.cache
    with pytest.raises(KernelInputError, match="impl"):
        quantised_decode(q, cache, impl="cuda")
    with pytest.raises(KernelInputError, match="bfloat16"):
        quantised_decode(q.float(), cache)
    with pytest.raises(KernelInputError, match="multiple of kv_heads"):
        quantised_decode(q[:, :, :3], cache)
    with pytest.raises(KernelInputError, match="query_tokens"):
        quantised_decode(q.repeat(1, 9, 1, 1), cache)
    with pytest.raises(KernelInputError, match="longest_tokens"):
        quantised_decode(q, cache, longest_tokens=65)
    with pytest.raises(KernelInputError, match="page outside"):
        quantised_decode(
            q, dataclasses.replace(cache, page_table=torch.full((1, 1), 9, dtype=torch.int32))
        )
    with pytest.raises(KernelInputError, match="power of two"):
        caches.empty_cache(
            caches.int8_per_token(),
            batch=1,
            kv_heads=1,
            head_dim=64,
            capacity_tokens=96,
            page_tokens=48,
        )
    for group_channels, head_dim in ((128, 64), (32, 256)):
        with pytest.raises(KernelInputError, match="group_channels"):
            caches.empty_cache(
                caches.int4_per_token(group_channels),
                batch=1,
                kv_heads=1,
                head_dim=head_dim,
                capacity_tokens=64,
            )


NARROW = Tuning(
    rows=8, block_n=32, stages=2, warps=1, blocks_per_sm=4, dense_rows=True, late_scales=True
)


@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize(
    "layout", [FORMATS[1], FORMATS[3], FORMATS[5]], ids=lambda layout: layout.name
)
def test_every_way_of_the_kernel(layout: Format, page_tokens: int | None) -> None:
    """Row distance compiled in, scales late, and 16 query rows in two blocks of 8."""
    inputs = make_quantised_decode_inputs(
        layout,
        lengths=[150, 3],
        q_heads=4,
        kv_heads=1,
        head_dim=64,
        query_tokens=3,
        page_tokens=page_tokens,
    )
    cache = inputs.cache
    budget = tolerance(
        quantised_decode_reference(inputs.q, cache, 0.125)[0],
        quantised_decode_naive(inputs.q, cache, 0.125)[0],
    )
    out, lse = quantised_decode_triton(inputs.q, cache, 0.125, cache.capacity_tokens, NARROW)
    assert budget.accepts(out), budget.explain(out)
    oracle = quantised_decode_reference(inputs.q, cache, 0.125)[1]
    torch.testing.assert_close(lse.double(), oracle, atol=8e-3, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize(
    "layout", [FORMATS[1], FORMATS[2], FORMATS[3], FORMATS[5]], ids=lambda layout: layout.name
)
def test_every_way_of_the_kernel_on_a_gpu(layout: Format, page_tokens: int | None) -> None:
    """Ragged lengths, and 16 query rows in two blocks of 8."""
    narrow = layout.code == "int4"
    tuning = Tuning(
        rows=8,
        block_n=64,
        stages=3,
        warps=1 if narrow else 2,
        blocks_per_sm=8 if narrow else 6,
        dense_rows=True,
        late_scales=narrow,
    )
    inputs = make_quantised_decode_inputs(
        layout,
        lengths=[4097, 1000, 0, 1],
        q_heads=8,
        kv_heads=2,
        head_dim=128,
        query_tokens=3,
        page_tokens=page_tokens,
        device="cuda",
        impl="triton",
    )
    cache = inputs.cache
    budget = tolerance(
        quantised_decode_reference(inputs.q, cache, 0.1)[0],
        quantised_decode_naive(inputs.q, cache, 0.1)[0],
    )
    out, _ = quantised_decode_triton(inputs.q, cache, 0.1, cache.capacity_tokens, tuning)
    assert budget.accepts(out), budget.explain(out)


def test_a_block_that_cuts_pages_or_groups_is_refused() -> None:
    wide = dataclasses.replace(NARROW, block_n=128)
    for layout, page_tokens in ((caches.int8_per_token(), 64), (caches.int4_kivi(64, 64), None)):
        inputs = make_quantised_decode_inputs(
            layout, lengths=[130], q_heads=2, kv_heads=1, head_dim=64, page_tokens=page_tokens
        )
        with pytest.raises(KernelInputError, match="no whole number of blocks of 128"):
            quantised_decode_triton(inputs.q, inputs.cache, 0.125, 128, wide)


def test_measured_blocks_fit_every_page_and_group() -> None:
    for (name, _, _, paged), tuning in TUNINGS.items():
        assert not paged or 64 % tuning.block_n == 0, name
        assert "kivi" not in name or int(name.rpartition("-")[2]) % tuning.block_n == 0, name


@pytest.mark.parametrize("cells", [1, 8, 100, 5000])
@pytest.mark.parametrize("tiles", [1, 7, 4096])
def test_splits_cover_all_tiles(cells: int, tiles: int) -> None:
    splits, split_tiles = choose_splits(
        tiles=tiles, cells=cells, multiprocessors=132, blocks_per_sm=8
    )
    assert (splits - 1) * split_tiles < tiles <= splits * split_tiles


def job(
    layout: Format,
    *,
    arch: int,
    rows: int,
    page: int = 0,
    head_dim: int = 128,
    tuning: Tuning | None = None,
) -> Job:
    tuning = tuning or choose_tuning(layout, head_dim, rows, paged=page > 0, hopper=arch >= 90)
    groups = layout.channel_groups(head_dim)
    scale = "*fp32" if layout.keys == "tensor" else "*fp16"
    strides = [
        f"{name}_stride_{axis}"
        for name, axes in (("q", "bth"), ("k", "shn"), ("ks", "shg"), ("v", "shn"), ("vs", "shg"))
        for axis in axes
    ]
    signature = {
        **dict.fromkeys(["q", "residual_k", "residual_v"], "*bf16"),
        **dict.fromkeys(["k_codes", "v_codes"], "*i16"),
        **dict.fromkeys(["k_scale", "k_low", "v_scale", "v_low"], scale),
        **dict.fromkeys(["part_out", "part_lse"], "*fp32"),
        **dict.fromkeys(["lengths", "page_table"], "*i32"),
        **dict.fromkeys(strides, "i32"),
        **dict.fromkeys(["table_stride", "kv_heads", "splits", "split_tiles"], "i32"),
        "scale_log2": "fp32",
    }
    row_words = layout.codes_per_token(head_dim) // (1 if layout.code == "int4" else 2)
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    return Job(
        kernel="lcprof_kernels.quantised_decode.triton:quantised_decode_split",
        signature=signature,
        constants={
            "GROUP": rows,
            "QUERY_TOKENS": 1,
            "ROWS": tuning.rows,
            "ROW_TILES": -(-rows // tuning.rows),
            "HEAD_DIM": head_dim,
            "BLOCK_N": tuning.block_n,
            "STAGES": tuning.stages,
            "PAGE": page,
            "CODE": layout.code,
            "K_MODE": layout.keys,
            "V_MODE": layout.values,
            "GROUPS": groups if layout.keys == "token" else 1,
            "GROUP_TOKENS": layout.group_tokens or 0,
            "V_GROUPS": groups,
            "ASSEMBLY": True,
            "NATIVE": arch >= 89,
            "PDL": arch >= 90,
            "K_ROW": row_words if tuning.dense_rows else 0,
            "V_ROW": row_words if tuning.dense_rows else 0,
            "LATE": tuning.late_scales,
        },
        aligned=[*pointers, *strides],
        arch=arch,
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        options={"maxnreg": tuning.registers} if tuning.registers else {},
    )


def test_compiles_without_spills_or_conversions() -> None:
    cases = [(FORMATS[1], 80), (FORMATS[5], 80), (FORMATS[2], 90), (FORMATS[3], 90)]
    jobs = [job(layout, arch=arch, rows=8) for layout, arch in cases]
    for (layout, _), found in zip(cases, compile_elsewhere(jobs), strict=True):
        assert found.faults() == [], layout.name
        assert found.matrix_instructions >= 32, layout.name
        assert found.instructions.get("I2F", 0) <= 4, layout.name
        assert found.instructions.get("LDGSTS", 0) >= 8, layout.name


def test_other_ways_compile_without_spills_and_leave_room() -> None:
    """Paged blocks of 8-bit codes are as many as contiguous ones."""
    late = Tuning(
        rows=8, block_n=64, stages=3, warps=1, blocks_per_sm=8, dense_rows=True, late_scales=True
    )
    dense = Tuning(rows=8, block_n=64, stages=3, warps=2, blocks_per_sm=6, dense_rows=True)
    cases = [
        (FORMATS[3], 90, late, 64),
        (FORMATS[3], 80, late, 0),
        (FORMATS[5], 90, late, 64),
        (FORMATS[2], 90, dense, 64),
        (FORMATS[1], 90, dense, 64),
        (FORMATS[2], 80, dense, 64),
    ]
    jobs = [job(layout, arch=arch, rows=8, page=p, tuning=t) for layout, arch, t, p in cases]
    for (layout, arch, tuning, _), found in zip(cases, compile_elsewhere(jobs), strict=True):
        assert found.faults() == [], (layout.name, arch)
        if arch == 90:
            assert found.blocks_per_sm >= tuning.blocks_per_sm, layout.name


def test_most_rows_are_a_power_of_two() -> None:
    for layout in FORMATS:
        for head_dim in caches.HEAD_DIMS:
            rows = most_rows(layout, head_dim)
            assert rows & (rows - 1) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("layout", FORMATS, ids=NAMES)
def test_on_a_gpu(layout: Format, head_dim: int, page_tokens: int | None) -> None:
    if head_dim == 256 and layout.group_channels == 32:
        pytest.skip("more than four groups of channels")
    inputs = make_quantised_decode_inputs(
        layout,
        lengths=[4097, 1000, 0, 1],
        q_heads=8,
        kv_heads=2,
        head_dim=head_dim,
        query_tokens=3,
        page_tokens=page_tokens,
        device="cuda",
        impl="triton",
    )
    check(inputs, head_dim**-0.5)
