"""What the benchmark times of quantise-and-append: a long prefill and one decode step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lcprof_kernels.bench.case import Case, Choices
from lcprof_kernels.budget import errors
from lcprof_kernels.caches import (
    CompressedCache,
    Format,
    empty_cache,
    fp8_per_tensor,
    fp8_per_token,
    int4_kivi,
    int4_per_token,
    int8_per_token,
)

from . import choices as launch_choices
from .api import append
from .inputs import draw
from .launch import Tuning, append_triton, choose_tuning
from .reference import append_eager

FORMATS = (
    fp8_per_tensor(),
    fp8_per_token(),
    int8_per_token(),
    int4_per_token(64),
    int4_per_token(128),
    int4_kivi(64, 64),
    int4_kivi(128, 128),
)
CHECKED_TOKENS = 512


@dataclass
class Prepared:
    """A cache that holds `held_tokens` tokens a sequence, and the tokens to append."""

    cache: CompressedCache
    k: torch.Tensor
    v: torch.Tensor
    new_lengths: torch.Tensor
    held_tokens: int


def run(prepared: Prepared) -> torch.Tensor:
    """Append from the same state each time; the codes of the keys."""
    prepared.cache.lengths.fill_(prepared.held_tokens)
    append(prepared.cache, prepared.k, prepared.v, new_lengths=prepared.new_lengths)
    return prepared.cache.keys.codes


def run_with(prepared: Prepared, tuning: Tuning) -> torch.Tensor:
    """What `run` launches, by another record."""
    prepared.cache.lengths.fill_(prepared.held_tokens)
    append_triton(prepared.cache, prepared.k, prepared.v, prepared.new_lengths, tuning)
    return prepared.cache.keys.codes


def check(prepared: Prepared, codes: torch.Tensor) -> tuple[float, float]:
    """Codes, scales and lows of the first tokens against the eager reference: equal bit for bit.

    Every tensor of the cache is emptied, so that the next result is not taken for this one.
    """
    if prepared.held_tokens:
        return 0.0, 0.0
    cache = prepared.cache
    count = min(CHECKED_TOKENS, prepared.k.shape[1])
    count -= count % (cache.format.group_tokens or 1)
    small = empty_cache(
        cache.format,
        batch=1,
        kv_heads=cache.kv_heads,
        head_dim=cache.head_dim,
        capacity_tokens=count,
        device=codes.device,
    )
    if cache.format.keys == "tensor":
        small.keys.scale.copy_(cache.keys.scale)
        small.values.scale.copy_(cache.values.scale)
    append_eager(
        small, prepared.k[:1, :count], prepared.v[:1, :count], torch.full_like(small.lengths, count)
    )
    wrong = 0.0
    for have, want, scaling in (
        (cache.keys, small.keys, cache.format.keys),
        (cache.values, small.values, cache.format.values),
    ):
        for name in ("codes", "scale", "low"):
            found, expected = getattr(have, name), getattr(want, name)
            if expected is None or (name == "scale" and scaling == "tensor"):
                continue
            found, expected = found.view(torch.uint8), expected.view(torch.uint8)[0]
            axis = 2 if name != "codes" and scaling == "token" else 1
            first = first_tokens(cache, found, expected.shape, axis)
            wrong = max(wrong, errors(expected.float(), first.float())[0])
            found.zero_()
    return wrong, 0.0


def first_tokens(
    cache: CompressedCache, tensor: torch.Tensor, shape: torch.Size, axis: int
) -> torch.Tensor:
    """The start of the first sequence in one tensor of a cache, whose tokens run along `axis`."""
    table = cache.page_table
    part = tensor[0]
    if table is not None:
        needed = -(-shape[axis] // part.shape[axis])
        part = torch.cat(list(tensor[table[0, :needed].long()]), axis)
    return part[tuple(slice(0, size) for size in shape)]


def append_case(
    layout: Format, *, batch: int, new_tokens: int, held_tokens: int = 0, page: bool = False
) -> Case:
    """One format; bytes are those read of K and V and written of codes and scales."""
    kv_heads, head_dim = 8, 128
    step = layout.group_tokens or 1
    page_tokens = max(64, step) if page else None
    room = max(step, page_tokens or 1)
    capacity = -(-(held_tokens + new_tokens) // room) * room
    groups = layout.channel_groups(head_dim)
    parts = 2 if layout.code == "int4" else 1
    scale_bytes = 0 if layout.keys == "tensor" else 2 * 2 * groups * parts
    if layout.group_tokens is not None:
        scale_bytes = 2 * groups * parts + 4 * head_dim // layout.group_tokens
    code_bytes = head_dim // 2 if layout.code == "int4" else head_dim
    token_bytes = 2 * 2 * head_dim + 2 * code_bytes + scale_bytes

    def make_inputs(device: torch.device) -> Prepared:
        generator = torch.Generator(device).manual_seed(0)
        k, v = (
            draw(
                generator,
                batch=batch,
                new_tokens=new_tokens,
                kv_heads=kv_heads,
                head_dim=head_dim,
                outliers=outliers,
            )
            for outliers in (True, False)
        )
        cache = empty_cache(
            layout,
            batch=batch,
            kv_heads=kv_heads,
            head_dim=head_dim,
            capacity_tokens=capacity,
            page_tokens=page_tokens,
            device=device,
        )
        return Prepared(
            cache=cache,
            k=k,
            v=v,
            new_lengths=torch.full_like(cache.lengths, new_tokens),
            held_tokens=held_tokens,
        )

    def choices(_: torch.device) -> Choices:
        return Choices(
            place=launch_choices.place(layout, head_dim, new_tokens),
            present=choose_tuning(layout, head_dim, new_tokens),
            others=launch_choices.others(layout, head_dim, new_tokens),
            run=run_with,
        )

    return Case(
        op="append",
        variant=f"{layout.name}{' decode' if held_tokens else ' prefill'}",
        dtype="bfloat16",
        kv_dtype=layout.code,
        batch=batch,
        q_heads=kv_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query_tokens=new_tokens,
        context_tokens=held_tokens + new_tokens,
        page_tokens=page_tokens,
        bytes=batch * kv_heads * new_tokens * token_bytes,
        flops=0,
        make_inputs=make_inputs,
        implementations={"triton": run},
        check=check,
        choices=choices,
    )


def cases(*, quick: bool) -> list[Case]:
    """Prefill of 128 K tokens, contiguous and paged; one decode step of 64 sequences."""
    found = []
    for layout in FORMATS:
        found.append(append_case(layout, batch=1, new_tokens=131072))
        if not quick:
            found += [
                append_case(layout, batch=1, new_tokens=131072, page=True),
                append_case(layout, batch=64, new_tokens=1, held_tokens=4095),
            ]
    return found
