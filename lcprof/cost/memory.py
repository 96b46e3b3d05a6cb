"""What lies in a GPU's memory: weights, KV, activations of a chunk, logits, workspace, runtime."""

from __future__ import annotations

from functools import lru_cache
from typing import Generic

from msgspec import Struct

from lcprof.cost.operation import ACTIVATION_BYTES
from lcprof.cost.sharding import Stage, cut_share, kv_share, matrix_share, rank_sequences, stages
from lcprof.cost.weights import stage_rank_bytes
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.stream import Stream, state_bytes, streams
from lcprof.domain.model import FeedForward, LayerGroup, Matrix, ModelShape, RecurrentState
from lcprof.domain.workload import Workload
from lcprof.num import Num, ceil, choose, larger, smaller

GIB = float(2**30)
RUNTIME_BYTES = 0.26 * GIB
"""CUDA context, cuBLAS handles and the like on one GPU: the median of what vLLM 0.15-0.19 printed
as non-torch memory on an H100 (start-up logs of llm-d-incubation/llm-d-planner#205)."""
COLLECTIVE_BYTES = 1.9 * GIB
"""What NCCL and custom all-reduce buffers add with tensor parallelism: 2.1 - 2.2 GiB printed at
tp 2 and 4 in the same logs, less the above."""
DECODE_SPLITS = 32
"""Partial results a split-KV decode kernel keeps for a head, at most."""
LOGIT_BYTES = 4


class Memory(Struct, Generic[Num], frozen=True, kw_only=True):
    """Bytes on a GPU. `kv_bytes` is what the tokens need, `kv_reserved_bytes` what whole pages
    take; the total counts the latter. `kv_host_bytes` lies in host memory. `kv_prefill_bytes` is
    what one prompt holds beyond that while it is read, when a strategy evicts only afterwards.

    Over several pipeline stages each figure is that of the stage where it is largest, so the total
    of the fullest GPU can be less than their sum.
    """

    weights_bytes: Num
    kv_bytes: Num
    kv_reserved_bytes: Num
    kv_host_bytes: Num
    kv_prefill_bytes: Num
    activation_bytes: Num
    logits_bytes: Num
    workspace_bytes: Num
    runtime_bytes: Num
    working_bytes: Num
    """Everything but KV."""
    total_bytes: Num


class StageContent(Struct, frozen=True, kw_only=True):
    """What of a pipeline stage's memory does not depend on the workload, on the fullest rank:
    weights, recurrent states of a sequence, streams and in how many layers they lie, elements alive
    for a token of a chunk, partial results of a decode step, logits of a position."""

    weights_bytes: float
    state_bytes: float
    streams: tuple[tuple[Stream, int], ...]
    token_elements: float
    partial_bytes: float
    position_bytes: float


@lru_cache(maxsize=256)
def stage_contents(model: ModelShape, deployment: Deployment) -> tuple[StageContent, ...]:
    """The contents of each pipeline stage."""
    contents: list[StageContent] = []
    for stage in stages(model, deployment.pp):
        held: dict[Stream, int] = {}
        state = 0.0
        for group, count in stage.counts:
            state += _state_bytes(group, deployment) * count
            for stream in streams(group.mixer):
                held[stream] = held.get(stream, 0) + count
        contents.append(
            StageContent(
                weights_bytes=stage_rank_bytes(model, deployment, stage),
                state_bytes=state,
                streams=tuple(held.items()),
                token_elements=activation_elements(model, deployment, stage),
                partial_bytes=_partial_bytes(deployment, stage),
                position_bytes=stage.last * model.vocab * LOGIT_BYTES / deployment.tp,
            )
        )
    return tuple(contents)


def memory(
    model: ModelShape, deployment: Deployment, kv: KvStrategy, workload: Workload[Num]
) -> Memory[Num]:
    """Memory of the fullest GPU, figure by figure, over the pipeline's stages."""
    contents = stage_contents(model, deployment)
    fullest = stage_memory(contents[0], deployment, kv, workload)
    for content in contents[1:]:
        here = stage_memory(content, deployment, kv, workload)
        largest = {
            name: larger(getattr(fullest, name), getattr(here, name))
            for name in fullest.__struct_fields__
        }
        fullest = Memory(**largest)
    return fullest


def stage_memory(
    content: StageContent, deployment: Deployment, kv: KvStrategy, workload: Workload[Num]
) -> Memory[Num]:
    """Memory of the fullest GPU of one pipeline stage."""
    sequences: Num = rank_sequences(workload.concurrency, deployment)
    state = sequences * content.state_bytes
    zero = workload.context_tokens * 0.0
    needed, reserved, reading = zero, zero, zero
    for stream, count in content.streams:
        each, paged = stream_bytes(stream, deployment, kv, workload)
        needed = needed + each * count
        reserved = reserved + paged * count
        late: Num | None = late_bytes(stream, count, deployment, kv, workload)
        if late is not None:
            reading = reading + late
    here = 1.0 - kv.host_fraction()
    chunk: Num = step_tokens(deployment, workload)
    weights = zero + content.weights_bytes
    runtime = zero + runtime_bytes(deployment)
    activation = chunk * (content.token_elements * ACTIVATION_BYTES)
    logits = zero + sequences * content.position_bytes
    workspace = zero + sequences * content.partial_bytes
    working = weights + runtime + activation + logits + workspace
    paged_bytes = reserved * here + state
    return Memory(
        weights_bytes=weights,
        kv_bytes=needed * here + state,
        kv_reserved_bytes=paged_bytes,
        kv_host_bytes=reserved * kv.host_fraction(),
        kv_prefill_bytes=reading * here,
        activation_bytes=activation,
        logits_bytes=logits,
        workspace_bytes=workspace,
        runtime_bytes=runtime,
        working_bytes=working,
        total_bytes=working + paged_bytes + reading * here,
    )


def final_tokens(workload: Workload[Num]) -> Num:
    """Tokens that a sequence holds when its last output token is being computed."""
    return workload.context_tokens + (workload.output_tokens - 1.0)


def step_tokens(deployment: Deployment, workload: Workload[Num]) -> Num:
    """The most tokens that one step puts through a rank: of a prefill's chunk, or one of each
    sequence."""
    chunk: Num = smaller(workload.new_tokens, workload.chunk_tokens) / deployment.cp
    tokens: Num = larger(chunk, rank_sequences(workload.concurrency, deployment))
    return tokens


def page_tokens(deployment: Deployment) -> float:
    """Tokens of a page over all ranks that share a cache's tokens."""
    return float(deployment.page_tokens * deployment.dcp * deployment.cp)


def late_bytes(
    stream: Stream, layers: int, deployment: Deployment, kv: KvStrategy, workload: Workload[Num]
) -> Num | None:
    """Bytes of a stream that a prompt holds on a rank only until it has been read, host memory
    included: in all `layers` when prefill is chunked, in one at a time when it is not. None where
    the strategy drops nothing that late."""
    late: Num | None = kv.late_tokens(stream, workload.context_tokens)
    if late is None:
        return None
    rate = kv.bytes_per_token(stream) * kv_share(stream, deployment)
    held: Num = choose(workload.new_tokens <= workload.chunk_tokens, 1.0, float(layers))
    return late * held * rate


def stream_bytes(
    stream: Stream, deployment: Deployment, kv: KvStrategy, workload: Workload[Num]
) -> tuple[Num, Num]:
    """Bytes of a stream in one layer for all sequences of a rank, host memory included: what tokens
    need, and whole pages.

    A prefix that all prompts share is stored once where nothing of it is dropped.
    """
    sequences: Num = rank_sequences(workload.concurrency, deployment)
    tokens = final_tokens(workload)
    decoded = workload.output_tokens - 1.0
    share = kv_share(stream, deployment)
    stored: Num = kv.stored_tokens(stream, tokens, decoded)
    each: Num = kv.stored_bytes(stream, tokens, decoded)
    rate = kv.bytes_per_token(stream)
    page = page_tokens(deployment)
    pages: Num = ceil(stored / page)
    paged: Num = kv.held_bytes(stream, pages * page)
    needed, reserved = sequences * each, sequences * paged
    if workload.prefix_tokens:
        kept = stored >= tokens
        prefix = float(workload.prefix_tokens)
        whole_pages = float(prefix // page) * page
        spared = (sequences - 1.0) * rate
        needed = needed - choose(kept, spared * prefix, spared * 0.0)
        reserved = reserved - choose(kept, spared * whole_pages, spared * 0.0)
    return needed * share, reserved * share


def _state_bytes(group: LayerGroup, deployment: Deployment) -> float:
    if not isinstance(group.mixer, RecurrentState):
        return 0.0
    return state_bytes(group.mixer) * cut_share(group.mixer.heads, deployment.tp)


def activation_elements(model: ModelShape, deployment: Deployment, stage: Stage) -> float:
    """Elements alive for one token of a chunk on a rank at the widest point of a layer: the
    residual and its normed copy, and everything that a mixer or a feed-forward has computed before
    its closing projection."""
    widest = 0.0
    for group, _ in stage.counts:
        if group.mixer is not None:
            widest = max(widest, _live(group.mixer.matrices, deployment))
        if group.ffn is not None:
            live = _live(group.ffn.matrices, deployment)
            widest = max(widest, live + _routed(group.ffn, model.hidden, deployment))
    return 2.0 * model.hidden + widest


def _live(matrices: tuple[Matrix, ...], deployment: Deployment) -> float:
    total = 0.0
    for matrix in matrices:
        share = matrix_share(matrix, deployment.tp)
        total += (matrix.inputs if matrix.closes else matrix.outputs) * share
    return total


def _routed(ffn: FeedForward, hidden: int, deployment: Deployment) -> float:
    """Experts' part under balanced routing: k copies of the token in and out and the widths
    between, for the copies that a rank's experts take out of all tokens of the dp groups."""
    if not ffn.experts:
        return 0.0
    between = sum(m.inputs if m.closes else m.outputs for m in ffn.expert)
    across = deployment.expert_cuts
    copies = ffn.experts_per_token * deployment.dp * cut_share(ffn.experts, deployment.ep)
    return copies * (between / across + 2.0 * hidden)


def _partial_bytes(deployment: Deployment, stage: Stage) -> float:
    """fp32 partial outputs and log-sum-exps of split-KV decode, for one sequence."""
    widest = 0.0
    for group, _ in stage.counts:
        mixer = group.mixer
        if mixer is None or isinstance(mixer, RecurrentState):
            continue
        widths = [m.inputs for m in mixer.matrices if m.name == "o"]
        per_head = max(widths, default=0) / mixer.q_heads + 1
        heads = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp)
        widest = max(widest, heads * per_head)
    return widest * DECODE_SPLITS * 4


def runtime_bytes(deployment: Deployment) -> float:
    """What the runtime holds beside tensors."""
    several = deployment.gpus > 1
    return RUNTIME_BYTES + (COLLECTIVE_BYTES if several else 0.0)
