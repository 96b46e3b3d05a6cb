"""Weights as an engine holds them: fused tensors, padded vocabulary, tables, the allocator."""

from __future__ import annotations

from msgspec.structs import replace

from lcprof.cost.sharding import Stage, cut_share, matrix_share, stored_format
from lcprof.cost.weights import VECTOR_BYTES
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import Checkpoint, Engine, EngineFlags
from lcprof.domain.model import (
    FeedForward,
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    Matrix,
    Mixer,
    ModelShape,
)
from lcprof.num import ceil_div

MIB = 2**20
VOCAB_MULTIPLE = 64
"""vLLM and SGLang pad the vocabulary to this (VocabParallelEmbedding)."""
LARGE_ALLOCATION = 10 * MIB
ROUND_LARGE = 2 * MIB
SPLIT_REMAINDER = MIB
"""PyTorch's CUDA caching allocator takes large tensors from segments of whole 2 MiB and keeps a
remainder of at most 1 MiB with the tensor (c10/cuda/CUDACachingAllocator: kMinLargeAlloc,
kRoundLarge, kSmallSize)."""
MXFP4_INPUTS = 256
"""The swizzled layout of MXFP4 experts on Hopper pads their inputs to this (2880 to 3072 for
gpt-oss: vLLM 0.14 prints 64.38 GiB for gpt-oss-120b)."""
FUSED = ({"q", "k", "v"}, {"gate", "up"}, {"shared_gate", "shared_up"}, {"q_down", "kv_down"})
"""Matrices that engines keep as one tensor. A recurrent layer fuses q, k, v with its gate."""
FLOAT32_ROPE = ("yarn",)
"""Rope kinds whose tables latent attention keeps in float32 (DeepseekScalingRotaryEmbedding)."""


def allocated_bytes(size: float) -> float:
    """What the caching allocator sets aside for a tensor."""
    if size < LARGE_ALLOCATION:
        return size
    waste = -size % ROUND_LARGE
    return size + (waste if waste <= SPLIT_REMAINDER else 0.0)


def stage_weights_bytes(
    model: ModelShape,
    deployment: Deployment,
    checkpoint: Checkpoint,
    flags: EngineFlags,
    engine: Engine,
    stage: Stage,
) -> float:
    """Weights of one pipeline stage on its fullest rank, as `engine` holds them."""
    total = engine.constant("load_slack_bytes", flags.version)
    for group, count in stage.counts:
        total += count * layer_bytes(group, deployment, flags)
    table = vocabulary_bytes(model, deployment, flags)
    if stage.first:
        total += table + model.extra_embedding_params * flags.activation_bytes
        share = 1.0 / deployment.tp if checkpoint.encoder_split else 1.0
        total += checkpoint.encoder_params * flags.activation_bytes * share
    if stage.last:
        total += model.vectors * flags.activation_bytes
        total += draft_bytes(model, deployment, flags)
        total += 0.0 if model.tied_embeddings and stage.first else table
    return total + rope_bytes(model, checkpoint, flags)


def draft_bytes(model: ModelShape, deployment: Deployment, flags: EngineFlags) -> float:
    """A drafter's layers, shaped like the model's first full-attention layer, and the projection
    that joins hidden state and embedding; it shares the vocabulary's tables. Only vendors' own
    block-scaled fp8 checkpoints quantise it too (DeepSeek-V3, Qwen3.5)."""
    if not flags.draft_layers:
        return 0.0
    form = deployment.weights
    own_format = form is not None and form.name == "fp8-block"
    plain = deployment if own_format else replace(deployment, weights=None)
    for group in model.groups:
        mixer = group.mixer
        windowed = isinstance(mixer, GroupedAttention) and mixer.window_tokens is not None
        if isinstance(mixer, GroupedAttention | LatentAttention) and not windowed:
            own = layer_bytes(group, plain, flags) * flags.draft_layers
            return own + 2 * model.hidden * model.hidden * flags.activation_bytes
    return 0.0


def vocabulary_bytes(model: ModelShape, deployment: Deployment, flags: EngineFlags) -> float:
    """One vocabulary table on a rank, padded and cut over tp."""
    rows = ceil_div(model.vocab, VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    width = model.embedding_format.bits / 8
    if width == 2:
        width = flags.activation_bytes
    return allocated_bytes(ceil_div(rows, deployment.tp) * model.hidden * width)


def rope_bytes(model: ModelShape, checkpoint: Checkpoint, flags: EngineFlags) -> float:
    """Tables of cosines and sines, as many rows as the config has positions: one for each width of
    a head, and one more where windows rotate at another base than scaled full layers (Gemma 3)."""
    if model.rope.kind == "none":
        return 0.0
    tables: set[tuple[int, bool, int]] = set()
    scaled = model.rope.kind in ("linear", "proportional")
    for group in model.groups:
        mixer = group.mixer
        if isinstance(mixer, GroupedAttention):
            width = int(mixer.k_dim * checkpoint.rotary_share)
            local = scaled and mixer.window_tokens is not None
            tables.add((width, local, flags.activation_bytes))
        elif isinstance(mixer, LatentAttention):
            wide = 4 if model.rope.kind in FLOAT32_ROPE else flags.activation_bytes
            tables.add((mixer.rope_dim, False, wide))
    long, short = _rope_rows(model, checkpoint)
    return float(
        sum((short if local else long) * width * element for width, local, element in tables)
    )


def _rope_rows(model: ModelShape, checkpoint: Checkpoint) -> tuple[float, float]:
    """Rows of a table of full and of window layers. Linear and dynamic scaling multiply the
    positions that the config states by their factor, yarn those before scaling (vLLM
    `LinearScalingRotaryEmbedding`, `YaRNScalingRotaryEmbedding`)."""
    positions = checkpoint.positions or model.positions or 0
    rope = model.rope
    rows: float = positions
    if rope.kind in ("linear", "dynamic"):
        rows = positions * rope.factor
    elif rope.kind == "yarn" and rope.original_positions:
        rows = rope.original_positions * rope.factor
    tables = checkpoint.position_tables
    return rows * tables, float(positions * tables)


def layer_bytes(group: LayerGroup, deployment: Deployment, flags: EngineFlags) -> float:
    """One layer's tensors on the fullest rank."""
    plain = flags.activation_bytes
    total = float(group.vectors * plain)
    if group.mixer is not None:
        total += group.mixer.vectors * plain
        recurrent = not isinstance(group.mixer, GroupedAttention | LatentAttention)
        total += _fused_bytes(group.mixer.matrices, deployment, flags, recurrent=recurrent)
        total += _absorbed_bytes(group.mixer, deployment, flags)
    if group.ffn is not None:
        total += group.ffn.vectors * plain
        total += _fused_bytes(group.ffn.matrices, deployment, flags, recurrent=False)
        total += _expert_bytes(group.ffn, deployment, flags)
    return total


def matrix_rank_bytes(matrix: Matrix, deployment: Deployment, flags: EngineFlags) -> float:
    """A matrix on the fullest rank, scales included; what is not quantised is held in the
    activation's width."""
    form = stored_format(matrix, deployment)
    if form.bits == 16:
        whole = float(matrix.params * flags.activation_bytes)
    else:
        whole = form.matrix_bytes(matrix.inputs, matrix.outputs)
    return whole * matrix_share(matrix, deployment.tp)


def _fused_bytes(
    matrices: tuple[Matrix, ...], deployment: Deployment, flags: EngineFlags, *, recurrent: bool
) -> float:
    tensors: dict[str, float] = {}
    for matrix in matrices:
        name = matrix.name
        for family in FUSED:
            if name in family and not (recurrent and name == "gate"):
                name = "+".join(sorted(family))
        if recurrent and name in ("gate", "k+q+v"):
            name = "in"
        own = matrix_rank_bytes(matrix, deployment, flags)
        tensors[name] = tensors.get(name, 0.0) + own
    return sum(allocated_bytes(size) for size in tensors.values())


def _expert_bytes(ffn: FeedForward, deployment: Deployment, flags: EngineFlags) -> float:
    """Routed experts: all up projections of a layer are one tensor, all down projections another,
    their vectors (biases) a third."""
    if not ffn.experts:
        return 0.0
    held = ceil_div(ffn.experts, deployment.ep)
    across = deployment.expert_cuts
    rising = falling = 0.0
    for matrix in ffn.expert:
        form = stored_format(matrix, deployment)
        share = cut_share(matrix.split_count or across, across)
        if form.bits == 16:
            whole = float(matrix.params * flags.activation_bytes)
        else:
            whole = form.matrix_bytes(matrix.inputs, matrix.outputs)
        if form.name == "mxfp4":
            inner = matrix.inputs * share if matrix.name == "down" else matrix.inputs
            padded = -(-inner // MXFP4_INPUTS) * MXFP4_INPUTS
            whole += matrix.params * form.bits / 8 * (padded / inner - 1.0)
        size = held * whole * share
        if matrix.name == "down":
            falling += size
        else:
            rising += size
    vectors = held * ffn.expert_vectors * VECTOR_BYTES / across
    return allocated_bytes(rising) + allocated_bytes(falling) + vectors


def _absorbed_bytes(mixer: Mixer, deployment: Deployment, flags: EngineFlags) -> float:
    """Latent attention keeps the two halves of its expansion once more, unquantised, for decode
    (vLLM MLACommonImpl, SGLang w_kc and w_vc)."""
    if not isinstance(mixer, LatentAttention):
        return 0.0
    heads = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp)
    return heads * (mixer.nope_dim + mixer.v_dim) * mixer.latent_dim * flags.activation_bytes
