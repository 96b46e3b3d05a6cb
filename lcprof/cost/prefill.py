"""The work of a chunked prefill of one sequence."""

from __future__ import annotations

from typing import Generic

from msgspec import Struct

from lcprof.cost.layer import Batch, embedding_operation, layer_operations, logits_operation
from lcprof.cost.operation import ACTIVATION_BYTES, Operation
from lcprof.cost.pairs import (
    capped_pairs,
    causal_pairs,
    chunk_count,
    chunk_ends,
    chunked_pairs,
    compressed_pairs,
    index_pair_flops,
    pair_flops,
)
from lcprof.cost.sharding import cut_share, kv_share
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.strategy import Sight
from lcprof.domain.kv.stream import Stream, streams
from lcprof.domain.model import (
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    Mixer,
    ModelShape,
    RecurrentState,
)
from lcprof.domain.workload import Workload
from lcprof.num import Num, larger, smaller


class Span(Struct, Generic[Num], frozen=True, kw_only=True):
    """`tokens` new tokens after `start` cached ones, computed `chunk_tokens` at a time. `groups`
    groups of data-parallel attention each read such a prompt at once."""

    start: Num
    tokens: Num
    chunk_tokens: float
    groups: float = 1.0

    @staticmethod
    def of(workload: Workload[Num]) -> Span[Num]:
        """What a request's prefill computes: the prompt beyond the shared prefix."""
        return Span(
            start=workload.context_tokens * 0.0 + workload.prefix_tokens,
            tokens=workload.new_tokens,
            chunk_tokens=workload.chunk_tokens,
        )

    @property
    def steps(self) -> Num:
        """Chunks that it takes, one at least."""
        steps: Num = larger(chunk_count(self.tokens, self.chunk_tokens), 1.0)
        return steps

    def bubble(self, stages: int) -> Num:
        """How many times longer than its slowest stage's work a pipeline takes, since it has to
        fill: (chunks + stages - 1) / chunks (GPipe, arXiv:1811.06965, section 2.3)."""
        steps: Num = self.steps
        return (steps + (stages - 1.0)) / steps


def attention_flops(mixer: Mixer | None, sight: Sight | None, span: Span[Num]) -> Num:
    """FLOPs of attention in one layer: visible pairs times `pair_flops`; index scores included; a
    recurrence's own FLOPs for recurrent layers.

    MLA is counted un-absorbed, which is the cheaper form for prefill, unless an indexer selects
    tokens: sparse kernels run the absorbed form.
    """
    start, tokens = span.start, span.tokens
    if isinstance(mixer, RecurrentState):
        return tokens * float(mixer.flops_per_token)
    if isinstance(mixer, CompressedAttention):
        return _compressed_flops(mixer, span)
    if isinstance(mixer, GroupedAttention):
        flops = grouped_pairs(mixer, sight, span) * pair_flops(mixer)
    elif isinstance(mixer, LatentAttention):
        sparse = mixer.indexer is not None
        flops = latent_pairs(mixer, sight, span) * pair_flops(mixer, absorbed=sparse)
    else:
        return tokens * 0.0
    return flops + causal_pairs(start, tokens) * index_pair_flops(mixer)


def grouped_pairs(mixer: GroupedAttention, sight: Sight | None, span: Span[Num]) -> Num:
    """Visible pairs of grouped attention under the model's window, chunk or block selection and
    the strategy's sight, whichever is narrower."""
    if mixer.chunk_tokens is not None:
        pairs: Num = chunked_pairs(span.start, span.tokens, float(mixer.chunk_tokens))
        for cap in _sight_caps(sight):
            pairs = smaller(pairs, capped_pairs(span.start, span.tokens, cap))
        return pairs
    return _pairs(span, [*_sight_caps(sight), *_own_caps(mixer)])


def latent_pairs(mixer: LatentAttention, sight: Sight | None, span: Span[Num]) -> Num:
    """Visible pairs of latent attention under the indexer's choice and the strategy's sight."""
    caps = _sight_caps(sight)
    if mixer.indexer is not None:
        caps.append(float(mixer.indexer.top_tokens))
    return _pairs(span, caps)


def _own_caps(mixer: GroupedAttention) -> list[float]:
    if mixer.window_tokens is not None:
        return [float(mixer.window_tokens)]
    if mixer.selection is not None:
        return [float(mixer.selection.block_tokens * mixer.selection.top_blocks)]
    return []


def _sight_caps(sight: Sight | None) -> list[float]:
    return [] if sight is None else [float(sight.tokens)]


def _pairs(span: Span[Num], caps: list[float]) -> Num:
    if not caps:
        return causal_pairs(span.start, span.tokens)
    return capped_pairs(span.start, span.tokens, min(caps))


def _compressed_flops(mixer: CompressedAttention, span: Span[Num]) -> Num:
    pairs = capped_pairs(span.start, span.tokens, float(mixer.window_tokens))
    flops = pairs * pair_flops(mixer)
    if mixer.ratio == 0:
        return flops
    top = float(mixer.indexer.top_tokens) if mixer.indexer else None
    ratio = float(mixer.ratio)
    entries: Num = compressed_pairs(span.start, span.tokens, ratio, top)
    scored: Num = compressed_pairs(span.start, span.tokens, ratio, None)
    return flops + entries * pair_flops(mixer) + scored * index_pair_flops(mixer)


def naive_attention_flops(mixer: Mixer | None, span: Span[Num]) -> Num:
    """FLOPs of attention that fills the whole rectangle of scores and masks it afterwards."""
    if isinstance(mixer, RecurrentState):
        return attention_flops(mixer, None, span)
    return span.tokens * (span.start + span.tokens) * pair_flops(mixer)


def score_bytes(mixer: Mixer | None, span: Span[Num]) -> Num:
    """Bytes of the score matrix that naive attention writes for one layer, all heads, 16 bits."""
    heads = 0 if mixer is None or isinstance(mixer, RecurrentState) else mixer.q_heads
    return span.tokens * (span.start + span.tokens) * float(heads * ACTIVATION_BYTES)


def reexpansion_flops(mixer: Mixer | None, span: Span[Num]) -> Num:
    """FLOPs of expanding cached MLA latents again for every later chunk, which un-absorbed
    chunked prefill pays on top: kv_up on all tokens before each chunk."""
    if not isinstance(mixer, LatentAttention) or mixer.indexer is not None:
        return span.tokens * 0.0
    params = sum(matrix.params for matrix in mixer.matrices if matrix.name == "kv_up")
    seen: Num = chunk_ends(span.start, span.tokens, span.chunk_tokens, None)
    return (seen - span.tokens) * (2.0 * params)


def attention_operations(
    group: LayerGroup, deployment: Deployment, kv: KvStrategy, span: Span[Num]
) -> list[Operation[Num]]:
    """Attention or recurrence of one layer, and writing its cache.

    Bytes are those of a fused kernel: Q and O once, K and V once a chunk (a query tile's re-reads
    hit the L2 cache). FlashAttention's own count is in arXiv:2205.14135, theorem 2.
    """
    mixer = group.mixer
    if mixer is None:
        return []
    rank_tokens = span.tokens / deployment.cp
    flops = attention_flops(mixer, kv.sight(), span)
    share = _head_share(mixer, deployment) / deployment.cp
    around = rank_tokens * (_query_elements(mixer) * ACTIVATION_BYTES * share * deployment.cp)
    cached = list(streams(mixer))
    read = span.tokens * 0.0
    written = span.tokens * 0.0
    quantise = span.tokens * 0.0
    links = span.tokens * 0.0
    for stream in cached:
        rate = kv.bytes_per_token(stream)
        heads = kv_share(stream, deployment) * deployment.dcp * deployment.cp
        cap = _stream_cap(stream, kv.sight())
        seen: Num = chunk_ends(span.start, span.tokens, span.chunk_tokens, cap)
        read = read + seen * (rate * heads)
        written = written + span.tokens * (rate * kv_share(stream, deployment))
        elements = stream.elements / stream.tokens_per_entry
        extra = kv.extra_work(stream)
        quantise = quantise + span.tokens * (elements * extra.quantise_flops)
        if deployment.cp > 1:
            sent = _ring_bytes(mixer, stream, deployment, kv, span, seen)
            links = links + sent
    recurrent = isinstance(mixer, RecurrentState)
    operations: list[Operation[Num]] = [
        Operation(
            name="recurrence" if recurrent else "attention",
            compute="bf16" if recurrent else kv.products(),
            flops=flops,
            rank_flops=flops * share,
            rank_read_bytes=read + around,
            rank_write_bytes=around,
            rank_link_bytes=links,
        )
    ]
    if cached:
        operations.append(
            Operation(
                name="kv write",
                compute="vector",
                flops=quantise,
                rank_flops=quantise * kv_share(cached[0], deployment),
                rank_read_bytes=span.tokens * 0.0,
                rank_write_bytes=written,
            )
        )
    return operations


def _stream_cap(stream: Stream, sight: Sight | None) -> float | None:
    """Cached tokens before a chunk that prefill attention reads of a stream."""
    if stream.kind == "index":
        return None
    caps = [float(stream.cap_tokens)] if stream.cap_tokens else []
    caps += _sight_caps(sight)
    return min(caps) if caps else None


def _ring_bytes(
    mixer: Mixer,
    stream: Stream,
    deployment: Deployment,
    kv: KvStrategy,
    span: Span[Num],
    seen: Num,
) -> Num:
    """What a context-parallel rank sends: K and V of its share to the cp - 1 others (ring
    attention, arXiv:2310.01889), or its queries and partial outputs when those are fewer
    (pass-Q, arXiv:2411.01783, section 3)."""
    others = (deployment.cp - 1) / deployment.cp
    heads = cut_share(stream.heads, deployment.tp)
    keys = seen * (stream.elements / stream.tokens_per_entry * kv.element_bytes() * heads * others)
    if stream.kind == "index":
        keys = seen * (stream.index_bytes * others)
    around = _query_elements(mixer) * ACTIVATION_BYTES * _head_share(mixer, deployment)
    queries = span.tokens * (around * others)
    sent: Num = smaller(keys, queries)
    return sent


def _head_share(mixer: Mixer, deployment: Deployment) -> float:
    heads = mixer.heads if isinstance(mixer, RecurrentState) else mixer.q_heads
    return cut_share(heads, deployment.tp)


def _query_elements(mixer: Mixer) -> float:
    """Elements of Q (and as many of O) that one token brings to a layer."""
    if isinstance(mixer, GroupedAttention):
        return mixer.q_heads * (mixer.k_dim + mixer.v_dim) / 2
    if isinstance(mixer, LatentAttention):
        return mixer.q_heads * (mixer.nope_dim + mixer.rope_dim + mixer.v_dim) / 2
    if isinstance(mixer, CompressedAttention):
        return float(mixer.q_heads * mixer.vector_dim)
    return float(sum(m.inputs for m in mixer.matrices if m.name == "o"))


def prefill_operations(
    model: ModelShape, group: LayerGroup, deployment: Deployment, kv: KvStrategy, span: Span[Num]
) -> list[Operation[Num]]:
    """All the work of one layer of a group in a prefill."""
    rank_tokens = span.tokens / deployment.cp
    batch: Batch[Num] = Batch(
        tokens=span.tokens,
        rank_tokens=rank_tokens,
        expert_tokens=rank_tokens * span.groups,
        steps=span.steps,
    )
    shared = layer_operations(model, group, deployment, batch)
    return shared + attention_operations(group, deployment, kv, span)


def end_operations(
    model: ModelShape, deployment: Deployment, span: Span[Num]
) -> tuple[Operation[Num], Operation[Num]]:
    """The embedding of every token, which the first stage runs, and the logits of the prompt's
    last one, which the last stage runs."""
    mine = span.tokens / deployment.cp
    batch = Batch(tokens=span.tokens, rank_tokens=mine, expert_tokens=mine, steps=span.tokens)
    one = span.tokens * 0.0 + 1.0
    answer = Batch(tokens=one, rank_tokens=one, expert_tokens=one, steps=one)
    return embedding_operation(model, batch), logits_operation(model, deployment, answer)
