"""Absorbed MLA decode: the kernel against the oracle, its layouts, its binaries, its refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lcprof_kernels.budget import tolerance
from lcprof_kernels.errors import KernelInputError
from lcprof_kernels.mla import mla_decode, mla_prefill, pack_fp8, unpack_fp8
from lcprof_kernels.mla.api import DEFAULT_SCALE, mla_decode_with, parts_of
from lcprof_kernels.mla.choices import others
from lcprof_kernels.mla.inputs import MlaInputs, mla_inputs
from lcprof_kernels.mla.launch import Tile, choose_splits, launch, tile_for
from lcprof_kernels.mla.reference import mla_reference
from lcprof_kernels.offline import Job, compile_elsewhere

pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning"  # Triton's interpreter
)


def check(inputs: MlaInputs, *, scale: float = DEFAULT_SCALE) -> None:
    """The kernel's out and lse lie within the budget of a bf16 eager version."""
    arguments = {
        "lengths": inputs.lengths,
        "page_table": inputs.page_table,
        "scale": scale,
    }
    out, lse = mla_decode(inputs.q, inputs.cache, **arguments)
    for index, found in enumerate((out, lse)):
        budget = tolerance(
            mla_reference(inputs.q, inputs.cache, **arguments)[index],
            mla_reference(inputs.q, inputs.cache, **arguments, low_precision=True)[index],
        )
        assert budget.accepts(found), budget.explain(found)


@pytest.mark.parametrize("page_tokens", [None, 64, 16])
@pytest.mark.parametrize("fp8", [False, True])
def test_ragged_lengths_in_every_cache(page_tokens: int | None, fp8: bool) -> None:
    check(
        mla_inputs(
            batch=3,
            q_heads=16,
            context_tokens=160,
            page_tokens=page_tokens,
            fp8=fp8,
            lengths=[160, 1, 77],
        )
    )


@pytest.mark.parametrize(("q_heads", "query_tokens"), [(5, 1), (16, 4), (32, 2), (128, 1)])
def test_heads_and_query_tokens(q_heads: int, query_tokens: int) -> None:
    check(
        mla_inputs(
            batch=2, q_heads=q_heads, query_tokens=query_tokens, context_tokens=96, lengths=[96, 3]
        )
    )


@pytest.mark.parametrize(
    "tile",
    [
        Tile(rows=64, tokens=64, num_warps=8, num_stages=2),
        Tile(rows=64, tokens=64, num_warps=8, num_stages=2, apart=True),
        Tile(rows=64, tokens=64, num_warps=8, num_stages=2, apart=True, boxes=True),
        Tile(rows=32, tokens=64, num_warps=8, num_stages=2, columns=True),
        Tile(rows=32, tokens=64, num_warps=8, num_stages=2, apart=True, columns=True),
        Tile(rows=32, tokens=64, num_warps=8, num_stages=2, apart=True, columns=True, boxes=True),
    ],
)
def test_every_way_of_the_kernel_with_many_splits(tile: Tile) -> None:
    inputs = mla_inputs(batch=2, q_heads=40, context_tokens=300, lengths=[300, 70])
    latent, rope, scales = parts_of(inputs.cache)
    out, lse = launch(
        inputs.q,
        latent,
        rope,
        scales,
        slot_stride=inputs.cache.stride(0) // 8,
        token_stride=inputs.cache.stride(1) // 8,
        lengths=inputs.lengths,
        page_table=None,
        page_tokens=300,
        context_tokens=300,
        scale=DEFAULT_SCALE,
        tile=tile,
        splits=4,
    )
    expected, expected_lse = mla_reference(
        inputs.q, inputs.cache, lengths=inputs.lengths, scale=DEFAULT_SCALE
    )
    budget = tolerance(
        expected,
        mla_reference(
            inputs.q,
            inputs.cache,
            lengths=inputs.lengths,
            scale=DEFAULT_SCALE,
            low_precision=True,
        )[0],
    )
    assert budget.accepts(out), budget.explain(out)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-5)


def test_fp8_codes_read_as_words_give_the_same_result() -> None:
    inputs = mla_inputs(batch=2, q_heads=16, context_tokens=70, lengths=[70, 33], fp8=True)
    arguments = {"lengths": inputs.lengths, "page_table": None, "scale": DEFAULT_SCALE}
    tile = Tile(rows=16, tokens=32, num_warps=4, num_stages=2)
    bytes_out, words_out = (
        mla_decode_with(replace(tile, words=words), inputs.q, inputs.cache, **arguments)[0]
        for words in (False, True)
    )
    assert torch.equal(bytes_out, words_out)


@pytest.mark.gpu
@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize(("q_heads", "fp8"), [(16, False), (32, False), (16, True), (32, True)])
def test_every_tile_worth_timing_on_a_gpu(q_heads: int, fp8: bool, page_tokens: int | None) -> None:
    inputs = mla_inputs(
        batch=3,
        q_heads=q_heads,
        context_tokens=4160,
        page_tokens=page_tokens,
        lengths=[4160, 1, 777],
        fp8=fp8,
        device="cuda",
    )
    arguments = {
        "lengths": inputs.lengths,
        "page_table": inputs.page_table,
        "scale": DEFAULT_SCALE,
    }
    budget = tolerance(
        mla_reference(inputs.q, inputs.cache, **arguments)[0],
        mla_reference(inputs.q, inputs.cache, **arguments, low_precision=True)[0],
    )
    capability = torch.cuda.get_device_capability()
    for tile in others(capability, q_heads, fp8=fp8, paged=page_tokens is not None):
        out, _ = mla_decode_with(tile, inputs.q, inputs.cache, **arguments)
        assert budget.accepts(out), f"{tile}: {budget.explain(out)}"


def test_a_sequence_without_tokens_gives_zero_and_no_mass() -> None:
    inputs = mla_inputs(batch=2, q_heads=16, context_tokens=32, lengths=[0, 32])
    out, lse = mla_decode(inputs.q, inputs.cache, lengths=inputs.lengths)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert bool((lse[0] == float("-inf")).all())
    check(inputs)


def test_query_tokens_before_the_first_cached_one_see_nothing() -> None:
    check(mla_inputs(batch=1, q_heads=16, query_tokens=4, context_tokens=32, lengths=[2]))


def test_outlier_channels() -> None:
    inputs = mla_inputs(batch=1, q_heads=16, context_tokens=64)
    inputs.cache[..., 7] *= 30
    inputs.cache[..., 540] *= 30
    check(inputs)


def test_views_with_strides_are_read_in_place() -> None:
    inputs = mla_inputs(batch=4, q_heads=32, query_tokens=2, context_tokens=96)
    view = MlaInputs(
        q=inputs.q[::2, :, ::2],
        cache=inputs.cache[::2, ::2],
        lengths=torch.tensor([48, 30], dtype=torch.int32),
        page_table=None,
    )
    check(view)


def test_rows_past_the_length_are_never_read() -> None:
    inputs = mla_inputs(batch=1, q_heads=16, context_tokens=96, lengths=[70])
    clean, _ = mla_decode(inputs.q, inputs.cache, lengths=inputs.lengths)
    inputs.cache[:, 70:] = float("nan")
    dirty, _ = mla_decode(inputs.q, inputs.cache, lengths=inputs.lengths)
    assert torch.equal(clean, dirty)


def test_a_cached_nan_reaches_the_rows_that_see_it_and_no_other() -> None:
    inputs = mla_inputs(batch=2, q_heads=16, query_tokens=2, context_tokens=48)
    inputs.cache[0, 47, 3] = float("nan")
    out, _ = mla_decode(inputs.q, inputs.cache, lengths=inputs.lengths)
    assert bool(out[0, 1].isnan().all())
    assert not bool(out[1].isnan().any())


def test_every_e4m3_code_is_widened_as_torch_does() -> None:
    rows = torch.zeros(1, 256, 576, dtype=torch.bfloat16)
    packed = pack_fp8(rows)
    packed[0, :, 0] = torch.arange(256).to(torch.uint8)
    one = torch.tensor([1.0]).view(torch.uint8)
    packed[0, :, 512:516] = one
    for code in (1, 7, 8, 126, 129, 254):
        cache = packed[:, code : code + 1].contiguous()
        q = torch.zeros(1, 1, 16, 576, dtype=torch.bfloat16)
        out, _ = mla_decode(q, cache)
        want = torch.tensor([code], dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        assert out[0, 0, 0, 0].float() == want


def test_packing_keeps_what_e4m3_can_hold() -> None:
    rows = torch.randn(3, 5, 576).to(torch.bfloat16)
    packed = pack_fp8(rows)
    assert packed.shape == (3, 5, 656)
    again = unpack_fp8(packed)
    assert torch.equal(again[..., 512:], rows[..., 512:])
    largest = rows[..., :512].float().unflatten(-1, (4, 128)).abs().amax(-1, keepdim=True)
    wrong = (again[..., :512].float() - rows[..., :512].float()).unflatten(-1, (4, 128)).abs()
    assert bool((wrong <= largest / 16).all())


def test_prefill_is_attention_with_192_and_128_channels() -> None:
    q, k = torch.randn(1, 5, 2, 192), torch.randn(1, 2, 9, 192)
    v = torch.randn(1, 2, 9, 128)
    out, lse = mla_prefill(q, k, v, impl="naive")
    scores = torch.einsum("bthd,bhnd->bthn", q, k) / 192**0.5
    hidden = torch.arange(9) > torch.arange(5)[:, None] + 4
    scores = scores.masked_fill(hidden[None, :, None], float("-inf"))
    want = torch.einsum("bthn,bhnd->bthd", scores.softmax(-1), v)
    torch.testing.assert_close(out.float(), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1), atol=1e-4, rtol=1e-4)
    with pytest.raises(KernelInputError, match="v must have shape"):
        mla_prefill(q, k, k, impl="naive")


def test_a_naive_version_agrees() -> None:
    inputs = mla_inputs(batch=2, q_heads=16, context_tokens=64, lengths=[64, 9])
    ours, _ = mla_decode(inputs.q, inputs.cache, lengths=inputs.lengths)
    eager, _ = mla_decode(inputs.q, inputs.cache, lengths=inputs.lengths, impl="naive")
    torch.testing.assert_close(ours.float(), eager.float(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(1, 1, 16, 512, dtype=torch.bfloat16)}, "q must have shape"),
        ({"q": torch.zeros(1, 1, 16, 576)}, "q must be bfloat16"),
        ({"q": torch.zeros(1, 9, 16, 576, dtype=torch.bfloat16)}, "1 to 8 query tokens"),
        ({"cache": torch.zeros(1, 32, 640, dtype=torch.bfloat16)}, "cache must have shape"),
        ({"cache": torch.zeros(1, 32, 576, dtype=torch.uint8)}, "cache must have shape"),
        ({"cache": torch.zeros(2, 32, 576, dtype=torch.bfloat16)}, "1 sequences like q"),
        ({"lengths": torch.tensor([33], dtype=torch.int32)}, "lengths must lie in 0 to 32"),
        ({"lengths": torch.tensor([3])}, "lengths must be int32"),
        ({"page_table": torch.tensor([[1]], dtype=torch.int32)}, "page_table must name pages"),
        ({"page_table": torch.tensor([1], dtype=torch.int32)}, "page_table must have shape"),
        ({"impl": "fast"}, "impl must be one of"),
    ],
)
def test_wrong_arguments_are_refused_before_a_launch(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {
        "q": torch.zeros(1, 1, 16, 576, dtype=torch.bfloat16),
        "cache": torch.zeros(1, 32, 576, dtype=torch.bfloat16),
        "lengths": torch.tensor([32], dtype=torch.int32),
        **change,
    }
    q, cache = arguments.pop("q"), arguments.pop("cache")
    with pytest.raises(KernelInputError, match=words):
        mla_decode(q, cache, **arguments, check_values=True)  # type: ignore[arg-type]


def test_splits_fill_the_card_and_no_more() -> None:
    assert choose_splits(cells=128, tiles=512, slots=132) == 1
    assert choose_splits(cells=16, tiles=2048, slots=132) == 8
    assert choose_splits(cells=2, tiles=2048, slots=132) in range(60, 67)
    assert choose_splits(cells=1, tiles=1, slots=132) == 1


def job(arch: tuple[int, int], rows: int, page: int, fp8: bool, tile: Tile | None = None) -> Job:
    tile = tile or tile_for(arch, rows, fp8=fp8, paged=page > 0)
    boxes = tile.boxes and not fp8 and page % tile.tokens == 0
    kinds = {
        f"{name}_boxes": f"tensordesc<bf16[{tile.tokens}, {width}]>"
        for name, width in (("latent", 512), ("rope", 64))
    }
    pointers = {
        "q_ptr": "*bf16",
        "latent_ptr": "*u8" if fp8 else "*bf16",
        "rope_ptr": "*bf16",
        "scale_ptr": "*fp32",
        "table_ptr": "*i32",
        "lengths_ptr": "*i32",
        "out_ptr": "*fp32",
        "lse_ptr": "*fp32",
    }
    strides = ("stride_q_batch", "stride_q_token", "stride_q_head")
    counts = (
        "rows", "heads", "query_tokens", "splits", *strides, "stride_batch", "stride_page",
        "stride_token", "stride_table", "slot_tokens",
    )  # fmt: skip
    return Job(
        kernel="lcprof_kernels.mla.triton:decode_tiles",
        signature={
            **pointers,
            **(kinds if boxes else {}),
            "scale_log2": "fp32",
            **dict.fromkeys(counts, "i32"),
        },
        constants={
            "PAGE": page,
            "FP8": fp8,
            "NATIVE": arch >= (8, 9),
            "BLOCK_H": tile.rows,
            "BLOCK_N": tile.tokens,
            "STAGES": tile.num_stages,
            "APART": tile.apart,
            "BOXES": boxes,
            "COLUMNS": tile.columns,
            "PDL": tile.hidden_merge,
            "WORDS": tile.words,
            **({} if boxes else {"latent_boxes": None, "rope_boxes": None}),
        },
        aligned=(*pointers, *strides),
        arch=arch[0] * 10 + arch[1],
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def test_binaries_for_ampere_and_hopper() -> None:
    """No spills, shared memory within the card's, and Q K^T halved between the warp groups."""
    some = ((16, 0, False), (16, 64, False), (16, 64, True), (32, 64, False), (128, 1, False),
            (128, 64, False), (128, 64, True))  # fmt: skip
    asked = [(arch, *case) for arch in ((8, 0), (9, 0)) for case in some]
    built = compile_elsewhere([job(*entry) for entry in asked])
    for (arch, rows, page, fp8), resources in zip(asked, built, strict=True):
        words = f"sm_{arch[0]}{arch[1]}, {rows} rows, page {page}, fp8 {fp8}: {resources}"
        assert resources.faults() == [], words
        assert resources.matrix_instructions > 0, words
        assert (
            resources.blocks_per_sm >= tile_for(arch, rows, fp8=fp8, paged=page > 0).blocks_per_sm
        ), words
        tile = tile_for(arch, rows, fp8=fp8, paged=page > 0)
        if tile.apart:
            # A whole tile: 36 steps of 16 channels for Q K^T, each halved between the two warp
            # groups, and 4 steps of 16 tokens for P V, in columns for 4 pieces of 128 channels.
            # With boxes the last, broken tile has 36 + 1 of its own.
            boxes = tile.boxes and not fp8 and page % tile.tokens == 0
            whole = 36 + 4 * (4 if tile.columns else 1)
            assert resources.instructions.get("HGMMA") == whole + (37 if boxes else 0), words


def test_columns_with_boxes_compile_without_spills() -> None:
    """As many products as without descriptors in each of the two loops, and no copies by lanes."""
    tile = Tile(
        rows=32, tokens=64, num_warps=8, num_stages=2, apart=True, columns=True, boxes=True,
        hidden_merge=True,
    )  # fmt: skip
    for page, found in zip((0, 64), compile_elsewhere(
        [job((9, 0), 32, page, False, tile) for page in (0, 64)]
    ), strict=True):  # fmt: skip
        assert found.faults() == [], page
        assert found.instructions.get("LDGSTS", 0) == 0, page
        assert found.instructions["HGMMA"] >= 36 + 4 * 4, page
