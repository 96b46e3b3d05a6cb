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
    recurrent,
    sparse_module,
    step_attention,
)
from lcprof.cost.expected.own import chooses_pages
from lcprof.cost.expected.products import one_product
from lcprof.cost.expected.task import Task, UnmeasuredError
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
from lcprof.domain.calibration import Variant
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.dense import Dense
from lcprof.domain.kv.formats import choosing_bytes, element_bytes
from lcprof.domain.kv.stream import Stream, streams
from lcprof.domain.model import (
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    ModelShape,
    RecurrentState,
)
from lcprof.num import Num

ATTENTION = "attention"


def caps(mixer: GroupedAttention | LatentAttention, kv: KvStrategy) -> list[float]:
    """What bounds the tokens that a prompt's query sees: the model's window, the strategy's."""
    found = []
    if isinstance(mixer, GroupedAttention) and mixer.window_tokens:
        found.append(float(mixer.window_tokens))
    sight = kv.sight()
    if sight is not None:
        found.append(float(sight.tokens))
    return found


def growing_tokens(group: LayerGroup, kv: KvStrategy) -> float | None:
    """The prefix up to which a chunk's attention grows; None where it grows without end."""
    mixer = group.mixer
    if isinstance(mixer, LatentAttention) and mixer.indexer is not None:
        return None
    if isinstance(mixer, GroupedAttention | LatentAttention):
        chunked = isinstance(mixer, GroupedAttention) and mixer.chunk_tokens is not None
        bounds = caps(mixer, kv)
        return 0.0 if chunked else min(bounds) if bounds else None
    return 0.0


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
        return _recurrent_prompt(mixer, deployment, tokens)
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
    how = prompt_attention(deployment, kv, float(mixer.k_dim))
    share = cut_share(mixer.q_heads, deployment.tp)
    bounds = caps(mixer, kv)
    whole: Num = tokens
    before = prefix_tokens
    if mixer.chunk_tokens is not None:
        # Each query sees its own chunk up to itself; a shorter prefill step lies somewhere in it.
        whole = num.smaller(tokens + 0.0, float(mixer.chunk_tokens))
        before = (mixer.chunk_tokens - whole) / 2.0 * num.choose(prefix_tokens > 0, 1.0, 0.0)
    mine = whole / deployment.cp
    call = PrefillAttentionCall(
        batch=tokens / whole,
        q_heads=mixer.q_heads * share,
        kv_heads=mixer.kv_heads * cut_share(mixer.kv_heads, deployment.tp),
        qk_dim=float(mixer.k_dim),
        v_dim=float(mixer.v_dim),
        query_tokens=mine,
        # Zig-zag balance: a rank's queries see, on average, what the middle ones do.
        prefix_tokens=before + (whole - mine) / 2.0,
        window_tokens=min(bounds) if bounds else 0.0,
        causal=1.0,
        compute=how.compute,
        kernel=how.kernel,
        kv_bytes_per_element=1.0 if how.compute == "fp8" else 2.0,
    )
    tasks: list[Task] = [
        Task(operation=ATTENTION, family=PREFILL_ATTENTION, variants=how.variants, call=call)
    ]
    if deployment.cp > 1:
        seen = prefix_tokens + tokens
        if bounds:
            # A window needs its own last tokens of each rank before it.
            seen = num.smaller(seen, min(bounds) * deployment.cp)
        tasks.append(_ring(mixer, deployment, kv, seen, tokens))
    return tasks


def _ring(
    mixer: GroupedAttention, deployment: Deployment, kv: KvStrategy, seen: Num, tokens: Num
) -> Task:
    """Passing K and V of the `seen` tokens around, or queries and partial outputs of the new ones
    when those are fewer (arXiv:2411.01783, section 3)."""
    keys_bytes = mixer.kv_heads * cut_share(mixer.kv_heads, deployment.tp)
    keys_bytes *= (mixer.k_dim + mixer.v_dim) * kv.element_bytes()
    query_bytes = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp)
    query_bytes *= (mixer.k_dim + mixer.v_dim) * ACTIVATION_BYTES
    return library_task(
        deployment,
        ranks=deployment.cp,
        span=deployment.cp * deployment.tp,
        buffer_bytes=num.smaller(seen * keys_bytes, tokens * query_bytes),
        hidden_behind=ATTENTION,
    )


def latent_shape(model: ModelShape, mixer: LatentAttention) -> LatentShape:
    """The dimensions of a layer's latent attention."""
    ranks = [matrix.outputs for matrix in mixer.matrices if matrix.name == "q_down"]
    return LatentShape(
        hidden=float(model.hidden),
        q_rank=float(ranks[0] if ranks else 0.0),
        kv_rank=float(mixer.latent_dim),
        nope_dim=float(mixer.nope_dim),
        rope_dim=float(mixer.rope_dim),
        v_dim=float(mixer.v_dim),
    )


def _narrow_weights(mixer: LatentAttention, deployment: Deployment) -> tuple[float, bool]:
    """1.0 where the module's weights are of 8 bits or less, and whether they are of a format that
    was measured."""
    stored = stored_format(mixer.matrices[0], deployment)
    fp8 = stored.compute == "fp8" and "fp8" in deployment.gpu.peak_flops
    return float(stored.bits <= 8), fp8 or stored.bits == 16


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
    shape = latent_shape(model, mixer)
    narrow, plain = _narrow_weights(mixer, deployment)
    if mixer.indexer is not None:
        _refuse_strategy(mixer, deployment, kv)
        call = DsaModuleCall(
            shape=shape,
            index_heads=float(mixer.indexer.heads),
            batch=1.0,
            q_heads=heads,
            query_tokens=tokens,
            prefix_tokens=prefix_tokens,
            kv_bytes_per_element=min(kv.element_bytes(), 2.0),
            fp8_weights=narrow,
            indexed=float(mixer.indexer.owns_keys),
            cold=1.0,
        )
        variants = sparse_module(deployment, kv, "prefill")
        return [Task(operation=ATTENTION, family=DSA_MODULE, variants=variants, call=call)]
    how = latent_prompt(deployment, kv, plain=plain)
    bounds = caps(mixer, kv)
    module = MlaModuleCall(
        shape=shape,
        batch=1.0,
        q_heads=heads,
        query_tokens=tokens,
        context_tokens=prefix_tokens + tokens,
        kv_bytes_per_element=min(kv.element_bytes(), 2.0),
        fp8_weights=narrow,
        compute=how.compute,
        kernel=how.kernel,
        window_tokens=min(bounds) if bounds else 0.0,
        cold=1.0,
    )
    tasks: list[Task] = [
        Task(operation=ATTENTION, family=MLA_PREFILL_MODULE, variants=how.variants, call=module)
    ]
    expand = next(m for m in mixer.matrices if m.name == "kv_up")
    columns = heads * (mixer.nope_dim + mixer.v_dim)
    seen = num.smaller(prefix_tokens + 0.0, bounds[0]) if bounds else prefix_tokens
    again = num.larger(seen + 0.0, 1.0)
    stored = stored_format(expand, deployment)
    depth = float(expand.inputs)
    runs: Any = num.choose(prefix_tokens > 0, 1.0, 0.0)
    products: list[Task] = one_product("latents again", deployment, stored, again, columns, depth)
    return [*tasks, *(product.times(runs) for product in products)]


def _refuse_strategy(mixer: LatentAttention, deployment: Deployment, kv: KvStrategy) -> None:
    """Sparse modules were measured with the model's own selection on one rank's cache."""
    latents = next(stream for stream in streams(mixer) if stream.kind == "kv")
    own = Dense().read_tokens(latents, ENDLESS)
    chosen = kv.scan_bytes(latents, ENDLESS) or kv.sight() is not None
    if chosen or kv.read_tokens(latents, ENDLESS) != own or deployment.dcp * deployment.cp > 1:
        raise UnmeasuredError("sparse latent attention was measured with its own selection alone")


ENDLESS = 2.0**40


def _recurrent_prompt(mixer: RecurrentState, deployment: Deployment, tokens: Num) -> list[Task]:
    if deployment.cp > 1:
        raise UnmeasuredError("context-parallel recurrent layers were not measured")
    stack, share = deployment.stack, cut_share(mixer.heads, deployment.tp)
    heads, dims = _state(mixer)
    walk = scan(
        batch=1.0,
        tokens=tokens,
        k_heads=heads[0] * share,
        v_heads=heads[1] * share,
        k_dim=dims[0],
        v_dim=dims[1],
    )
    tasks = [_recurrence(walk, recurrent(stack, mixer.kind, "scan"))]
    if mixer.conv_elements:
        conv = convolution(tokens=tokens, channels=mixer.conv_elements / CONV_TAIL * share)
        tasks.append(_recurrence(conv, recurrent(stack, mixer.kind, "convolution")))
    return tasks


CONV_TAIL = 3.0
"""Earlier tokens that a convolution of width 4 keeps for each channel."""


def _state(mixer: RecurrentState) -> tuple[tuple[float, float], tuple[float, float]]:
    """Heads of keys and of values, and their dimensions. Raises UnmeasuredError for a state that is
    no matrix for each head (Mamba-1)."""
    outputs = {matrix.name: float(matrix.outputs) for matrix in mixer.matrices}
    values = outputs.get("v", outputs.get("x", 0.0))
    v_dim = values / mixer.heads
    if mixer.kind == "mamba-1" or not values:
        raise UnmeasuredError(f"{mixer.kind} layers have no measured kernel")
    k_dim = mixer.state_elements / values
    keys = outputs.get("k", outputs.get("bc", 0.0) / 2.0)
    return (max(keys / k_dim, 1.0), float(mixer.heads)), (k_dim, v_dim)


def _recurrence(call: LinearAttentionCall, variants: tuple[Variant, ...]) -> Task:
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


SCAN_ROW_BYTES = 16384.0
"""What one thread block reads of what a strategy chooses by, at a time."""


def _select(
    deployment: Deployment, kv: KvStrategy, stream: Stream, sequences: Num, context: Num, share: Any
) -> list[Task]:
    """Reading what a strategy chooses by, of all stored tokens."""
    if kv.host_fraction():
        raise UnmeasuredError("reading a cache from host memory was not measured")
    if not kv.scan_bytes(stream, ENDLESS):
        return []
    scanned = kv.scan_bytes(stream, kv.stored_tokens(stream, context)) * share
    return [moved("select", deployment, sequences * scanned, SCAN_ROW_BYTES)]


def _grouped_step(
    mixer: GroupedAttention,
    deployment: Deployment,
    kv: KvStrategy,
    sequences: Num,
    context_tokens: Num,
) -> list[Task]:
    if mixer.selection is not None:
        raise UnmeasuredError("block-sparse attention has no measured kernel")
    cut = deployment.dcp * deployment.cp
    stream = Stream(
        heads=mixer.kv_heads,
        k_elements=mixer.k_dim,
        v_elements=mixer.v_dim,
        cap_tokens=mixer.window_tokens or mixer.chunk_tokens,
    )
    read: Num = kv.read_tokens(stream, context_tokens)
    kv_heads = mixer.kv_heads * cut_share(mixer.kv_heads, deployment.tp)
    q_heads = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp) * deployment.dcp
    windowed = stream.cap_tokens is not None or kv.sight() is not None
    each = element_bytes(kv, stream, read)
    share = kv_heads / mixer.kv_heads / cut
    chosen: list[Task] = _select(deployment, kv, stream, sequences, context_tokens, share)
    if chooses_pages(deployment, kv):
        each, chosen = choosing_bytes(kv, stream, context_tokens), []
    call = DecodeAttentionCall(
        batch=sequences,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=(mixer.k_dim + mixer.v_dim) / 2.0,
        context_tokens=read / cut,
        window_tokens=0.0,
        kv_bytes_per_element=each,
        cold=1.0,
    )
    variants = step_attention(
        deployment, kv, grouped=mixer.q_heads > mixer.kv_heads, windowed=windowed
    )
    task = Task(operation=ATTENTION, family=DECODE_ATTENTION, variants=variants, call=call)
    gathered: list[Task] = _gathers(deployment, sequences * (q_heads * mixer.k_dim))
    return [task, *chosen, *gathered]


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
    shape = latent_shape(model, mixer)
    narrow, plain = _narrow_weights(mixer, deployment)
    latents = next(stream for stream in streams(mixer) if stream.kind == "kv")
    read: Num = kv.read_tokens(latents, context_tokens)
    each = element_bytes(kv, latents, read)
    chosen: list[Task] = _select(deployment, kv, latents, sequences, context_tokens, 1.0 / cut)
    if mixer.indexer is not None:
        _refuse_strategy(mixer, deployment, kv)
        call = DsaModuleCall(
            shape=shape,
            index_heads=float(mixer.indexer.heads),
            batch=sequences,
            q_heads=heads,
            query_tokens=1.0,
            prefix_tokens=context_tokens,
            kv_bytes_per_element=each,
            fp8_weights=narrow,
            indexed=float(mixer.indexer.owns_keys),
            cold=1.0,
        )
        variants = sparse_module(deployment, kv, "decode")
        return [Task(operation=ATTENTION, family=DSA_MODULE, variants=variants, call=call)]
    found, compute = latent_step(deployment, kv, plain=plain)
    module = MlaModuleCall(
        shape=shape,
        batch=sequences,
        q_heads=heads,
        query_tokens=1.0,
        context_tokens=read / cut,
        kv_bytes_per_element=each,
        fp8_weights=narrow,
        compute=compute,
        kernel="fa3",
        gathered=float(deployment.dcp),
        cold=1.0,
    )
    step = Task(operation=ATTENTION, family=MLA_DECODE_MODULE, variants=found, call=module)
    width = heads * deployment.dcp * (mixer.latent_dim + mixer.rope_dim)
    gathered: list[Task] = _gathers(deployment, sequences * width)
    return [step, *chosen, *gathered]


def _recurrent_step(mixer: RecurrentState, deployment: Deployment, sequences: Num) -> list[Task]:
    stack, share = deployment.stack, cut_share(mixer.heads, deployment.tp)
    _state(mixer)
    moved_bytes = sequences * (2.0 * mixer.state_elements * mixer.state_bytes * share)
    none = 0.0 * moved_bytes
    step = LinearAttentionCall(moved_bytes=moved_bytes, scan_tokens=none, scan_heads=none)
    tasks = [_recurrence(step, recurrent(stack, mixer.kind, "step"))]
    if mixer.conv_elements:
        channels = mixer.conv_elements / CONV_TAIL * share
        conv = convolution_step(batch=sequences, channels=channels, width=CONV_TAIL + 1.0)
        tasks.append(_recurrence(conv, recurrent(stack, mixer.kind, "convolution step")))
    return tasks


def moved(
    operation: str, deployment: Deployment, moved_bytes: Any, row_bytes: Any, name: str = "add"
) -> Task:
    """An operator that only moves data."""
    call = ElementwiseCall(moved_bytes=moved_bytes, row_bytes=row_bytes)
    return Task(
        operation=operation, family=ELEMENTWISE, variants=mover(deployment.stack, name), call=call
    )
