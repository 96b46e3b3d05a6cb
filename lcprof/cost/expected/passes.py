"""All kernel calls of one pass: a prefill chunk, or a decode step."""

from __future__ import annotations

from typing import Generic

from msgspec import Struct

from lcprof.cost.expected.attention import moved
from lcprof.cost.expected.exchanges import all_reduce, layer_exchanges, library_task
from lcprof.cost.expected.products import expert_task, one_product, product_tasks
from lcprof.cost.expected.task import Task
from lcprof.cost.layer import Batch
from lcprof.cost.operation import ACTIVATION_BYTES
from lcprof.cost.sharding import cut_share
from lcprof.domain.deployment import Deployment
from lcprof.domain.model import GroupedAttention, LatentAttention, LayerGroup, ModelShape
from lcprof.num import Num

NORMS = "norms and residual"
MODULE = frozenset(
    {"q", "q_down", "q_up", "kv_down", "kv_up", "o", "index_q", "index_k", "index_weights"}
)
"""Matrices of the latent attention module."""
LOGITS_BYTES = 4.0
SAMPLING_PASSES = 4.0
"""How often choosing a token reads or writes a row of logits: scale, softmax, choose."""


class Pass(Struct, Generic[Num], frozen=True, kw_only=True):
    """One pass over the weights: `rank_tokens` new tokens on a rank, `expert_tokens` that its
    experts and those beside them see, in a prefill chunk (launched kernel by kernel) or a decode
    step (one CUDA graph)."""

    rank_tokens: Num
    expert_tokens: Num
    prompt: bool

    def batch(self) -> Batch[Num]:
        """The pass as `lcprof.cost.layer` counts it."""
        return Batch(
            tokens=self.expert_tokens,
            rank_tokens=self.rank_tokens,
            expert_tokens=self.expert_tokens,
            steps=self.rank_tokens * 0.0 + 1.0,
        )


def layer_tasks(
    model: ModelShape, group: LayerGroup, deployment: Deployment, one: Pass[Num]
) -> list[Task]:
    """Everything in a layer but its attention or recurrence."""
    rows, mixer, ffn = one.rank_tokens, group.mixer, group.ffn
    tasks: list[Task] = []
    width = 2.0 * model.hidden * ACTIVATION_BYTES
    for present, name in ((mixer, "input_layernorm"), (ffn, "post_attention_layernorm")):
        if present is not None:
            tasks.append(moved(NORMS, deployment, rows * width, width, name))
    if mixer is not None:
        matrices = mixer.matrices
        if isinstance(mixer, LatentAttention):
            # The others are in the module that attention was measured as.
            matrices = tuple(m for m in matrices if m.name not in MODULE)
        tasks += product_tasks("projections", matrices, deployment, rows)
    if isinstance(mixer, GroupedAttention):
        tasks.append(_rope(mixer, deployment, one))
    if ffn is not None:
        if ffn.matrices:
            tasks += product_tasks("feed-forward", ffn.matrices, deployment, rows)
            tasks += _activation(group, deployment, one)
        if ffn.experts:
            tasks.append(expert_task(ffn, deployment, one.expert_tokens))
    tasks += layer_exchanges(model, group, deployment, one.batch(), eager=one.prompt)
    return tasks


def _rope(mixer: GroupedAttention, deployment: Deployment, one: Pass[Num]) -> Task:
    """Rotating queries and keys, and writing keys and values to the cache, which engines fuse or
    launch at about the same cost."""
    heads = mixer.q_heads * cut_share(mixer.q_heads, deployment.tp)
    heads += mixer.kv_heads * cut_share(mixer.kv_heads, deployment.tp)
    width = 2.0 * heads * mixer.k_dim * ACTIVATION_BYTES
    task: Task = moved("kv write", deployment, one.rank_tokens * width, width, "attn_rope")
    return task.times(2.0)


def _activation(group: LayerGroup, deployment: Deployment, one: Pass[Num]) -> list[Task]:
    """The gated activation between up and down."""
    if group.ffn is None:
        return []
    inner = [m for m in group.ffn.matrices if m.name in {"down", "shared_down"}]
    tasks: list[Task] = []
    for matrix in inner:
        gate = matrix.name.replace("down", "gate")
        gated = 1.0 + float(any(m.name == gate for m in group.ffn.matrices))
        inputs = matrix.inputs * cut_share(matrix.split_count or matrix.inputs, deployment.tp)
        width = (gated + 1.0) * inputs * ACTIVATION_BYTES
        tasks.append(moved("feed-forward", deployment, one.rank_tokens * width, width, "mlp_act"))
    return tasks


def end_tasks(
    model: ModelShape, deployment: Deployment, one: Pass[Num], answers: Num
) -> tuple[list[Task], list[Task]]:
    """What the first stage does besides its layers (the embedding) and what the last does (logits
    of `answers` positions on a rank, and choosing tokens)."""
    tp = deployment.tp
    state = float(model.hidden * ACTIVATION_BYTES)
    first = [moved("embedding", deployment, one.rank_tokens * (2 * state), 2 * state, "emb")]
    last = one_product(
        "logits",
        deployment,
        model.embedding_format,
        answers,
        model.vocab / tp,
        float(model.hidden),
    )
    row = SAMPLING_PASSES * model.vocab * LOGITS_BYTES
    last.append(moved("logits", deployment, answers * row, row))
    if tp > 1:
        first.append(all_reduce(deployment, one.rank_tokens * state, eager=one.prompt, count=1.0))
        gathered = answers * (model.vocab * float(ACTIVATION_BYTES))
        last.append(library_task(deployment, ranks=tp, span=tp, buffer_bytes=gathered))
    return first, last
