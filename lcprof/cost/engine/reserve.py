"""What a server reserves on its fullest GPU and how many tokens of KV are left."""

from __future__ import annotations

import math

from msgspec import Struct

from lcprof.cost.engine.pages import PageLayout, page_layout
from lcprof.cost.engine.weights import stage_weights_bytes
from lcprof.cost.engine.working import (
    GIB,
    activation_bytes,
    default_batch,
    graph_bytes,
    non_torch_bytes,
    visible_bytes,
)
from lcprof.cost.sharding import Stage, stages
from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import Checkpoint, Engine, EngineFlags
from lcprof.domain.kv.dense import Dense
from lcprof.domain.model import ModelShape


class Logged(Struct, frozen=True, kw_only=True):
    """What a start-up log already says, in place of a prediction: of the card, and of the first
    pipeline stage, whose rank it prints."""

    visible_bytes: float | None = None
    activation_bytes: float | None = None
    non_torch_bytes: float | None = None
    graph_bytes: float | None = None


class Reserved(Struct, frozen=True, kw_only=True):
    """A server's memory on the GPU that decides how many tokens fit, and what it can then hold.

    `budget_bytes` is what the memory rule grants in all; `kv_low_bytes` and `kv_high_bytes` bound
    90 % of cases. `max_concurrency` counts requests of `max_model_len` tokens. `reason` says why a
    server that does not start does not.
    """

    visible_bytes: float
    budget_bytes: float
    weights_bytes: float
    activation_bytes: float
    non_torch_bytes: float
    graph_bytes: float
    kv_bytes: float
    kv_low_bytes: float
    kv_high_bytes: float
    layout: PageLayout
    kv_tokens: int
    max_model_len: int
    max_concurrency: float
    starts: bool
    reason: str = ""


def case_flags(case: Case) -> EngineFlags:
    """The flags that a case of a plan stands for, in the newest release."""
    work, deployment = case.workload, case.deployment
    dense = [link for link in case.kv.chain() if isinstance(link, Dense)]
    wide = bool(dense) and dense[0].dtype == "fp32"
    return EngineFlags(
        max_model_len=math.ceil(work.context_tokens + work.output_tokens),
        memory_fraction=deployment.utilisation,
        batched_tokens=math.ceil(work.chunk_tokens),
        sequences=max(1, math.ceil(work.concurrency / deployment.dp)),
        block_tokens=deployment.page_tokens,
        kv_element_bytes=case.kv.element_bytes(),
        activation_bytes=4 if wide else 2,
    )


def reserve(
    model: ModelShape,
    deployment: Deployment,
    checkpoint: Checkpoint,
    flags: EngineFlags,
    engine: Engine,
    *,
    logged: Logged | None = None,
) -> Reserved:
    """The reservation of the pipeline stage whose GPU holds the fewest blocks: all stages must
    hold the same tokens, so that one decides."""
    logged = logged or Logged()
    other = Logged(visible_bytes=logged.visible_bytes)
    each = [
        _stage(
            model, deployment, checkpoint, flags, engine, stage, logged if stage.first else other
        )
        for stage in stages(model, deployment.pp)
    ]
    return min(each, key=lambda stage: stage.kv_tokens)


def _stage(
    model: ModelShape,
    deployment: Deployment,
    checkpoint: Checkpoint,
    flags: EngineFlags,
    engine: Engine,
    stage: Stage,
    logged: Logged,
) -> Reserved:
    def of(name: str) -> float:
        return engine.constant(name, flags.version)

    visible = logged.visible_bytes or visible_bytes(deployment, flags, engine)
    weights = stage_weights_bytes(model, deployment, checkpoint, flags, engine, stage)
    activation = logged.activation_bytes
    if activation is None:
        activation = activation_bytes(model, deployment, checkpoint, flags, engine, stage)
    library = logged.non_torch_bytes
    if library is None:
        library = non_torch_bytes(deployment, flags, engine)
    graphs = logged.graph_bytes
    if graphs is None:
        graphs = graph_bytes(deployment, flags, engine, stage)
    budget, kv = kv_budget(
        engine,
        deployment,
        flags,
        visible=visible,
        weights=weights,
        activation=activation,
        library=library,
        graphs=graphs,
    )
    kind = "quantised_spread" if quantised(model, deployment) else "weights_spread"
    spread = of("working_spread") * (activation + library + graphs) + of(kind) * weights
    layout = page_layout(stage, deployment, flags, engine)
    length = flags.max_model_len or model.positions or layout.block_tokens
    held = held_tokens(layout, kv, length, deployment, flags, engine)
    starts, reason = True, ""
    if kv <= 0:
        starts = False
        reason = f"no memory left for KV: {-kv / GIB:.2f} GiB short before the first block"
    elif held.concurrency < 1:
        starts = False
        fits = f"{held.blocks:,} fit"
        reason = f"one request of {length:,} tokens needs {held.request_blocks:,} blocks, {fits}"
    return Reserved(
        visible_bytes=visible,
        budget_bytes=budget,
        weights_bytes=weights,
        activation_bytes=activation,
        non_torch_bytes=library,
        graph_bytes=graphs,
        kv_bytes=kv,
        kv_low_bytes=kv - spread,
        kv_high_bytes=kv + spread,
        layout=layout,
        kv_tokens=held.tokens,
        max_model_len=length,
        max_concurrency=held.concurrency,
        starts=starts,
        reason=reason,
    )


def quantised(model: ModelShape, deployment: Deployment) -> bool:
    """Whether any weights are held in fewer than 16 bits."""
    if deployment.weights is not None:
        return deployment.weights.bits < 16
    matrices = [
        matrix
        for group in model.groups
        for part in (group.mixer, group.ffn)
        if part is not None
        for matrix in part.matrices
    ]
    experts = [m for g in model.groups if g.ffn is not None for m in g.ffn.expert]
    return any(matrix.format.bits < 16 for matrix in matrices + experts)


class Held(Struct, frozen=True, kw_only=True):
    """What a KV budget holds: blocks, the tokens that the engine prints, and requests of the
    longest length, each of `request_blocks`."""

    blocks: int
    tokens: int
    concurrency: float
    request_blocks: int


def held_tokens(
    layout: PageLayout,
    kv_bytes: float,
    length: int,
    deployment: Deployment,
    flags: EngineFlags,
    engine: Engine,
) -> Held:
    """Blocks and tokens of `kv_bytes` on a rank. Decode context parallel ranks each hold a share
    of every sequence's tokens."""
    _, batched = default_batch(deployment, flags, engine)
    blocks = layout.blocks(kv_bytes)
    needed = layout.request_blocks(length, batched, flags.drafted_tokens)
    concurrency = blocks * deployment.dcp / needed if needed else 0.0
    groups = len(layout.groups)
    tokens = 0
    if engine.constant("printed_by_concurrency", flags.version):
        tokens = int(concurrency * length)
    elif groups:
        tokens = blocks // groups * layout.block_tokens * deployment.dcp
    return Held(blocks=blocks, tokens=tokens, concurrency=concurrency, request_blocks=needed)


def kv_budget(
    engine: Engine,
    deployment: Deployment,
    flags: EngineFlags,
    *,
    visible: float,
    weights: float,
    activation: float,
    library: float,
    graphs: float,
) -> tuple[float, float]:
    """The bytes that the memory rule grants in all, and those of them left for KV.

    - vLLM grants a share of all memory and takes off weights, the activation peak, non-torch
      memory and, where it counts them, CUDA graphs (`Worker.determine_available_memory`).
    - SGLang grants a share of what is free before the weights are loaded to weights and KV
      together; activations and graphs must do with the rest (`ModelRunner.profile_max_num_token`).
    - TensorRT-LLM grants KV a share of what weights and a profiling step leave free
      (`KvCacheCreator`).
    """
    share = flags.memory_fraction
    if engine.name == "sglang":
        free = visible - library
        if share is None:
            share = static_fraction(deployment, flags, visible=visible)
        return free * share, free * share - weights
    if share is None:
        share = engine.constant("utilisation", flags.version)
    if engine.name == "trtllm":
        left = visible - weights - activation - library - graphs
        return visible, left * share
    return visible * share, visible * share - weights - activation - library - graphs


STATIC_BASE_MIB = 512
STATIC_TOKEN_MIB = 1.5
STATIC_GRAPH_MIB = 2
STATIC_RANK_MIB = 1024 / 8
SGLANG_BUDGETS = ((20, 2048, 8), (35, 2048, 24), (60, 4096, 32), (90, 8192, 256), (160, 8192, 256))
"""GiB of memory up to which SGLang prefills so many tokens at once and captures graphs of so many
sequences; beyond the last, 16384 and 512 (`ServerArgs._handle_gpu_memory_settings`)."""


def static_fraction(deployment: Deployment, flags: EngineFlags, *, visible: float) -> float:
    """SGLang's mem_fraction_static when no flag gives it: memory less a reserve for a chunk of
    prefill, captured graphs and ranks, over memory (`ServerArgs._handle_gpu_memory_settings`)."""
    chunk, graphs = 16384, 512
    for limit, tokens, sequences in reversed(SGLANG_BUDGETS):
        if visible / GIB < limit:
            chunk, graphs = tokens, sequences
    chunk = flags.batched_tokens or chunk
    reserve_mib = STATIC_BASE_MIB + max(chunk, 2048) * STATIC_TOKEN_MIB
    reserve_mib += graphs * STATIC_GRAPH_MIB + deployment.tp * deployment.pp * STATIC_RANK_MIB
    total_mib = visible / 2**20
    return round((total_mib - reserve_mib) / total_mib, 3)
