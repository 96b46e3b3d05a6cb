"""The work of one decode step: one new token for every sequence."""

from __future__ import annotations

from typing import Generic

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.layer import Batch, embedding_operation, layer_operations, logits_operation
from lcprof.cost.operation import ACTIVATION_BYTES, Operation
from lcprof.cost.pairs import index_pair_flops, pair_flops
from lcprof.cost.sharding import cut_share, kv_share, rank_sequences
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.strategy import ExtraWork
from lcprof.domain.kv.stream import Stream, state_bytes, streams
from lcprof.domain.model import (
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    Mixer,
    ModelShape,
    RecurrentState,
)
from lcprof.num import Num, ceil


class Step(Struct, Generic[Num], frozen=True, kw_only=True):
    """`sequences` sequences in the whole deployment, each with a cache of `context_tokens` tokens
    (the new one included), `decoded_tokens` of which were generated."""

    sequences: Num
    context_tokens: Num
    decoded_tokens: float = 0.0

    def rank_sequences(self, deployment: Deployment) -> Num:
        """Sequences on the fullest group of data-parallel attention."""
        return rank_sequences(self.sequences, deployment)

    def in_flight(self, deployment: Deployment) -> Step[Num]:
        """What one pass through the pipeline takes along: engines keep `pp` batches in flight, one
        in each stage, so that none idles."""
        share: Num = ceil(self.sequences / deployment.pp)
        return replace(self, sequences=share)


def token_flops(mixer: Mixer, stream: Stream) -> float:
    """FLOPs of one query token against one cached token of a stream, all query heads; MLA
    absorbed. A compressed entry's are shared by the tokens that it stands for."""
    if stream.kind == "index":
        packed = mixer.ratio if isinstance(mixer, CompressedAttention) else 1
        return index_pair_flops(mixer) / packed
    return pair_flops(mixer, absorbed=True) / stream.tokens_per_entry


def attention_operations(
    group: LayerGroup, deployment: Deployment, kv: KvStrategy, step: Step[Num]
) -> list[Operation[Num]]:
    """Attention of one layer over its cache, choosing what to read, and writing the new token.

    Every sequence reads its own cache, a shared prefix included (no cascade attention).
    """
    mixer = group.mixer
    if mixer is None:
        return []
    if isinstance(mixer, RecurrentState):
        return [_recurrence(mixer, deployment, step)]
    mine = step.rank_sequences(deployment)
    context, decoded = step.context_tokens, step.decoded_tokens
    zero = context * 0.0
    flops, select, convert = zero, zero, zero
    read, host = zero, zero
    written = 0.0
    quantise = 0.0
    head_share = cut_share(mixer.q_heads, deployment.tp) / (deployment.cp * deployment.dcp)
    cached = list(streams(mixer))
    sources = cached or _borrowed(mixer)
    for stream in sources:
        tokens: Num = kv.read_tokens(stream, context, decoded)
        stored: Num = kv.stored_tokens(stream, context, decoded)
        extra = kv.extra_work(stream)
        elements = stream.elements / stream.tokens_per_entry
        share = kv_share(stream, deployment)
        away = kv.host_fraction() if stream.kind == "kv" else 0.0
        moved: Num = kv.read_bytes(stream, context, decoded) * share
        flops = flops + tokens * token_flops(mixer, stream)
        select = select + stored * (extra.select_flops * mixer.q_heads)
        convert = convert + tokens * (elements * extra.dequantise_flops)
        read = read + moved * (1.0 - away)
        host = host + moved * away
        if cached:
            written += kv.bytes_per_token(stream) * share
            quantise += elements * extra.quantise_flops
    around = _query_bytes(mixer) * cut_share(mixer.q_heads, deployment.tp)
    links = _gather_bytes(mixer, deployment)
    operations: list[Operation[Num]] = [
        Operation(
            name="attention",
            compute=kv.products(),
            flops=step.sequences * flops,
            rank_flops=mine * flops * head_share,
            rank_read_bytes=mine * read + mine * around,
            rank_write_bytes=mine * around,
            rank_link_bytes=mine * links,
            rank_host_bytes=mine * host,
        ),
        Operation(
            name="kv write",
            compute="vector",
            flops=step.sequences * quantise,
            rank_flops=mine * quantise,
            rank_read_bytes=mine * 0.0,
            rank_write_bytes=mine * written,
        ),
    ]
    if any(kv.extra_work(stream) != ExtraWork() for stream in sources):
        # Scores are products, which matrix units can take; conversions run on the vector ones.
        for name, compute, work in (("select", "bf16", select), ("dequantise", "vector", convert)):
            operations.append(
                Operation(
                    name=name,
                    compute=compute,
                    flops=step.sequences * work,
                    rank_flops=mine * work * head_share,
                    rank_read_bytes=zero,
                    rank_write_bytes=zero,
                )
            )
    return operations


def _borrowed(mixer: Mixer) -> list[Stream]:
    """What a layer that shares another layer's cache reads: the same shape, nothing stored."""
    if not isinstance(mixer, GroupedAttention):
        return []
    return [
        Stream(
            heads=mixer.kv_heads,
            k_elements=mixer.k_dim,
            v_elements=mixer.v_dim,
            cap_tokens=mixer.window_tokens or mixer.chunk_tokens,
        )
    ]


def _recurrence(mixer: RecurrentState, deployment: Deployment, step: Step[Num]) -> Operation[Num]:
    """A recurrent layer reads and writes its whole state once a token."""
    mine = step.rank_sequences(deployment)
    share = cut_share(mixer.heads, deployment.tp)
    state = state_bytes(mixer) * share
    return Operation(
        name="recurrence",
        compute="bf16",
        flops=step.sequences * float(mixer.flops_per_token),
        rank_flops=mine * (mixer.flops_per_token * share),
        rank_read_bytes=mine * state,
        rank_write_bytes=mine * state,
    )


def _query_bytes(mixer: Mixer) -> float:
    """Bytes of one token's Q; its O takes about as many."""
    if isinstance(mixer, LatentAttention):
        return float(mixer.q_heads * (mixer.latent_dim + mixer.rope_dim) * ACTIVATION_BYTES)
    if isinstance(mixer, CompressedAttention):
        return float(mixer.q_heads * mixer.vector_dim * ACTIVATION_BYTES)
    if isinstance(mixer, GroupedAttention):
        return float(mixer.q_heads * mixer.k_dim * ACTIVATION_BYTES)
    return 0.0


def _gather_bytes(mixer: Mixer, deployment: Deployment) -> float:
    """What a rank sends for one sequence when the cache's tokens are sharded: queries gathered,
    partial outputs (fp32) with their log-sum-exp scattered back."""
    ranks = deployment.dcp * deployment.cp
    if ranks == 1 or isinstance(mixer, RecurrentState):
        return 0.0
    query = _query_bytes(mixer) * cut_share(mixer.q_heads, deployment.tp)
    return query * (ranks - 1) * (1 + 4 / ACTIVATION_BYTES) / ranks


def decode_operations(
    model: ModelShape, group: LayerGroup, deployment: Deployment, kv: KvStrategy, step: Step[Num]
) -> list[Operation[Num]]:
    """All the work of one layer of a group in a decode step."""
    shared = layer_operations(model, group, deployment, _batch(deployment, step))
    return shared + attention_operations(group, deployment, kv, step)


def end_operations(
    model: ModelShape, deployment: Deployment, step: Step[Num]
) -> tuple[Operation[Num], Operation[Num]]:
    """The embedding, which the first stage runs, and the logits, which the last one runs."""
    batch = _batch(deployment, step)
    return embedding_operation(model, batch), logits_operation(model, deployment, batch)


def _batch(deployment: Deployment, step: Step[Num]) -> Batch[Num]:
    mine = step.rank_sequences(deployment)
    return Batch(
        tokens=step.sequences,
        rank_tokens=mine,
        expert_tokens=step.sequences + 0.0,
        steps=step.sequences * 0.0 + 1.0,
    )
