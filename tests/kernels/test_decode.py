"""Decode attention against its oracle, in Triton's interpreter, and compiled without a card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from lcprof_kernels.budget import HALF_STEP, tolerance
from lcprof_kernels.decode import Workspace, decode_attention
from lcprof_kernels.decode.inputs import DecodeInputs, decode_inputs
from lcprof_kernels.decode.reference import decode_reference, visible_keys
from lcprof_kernels.decode.splits import cost, plan_split, tiles_for
from lcprof_kernels.errors import KernelInputError, MissingImplementationError
from lcprof_kernels.offline import Job, compile_elsewhere

SMALL: dict[str, Any] = {
    "batch": 2,
    "q_heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "context_tokens": 200,
    "dtype": torch.float16,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def small(**changes: Any) -> DecodeInputs:
    return decode_inputs(**{**SMALL, "seed": torch.seed() % 2**31, "device": DEVICE, **changes})


def assert_matches(inputs: DecodeInputs, *, impl: str = "triton", **options: Any) -> None:
    arguments = inputs.arguments()
    rounding = inputs.q.dtype == torch.bfloat16
    budget = tolerance(
        decode_reference(**arguments)[0],
        decode_reference(**arguments, low_precision=True)[0],
        # the interpreter cuts float32 to bfloat16 where the hardware rounds: twice the error
        factor=4.0 if rounding and DEVICE == "cpu" else 2.0,
        resolution=HALF_STEP[inputs.q.dtype],
    )
    out, lse = decode_attention(**arguments, impl=impl, **options)
    assert out.dtype == inputs.q.dtype
    assert out.shape == inputs.q.shape
    assert budget.accepts(out), budget.explain(out)
    assert lse is not None
    torch.testing.assert_close(
        lse.double(), decode_reference(**arguments)[1].double(), atol=2e-4, rtol=1e-5
    )


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_head_dims(head_dim: int, splits: int) -> None:
    assert_matches(small(head_dim=head_dim, context_tokens=130), splits=splits)


@pytest.mark.parametrize("heads", [(4, 4), (8, 1), (20, 1), (34, 1)])
@pytest.mark.parametrize("query_tokens", [1, 2])
def test_groups_pack_into_tiles(heads: tuple[int, int], query_tokens: int) -> None:
    """Rows of 16, 32 and 64, and more than one row tile."""
    inputs = small(
        batch=1, q_heads=heads[0], kv_heads=heads[1], query_tokens=query_tokens, context_tokens=100
    )
    assert_matches(inputs)


@pytest.mark.parametrize("query_tokens", [1, 8])
def test_ragged_lengths(query_tokens: int) -> None:
    """None, one, a tile and one more, fewer than the query tokens, and full."""
    lengths = [0, 1, 129, 5, 200]
    inputs = small(batch=5, query_tokens=query_tokens, lengths=lengths)
    assert_matches(inputs)
    out, lse = decode_attention(**inputs.arguments())
    assert lse is not None
    assert torch.count_nonzero(out[0]) == 0
    assert bool((lse[0] == float("-inf")).all())


def test_bfloat16_with_outlier_channels() -> None:
    assert_matches(small(dtype=torch.bfloat16, outlier=20.0), splits=2)


@pytest.mark.parametrize("page_tokens", [16, 64, 128, 256])
@pytest.mark.parametrize("query_tokens", [1, 3])
def test_pages(page_tokens: int, query_tokens: int) -> None:
    inputs = small(
        context_tokens=512, page_tokens=page_tokens, lengths=[300, 17], query_tokens=query_tokens
    )
    assert_matches(inputs, splits=2)


def test_unused_page_numbers_are_not_followed() -> None:
    inputs = small(context_tokens=256, page_tokens=64, lengths=[65, 0])
    assert inputs.page_table is not None
    table = inputs.page_table.clone()
    expected, _ = decode_attention(**inputs.arguments())
    table[0, 2:] = -(2**30)
    table[1, :] = 2**30
    actual, _ = decode_attention(**replace(inputs, page_table=table).arguments())
    assert torch.equal(expected, actual)


@pytest.mark.parametrize("page_tokens", [None, 16, 64])
@pytest.mark.parametrize("query_tokens", [1, 3])
def test_window_and_sinks(page_tokens: int | None, query_tokens: int) -> None:
    """Longer than the window, as long as it, and shorter than the sinks; over a whole tile."""
    inputs = small(
        batch=3,
        head_dim=128,
        context_tokens=384,
        lengths=[380, 75, 2],
        window_tokens=70,
        sink_tokens=5,
        query_tokens=query_tokens,
        page_tokens=page_tokens,
    )
    assert_matches(inputs, splits=2)


@pytest.mark.parametrize(("query_tokens", "slots"), [(1, 70), (1, 75), (3, 72)])
def test_ring_buffer(query_tokens: int, slots: int) -> None:
    inputs = small(
        batch=4,
        head_dim=128,
        context_tokens=5 + slots,
        lengths=[1000, 60, 5 + slots, 3],
        window_tokens=70,
        sink_tokens=5,
        ring=True,
        query_tokens=query_tokens,
    )
    assert_matches(inputs)


def test_ring_holds_the_window_of_the_whole_cache() -> None:
    """Written position by position, a ring gives what the window gives over the full cache."""
    whole = small(batch=1, context_tokens=300, window_tokens=70, sink_tokens=5)
    shape = (1, 2, 75, 64)
    k, v = (torch.empty(shape, dtype=torch.float16, device=DEVICE) for _ in "kv")
    for position in range(300):
        slot = position if position < 5 else 5 + (position - 5) % 70
        k[:, :, slot] = whole.k_cache[:, :, position]
        v[:, :, slot] = whole.v_cache[:, :, position]
    lengths = torch.tensor([300], dtype=torch.int32, device=DEVICE)
    ring = replace(whole, k_cache=k, v_cache=v, lengths=lengths, ring=True)
    expected, _ = decode_attention(**whole.arguments(), impl="naive")
    actual, _ = decode_attention(**ring.arguments())
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=2e-3)


def test_visible_keys_of_a_ring_by_hand() -> None:
    """Two sinks and three slots after eight tokens hold positions 0, 1, 5, 6, 7."""
    common = {"sink_tokens": 2, "ring": True, "device": torch.device("cpu")}
    one = visible_keys(8, 5, 1, window_tokens=3, **common)  # type: ignore[arg-type]
    two = visible_keys(8, 5, 2, window_tokens=2, **common)  # type: ignore[arg-type]
    assert one.tolist() == [[True] * 5]
    # slot 2 + (p - 2) % 3: position 5 at slot 2, 6 at 3, 7 at 4
    assert two.tolist() == [[True, True, True, True, False], [True, True, False, True, True]]


def test_reference_agrees_with_pytorch() -> None:
    inputs = small(context_tokens=77)
    q, k, v = (x.double() for x in (inputs.q, inputs.k_cache, inputs.v_cache))
    expected = functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, enable_gqa=True)
    actual, _ = decode_reference(q, k, v)
    torch.testing.assert_close(actual.double(), expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_strided_views() -> None:
    """A cache stored token-major, and queries cut from a fused projection."""
    inputs = small(context_tokens=130)
    k, v = (x.transpose(1, 2).contiguous() for x in (inputs.k_cache, inputs.v_cache))
    fused = torch.randn(2, 1, 8, 64, dtype=torch.float16, device=DEVICE)
    viewed = replace(
        inputs, q=fused[:, :, 4:], k_cache=k.transpose(1, 2), v_cache=v.transpose(1, 2)
    )
    assert not viewed.k_cache.is_contiguous()
    assert_matches(viewed)


def test_nan_stays_where_the_reference_has_it() -> None:
    """A NaN value in one KV head reaches that head's channel; one past the length reaches none."""
    inputs = small(lengths=[150, 60])
    inputs.v_cache[0, 1, 7, 3] = float("nan")
    inputs.k_cache[1, :, 60:] = float("nan")
    inputs.v_cache[1, :, 60:] = float("nan")
    out, _ = decode_attention(**inputs.arguments(), splits=3)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[0, :, 2:, 3] = True
    assert torch.equal(torch.isnan(out), expected)


def test_more_splits_than_are_merged_at_once() -> None:
    """One key outweighs all others, early and late, so that running sums must be rescaled."""
    inputs = small(batch=1, q_heads=1, kv_heads=1, head_dim=256, context_tokens=70 * 32)
    inputs.k_cache[0, 0, 40] = inputs.q[0, 0, 0] * 0.5
    inputs.k_cache[0, 0, -1] = inputs.q[0, 0, 0] * 0.55
    assert_matches(inputs, splits=70)


def test_a_given_workspace_is_reused() -> None:
    inputs, workspace = small(), Workspace.empty(torch.device(DEVICE))
    first, _ = decode_attention(**inputs.arguments(), splits=3, workspace=workspace)
    room = workspace.values
    workspace.values.fill_(float("nan"))
    second, _ = decode_attention(**inputs.arguments(), splits=3, workspace=workspace)
    assert workspace.values is room
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"query_tokens": 3, "lengths": [200, 2]},
        {"window_tokens": 50, "sink_tokens": 3, "lengths": [199, 0]},
        {"page_tokens": 16, "lengths": [33, 180]},
    ],
)
def test_naive(changes: dict[str, Any]) -> None:
    assert_matches(small(**changes), impl="naive")


@pytest.mark.parametrize("query_tokens", [1, 3])
def test_flash_through_pytorch(query_tokens: int) -> None:
    inputs = small(q_heads=4, kv_heads=4, query_tokens=query_tokens)
    out, lse = decode_attention(**inputs.arguments(), impl="flash")
    assert lse is None
    torch.testing.assert_close(
        out.double(), decode_reference(**inputs.arguments())[0].double(), atol=4e-3, rtol=4e-3
    )


def test_libraries_say_what_they_cannot_do() -> None:
    with pytest.raises(MissingImplementationError, match="whole contiguous caches"):
        decode_attention(**small(lengths=[1, 2]).arguments(), impl="cudnn")
    with pytest.raises(MissingImplementationError, match="one query token"):
        decode_attention(**small(query_tokens=2).arguments(), impl="cudnn")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"impl": "fastest"}, "impl must be one of triton, flash, cudnn, naive; got fastest"),
        ({"q": torch.zeros(2, 1, 3, 64)}, "q must be bfloat16 or float16, got float32"),
        ({"q": torch.zeros(2, 9, 4, 64).half()}, "query_tokens must be 1 to 8, got 9"),
        ({"q": torch.zeros(2, 1, 3, 64).half()}, "multiple of kv_heads, got 3 and 2"),
        ({"q": torch.zeros(3, 1, 4, 64).half()}, r"= \[3, any, any, 64\], got \[2, 2, 200, 64\]"),
        ({"q": torch.zeros(2, 4, 64).half()}, "q must have shape"),
        ({"v_cache": torch.zeros(2, 2, 199, 64).half()}, "v_cache must have shape"),
        ({"k_cache": torch.zeros(2, 2, 200, 64).bfloat16()}, "k_cache must be float16"),
        ({"lengths": torch.zeros(2).long()}, "lengths must be int32, got int64"),
        ({"lengths": torch.zeros(3).int()}, "lengths must have shape"),
        ({"page_table": torch.zeros(2, 2).int()}, "page_tokens must be one of"),
        ({"sink_tokens": 4}, "need window_tokens"),
        ({"window_tokens": 0}, "window_tokens must be at least 1"),
        ({"window_tokens": 9, "ring": True}, "ring needs lengths"),
        ({"scale": 0.0}, "scale must be positive and finite"),
        ({"splits": 0}, "splits must be at least 1"),
        ({"q": torch.zeros(2, 1, 4, 64, device="meta").half()}, "on one device"),
    ],
)
def test_bad_input_is_one_clear_error(changes: dict[str, Any], words: str) -> None:
    arguments = decode_inputs(**SMALL).arguments()
    with pytest.raises(KernelInputError, match=words):
        decode_attention(**{**arguments, **changes})


def test_unsupported_layouts_are_refused() -> None:
    inputs = decode_inputs(**{**SMALL, "head_dim": 80})
    with pytest.raises(KernelInputError, match="head_dim must be one of 64, 96, 128, 256; got 80"):
        decode_attention(**inputs.arguments())
    inputs = decode_inputs(**SMALL)
    wide = torch.zeros(2, 2, 200, 128, dtype=torch.float16)
    with pytest.raises(KernelInputError, match="k_cache must be dense in its last dimension"):
        decode_attention(**replace(inputs, k_cache=wide[..., ::2]).arguments())
    with pytest.raises(KernelInputError, match="multiples of 16 bytes"):
        decode_attention(**replace(inputs, v_cache=wide[..., 1:65]).arguments())
    ring = decode_inputs(**SMALL, lengths=[9, 9], window_tokens=200, sink_tokens=4, ring=True)
    with pytest.raises(KernelInputError, match="= 200 slots after its sinks, got 196"):
        decode_attention(**ring.arguments())


def test_values_are_checked_on_request() -> None:
    inputs = decode_inputs(**{**SMALL, "context_tokens": 128}, page_tokens=64, lengths=[100, 30])
    assert inputs.page_table is not None
    decode_attention(**inputs.arguments(), check_values=True)
    for page in (-1, inputs.k_cache.shape[0]):
        table = inputs.page_table.clone()
        table[0, 1] = page
        with pytest.raises(KernelInputError, match=rf"pages 0 to \d+, got {page}"):
            decode_attention(**replace(inputs, page_table=table).arguments(), check_values=True)
    for length, words in ((129, "at most 128, got 129"), (-1, "not be negative")):
        lengths = torch.tensor([length, 5], dtype=torch.int32)
        with pytest.raises(KernelInputError, match=words):
            decode_attention(**replace(inputs, lengths=lengths).arguments(), check_values=True)


def test_split_plan() -> None:
    """A lone sequence fills the card; many sequences are not split; uneven ones are cut finer."""
    common = {"token_bytes": 512, "multiprocessors": 132}
    tiles = tiles_for((9, 0), 128, 4)
    tile, splits = plan_split(tiles, cells=8, tokens=131072, **common)
    assert 128 <= 8 * splits <= 132 * tile.blocks_per_sm
    assert plan_split(tiles, cells=512, tokens=32768, **common)[1] == 1
    assert plan_split(tiles, cells=512, tokens=32768, uneven=True, **common)[1] >= 3
    assert plan_split(tiles, cells=1, tokens=1, **common)[1] == 1
    assert plan_split(tiles, cells=8, tokens=131072, splits=5, **common)[1] == 5
    sizes = {"cells": 264, "tiles": 128, "tile_bytes": 32768, "multiprocessors": 132}
    deep = tiles[1]
    just_over = {**sizes, "cells": 265}
    assert cost(deep, splits=1, **just_over) > 1.2 * cost(deep, splits=1, **sizes)


STRIDES = [f"{name}_stride_{axis}" for name, axes in (("q", "bth"), ("k", "bhn"), ("v", "bhn"))
           for axis in axes]  # fmt: skip
COUNTS = ["context_tokens", "kv_heads", "splits", "sink_tokens", "window_tokens", "table_stride"]


def split_job(arch: int, *, group: int, head_dim: int, query_tokens: int = 1, deep: bool = False,
              page: int = 0, mask_all: bool = False) -> Job:  # fmt: skip
    """The compilation that a launch with these shapes would cause."""
    tile = tiles_for((arch // 10, 0), head_dim, group * query_tokens)[1 if deep else 0]
    signature = dict.fromkeys(STRIDES + COUNTS, "i32") | {"scale_log2": "fp32"}
    signature |= dict.fromkeys(["q", "k", "v", "out"], "*bf16")
    signature |= dict.fromkeys(["lse", "part_out", "part_lse"], "*fp32")
    signature |= dict.fromkeys(["lengths", "page_table"], "*i32")
    constants: dict[str, int | bool] = {
        "GROUP": group,
        "QUERY_TOKENS": query_tokens,
        "ROWS": tile.rows,
        "ROW_TILES": -(-group * query_tokens // tile.rows),
        "HEAD_DIM": head_dim,
        "BLOCK_D": 1 << (head_dim - 1).bit_length(),
        "BLOCK_N": tile.block_n,
        "STAGES": 2 * tile.num_stages - 1 if page % tile.block_n else tile.num_stages,
        "PAGE": page,
        "HAS_LENGTHS": True,
        "WINDOWED": mask_all,
        "RING": False,
        "MASK_ALL": mask_all,
        "PARTIAL": True,
        "PDL": arch >= 90,
    }
    return Job(
        kernel="lcprof_kernels.decode.triton:decode_split",
        signature=signature,
        constants=constants,
        aligned=[n for n, kind in signature.items() if kind.startswith("*") or n in STRIDES],
        arch=arch,
        num_warps=tile.num_warps,
    )


def test_compiles_for_ampere_and_hopper() -> None:
    """Shared memory and registers within each card, matrix instructions, asynchronous copies, and
    as many blocks on a multiprocessor as the split plan counts on."""
    shapes: list[dict[str, Any]] = [
        {"group": 4, "head_dim": 128},
        {"group": 1, "head_dim": 64, "page": 16},
        {"group": 32, "head_dim": 128},
        {"group": 8, "head_dim": 96, "query_tokens": 8},
        {"group": 8, "head_dim": 256, "query_tokens": 8},
        {"group": 8, "head_dim": 256, "query_tokens": 1},
        {"group": 4, "head_dim": 128, "query_tokens": 4, "mask_all": True},
    ]
    asked = [(arch, shape) for arch in (80, 90) for shape in shapes]
    asked.append((90, {"group": 4, "head_dim": 128, "deep": True}))
    for (arch, shape), found in zip(
        asked, compile_elsewhere([split_job(arch, **shape) for arch, shape in asked]), strict=True
    ):
        name = f"sm_{arch} {shape}: {found}"
        assert found.faults() == [], name
        assert found.matrix_instructions > 0, name
        assert found.instructions["LDGSTS"] > 0, name
        rows = shape["group"] * shape.get("query_tokens", 1)
        tile = tiles_for((arch // 10, 0), shape["head_dim"], rows)[1 if shape.get("deep") else 0]
        assert found.blocks_per_sm >= tile.blocks_per_sm, name


@pytest.mark.gpu
def test_graph_replay_follows_lengths() -> None:
    inputs = decode_inputs(**{**SMALL, "context_tokens": 8192}, lengths=[8192, 5], device="cuda")
    assert inputs.lengths is not None
    decode_attention(**inputs.arguments())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = decode_attention(**inputs.arguments())
    for lengths in ([8192, 5], [0, 4097]):
        inputs.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        graph.replay()
        expected, _ = decode_attention(**inputs.arguments())
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_a_million_tokens() -> None:
    inputs = decode_inputs(
        **{**SMALL, "batch": 1, "context_tokens": 1 << 20, "head_dim": 128}, device="cuda"
    )
    assert_matches(inputs)
