"""What a layer caches, before any strategy: streams of per-token elements, and fixed states."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from lcprof.domain.model import (
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    Mixer,
    RecurrentState,
)

INDEX_KEY_SCALE_BYTES = 4
"""DSA keeps each index key in fp8 with one fp32 scale: 128 + 4 B (DeepSeek-V3.2)."""
BLOCK_INDEX_BYTES = 2
"""MiniMax-M3 states no index dtype; its index keys are counted in bf16."""
CONV_BYTES = 2
"""Convolution tails are held in the activation dtype, bf16."""


class Stream(Struct, frozen=True, kw_only=True):
    """One sequence's cache of one kind in one layer.

    A token leaves `k_elements` + `v_elements` in each of `heads` heads (`v_elements=0`: V is read
    from K's elements, as in MLA), shared by `tokens_per_entry` tokens. `plain_elements` of K are
    rope keys, which grouped formats leave in bf16. Only the last `cap_tokens` are kept (None: all
    of them), and a decode step reads at most `read_tokens` of them (None: what is kept).
    `index_bytes` fixes the bytes of a token for index keys, which no strategy touches. A
    `companion` is a bounded stream beside a growing one in the same layer: no engine would keep it
    at full length.
    """

    kind: Literal["kv", "index"] = "kv"
    heads: int
    k_elements: int
    v_elements: int
    plain_elements: int = 0
    tokens_per_entry: int = 1
    cap_tokens: int | None = None
    read_tokens: int | None = None
    index_bytes: float = 0.0
    companion: bool = False

    @property
    def elements(self) -> int:
        """Elements that one entry holds in all heads."""
        return self.heads * (self.k_elements + self.v_elements)


def streams(mixer: Mixer | None) -> tuple[Stream, ...]:
    """The caches that a layer with this mixer fills; a recurrent or absent mixer has none."""
    if isinstance(mixer, GroupedAttention):
        return _grouped_streams(mixer)
    if isinstance(mixer, LatentAttention):
        indexer = mixer.indexer
        latent = Stream(
            heads=1,
            k_elements=mixer.latent_dim + mixer.rope_dim,
            v_elements=0,
            plain_elements=mixer.rope_dim,
            read_tokens=indexer.top_tokens if indexer else None,
        )
        if indexer is None or not indexer.owns_keys:
            return (latent,)
        return (latent, _index_stream(indexer.key_dim + INDEX_KEY_SCALE_BYTES))
    if isinstance(mixer, CompressedAttention):
        return _compressed_streams(mixer)
    return ()


def state_bytes(mixer: Mixer | None) -> float:
    """Bytes of a recurrent layer's state for one sequence, convolution tail included."""
    if not isinstance(mixer, RecurrentState):
        return 0.0
    return float(mixer.state_elements * mixer.state_bytes + mixer.conv_elements * CONV_BYTES)


def _grouped_streams(mixer: GroupedAttention) -> tuple[Stream, ...]:
    if mixer.shares_cache:
        return ()
    selection = mixer.selection
    kv = Stream(
        heads=mixer.kv_heads,
        k_elements=mixer.k_dim,
        v_elements=mixer.v_dim,
        cap_tokens=mixer.window_tokens or mixer.chunk_tokens,
        read_tokens=selection.block_tokens * selection.top_blocks if selection else None,
    )
    if selection is None:
        return (kv,)
    return (kv, _index_stream(selection.key_dim * BLOCK_INDEX_BYTES))


def _compressed_streams(mixer: CompressedAttention) -> tuple[Stream, ...]:
    recent = Stream(
        heads=1,
        k_elements=mixer.vector_dim,
        v_elements=0,
        cap_tokens=mixer.window_tokens,
        companion=True,
    )
    if mixer.ratio == 0:
        return (recent,)
    indexer = mixer.indexer
    compressed = Stream(
        heads=1,
        k_elements=mixer.vector_dim,
        v_elements=0,
        tokens_per_entry=mixer.ratio,
        read_tokens=indexer.top_tokens * mixer.ratio if indexer else None,
    )
    if indexer is None or not indexer.owns_keys:
        return (recent, compressed)
    index = _index_stream((indexer.key_dim + INDEX_KEY_SCALE_BYTES) / mixer.ratio)
    return (recent, compressed, index)


def _index_stream(token_bytes: float) -> Stream:
    return Stream(kind="index", heads=1, k_elements=0, v_elements=0, index_bytes=token_bytes)
