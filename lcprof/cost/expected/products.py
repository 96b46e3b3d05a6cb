"""Matrix products and routed experts of one layer, as an engine runs them.

Matrices that share an input are one product (queries, keys and values; gate and up), and so are
the two down-projections of latent attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec.structs import asdict

from lcprof import num
from lcprof.cost.expected.kernels import experts, product
from lcprof.cost.expected.task import Task
from lcprof.cost.layer import experts_touched
from lcprof.cost.sharding import matrix_share, stored_format
from lcprof.cost.timing.gemm import GEMM, GemmCall
from lcprof.cost.timing.moe import MOE, MoeCall, random_routing
from lcprof.domain.calibration import Variant
from lcprof.domain.deployment import Deployment
from lcprof.domain.model import FeedForward, Matrix
from lcprof.domain.weights import WeightFormat
from lcprof.num import Num

FEW_ROWS = 32.0


def product_tasks(
    operation: str, matrices: tuple[Matrix, ...], deployment: Deployment, rows: Num
) -> list[Task]:
    """The products of some matrices with `rows` tokens."""
    tasks: list[Task] = []
    for together in fused(matrices, deployment):
        first = together[0]
        shares = [matrix_share(matrix, deployment.tp) for matrix in together]
        if first.closes:
            columns, depth = float(first.outputs), first.inputs * shares[0]
        else:
            columns = sum(m.outputs * share for m, share in zip(together, shares, strict=True))
            depth = float(first.inputs)
        stored = stored_format(first, deployment)
        tasks += one_product(operation, deployment, stored, rows, columns, depth)
    return tasks


def fused(matrices: tuple[Matrix, ...], deployment: Deployment) -> Iterator[tuple[Matrix, ...]]:
    """The matrices that engines run as one product, in order."""
    held: dict[Any, list[Matrix]] = {}
    for matrix in matrices:
        alone = matrix.closes or matrix.fixed
        stored = stored_format(matrix, deployment).name
        kind = matrix.name.startswith("shared_")
        key = matrix.name if alone else (matrix.inputs, stored, kind)
        held.setdefault(key, []).append(matrix)
    return map(tuple, held.values())


def one_product(
    operation: str,
    deployment: Deployment,
    stored: WeightFormat,
    rows: Num,
    columns: float,
    depth: float,
) -> list[Task]:
    """One product of `rows` x `depth` with `depth` x `columns`, as one task, or as two where few
    rows run another kernel: then each has a `count` of 0 where it does not run."""
    how = product(deployment.stack, deployment.gpu, stored)

    def task(variants: tuple[Variant, ...], count: Any) -> Task:
        call = GemmCall(
            rows=rows,
            columns=columns,
            depth=depth,
            weight_bytes=how.weight_bytes,
            activation_bytes=how.activation_bytes,
            compute=how.compute,
            dispatch=how.dispatch,
            quantised=how.quantised,
        )
        return Task(operation=operation, family=GEMM, variants=variants, call=call, count=count)

    if not how.few_rows:
        return [task(how.variants, 1.0)]
    few = num.choose(rows < FEW_ROWS, 1.0, 0.0)
    if isinstance(few, float):
        return [task(how.few_rows if few else how.variants, 1.0)]
    return [task(how.few_rows, few), task(how.variants, 1.0 - few)]


def expert_task(ffn: FeedForward, deployment: Deployment, tokens: Num) -> Task:
    """The routed experts of one GPU when `tokens` tokens reach the layer, spread at random."""
    how = experts(deployment.stack, deployment.gpu, stored_format(ffn.expert[0], deployment))
    across = deployment.expert_cuts
    first = ffn.expert[0]
    elements = sum(matrix.params for matrix in ffn.expert)
    # The call counts three matrices an expert; where there are two, narrower ones weigh the same.
    inter = elements / (3.0 * first.inputs) / across
    touched = experts_touched(ffn.experts, ffn.experts_per_token, tokens)
    routing = random_routing(
        tokens * (ffn.experts_per_token / deployment.ep), touched / deployment.ep
    )
    # After an exchange a GPU holds the rows for its own experts alone.
    exchanged = deployment.ep > 1 and deployment.dp > 1
    call = MoeCall(
        tokens=tokens / deployment.ep if exchanged else tokens,
        top_k=float(ffn.experts_per_token),
        hidden=float(first.inputs),
        inter=inter,
        weight_bytes=how.weight_bytes,
        expert_parallel=float(deployment.ep > 1),
        compute=how.compute,
        **asdict(routing),
    )
    return Task(operation="experts", family=MOE, variants=how.variants, call=call)
