"""The work of one layer on `tokens` new tokens: matrices, norms, experts, collectives.

What prefill and decode share. Attention itself differs between them and has its own rooms.
"""

from __future__ import annotations

import math
from typing import Generic

from msgspec import Struct

from lcprof.cost.operation import ACTIVATION_BYTES, Operation
from lcprof.cost.sharding import expert_share, matrix_share, stored_format
from lcprof.cost.weights import expert_bytes, matrix_bytes
from lcprof.domain.deployment import Deployment
from lcprof.domain.model import FeedForward, LayerGroup, Matrix, ModelShape
from lcprof.num import Num, exp

NORM_FLOPS = 4
"""RMSNorm on an element: square, accumulate, scale, gain."""


class Batch(Struct, Generic[Num], frozen=True, kw_only=True):
    """Tokens that go through a layer's matrices.

    `tokens` in the whole deployment, `rank_tokens` of them on a rank (after cp and dp), in `steps`
    passes over the weights. `expert_tokens` are those that the experts of the ranks that share
    them see: of all data-parallel groups, in a prefill one context-parallel rank's.
    """

    tokens: Num
    rank_tokens: Num
    expert_tokens: Num
    steps: Num


def matrix_operation(
    name: str, matrices: tuple[Matrix, ...], deployment: Deployment, batch: Batch[Num]
) -> Operation[Num]:
    """y = x W for every matrix: 2·inputs·outputs FLOPs a token; weights are read once a step."""
    flops, rank_flops, weights, moved_in, moved_out = 0.0, 0.0, 0.0, 0.0, 0.0
    for matrix in matrices:
        share = matrix_share(matrix, deployment.tp)
        flops += 2.0 * matrix.params
        rank_flops += 2.0 * matrix.params * share
        weights += matrix_bytes(matrix, deployment) * share
        moved_in += matrix.inputs * (share if matrix.closes else 1.0) * ACTIVATION_BYTES
        moved_out += matrix.outputs * (1.0 if matrix.closes else share) * ACTIVATION_BYTES
    compute = stored_format(matrices[0], deployment).compute if matrices else "bf16"
    return Operation(
        name=name,
        compute=compute,
        flops=batch.tokens * flops,
        rank_flops=batch.rank_tokens * rank_flops,
        rank_read_bytes=batch.steps * weights + batch.rank_tokens * moved_in,
        rank_write_bytes=batch.rank_tokens * moved_out,
    )


def experts_touched(experts: int, experts_per_token: int, tokens: Num) -> Num:
    """Distinct experts that `tokens` tokens reach under uniform routing:
    E·(1 - (1 - k/E)^tokens), the expectation of E independent coverings."""
    if experts_per_token >= experts:
        return tokens * 0.0 + float(experts)
    missed = exp(tokens * math.log1p(-experts_per_token / experts))
    touched: Num = experts * (1.0 - missed)
    return touched


def reached_ranks(top_k: int, experts: int, ranks: int) -> float:
    """How many of `ranks` GPUs hold one of `top_k` experts drawn without repetition."""
    local = experts // ranks
    missed = 1.0
    for drawn in range(top_k):
        missed *= max(experts - local - drawn, 0) / (experts - drawn)
    return ranks * (1.0 - missed)


def expert_operation(
    ffn: FeedForward, deployment: Deployment, batch: Batch[Num], step_tokens: Num
) -> Operation[Num]:
    """Routed experts: every token runs k of E; a step of `step_tokens` reads those it touches."""
    share = expert_share(ffn, deployment)
    params = sum(matrix.params for matrix in ffn.expert)
    token_flops = 2.0 * params * ffn.experts_per_token
    touched: Num = experts_touched(ffn.experts, ffn.experts_per_token, step_tokens)
    moved = 0.0
    for matrix in ffn.expert:
        moved += (matrix.inputs + matrix.outputs) * ACTIVATION_BYTES * ffn.experts_per_token
    rank_moved = batch.expert_tokens * (moved * share)
    return Operation(
        name="experts",
        compute=stored_format(ffn.expert[0], deployment).compute,
        flops=batch.tokens * token_flops,
        rank_flops=batch.expert_tokens * (token_flops * share),
        rank_read_bytes=batch.steps * touched * (expert_bytes(ffn, deployment) * share)
        + rank_moved / 2,
        rank_write_bytes=rank_moved / 2,
    )


def norm_operation(model: ModelShape, group: LayerGroup, batch: Batch[Num]) -> Operation[Num]:
    """A norm before each part and the residual after it, on every tensor rank."""
    parts = float((group.mixer is not None) + (group.ffn is not None))
    elements = parts * model.hidden
    moved = batch.rank_tokens * (elements * ACTIVATION_BYTES)
    return Operation(
        name="norms and residual",
        compute="vector",
        flops=batch.tokens * (elements * NORM_FLOPS),
        rank_flops=batch.rank_tokens * (elements * NORM_FLOPS),
        rank_read_bytes=2 * moved,
        rank_write_bytes=2 * moved,
    )


def collective_operation(
    model: ModelShape, group: LayerGroup, deployment: Deployment, batch: Batch[Num]
) -> Operation[Num]:
    """What a rank sends for tensor and expert parallelism in one layer.

    An all-reduce of the hidden state after each part sends 2·(tp-1)/tp of it (ring or tree alike);
    expert parallelism sends a token once to each other rank that holds one of its experts, at a
    byte an element at best, and its sum back (DeepEP); experts cut over data-parallel attention
    gather and scatter all tokens.
    """
    state = float(model.hidden * ACTIVATION_BYTES)
    tp, dp, ep = deployment.tp, deployment.dp, deployment.ep
    parts = float((group.mixer is not None) + (group.ffn is not None))
    sent = batch.rank_tokens * (parts * 2 * (tp - 1) / tp * state)
    ffn = group.ffn
    if ffn is not None and ffn.experts:
        if ep > 1:
            reached = reached_ranks(ffn.experts_per_token, ffn.experts, ep) * (ep - 1) / ep
            sent = sent + batch.rank_tokens * (reached * 1.5 * state / tp)
        elif dp > 1:
            sent = sent + batch.expert_tokens * (2 * (dp - 1) / dp * state / tp)
    zero = batch.tokens * 0.0
    return Operation(
        name="collectives",
        compute="vector",
        flops=zero,
        rank_flops=zero,
        rank_read_bytes=zero,
        rank_write_bytes=zero,
        rank_link_bytes=sent,
    )


def layer_operations(
    model: ModelShape, group: LayerGroup, deployment: Deployment, batch: Batch[Num]
) -> list[Operation[Num]]:
    """Everything in a layer but its attention or recurrence."""
    operations: list[Operation[Num]] = [norm_operation(model, group, batch)]
    if group.mixer is not None:
        operations.append(matrix_operation("projections", group.mixer.matrices, deployment, batch))
    if group.ffn is not None:
        if group.ffn.matrices:
            operations.append(
                matrix_operation("feed-forward", group.ffn.matrices, deployment, batch)
            )
        if group.ffn.experts:
            step_tokens = batch.expert_tokens / batch.steps
            operations.append(expert_operation(group.ffn, deployment, batch, step_tokens))
    if deployment.tp * deployment.dp > 1:
        operations.append(collective_operation(model, group, deployment, batch))
    return operations


def logits_operation(
    model: ModelShape, deployment: Deployment, batch: Batch[Num], *, steps: float = 1.0
) -> Operation[Num]:
    """The output head on `batch.tokens` positions: 2·hidden·vocab FLOPs each, fp32 logits."""
    tp = deployment.tp
    table = model.embedding_format.matrix_bytes(model.hidden, model.vocab) / tp
    flops = 2.0 * model.hidden * model.vocab
    return Operation(
        name="logits",
        compute=model.embedding_format.compute,
        flops=batch.tokens * flops,
        rank_flops=batch.rank_tokens * (flops / tp),
        rank_read_bytes=batch.rank_tokens * (model.hidden * ACTIVATION_BYTES) + steps * table,
        rank_write_bytes=batch.rank_tokens * (model.vocab * 4.0 / tp),
    )


def embedding_operation(model: ModelShape, batch: Batch[Num]) -> Operation[Num]:
    """One row of the table a token."""
    moved = batch.rank_tokens * float(model.hidden * ACTIVATION_BYTES)
    zero = batch.tokens * 0.0
    return Operation(
        name="embedding",
        compute="vector",
        flops=zero,
        rank_flops=zero,
        rank_read_bytes=moved,
        rank_write_bytes=moved,
    )
