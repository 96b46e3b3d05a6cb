"""Memory an engine holds back beside weights and KV: activations, libraries, CUDA graphs."""

from __future__ import annotations

from lcprof.cost.sharding import Stage, cut_share, matrix_share, stored_format
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import Checkpoint, Engine, EngineFlags
from lcprof.domain.model import FeedForward, GroupedAttention, ModelShape
from lcprof.num import ceil_div

GIB = float(2**30)
LARGE_CARD_BYTES = 70 * GIB
CAUTIOUS = ("a100", "gb10")
"""Cards of 70 GiB or more with the small card's defaults: A100 by name, GB10 by its bandwidth."""
ALL_SIZES_SEQUENCES = 1024
"""Sequences from which on graphs of every size are captured."""


def visible_bytes(deployment: Deployment, flags: EngineFlags, engine: Engine) -> float:
    """Memory of the card as CUDA shows it."""
    return deployment.gpu.usable_bytes - engine.constant("driver_bytes", flags.version)


def default_batch(deployment: Deployment, flags: EngineFlags, engine: Engine) -> tuple[int, int]:
    """Most sequences and most tokens of a step, from the flags or the engine's rule by card
    (vLLM `EngineArgs.get_batch_defaults`)."""
    name = deployment.gpu.name
    large = deployment.gpu.usable_bytes >= LARGE_CARD_BYTES and not name.startswith(CAUTIOUS)
    ending = "" if large else "_small"
    sequences = flags.sequences or int(engine.constant("sequences" + ending, flags.version))
    tokens = flags.batched_tokens or int(engine.constant("batched_tokens" + ending, flags.version))
    return min(sequences, tokens), tokens


def activation_bytes(
    model: ModelShape,
    deployment: Deployment,
    checkpoint: Checkpoint,
    flags: EngineFlags,
    engine: Engine,
    stage: Stage,
) -> float:
    """The peak of a profiling step of as many tokens as the engine batches.

    The widest layer's tensors, or the sampler's on dummy logits of every sequence, whichever is
    larger; workspaces of routed experts stay in either case. An encoder's output and the tensors
    passed between pipeline stages lie beside both.
    """
    sequences, tokens = default_batch(deployment, flags, engine)
    element = flags.activation_bytes
    hidden = tokens * model.hidden * element
    copies = engine.constant("hidden_copies", flags.version)
    layer = tokens * _widest(deployment, stage) * element + copies * hidden
    sampler = 0.0
    if stage.last:
        each = engine.constant("sampler_bytes", flags.version) + element
        sampler = sequences * model.vocab * each + hidden
    beside = _expert_workspace(deployment, stage, tokens) * element
    if checkpoint.encoder_params and stage.first:
        beside += hidden
    if deployment.pp > 1:
        beside += 2 * hidden
    return max(layer, sampler) + beside


def non_torch_bytes(deployment: Deployment, flags: EngineFlags, engine: Engine) -> float:
    """CUDA context, NCCL and all-reduce buffers of one GPU."""

    def of(name: str) -> float:
        return engine.constant(name, flags.version)

    if deployment.tp == 1:
        return of("pipeline_bytes") if deployment.pp > 1 else of("context_bytes")
    doublings = (deployment.tp - 1).bit_length() - 1
    return of("context_bytes") + of("tensor_bytes") + doublings * of("tensor_rank_bytes")


def graph_bytes(deployment: Deployment, flags: EngineFlags, engine: Engine, stage: Stage) -> float:
    """CUDA graphs of one GPU, where the engine takes them from the KV budget: a pool, and for each
    layer what grows with the batch sizes that are captured."""
    if flags.eager or not engine.constant("graphs_counted", flags.version):
        return 0.0
    sequences, _ = default_batch(deployment, flags, engine)
    layers = sum(count for _, count in stage.counts) * min(1.0, sequences / ALL_SIZES_SEQUENCES)
    each = engine.constant("graph_layer_bytes", flags.version)
    return engine.constant("graph_bytes", flags.version) + layers * each


def _widest(deployment: Deployment, stage: Stage) -> float:
    """Elements a token has alive between the matrices of the widest layer, hidden states aside."""
    widest = 0.0
    for group, _ in stage.counts:
        if group.ffn is not None and group.ffn.matrices:
            live = 0.0
            for matrix in group.ffn.matrices:
                share = matrix_share(matrix, deployment.tp)
                live += (matrix.inputs if matrix.closes else matrix.outputs) * share
                form = stored_format(matrix, deployment)
                if matrix.closes and form.compute in ("fp8", "int8") and form.bits == 8:
                    # The quantised copy of what the closing projection reads.
                    live += matrix.inputs * share / 2
            widest = max(widest, live)
        mixer = group.mixer
        if mixer is not None:
            live = sum(
                matrix.outputs * matrix_share(matrix, deployment.tp)
                for matrix in mixer.matrices
                if not matrix.closes
            )
            if isinstance(mixer, GroupedAttention):
                live += mixer.q_heads * mixer.v_dim / deployment.tp
            widest = max(widest, live)
    return widest


def _expert_workspace(deployment: Deployment, stage: Stage, tokens: int) -> float:
    """Elements of the two workspaces of fused experts: k rows a token as wide as the larger of the
    fused up projection and the hidden state, and as the larger of half of it and the hidden state
    (vLLM `TritonExperts.workspace_shapes`)."""
    widest = 0.0
    for group, _ in stage.counts:
        ffn = group.ffn
        if ffn is not None and ffn.experts:
            fused, half, width = _expert_widths(ffn, deployment)
            rows = tokens * ffn.experts_per_token
            widest = max(widest, rows * (max(fused, width) + max(half, width)))
    return widest


def _expert_widths(ffn: FeedForward, deployment: Deployment) -> tuple[float, float, float]:
    across = deployment.expert_cuts
    down = next(m for m in ffn.expert if m.name == "down")
    rising = [m for m in ffn.expert if m.name != "down"]
    half = ceil_div(down.inputs, across)
    share = cut_share(down.inputs, across)
    return sum(m.outputs for m in rising) * share, half, down.outputs
