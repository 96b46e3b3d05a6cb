"""What a model is, for counting: layer groups of mixers and feed-forwards made of weight matrices.

A model is a sum of layer groups, not one layer times `layers`: full, windowed, chunked, latent,
compressed, sparse and recurrent layers mix freely. Every weight is named once, as a `Matrix` or as
a count of vector parameters, so parameters, bytes, FLOPs and sharding all come from one list.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from lcprof.domain.weights import BF16, WeightFormat

Split = Literal["q_heads", "kv_heads", "width", "vocab", "none"]
"""What tensor parallelism cuts: query heads, KV heads (copied beyond their number), an FFN or
state width, the vocabulary, or nothing (every rank holds the whole matrix)."""


class Matrix(Struct, frozen=True, kw_only=True):
    """A weight matrix applied to each token: y[outputs] = x[inputs] W, 2·inputs·outputs FLOPs.

    `split_count` is how many pieces the split can make (heads, or the width in elements).
    `fixed` marks matrices that a weight-quantisation setting of the scenario leaves alone
    (routers, embeddings, the output head).
    """

    name: str
    inputs: int
    outputs: int
    split: Split = "none"
    split_count: int = 0
    format: WeightFormat = BF16
    fixed: bool = False

    @property
    def params(self) -> int:
        return self.inputs * self.outputs


class TokenIndexer(Struct, frozen=True, kw_only=True):
    """Scores every cached token with small index keys and keeps the best (DeepSeek sparse
    attention, DSA). `owns_keys` is False on layers that reuse another layer's choice."""

    heads: int
    key_dim: int
    top_tokens: int
    owns_keys: bool = True


class BlockSelection(Struct, frozen=True, kw_only=True):
    """Reads only the best blocks of a full cache (MiniMax-M3): `top_blocks` of `block_tokens`,
    chosen by `heads` index heads over index keys of `key_dim`, plus `local_blocks` nearest."""

    block_tokens: int
    top_blocks: int
    local_blocks: int
    heads: int
    key_dim: int


class GroupedAttention(Struct, frozen=True, kw_only=True):
    """Softmax attention over cached K and V: MHA, GQA, MQA, MFA; full, sliding or chunked.

    A query sees itself and the `window_tokens` - 1 tokens before it, or its own chunk of
    `chunk_tokens` (Llama 4), or everything. `shares_cache` layers read another layer's K and V
    and store none (cross-layer KV sharing).
    """

    q_heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    matrices: tuple[Matrix, ...]
    vectors: int = 0
    window_tokens: int | None = None
    chunk_tokens: int | None = None
    selection: BlockSelection | None = None
    shares_cache: bool = False


class LatentAttention(Struct, frozen=True, kw_only=True):
    """Multi-head latent attention (MLA): one latent and one rope key per token, for all heads.

    The matrix named "kv_up" expands a latent into per-head keys and values; decode absorbs it
    (DeepSeek-V2, arXiv:2405.04434, section 2.1).
    """

    q_heads: int
    latent_dim: int
    rope_dim: int
    nope_dim: int
    v_dim: int
    matrices: tuple[Matrix, ...]
    vectors: int = 0
    indexer: TokenIndexer | None = None


class CompressedAttention(Struct, frozen=True, kw_only=True):
    """Attention over one shared K=V vector per `ratio` tokens, plus a window of raw tokens
    (DeepSeek-V4). `ratio=0`: the window alone. The indexer, if any, picks among compressed
    entries."""

    q_heads: int
    vector_dim: int
    ratio: int
    window_tokens: int
    matrices: tuple[Matrix, ...]
    vectors: int = 0
    indexer: TokenIndexer | None = None


class RecurrentState(Struct, frozen=True, kw_only=True):
    """A layer with a state of constant size: gated delta net, KDA, lightning attention, Mamba.

    `state_elements` are held in `state_bytes` bytes each, `conv_elements` (the convolution's
    tail) in the activation dtype. `flops_per_token` counts the recurrence without the matrices.
    """

    kind: str
    heads: int
    state_elements: int
    state_bytes: int
    conv_elements: int
    flops_per_token: int
    matrices: tuple[Matrix, ...]
    vectors: int = 0


Mixer: TypeAlias = GroupedAttention | LatentAttention | CompressedAttention | RecurrentState


class FeedForward(Struct, frozen=True, kw_only=True):
    """A dense or mixture-of-experts feed-forward.

    `matrices` run for every token (a dense FFN, the router, shared experts). `expert` are the
    matrices of one routed expert, of which `experts` exist and `experts_per_token` run.
    """

    matrices: tuple[Matrix, ...] = ()
    expert: tuple[Matrix, ...] = ()
    experts: int = 0
    experts_per_token: int = 0
    vectors: int = 0
    expert_vectors: int = 0


class LayerGroup(Struct, frozen=True, kw_only=True):
    """Layers of one make. Either part may be absent (Nemotron-H alternates them)."""

    name: str
    mixer: Mixer | None
    ffn: FeedForward | None
    vectors: int = 0


SCALABLE = ("default", "mrope", "yarn", "llama3", "linear", "dynamic")
"""Kinds of rope that one factor takes further."""


class Rope(Struct, frozen=True, kw_only=True):
    """Position encoding as the config states it: base `theta` and the scaling's own keys.

    `kind` is "none", "default", "linear", "dynamic", "yarn", "longrope", "llama3",
    "proportional", "mrope" or "dual-chunk". `original_positions` is the length before scaling, or
    the one trained on where the config claims more.

    Of a scalable kind, `block` holds the rope's entries whole, with what `rope_parameters` of
    transformers v5 has beside the config's own, `key` the entry of the config that they came from,
    `path` the entries that lead to the text part. `unsaid` is why no such block tells the rope.
    """

    kind: str = "default"
    theta: float | None = None
    factor: float = 1.0
    original_positions: int | None = None
    block: dict[str, Any] = {}
    key: str = "rope_scaling"
    path: tuple[str, ...] = ()
    unsaid: str = ""


class ModelShape(Struct, frozen=True, kw_only=True, eq=False):
    """A whole model. `order[i]` is the index in `groups` of layer i, in depth order.

    Compared by identity: a model is read once and passed around.
    `assumptions` are sentences on what the reader had to assume, `positions` the length that the
    config claims (None when it does not say).
    """

    name: str
    hidden: int
    vocab: int
    groups: tuple[LayerGroup, ...]
    order: tuple[int, ...]
    tied_embeddings: bool
    embedding_format: WeightFormat = BF16
    extra_embedding_params: int = 0
    vectors: int = 0
    positions: int | None = None
    rope: Rope = Rope()
    assumptions: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        return len(self.order)

    def group_counts(self) -> tuple[int, ...]:
        """How many layers each group has."""
        return tuple(self.order.count(index) for index in range(len(self.groups)))

    @property
    def params(self) -> int:
        """Parameters of the text model, tied embeddings counted once, without MTP layers."""
        return self._count(active=False)

    @property
    def active_params(self) -> int:
        """Parameters that one token touches, embeddings included (as the vendors count)."""
        return self._count(active=True)

    def _count(self, *, active: bool) -> int:
        copies = 1 if self.tied_embeddings else 2
        total = copies * self.vocab * self.hidden + self.extra_embedding_params + self.vectors
        for group, count in zip(self.groups, self.group_counts(), strict=True):
            each = group.vectors
            if group.mixer is not None:
                each += group.mixer.vectors + sum(m.params for m in group.mixer.matrices)
            if group.ffn is not None:
                ffn = group.ffn
                running = ffn.experts_per_token if active else ffn.experts
                expert = sum(m.params for m in ffn.expert) + ffn.expert_vectors
                each += ffn.vectors + sum(m.params for m in ffn.matrices) + running * expert
            total += count * each
        return total
