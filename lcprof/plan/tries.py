"""What to change, each change planned before it is offered."""

from __future__ import annotations

import math
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.expected.kernels import node_gpus
from lcprof.cost.memory import memory
from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import FORMATS, parse_kv
from lcprof.domain.kv.dense import DTYPE_BYTES, Dense
from lcprof.domain.layout import Degrees, misfits
from lcprof.domain.model import GroupedAttention, LatentAttention, ModelShape
from lcprof.domain.weights import WEIGHT_FORMATS
from lcprof.plan.estimate import capacity_bytes, remade
from lcprof.plan.row import Row, plan_case

TENSOR_DEGREES = (8, 4, 2, 1)
"""What engines cut layers by; it stays inside a node, and more GPUs become pipeline stages."""
MOST_TRIES = 6
SMALLER_KV = ("fp8", "kivi:bits=4,group=64,residual=128")
SMALLER_WEIGHTS = ("fp8", "int4")
WORTH = 1.2
"""An offer to a plan that fits must at least improve its answer by this factor."""


class Try(Struct, frozen=True, kw_only=True):
    """A row that a change of the plan gives, and why one would make the change."""

    why: str
    row: Row


def tries(row: Row) -> list[Try]:
    """Changes worth trying: what makes a plan fit, or what a plan that fits leaves on the table.

    Every offer was planned; those for a plan that does not fit do fit.
    """
    offers = _savings(row) if row.estimate.fits else _remedies(row)
    chosen: list[Try] = []
    for offer in offers:
        chosen.append(offer)
        if len(chosen) == MOST_TRIES:
            break
    return chosen


def fewest_gpus(case: Case, least_tp: int = 1) -> Row | None:
    """The row with the fewest GPUs that fits the case, of the same type, over every layout of
    `TENSOR_DEGREES` and up to a pipeline stage a layer, decode-context parallel where KV heads
    would be copied; of as many GPUs the most tensor parallel one. `least_tp` leaves out what is
    less tensor parallel, and slower. None when none of them fits."""
    degrees = [tp for tp in TENSOR_DEGREES if tp >= least_tp]
    model = remade(case.model, case.kv)

    def total_bytes(deployment: Deployment) -> float:
        held: float = memory(model, deployment, case.kv, case.workload).total_bytes
        return held

    capacity = capacity_bytes(case.deployment)
    layers = model.layers
    if not any(
        total_bytes(widest) <= capacity
        for tp in degrees
        for widest in _layouts(case, tp * layers, tp)
    ):
        return None
    alone = memory(model, _laid_out(case, 1, 1), case.kv, case.workload)
    shared_bytes = alone.weights_bytes + alone.kv_bytes
    for gpus in range(max(1, math.ceil(shared_bytes / capacity)), TENSOR_DEGREES[0] * layers + 1):
        for tp in degrees:
            for deployment in _layouts(case, gpus, tp):
                if total_bytes(deployment) <= capacity:
                    return plan_case(replace(case, deployment=deployment))
    return None


def _layouts(case: Case, gpus: int, tp: int) -> Iterator[Deployment]:
    """Stages of `tp` GPUs each that the model can be cut into: none where it cannot."""
    copies = tp // max(1, _kv_heads(case.model))
    for dcp in dict.fromkeys((1, max(1, copies))):
        degrees = Degrees(tp=tp, pp=gpus // tp, dcp=dcp)
        if gpus % tp == 0 and not misfits(case.model, degrees):
            yield _laid_out(case, gpus, tp, dcp)


def _laid_out(case: Case, gpus: int, tp: int, dcp: int = 1) -> Deployment:
    return replace(case.deployment, gpus=gpus, tp=tp, pp=gpus // tp, cp=1, dp=1, ep=1, dcp=dcp)


def _kv_heads(model: ModelShape) -> int:
    heads = [1]
    for group in model.groups:
        if isinstance(group.mixer, GroupedAttention):
            heads.append(group.mixer.kv_heads)
        elif isinstance(group.mixer, LatentAttention):
            heads.append(1)
    return max(heads)


def _with_kv(case: Case, spec: str) -> Case | None:
    """The case with its number format changed to `spec`, what wraps it kept; None when it already
    has a format."""
    chain = case.kv.chain()
    if any(isinstance(link, FORMATS) for link in chain):
        return None
    rest = case.kv_spec.split("+")
    if isinstance(chain[0], Dense) and rest[0] in DTYPE_BYTES:
        rest = rest[1:]
    whole = "+".join([spec, *rest])
    return replace(case, kv=parse_kv(whole, where="try"), kv_spec=whole)


def _kv_offers(row: Row) -> Iterator[tuple[str, Row]]:
    for spec in SMALLER_KV:
        case = _with_kv(row.case, spec)
        if case is not None:
            bits = "8" if spec == "fp8" else "4"
            yield f"{bits}-bit KV", plan_case(case)


def _remedies(row: Row) -> Iterator[Try]:
    case = row.case
    for why, planned in _kv_offers(row):
        if planned.estimate.fits:
            yield Try(why=why, row=planned)
            break
    if case.deployment.weights is None:
        for name in SMALLER_WEIGHTS:
            deployment = replace(case.deployment, weights=WEIGHT_FORMATS[name])
            planned = plan_case(replace(case, deployment=deployment))
            lighter = planned.estimate.weights_bytes_per_gpu < row.estimate.weights_bytes_per_gpu
            if planned.estimate.fits and lighter:
                yield Try(why=f"{name} weights", row=planned)
                break
    fewest = fewest_gpus(case)
    if fewest is not None:
        count = fewest.case.deployment.gpus
        same = count == case.deployment.gpus
        why = "the same GPUs, laid out anew" if same else f"the fewest GPUs that hold it: {count}"
        yield Try(why=why, row=fewest)
    yield from _smaller_asks(row)


def _smaller_asks(row: Row) -> Iterator[Try]:
    case, workload = row.case, row.case.workload
    if row.max_concurrency and row.max_concurrency < workload.concurrency:
        fewer = replace(case, workload=replace(workload, concurrency=row.max_concurrency))
        yield Try(
            why="the most sequences that fit",
            row=plan_case(fewer),
        )
    if row.max_context_tokens and row.max_context_tokens < workload.context_tokens:
        shorter = replace(workload, context_tokens=row.max_context_tokens)
        yield Try(
            why="the longest context that fits",
            row=plan_case(replace(case, workload=shorter)),
        )


def _without_copies(row: Row) -> Iterator[Try]:
    """Tokens of the cache sharded over the ranks that would hold copies of one KV head."""
    deployment, most = row.case.deployment, row.max_concurrency
    copies = deployment.tp // max(1, _kv_heads(row.case.model))
    degrees = Degrees(tp=deployment.tp, pp=deployment.pp, dcp=copies)
    fits = copies > deployment.dcp and not misfits(row.case.model, degrees)
    if most is None or not fits or deployment.cp * deployment.dp > 1:
        return
    sharded = plan_case(replace(row.case, deployment=replace(deployment, dcp=copies)))
    gained = sharded.max_concurrency
    if gained is not None and gained >= most * WORTH:
        why = f"no copies of KV heads: {gained:.0f} sequences fit, not {most:.0f}"
        yield Try(why=why, row=sharded)


def _inside_nodes(row: Row) -> Iterator[Try]:
    """Pipeline stages of a node each, for tensor parallelism that would cross the network."""
    deployment = row.case.deployment
    node = node_gpus(deployment.gpu)
    stages = deployment.pp * deployment.tp // node
    if deployment.tp <= node or deployment.tp % node or deployment.dcp > node:
        return
    if misfits(row.case.model, Degrees(tp=node, pp=stages, dp=deployment.dp, ep=deployment.ep)):
        return
    planned = plan_case(replace(row.case, deployment=replace(deployment, tp=node, pp=stages)))
    if planned.estimate.fits:
        yield Try(why=f"all-reduces inside a node of {node}", row=planned)


def _savings(row: Row) -> Iterator[Try]:
    case, workload = row.case, row.case.workload
    yield from _inside_nodes(row)
    fewest = fewest_gpus(case, least_tp=min(case.deployment.tp, TENSOR_DEGREES[0]))
    if fewest is not None and fewest.case.deployment.gpus < case.deployment.gpus:
        count = fewest.case.deployment.gpus
        noun = "GPU also holds" if count == 1 else "GPUs also hold"
        yield Try(why=f"{count} {noun} it", row=fewest)
    most = row.max_concurrency
    yield from _without_copies(row)
    if most is not None and most >= workload.concurrency * WORTH:
        filled = replace(case, workload=replace(workload, concurrency=most))
        yield Try(
            why="the most sequences that fit",
            row=plan_case(filled),
        )
    for why, planned in _kv_offers(row):
        gained = planned.max_concurrency
        if most is not None and gained is not None and gained >= most * WORTH:
            yield Try(why=f"{why}: {gained:.0f} sequences fit, not {most:.0f}", row=planned)
