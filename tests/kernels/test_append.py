from __future__ import annotations

import math

import pytest
import torch

from lcprof_kernels import caches
from lcprof_kernels.append import append
from lcprof_kernels.append.launch import Tuning, append_triton
from lcprof_kernels.append.reference import pack_int4
from lcprof_kernels.caches import CompressedCache, Format
from lcprof_kernels.errors import KernelInputError
from lcprof_kernels.offline import Job, compile_elsewhere
from lcprof_kernels.quantised_decode.reference import dequantise, unpack_int4

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


def empty(
    layout: Format, page_tokens: int | None, batch: int = 3, device: str = "cpu"
) -> CompressedCache:
    order = None if page_tokens is None else torch.randperm(batch * (256 // page_tokens))
    return caches.empty_cache(
        layout,
        batch=batch,
        kv_heads=2,
        head_dim=64,
        capacity_tokens=256,
        page_tokens=page_tokens,
        page_order=order,
        device=device,
    )


def tensors(cache: CompressedCache) -> dict[str, torch.Tensor]:
    sides = {"keys": cache.keys, "values": cache.values}
    found = {
        f"{name}.{part}": getattr(side, part)
        for name, side in sides.items()
        for part in ("codes", "scale", "low")
        if getattr(side, part) is not None
    }
    for name in ("residual_keys", "residual_values", "lengths"):
        if getattr(cache, name) is not None:
            found[name] = getattr(cache, name)
    return found


def same_steps(
    layout: Format,
    page_tokens: int | None,
    device: str,
    tuning: Tuning | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Prefill-sized, then decode-sized pieces; every tensor equal, bit for bit, after each."""
    torch.manual_seed(1)
    ours = empty(layout, page_tokens, batch=2, device=device)
    theirs = empty(layout, page_tokens, batch=2, device=device)
    if ours.page_table is not None and theirs.page_table is not None:
        theirs.page_table.copy_(ours.page_table)
    for counts in ([33, 63], [1, 1], [70, 0]):
        k, v = (
            torch.randn(2, max(counts), 2, 64, dtype=dtype, device=device) * scale
            for scale in (4.0, 1.0)
        )
        k[..., 5] *= 30
        new = torch.tensor(counts, dtype=torch.int32, device=device)
        if tuning is None:
            append(ours, k, v, new_lengths=new)
        else:
            append_triton(ours, k, v, new, tuning)
        append(theirs, k, v, new_lengths=new, impl="torch")
        expected = tensors(theirs)
        for name, tensor in tensors(ours).items():
            assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name


@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize("layout", FORMATS, ids=NAMES)
def test_same_bits_as_the_reference(layout: Format, page_tokens: int | None) -> None:
    same_steps(layout, page_tokens, "cpu")


INT4 = [layout for layout in FORMATS if layout.code == "int4"]


def pairs(layout: Format) -> Tuning:
    return Tuning(block_n=layout.group_tokens or 16, warps=4, pairs=True)


@pytest.mark.parametrize(
    ("page_tokens", "dtype"), [(None, torch.bfloat16), (64, torch.bfloat16), (None, torch.float16)]
)
@pytest.mark.parametrize("layout", INT4, ids=lambda layout: layout.name)
def test_pairs_give_the_same_bits(
    layout: Format, page_tokens: int | None, dtype: torch.dtype
) -> None:
    same_steps(layout, page_tokens, "cpu", pairs(layout), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize("layout", INT4, ids=lambda layout: layout.name)
def test_pairs_give_the_same_bits_on_a_gpu(
    layout: Format, page_tokens: int | None, dtype: torch.dtype
) -> None:
    same_steps(layout, page_tokens, "cuda", pairs(layout), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("page_tokens", [None, 64])
@pytest.mark.parametrize("layout", FORMATS, ids=NAMES)
def test_same_bits_on_a_gpu(layout: Format, page_tokens: int | None) -> None:
    same_steps(layout, page_tokens, "cuda")


@pytest.mark.parametrize("layout", FORMATS, ids=NAMES)
def test_error_is_at_most_half_a_step(layout: Format) -> None:
    torch.manual_seed(2)
    cache = empty(layout, None, batch=1)
    cache.keys.scale.fill_(0.02 if layout.keys == "tensor" else 1.0)
    k, v = (torch.randn(1, 96, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    append(cache, k, v)
    found, _ = dequantise(cache, 0)
    want = k[0].transpose(0, 1).float()
    span = want.amax() - want.amin()
    if layout.code == "fp8":
        assert bool(((found - want).abs() <= want.abs() / 15 + 2e-3).all())
    else:
        step = span / 15 if layout.code == "int4" else want.abs().amax() / 127
        assert float((found - want).abs().amax()) <= float(step) / 2 * 1.02


def test_a_few_tokens_at_a_time_are_the_same_as_all_at_once() -> None:
    torch.manual_seed(3)
    slow, fast = (empty(caches.int4_kivi(32, 64), None, batch=1) for _ in range(2))
    k, v = (torch.randn(1, 40, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    for start in range(0, 40, 5):
        append(slow, k[:, start : start + 5], v[:, start : start + 5])
    append(fast, k, v)
    assert int(slow.lengths[0]) == 40
    for one, other in zip(dequantise(slow, 0), dequantise(fast, 0), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layout", [FORMATS[1], FORMATS[2], FORMATS[3], FORMATS[6]])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_element_spoils_its_group_alone(layout: Format, bad: float) -> None:
    cache = empty(layout, None, batch=1)
    k, v = (torch.randn(1, 32, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    k[0, 7, 0, 3] = bad
    append(cache, k, v)
    keys, values = dequantise(cache, 0)
    assert bool(keys[0, 7, 3].isnan())
    assert not bool(keys[1].isnan().any())
    assert not bool(values.isnan().any())
    assert int(keys.isnan().sum()) in (32, 64)


def test_zeros_stay_zeros() -> None:
    for layout in FORMATS:
        cache = empty(layout, None, batch=1)
        zeros = torch.zeros(1, 64, 2, 64, dtype=torch.bfloat16)
        append(cache, zeros, zeros)
        for x in dequantise(cache, 0):
            assert bool((x == 0).all())


def test_int4_words_round_trip() -> None:
    codes = torch.randint(0, 16, (3, 5, 64), dtype=torch.int8)
    assert torch.equal(unpack_int4(pack_int4(codes)), codes.int())


def test_strided_input() -> None:
    torch.manual_seed(4)
    ours, theirs = (empty(caches.int8_per_token(), None, batch=1) for _ in range(2))
    wide = torch.randn(1, 20, 4, 64, dtype=torch.bfloat16)
    append(ours, wide[:, :, :2], wide[:, :, 2:])
    append(theirs, wide[:, :, :2].contiguous(), wide[:, :, 2:].contiguous())
    assert torch.equal(ours.keys.codes, theirs.keys.codes)
    assert torch.equal(ours.values.codes, theirs.values.codes)


def test_bad_input_is_refused() -> None:
    cache = empty(caches.int8_per_token(), None, batch=1)
    x = torch.randn(1, 20, 2, 64, dtype=torch.bfloat16)
    with pytest.raises(KernelInputError, match="shape"):
        append(cache, x[:, :, :1], x[:, :, :1])
    with pytest.raises(KernelInputError, match="bfloat16"):
        append(cache, x.float(), x.float())
    with pytest.raises(KernelInputError, match="new_lengths"):
        append(cache, x, x, new_lengths=torch.tensor([21], dtype=torch.int32))
    pair, both = empty(caches.int8_per_token(), None, batch=2), x.expand(2, -1, -1, -1)
    with pytest.raises(KernelInputError, match="new_lengths must be contiguous"):
        append(pair, both, both, new_lengths=torch.tensor([3], dtype=torch.int32).expand(2))
    cache.lengths.fill_(250)
    with pytest.raises(KernelInputError, match="capacity"):
        append(cache, x, x)


def pairs_job(layout: Format, *, arch: int, warps: int) -> Job:
    axes = {"k": "shn", "ks": "shg", "v": "shn", "vs": "shg", "k_in": "bth", "v_in": "bth"}
    strides = [f"{name}_stride_{axis}" for name, letters in axes.items() for axis in letters]
    packed = ["k", "v", "k_codes", "v_codes"]
    kivi = layout.group_tokens is not None
    if kivi:
        strides += [f"r_stride_{axis}" for axis in "bhn"]
        packed += ["residual_k", "residual_v"]
    signature = {
        **dict.fromkeys(packed, "*i32"),
        **dict.fromkeys(["k_scale", "k_low", "v_scale", "v_low"], "*fp16"),
        **dict.fromkeys(["lengths", "new_lengths", "page_table"], "*i32"),
        **dict.fromkeys([*strides, "table_stride", "capacity_tokens"], "i32"),
    }
    kind = "group" if kivi else "token"
    size = {"GROUP_TOKENS": layout.group_tokens} if kivi else {"BLOCK_N": 32}
    return Job(
        kernel=f"lcprof_kernels.append.triton_pairs:append_{kind}_pairs",
        signature=signature,
        constants={
            **size, "HEAD_DIM": 128, "PAGE": 0, "GROUPS": layout.channel_groups(128),
            "KIND": "bf16", "ASSEMBLY": True,
        },
        aligned=list(signature),
        arch=arch,
        num_warps=warps,
    )  # fmt: skip


def test_pairs_compile_without_spills() -> None:
    """A group of keys has one lane to a pair of channels: 8 divisions a lane, not 32."""
    cases = [(caches.int4_per_token(64), 4), (caches.int4_kivi(64, 64), 4),
             (caches.int4_kivi(128, 128), 8)]  # fmt: skip
    jobs = [pairs_job(layout, arch=arch, warps=w) for arch in (80, 90) for layout, w in cases]
    for job, found in zip(jobs, compile_elsewhere(jobs), strict=True):
        assert found.faults() == [], job
        assert found.registers <= 128, job
