"""What the benchmark times of compressed decode: each format beside cuDNN in bf16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lcprof_kernels.bench.case import Case, Choices
from lcprof_kernels.budget import Budget, tolerance
from lcprof_kernels.caches import (
    CompressedCache,
    Format,
    fp8_per_tensor,
    fp8_per_token,
    int4_kivi,
    int4_per_token,
    int8_per_token,
)
from lcprof_kernels.device import capability_of

from . import choices as launch_choices
from .api import quantised_decode
from .inputs import QuantisedDecodeInputs, make_quantised_decode_inputs
from .launch import Tuning, choose_tuning, quantised_decode_triton, query_rows
from .reference import attend, dequantise

FORMATS = (
    fp8_per_tensor(),
    fp8_per_token(),
    int8_per_token(),
    int4_per_token(64),
    int4_per_token(128),
    int4_kivi(64, 64),
    int4_kivi(128, 128),
)


def cache_bytes(cache: CompressedCache) -> int:
    """Bytes of codes, scales and lows."""
    return sum(
        tensor.numel() * tensor.element_size()
        for side in (cache.keys, cache.values)
        for tensor in (side.codes, side.scale, side.low)
        if tensor is not None
    )


@dataclass
class Prepared:
    """A filled cache, and the same keys and values in bfloat16 for dense decoding."""

    given: QuantisedDecodeInputs

    @cached_property
    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Dequantised K and V `[batch, kv_heads, context_tokens, head_dim]`."""
        cache, q = self.given.cache, self.given.q
        shape = (cache.batch, cache.kv_heads, cache.capacity_tokens, cache.head_dim)
        k, v = (torch.empty(shape, dtype=q.dtype, device=q.device) for _ in range(2))
        for b in range(cache.batch):
            k[b], v[b] = dequantise(cache, b)
        return k, v

    @cached_property
    def picks(self) -> list[int]:
        """The sequences that a result is checked on: the first and the last."""
        return sorted({0, self.given.cache.batch - 1})

    @cached_property
    def budget(self) -> Budget:
        """The oracle on the checked sequences, and the error it allows."""
        cache, q = self.given.cache, self.given.q

        def reference(dtype: torch.dtype) -> torch.Tensor:
            scale = cache.head_dim**-0.5
            return torch.stack(
                [attend(q[b], *dequantise(cache, b), scale, dtype)[0] for b in self.picks]
            )

        return tolerance(reference(torch.float32), reference(q.dtype))


def check(prepared: Prepared, out: torch.Tensor) -> tuple[float, float]:
    """Largest error on the checked sequences, and the largest allowed."""
    return prepared.budget.judge(out[prepared.picks])


def _ours(prepared: Prepared) -> torch.Tensor:
    return quantised_decode(prepared.given.q, prepared.given.cache)[0]


def _with(prepared: Prepared, tuning: Tuning) -> torch.Tensor:
    """What `_ours` launches, by another record."""
    q, cache = prepared.given.q, prepared.given.cache
    scale = cache.head_dim**-0.5
    return quantised_decode_triton(q, cache, scale, cache.capacity_tokens, tuning)[0]


def _cudnn_bf16(prepared: Prepared) -> torch.Tensor:
    k, v = prepared.dense
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(
            prepared.given.q.transpose(1, 2), k, v, enable_gqa=True
        ).transpose(1, 2)


def decode_case(
    layout: Format,
    *,
    batch: int,
    context_tokens: int,
    heads: tuple[int, int] = (32, 8),
    head_dim: int = 128,
    page_tokens: int | None = None,
    query_tokens: int = 1,
) -> Case:
    """One format on one shape; bytes are those of the compressed cache."""
    q_heads, kv_heads = heads
    groups = layout.channel_groups(head_dim)
    code_bytes = head_dim // 2 if layout.code == "int4" else head_dim
    by_token = 0 if layout.keys == "tensor" else 2 * groups * (2 if layout.code == "int4" else 1)
    token_bytes = 2 * code_bytes + 2 * by_token
    if layout.group_tokens is not None:
        token_bytes += 4 * head_dim // layout.group_tokens - by_token

    def make_inputs(device: torch.device) -> Prepared:
        return Prepared(
            given=make_quantised_decode_inputs(
                layout,
                lengths=[context_tokens] * batch,
                q_heads=q_heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                query_tokens=query_tokens,
                page_tokens=page_tokens,
                device=device,
                impl="triton",
            )
        )

    rows = query_rows(q_heads, kv_heads, query_tokens)

    def choices(device: torch.device) -> Choices:
        hopper, paged = capability_of(device) >= (9, 0), page_tokens is not None
        return Choices(
            place=launch_choices.place(layout, head_dim, rows, page_tokens=page_tokens),
            present=choose_tuning(layout, head_dim, rows, paged=paged, hopper=hopper),
            others=launch_choices.others(
                layout, head_dim, rows, page_tokens=page_tokens, hopper=hopper
            ),
            run=_with,
        )

    implementations: dict[str, Callable[[Prepared], torch.Tensor]] = {"triton": _ours}
    if query_tokens == 1:
        implementations["cudnn-bf16"] = _cudnn_bf16
    return Case(
        op="quantised_decode",
        variant=layout.name,
        dtype="bfloat16",
        kv_dtype=layout.code,
        batch=batch,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query_tokens=query_tokens,
        context_tokens=context_tokens,
        page_tokens=page_tokens,
        bytes=batch * kv_heads * context_tokens * token_bytes,
        flops=4 * batch * query_tokens * q_heads * context_tokens * head_dim,
        make_inputs=make_inputs,
        implementations=implementations,
        check=check,
        choices=choices,
    )


def cases(*, quick: bool) -> list[Case]:
    """Every format at 1 GB of bf16 KV and more; pages, other heads and speculation beside them."""
    shapes = [(1, 262144), (8, 131072)]
    if not quick:
        shapes += [(1, 1048576), (64, 32768)]
    found = []
    for layout in FORMATS:
        page = max(64, layout.group_tokens or 64)
        found += [decode_case(layout, batch=b, context_tokens=t) for b, t in shapes]
        if quick:
            continue
        found += [decode_case(layout, batch=b, context_tokens=t, heads=(64, 8)) for b, t in shapes]
        found += [
            decode_case(layout, batch=8, context_tokens=131072, page_tokens=page),
            decode_case(layout, batch=8, context_tokens=131072, query_tokens=4),
        ]
        if layout.group_channels != 128:
            found.append(decode_case(layout, batch=8, context_tokens=131072, head_dim=64))
    return found
