"""Bytes of weights."""

from __future__ import annotations

from functools import lru_cache

from lcprof.cost.sharding import (
    Stage,
    expert_share,
    matrix_share,
    stored_format,
)
from lcprof.domain.deployment import Deployment
from lcprof.domain.model import FeedForward, LayerGroup, Matrix, ModelShape

VECTOR_BYTES = 2
"""Norm gains and biases stay in 16 bits in every checkpoint format."""


def matrix_bytes(matrix: Matrix, deployment: Deployment) -> float:
    """Bytes of a whole matrix with its scales, in the format it is served in."""
    return stored_format(matrix, deployment).matrix_bytes(matrix.inputs, matrix.outputs)


def expert_bytes(ffn: FeedForward, deployment: Deployment) -> float:
    """Bytes of one routed expert."""
    own = sum(matrix_bytes(matrix, deployment) for matrix in ffn.expert)
    return own + ffn.expert_vectors * VECTOR_BYTES


@lru_cache(maxsize=1024)
def group_rank_bytes(group: LayerGroup, deployment: Deployment) -> float:
    """Bytes of one layer's weights on the fullest rank."""
    total = float(group.vectors * VECTOR_BYTES)
    matrices: tuple[Matrix, ...] = ()
    if group.mixer is not None:
        matrices += group.mixer.matrices
        total += group.mixer.vectors * VECTOR_BYTES
    if group.ffn is not None:
        matrices += group.ffn.matrices
        total += group.ffn.vectors * VECTOR_BYTES
        if group.ffn.experts:
            experts = group.ffn.experts * expert_bytes(group.ffn, deployment)
            total += experts * expert_share(group.ffn, deployment)
    for matrix in matrices:
        total += matrix_bytes(matrix, deployment) * matrix_share(matrix, deployment.tp)
    return total


def embedding_rank_bytes(model: ModelShape, deployment: Deployment) -> float:
    """Bytes of one vocabulary table (embedding or output head) on a rank, cut over tp."""
    table = model.embedding_format.matrix_bytes(model.hidden, model.vocab)
    return table / deployment.tp


def stage_rank_bytes(model: ModelShape, deployment: Deployment, stage: Stage) -> float:
    """Bytes of a pipeline stage's weights on its fullest rank."""
    total = sum(count * group_rank_bytes(group, deployment) for group, count in stage.counts)
    table = embedding_rank_bytes(model, deployment)
    if stage.first:
        total += table + model.extra_embedding_params * VECTOR_BYTES
    if stage.last:
        total += model.vectors * VECTOR_BYTES
        shared = model.tied_embeddings and stage.first
        total += 0.0 if shared else table
    return total
