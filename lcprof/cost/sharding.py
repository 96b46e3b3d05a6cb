"""What the fullest rank holds: the shares of matrices, heads, experts and layers.

KV heads are copied beyond their number and MLA latents on every tensor rank, as vLLM and SGLang
do; everything else is cut as evenly as whole heads, experts or columns allow.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from msgspec import Struct

from lcprof.domain.deployment import Deployment
from lcprof.domain.kv.stream import Stream
from lcprof.domain.model import FeedForward, LayerGroup, Matrix, ModelShape
from lcprof.domain.weights import WeightFormat
from lcprof.num import Num, ceil, ceil_div


def cut_share(pieces: int, ranks: int) -> float:
    """The fullest rank's share when whole `pieces` go to `ranks` ranks, at least one to each."""
    return max(1, ceil_div(pieces, ranks)) / pieces


def matrix_share(matrix: Matrix, ranks: int) -> float:
    """The fullest rank's share of a matrix cut over `ranks` tensor ranks."""
    if matrix.split == "none":
        return 1.0
    return cut_share(matrix.split_count or max(matrix.inputs, matrix.outputs), ranks)


def expert_share(ffn: FeedForward, deployment: Deployment) -> float:
    """The fullest rank's share of the routed experts: whole experts over `ep` ranks, their width
    over the tp·dp / ep ranks that are left."""
    return cut_share(ffn.experts, deployment.ep) / deployment.expert_cuts


def kv_share(stream: Stream, deployment: Deployment) -> float:
    """The fullest rank's share of a stream: whole heads over tp, tokens over dcp · cp."""
    return cut_share(stream.heads, deployment.tp) / (deployment.dcp * deployment.cp)


def rank_sequences(sequences: Num, deployment: Deployment) -> Num:
    """Sequences on the fullest group of data-parallel attention."""
    each: Num = ceil(sequences / deployment.dp)
    return each


def stored_format(matrix: Matrix, deployment: Deployment) -> WeightFormat:
    """The format a matrix is served in: the deployment's choice, or the checkpoint's own."""
    if deployment.weights is None or matrix.fixed:
        return matrix.format
    return deployment.weights


class Stage(Struct, frozen=True, kw_only=True):
    """A pipeline stage: how many layers of each group it runs, and whether it embeds or answers."""

    counts: tuple[tuple[LayerGroup, int], ...]
    first: bool
    last: bool


@lru_cache(maxsize=64)
def stages(model: ModelShape, pp: int) -> tuple[Stage, ...]:
    """The layers cut into `pp` runs. A remainder goes to the stages before the last, one each, as
    vLLM's get_pp_indices does, so that the stage with the output head is not also the longest."""
    base, rest = divmod(model.layers, pp)
    sizes = [base] * pp
    for extra in range(rest):
        sizes[(pp - 2 - extra) % pp] += 1
    cut: list[Stage] = []
    begin = 0
    for index, size in enumerate(sizes):
        held = Counter(model.order[begin : begin + size])
        counts = tuple((model.groups[group], held[group]) for group in sorted(held))
        cut.append(Stage(counts=counts, first=index == 0, last=index == pp - 1))
        begin += size
    return tuple(cut)
