"""Attention and recurrence of one layer, in one prefill chunk or decode step.

Latent attention is one module with its projections, as it was measured. What no measured kernel is
like (compressed attention, block selection) raises `UnmeasuredError`.
"""

from __future__ import annotations

from typing import Any

from lcprof import num
from lcprof.cost.expected.exchanges import library_task
from lcprof.cost.expected.kernels import (
    latent_prompt,
    latent_step,
    mover,
    prompt_attention,
    sparse_module,
    step_attention,
)
from lcprof.cost.expected.products import one_product
from lcprof.cost.expected.task import Task, UnmeasuredError, Variant
from lcprof.cost.operation import ACTIVATION_BYTES
from lcprof.cost.sharding import cut_share, stored_format
from lcprof.cost.timing.decode_attention import DECODE_ATTENTION, DecodeAttentionCall
from lcprof.cost.timing.dsa_module import DSA_MODULE, DsaModuleCall
from lcprof.cost.timing.elementwise import ELEMENTWISE, ElementwiseCall
from lcprof.cost.timing.latent import LatentShape
from lcprof.cost.timing.linear_attention import (
    LINEAR_ATTENTION,
    LinearAttentionCall,
    convolution,
    convolution_step,
    scan,
)
from lcprof.cost.timing.mla_module import (
    MLA_DECODE_MODULE,
    MLA_PREFILL_MODULE,
    MlaModuleCall,
)
from lcprof.cost.timing.prefill_attention import PREFILL_ATTENTION, PrefillAttentionCall
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.stream import Stream, state_bytes, streams
from lcprof.domain.model import (
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    ModelShape,
    RecurrentState,
)
from lcprof.num import Num

ATTENTION = "attention"
TYPICAL_TOKENS = 4096.0
"""Tokens over which a token's mean bytes are taken, residual windows and all."""


def element_bytes(kv: KvStrategy, stream: Stream) -> float:
    """Bytes that a step reads for each cached K or V element, scales included."""
    elements = stream.heads * (stream.k_elements + stream.v_elements) / stream.tokens_per_entry
    return float(kv.payload_bytes(stream, TYPICAL_TOKENS)) / TYPICAL_TOKENS / elements


# Prefill


def prompt_tasks(
    model: ModelShape,
    group: LayerGroup,
    deployment: Deployment,
    kv: KvStrategy,
    prefix_tokens: Num,
    tokens: Num,
) -> list[Task]:
    """Attention of a chunk of `tokens` after `prefix_tokens`. Raises UnmeasuredError."""
    mixer = group.mixer
    if isinstance(mixer, GroupedAttention):
        return _grouped_prompt(mixer, deployment, kv, prefix_tokens, tokens)
    if isinstance(mixer, LatentAttention):
        return _latent_prompt(model, mixer, deployment, kv, prefix_tokens, tokens)
    if isinstance(mixer, RecurrentState):
        return _recurrent_prompt(mixer, deployment, tokens / deployment.cp)
    if mixer is None:
        return []
    raise UnmeasuredError("compressed attention has no measured kernel")


def _grouped_prompt(
    mixer: GroupedAttention,
    deployment: Deployment,
    kv: KvStrategy,
    prefix_tokens: Num,
    tokens: Num,
) -> list[Task]:
    if mixer.selection is not None:
        raise UnmeasuredError("block-sparse attention has no measured kernel")
    how = prompt_attention(deployment, kv)
    share = cut_share(mixer.q_heads, deployment.tp)
    sight = kv.sight()
    caps = [float(cap) for cap in (mixer.window_tokens,) if cap]
    if sight is not None:
        caps.append(float(sight.window_tokens + sight.sink_tokens))
    mine = tokens / deployment.cp
    # Zig-zag balance: a rank's queries see, on average, what the middle ones do.
    before = prefix_tokens + (tokens - mine) / 2.0
    batch = 1.0
    if mixer.chunk_tokens is not None:
        # Each query sees its own chunk up to itself.
        whole = num.smaller(tokens + 0.0, float(mixer.chunk_tokens))
        batch, mine, before = (
            tokens / whole,
            whole / deployment.cp,
            (whole - whole / deployment.cp) / 2.0,
        )
    call = PrefillAttentionCall(
        batch=batch,
        q_heads=mixer.q_heads * share,
        kv_heads=mixer.kv_heads * cut_share(mixer.kv_heads, deployment.tp),
        qk_dim=float(mixer.k_dim),
        v_dim=float(mixer.v_dim),
        query_tokens=mine,
        prefix_tokens=before,
        window_tokens=min(caps) if caps else 0.0,
        causal=1.0,
        compute=how.compute,
        kernel=how.kernel,
        kv_bytes_per_element=1.0 if how.compute == "fp8" else 2.0,
    )
    tasks: list[Task] = [
        Task(operation=ATTENTION, family=PREFILL_ATTENTION, variants=how.variants, call=call)
    ]
    if deployment.cp > 1:
        tasks.append(_ring(mixer, deployment, kv, prefix_tokens, tokens))
    return tasks


def _ring(
    mixer: GroupedAttention,
    deployment: Deployment,
    kv: KvStrategy,
    prefix_tokens: Num,
    tokens: Num,
) -> Task:
    """Passing K and V of all ranks around, or queries and partial outputs when those are fewer
    (arXiv:2411.01783, section 3)."""
    keys_bytes = mixer.kv_heads * cut_share(mixer.kv_heads, deployment.tp)
    keys_bytes *= (mixer.k_dim + mixer.v_dim) * kv.element_bytes()
    query_bytes = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp)
    query_bytes *= (mixer.k_dim + mixer.v_dim) * ACTIVATION_BYTES
    buffer = num.smaller((prefix_tokens + tokens) * keys_bytes, tokens * query_bytes)
    span = deployment.cp * deployment.tp
    return library_task(
        deployment,
        ranks=deployment.cp,
        span=span,
        buffer_bytes=buffer,
        hidden_behind=ATTENTION,
    )


def latent_shape(model: ModelShape, mixer: LatentAttention) -> LatentShape:
    """The dimensions of a layer's latent attention. Without a query latent the query projection
    from hidden stands where the one from the latent would."""
    ranks = [matrix.outputs for matrix in mixer.matrices if matrix.name == "q_down"]
    return LatentShape(
        hidden=float(model.hidden),
        q_rank=float(ranks[0] if ranks else model.hidden),
        kv_rank=float(mixer.latent_dim),
        nope_dim=float(mixer.nope_dim),
        rope_dim=float(mixer.rope_dim),
        v_dim=float(mixer.v_dim),
    )


def _has_fp8_weights(mixer: LatentAttention, deployment: Deployment) -> float:
    stored = stored_format(mixer.matrices[0], deployment)
    return float(stored.bits == 8 and "fp8" in deployment.gpu.peak_flops)


def _latent_prompt(
    model: ModelShape,
    mixer: LatentAttention,
    deployment: Deployment,
    kv: KvStrategy,
    prefix_tokens: Num,
    tokens: Num,
) -> list[Task]:
    if deployment.cp > 1:
        raise UnmeasuredError("context-parallel latent attention has no measured kernel")
    heads = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp)
    shape, fp8 = latent_shape(model, mixer), _has_fp8_weights(mixer, deployment)
    if mixer.indexer is not None:
        call = DsaModuleCall(
            shape=shape,
            index_heads=float(mixer.indexer.heads),
            batch=1.0,
            q_heads=heads,
            query_tokens=tokens,
            prefix_tokens=prefix_tokens,
            kv_bytes_per_element=min(kv.element_bytes(), 2.0),
            fp8_weights=fp8,
            indexed=float(mixer.indexer.owns_keys),
        )
        variants = sparse_module(deployment, kv, "prefill")
        return [Task(operation=ATTENTION, family=DSA_MODULE, variants=variants, call=call)]
    how = latent_prompt(deployment, kv)
    module = MlaModuleCall(
        shape=shape,
        batch=1.0,
        q_heads=heads,
        query_tokens=tokens,
        context_tokens=prefix_tokens + tokens,
        kv_bytes_per_element=min(kv.element_bytes(), 2.0),
        fp8_weights=fp8,
        compute=how.compute,
        kernel=how.kernel,
    )
    tasks: list[Task] = [
        Task(operation=ATTENTION, family=MLA_PREFILL_MODULE, variants=how.variants, call=module)
    ]
    expand = next(m for m in mixer.matrices if m.name == "kv_up")
    columns = heads * (mixer.nope_dim + mixer.v_dim)
    again = num.larger(prefix_tokens + 0.0, 1.0)
    stored = stored_format(expand, deployment)
    depth = float(expand.inputs)
    runs: Any = num.choose(prefix_tokens > 0, 1.0, 0.0)
    products: list[Task] = one_product("latents again", deployment, stored, again, columns, depth)
    return [*tasks, *(product.times(runs) for product in products)]


def _recurrent_prompt(mixer: RecurrentState, deployment: Deployment, tokens: Num) -> list[Task]:
    share = cut_share(mixer.heads, deployment.tp)
    width = float(sum(m.inputs for m in mixer.matrices if m.name == "out")) * share
    heads = mixer.heads * share
    dim = width / heads
    conv = convolution(tokens=tokens, channels=3.0 * width)
    walk = scan(batch=1.0, tokens=tokens, k_heads=heads, v_heads=heads, k_dim=dim, v_dim=dim)
    return [
        _recurrence(conv, ("vllm", "causal_conv1d_fn")),
        _recurrence(walk, ("vllm", "chunk_gated_delta_rule_flashinfer")),
    ]


def _recurrence(call: LinearAttentionCall, *variants: Variant) -> Task:
    return Task(operation="recurrence", family=LINEAR_ATTENTION, variants=variants, call=call)


# Decode


def step_tasks(
    model: ModelShape,
    group: LayerGroup,
    deployment: Deployment,
    kv: KvStrategy,
    sequences: Num,
    context_tokens: Num,
) -> list[Task]:
    """Attention of one new token for each of a rank's `sequences` over its cache. Raises
    UnmeasuredError."""
    mixer = group.mixer
    if isinstance(mixer, GroupedAttention):
        return _grouped_step(mixer, deployment, kv, sequences, context_tokens)
    if isinstance(mixer, LatentAttention):
        return _latent_step(model, mixer, deployment, kv, sequences, context_tokens)
    if isinstance(mixer, RecurrentState):
        return _recurrent_step(mixer, deployment, sequences)
    if mixer is None:
        return []
    raise UnmeasuredError("compressed attention has no measured kernel")


def _grouped_step(
    mixer: GroupedAttention,
    deployment: Deployment,
    kv: KvStrategy,
    sequences: Num,
    context_tokens: Num,
) -> list[Task]:
    if mixer.selection is not None:
        raise UnmeasuredError("block-sparse attention has no measured kernel")
    if kv.host_fraction():
        raise UnmeasuredError("reading a cache from host memory was not measured")
    cut = deployment.dcp * deployment.cp
    stream = Stream(
        heads=mixer.kv_heads,
        k_elements=mixer.k_dim,
        v_elements=mixer.v_dim,
        cap_tokens=mixer.window_tokens or mixer.chunk_tokens,
    )
    read: Num = kv.read_tokens(stream, context_tokens)
    stored: Num = kv.stored_tokens(stream, context_tokens)
    kv_heads = mixer.kv_heads * cut_share(mixer.kv_heads, deployment.tp)
    q_heads = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp) * deployment.dcp
    windowed = stream.cap_tokens is not None or kv.sight() is not None
    call = DecodeAttentionCall(
        batch=sequences,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=(mixer.k_dim + mixer.v_dim) / 2.0,
        context_tokens=read / cut,
        window_tokens=0.0,
        kv_bytes_per_element=element_bytes(kv, stream),
    )
    variants = step_attention(
        deployment, kv, grouped=mixer.q_heads > mixer.kv_heads, windowed=windowed
    )
    tasks: list[Task] = [
        Task(operation=ATTENTION, family=DECODE_ATTENTION, variants=variants, call=call)
    ]
    if kv.scan_bytes(stream, TYPICAL_TOKENS):
        scan_bytes = kv.scan_bytes(stream, stored) * (kv_heads / mixer.kv_heads / cut)
        tasks.append(moved("select", sequences * scan_bytes, scan_bytes))
    gathered: list[Task] = _gathers(deployment, sequences * (q_heads * mixer.k_dim))
    return [*tasks, *gathered]


def _gathers(deployment: Deployment, elements: Num) -> list[Task]:
    """Collecting queries, and combining partial outputs, where a cache's tokens are sharded."""
    ranks = deployment.dcp * deployment.cp
    if ranks == 1:
        return []
    span = deployment.tp * deployment.cp
    queries = library_task(
        deployment, ranks=ranks, span=span, buffer_bytes=elements * ACTIVATION_BYTES
    )
    outputs = library_task(deployment, ranks=ranks, span=span, buffer_bytes=elements * 4.0)
    return [queries, outputs]


def _latent_step(
    model: ModelShape,
    mixer: LatentAttention,
    deployment: Deployment,
    kv: KvStrategy,
    sequences: Num,
    context_tokens: Num,
) -> list[Task]:
    cut = deployment.dcp * deployment.cp
    heads = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp)
    shape, fp8 = latent_shape(model, mixer), _has_fp8_weights(mixer, deployment)
    latents = next(stream for stream in streams(mixer) if stream.kind == "kv")
    read: Num = kv.read_tokens(latents, context_tokens) / cut
    each = element_bytes(kv, latents)
    if mixer.indexer is not None:
        call = DsaModuleCall(
            shape=shape,
            index_heads=float(mixer.indexer.heads),
            batch=sequences,
            q_heads=heads,
            query_tokens=1.0,
            prefix_tokens=context_tokens / cut,
            kv_bytes_per_element=each,
            fp8_weights=fp8,
            indexed=float(mixer.indexer.owns_keys),
        )
        variants = sparse_module(deployment, kv, "decode")
        return [Task(operation=ATTENTION, family=DSA_MODULE, variants=variants, call=call)]
    found, compute = latent_step(deployment, kv)
    module = MlaModuleCall(
        shape=shape,
        batch=sequences,
        q_heads=heads * deployment.dcp,
        query_tokens=1.0,
        context_tokens=read,
        kv_bytes_per_element=each,
        fp8_weights=fp8,
        compute=compute,
        kernel="fa3",
    )
    step: Task = Task(operation=ATTENTION, family=MLA_DECODE_MODULE, variants=found, call=module)
    width = heads * deployment.dcp * (mixer.latent_dim + mixer.rope_dim)
    gathered: list[Task] = _gathers(deployment, sequences * width)
    return [step, *gathered]


def _recurrent_step(mixer: RecurrentState, deployment: Deployment, sequences: Num) -> list[Task]:
    share = cut_share(mixer.heads, deployment.tp)
    tail = mixer.conv_elements * share
    conv = convolution_step(batch=sequences, channels=tail / 3.0, width=4.0)
    moved_bytes = sequences * (2.0 * state_bytes(mixer) * share)
    step = LinearAttentionCall(
        moved_bytes=moved_bytes, scan_tokens=0.0 * moved_bytes, scan_heads=0.0 * moved_bytes
    )
    return [
        _recurrence(conv, ("vllm", "causal_conv1d_update")),
        _recurrence(step, ("vllm", "fused_recurrent_gated_delta_rule_packed_decode")),
    ]


def moved(operation: str, moved_bytes: Any, row_bytes: Any, name: str = "add") -> Task:
    """An operator that only moves data."""
    call = ElementwiseCall(moved_bytes=moved_bytes, row_bytes=row_bytes)
    return Task(operation=operation, family=ELEMENTWISE, variants=mover(name), call=call)
