"""How compressed KV caches lie in memory: the formats, their tensors, and the one factory.

A cache is a set of slots. A contiguous cache has one slot a sequence, `capacity_tokens` long; a
paged cache has one slot a page, found through `page_table`. Below, `slots` is the batch or the
number of pages and `slot_tokens` the capacity or the tokens of a page. Token t of sequence b lies
in slot b at t, or in slot page_table[b, t // page_tokens] at t % page_tokens.

Codes, `[slots, kv_heads, slot_tokens, ...]`:
- fp8: float8_e4m3fn `[..., head_dim]`, channels in order.
- int8: int8 `[..., head_dim]`, symmetric, channels in order.
- int4: int16 words `[..., head_dim / 4]`; bits 4p to 4p+3 of word j hold channel
  p * head_dim / 4 + j. Two neighbouring words then unpack by masks alone into pairs of fp16
  numbers, without shuffles.

Scales turn codes into numbers, `x = code * scale + low` (`low` only for int4, as code 0):
- "tensor": float32 `[1]`, set by the caller before the first token is written.
- "token": `[slots, kv_heads, groups, slot_tokens]`, one for each token and group of channels
  (groups = 1 for fp8 and int8: one for each token and KV head).
- "channel": `[slots, kv_heads, slot_tokens / group_tokens, head_dim]`, one for each channel
  and group of consecutive tokens (the keys of KIVI, Liu et al., 2024).

A KIVI cache quantises a group of tokens only when it is full. The newest `length % group_tokens`
tokens are kept as bfloat16 in `residual_keys` and `residual_values`, `[batch, kv_heads,
group_tokens, head_dim]`, the oldest of them first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .checks import (
    check_dtype,
    check_last_dim_dense,
    check_one_of,
    check_rows_aligned,
    check_same_device,
    check_shape,
    require,
)

Scaling = Literal["tensor", "token", "channel"]
HEAD_DIMS = (64, 128, 256)
GROUPS = (32, 64, 128)
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CODE_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int4": torch.int16}
LARGEST_CODE = {"fp8": 448.0, "int8": 127.0, "int4": 15.0}


@dataclass(frozen=True, kw_only=True)
class Format:
    """What a code is and what shares a scale.

    `group_tokens` is set where keys are scaled by channel, `group_channels` where tokens have more
    than one scale.
    """

    name: str
    code: Literal["fp8", "int8", "int4"]
    keys: Scaling
    values: Scaling
    group_tokens: int | None = None
    group_channels: int | None = None

    def channel_groups(self, head_dim: int) -> int:
        """Scales of one token and head where scaling is by token."""
        return 1 if self.group_channels is None else head_dim // self.group_channels

    def codes_per_token(self, head_dim: int) -> int:
        """Elements of the code tensor that one token and head take."""
        return head_dim // 4 if self.code == "int4" else head_dim

    def closed(self, lengths: torch.Tensor) -> torch.Tensor:
        """How many of each sequence's tokens are held as codes, not in the residual."""
        if self.group_tokens is None:
            return lengths
        return lengths // self.group_tokens * self.group_tokens


def fp8_per_tensor() -> Format:
    """e4m3 codes, one float32 scale for all keys and one for all values."""
    return Format(name="fp8-tensor", code="fp8", keys="tensor", values="tensor")


def fp8_per_token() -> Format:
    """e4m3 codes, a scale for each token and KV head."""
    return Format(name="fp8-token", code="fp8", keys="token", values="token")


def int8_per_token() -> Format:
    """Symmetric int8 codes, a scale for each token and KV head."""
    return Format(name="int8-token", code="int8", keys="token", values="token")


def int4_kivi(group_tokens: int = 64, group_channels: int = 64) -> Format:
    """int4: keys by channel over groups of tokens, values by token over groups of channels."""
    check_one_of("group_tokens", group_tokens, GROUPS)
    check_one_of("group_channels", group_channels, GROUPS)
    return Format(
        name=f"int4-kivi-{group_tokens}",
        code="int4",
        keys="channel",
        values="token",
        group_tokens=group_tokens,
        group_channels=group_channels,
    )


def int4_per_token(group_channels: int = 64) -> Format:
    """int4: keys and values by token over groups of channels."""
    check_one_of("group_channels", group_channels, GROUPS)
    return Format(
        name=f"int4-token-{group_channels}",
        code="int4",
        keys="token",
        values="token",
        group_channels=group_channels,
    )


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """The keys, or the values: codes, scales, and for int4 the number that code 0 stands for."""

    codes: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class CompressedCache:
    """The tensors of one layer's cache. `lengths` int32 [batch] counts the tokens written.

    `capacity_tokens` is the longest sequence it can hold. `page_table`, int32 [batch, max_pages],
    and `page_tokens` are None for a contiguous cache.
    """

    format: Format
    head_dim: int
    kv_heads: int
    capacity_tokens: int
    lengths: torch.Tensor
    keys: Quantised
    values: Quantised
    residual_keys: torch.Tensor | None = None
    residual_values: torch.Tensor | None = None
    page_table: torch.Tensor | None = None
    page_tokens: int | None = None

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.lengths.shape[0]

    @property
    def slot_tokens(self) -> int:
        """Tokens of one slot: a page, or a whole sequence."""
        return self.page_tokens or self.capacity_tokens


def empty_cache(
    layout: Format,
    *,
    batch: int,
    kv_heads: int,
    head_dim: int,
    capacity_tokens: int,
    page_tokens: int | None = None,
    scale_dtype: torch.dtype = torch.float16,
    device: torch.device | str = "cpu",
    page_order: torch.Tensor | None = None,
) -> CompressedCache:
    """A cache with no tokens.

    A KIVI cache's capacity, and any page, is a whole number of groups of tokens. A paged cache
    gets just enough pages, handed out in `page_order` (a permutation; ascending when None).
    Raises `KernelInputError` for a shape that the format cannot take.
    """
    check_one_of("head_dim", head_dim, HEAD_DIMS)
    check_one_of("scale_dtype", scale_dtype, SCALE_DTYPES)
    check_channel_groups(layout, head_dim)
    step = layout.group_tokens or 1
    require(
        capacity_tokens > 0 and capacity_tokens % step == 0,
        f"capacity_tokens must be a positive multiple of {step}, got {capacity_tokens}",
    )
    table = None
    slots, slot_tokens = batch, capacity_tokens
    if page_tokens is not None:
        check_page(page_tokens, layout)
        per_sequence = -(-capacity_tokens // page_tokens)
        slots, slot_tokens = batch * per_sequence, page_tokens
        order = torch.arange(slots) if page_order is None else page_order
        table = order.to(device=device, dtype=torch.int32).reshape(batch, per_sequence)

    def side(scaling: Scaling) -> Quantised:
        shape: tuple[int, ...] = (1,)
        dtype = torch.float32
        if scaling != "tensor":
            dtype = scale_dtype
            shape = (slots, kv_heads, layout.channel_groups(head_dim), slot_tokens)
        if scaling == "channel":
            shape = (slots, kv_heads, slot_tokens // step, head_dim)
        codes = (slots, kv_heads, slot_tokens, layout.codes_per_token(head_dim))
        return Quantised(
            codes=torch.zeros(codes, dtype=CODE_DTYPES[layout.code], device=device),
            scale=torch.ones(shape, dtype=dtype, device=device),
            low=torch.zeros(shape, dtype=dtype, device=device) if layout.code == "int4" else None,
        )

    residual = [
        torch.zeros(batch, kv_heads, step, head_dim, dtype=torch.bfloat16, device=device)
        for _ in range(2 if layout.group_tokens else 0)
    ]
    return CompressedCache(
        format=layout,
        head_dim=head_dim,
        kv_heads=kv_heads,
        capacity_tokens=capacity_tokens,
        lengths=torch.zeros(batch, dtype=torch.int32, device=device),
        keys=side(layout.keys),
        values=side(layout.values),
        residual_keys=residual[0] if residual else None,
        residual_values=residual[1] if residual else None,
        page_table=table,
        page_tokens=page_tokens,
    )


def check_channel_groups(layout: Format, head_dim: int) -> None:
    """Groups of channels divide head_dim, into at most four: a plane of int4 codes has one
    scale.
    """
    size = layout.group_channels
    require(
        size is None or (head_dim % size == 0 and head_dim // size <= 4),
        f"group_channels {size} must divide head_dim {head_dim} into at most 4 groups",
    )


def check_page(page_tokens: int, layout: Format) -> None:
    """A page is a power of two of at least 64 tokens, and a whole number of groups."""
    require(
        page_tokens >= 64 and page_tokens & (page_tokens - 1) == 0,
        f"page_tokens must be a power of two of at least 64, got {page_tokens}",
    )
    require(
        layout.group_tokens is None or page_tokens % layout.group_tokens == 0,
        f"page_tokens {page_tokens} must be a multiple of group_tokens {layout.group_tokens}",
    )


def check_cache(cache: CompressedCache) -> torch.device:
    """The device of a cache whose tensors have the shapes, dtypes and strides of its format.

    Values held on the device (lengths, page numbers) are checked only on a CPU, where looking at
    them does not wait for a GPU.
    """
    layout = cache.format
    check_one_of("head_dim", cache.head_dim, HEAD_DIMS)
    check_channel_groups(layout, cache.head_dim)
    step = layout.group_tokens or 1
    tokens = cache.slot_tokens
    slots: int | None = cache.batch
    if cache.page_tokens is not None:
        check_page(cache.page_tokens, layout)
        slots = None
        require(cache.page_table is not None, "a paged cache needs a page_table")
    require(
        cache.lengths.dim() == 1 and cache.lengths.is_contiguous(),
        "lengths must have shape [batch] and be contiguous",
    )
    check_dtype("lengths", cache.lengths, [torch.int32])
    tensors: dict[str, torch.Tensor | None] = {
        "lengths": cache.lengths,
        "page_table": cache.page_table,
        "residual_keys": cache.residual_keys,
        "residual_values": cache.residual_values,
    }
    for name, side, scaling in (
        ("keys", cache.keys, layout.keys),
        ("values", cache.values, layout.values),
    ):
        width = layout.codes_per_token(cache.head_dim)
        check_shape(
            f"{name}.codes",
            side.codes,
            (slots, cache.kv_heads, tokens, width),
            "[slots, kv_heads, slot_tokens, codes]",
        )
        check_dtype(f"{name}.codes", side.codes, [CODE_DTYPES[layout.code]])
        check_last_dim_dense(f"{name}.codes", side.codes)
        check_rows_aligned(f"{name}.codes", side.codes)
        require(
            (side.low is not None) == (layout.code == "int4"),
            f"{name}.low must be given for int4 and only there",
        )
        shape: tuple[int | None, ...] = (1,)
        words = "[1]"
        if scaling == "token":
            shape = (slots, cache.kv_heads, layout.channel_groups(cache.head_dim), tokens)
            words = "[slots, kv_heads, channel_groups, slot_tokens]"
        elif scaling == "channel":
            shape = (slots, cache.kv_heads, tokens // step, cache.head_dim)
            words = "[slots, kv_heads, token_groups, head_dim]"
        for part, tensor in (("scale", side.scale), ("low", side.low)):
            if tensor is None:
                continue
            check_shape(f"{name}.{part}", tensor, shape, words)
            allowed = [torch.float32] if scaling == "tensor" else SCALE_DTYPES
            check_dtype(f"{name}.{part}", tensor, allowed)
            check_last_dim_dense(f"{name}.{part}", tensor)
            require(
                tensor.stride() == side.scale.stride() and tensor.dtype == side.scale.dtype,
                f"{name}.low must have the strides and dtype of {name}.scale",
            )
        tensors |= {f"{name}.codes": side.codes, f"{name}.scale": side.scale}
        tensors[f"{name}.low"] = side.low
    for name, tensor in (
        ("residual_keys", cache.residual_keys),
        ("residual_values", cache.residual_values),
    ):
        require(
            (tensor is not None) == (layout.group_tokens is not None),
            f"{name} must be given where keys are scaled by channel and only there",
        )
        if tensor is not None:
            check_shape(
                name,
                tensor,
                (cache.batch, cache.kv_heads, step, cache.head_dim),
                "[batch, kv_heads, group_tokens, head_dim]",
            )
            check_dtype(name, tensor, [torch.bfloat16])
            require(tensor.is_contiguous(), f"{name} must be contiguous")
    device = check_same_device(**tensors)
    _check_pages(cache, device)
    return device


def _check_pages(cache: CompressedCache, device: torch.device) -> None:
    table = cache.page_table
    if table is not None and cache.page_tokens is not None:
        check_dtype("page_table", table, [torch.int32])
        check_shape("page_table", table, (cache.batch, None), "[batch, max_pages]")
        check_last_dim_dense("page_table", table)
        require(
            table.shape[1] * cache.page_tokens >= cache.capacity_tokens,
            f"page_table has {table.shape[1]} pages a sequence, "
            f"too few for {cache.capacity_tokens} tokens",
        )
    if device.type != "cpu":
        return
    longest = int(cache.lengths.max()) if cache.batch else 0
    require(
        longest <= cache.capacity_tokens and int(cache.lengths.min() if cache.batch else 0) >= 0,
        f"lengths must lie between 0 and capacity_tokens = {cache.capacity_tokens}",
    )
    if table is None or cache.page_tokens is None:
        return
    used = torch.arange(table.shape[1])[None, :] * cache.page_tokens < cache.lengths[:, None]
    pages = cache.keys.codes.shape[0]
    inside = (table >= 0) & (table < pages)
    require(bool(inside[used].all()), f"page_table names a page outside 0 to {pages - 1}")
