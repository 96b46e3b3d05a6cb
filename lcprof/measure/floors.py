"""What a point has to do at least: FLOPs, bytes and the physical floor of its time.

Predictions come to a run as a list of records; these are the ones that need no calibration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost import decode, prefill
from lcprof.cost.layer import Batch, matrix_operation
from lcprof.cost.operation import Operation
from lcprof.domain.gpu import Gpu
from lcprof.domain.model import LatentAttention, LayerGroup
from lcprof.measure.points import Part, Point
from lcprof.measure.row import Predicted

SUMMED = {"append": ("kv write",)}
"""The plan's operations that make up a point's; attention with what it selects for the others."""
ATTENTION = ("attention", "select", "dequantise")
OF_ATTENTION = "attention "
BACKWARD_FLOPS = 2.5
"""Five products of a score's size where the forward pass has two (FlashAttention-2,
arXiv:2307.08691, section 4.1)."""
BACKWARD_BYTES = 2.0
"""It reads what the forward pass reads and writes, and the gradient of the output; it writes one
for each of the inputs."""


class Prediction(Predicted, frozen=True, kw_only=True):
    """One prediction to join to points: `name` is a point's key, its name, or its operation; the
    narrower name wins. None says nothing."""

    name: str


class Load(Struct, frozen=True, kw_only=True):
    """What one call of a point does: FLOPs of matrix units by what bounds them (attention's apart,
    as "attention bf16"), and bytes of the GPU's memory."""

    flops_by_compute: Mapping[str, float]
    hbm_bytes: float

    @property
    def flops(self) -> float:
        """All FLOPs of matrix units."""
        return sum(self.flops_by_compute.values())

    def matrix_s(self, gpu: Gpu) -> float:
        """Seconds of the matrix units at the data sheet's rates."""
        return sum(
            flops / gpu.flops_per_s(compute.removeprefix(OF_ATTENTION))
            for compute, flops in self.flops_by_compute.items()
        )

    def memory_s(self, gpu: Gpu) -> float:
        """Seconds of the memory at the data sheet's bandwidth."""
        return self.hbm_bytes / gpu.bandwidth_bytes_per_s


class Named(Protocol):
    """Anything with a name and some of the fields of `Predicted`."""

    @property
    def name(self) -> str:
        """A point's key, its name, or its operation."""


def join(points: Iterable[Point], predictions: Sequence[Named]) -> dict[str, Predicted]:
    """What is predicted of each point that can be measured, by its key. Of several predictions
    with one name, what the later ones say wins."""
    by_name: dict[str, Predicted] = {}
    for each in predictions:
        by_name[each.name] = _over(by_name.get(each.name, Predicted()), each)
    found = {}
    for point in points:
        merged = Predicted()
        names = () if point.why else (point.operation, point.name, point.key)
        for name in names:
            if name in by_name:
                merged = _over(merged, by_name[name])
        found[point.key] = merged
    return found


def _over(under: Predicted, said: object) -> Predicted:
    told = {name: getattr(said, name, None) for name in Predicted.__struct_fields__}
    return replace(
        under, **{name: value for name, value in told.items() if value not in (None, "")}
    )


def floors(points: Iterable[Point], gpu: Gpu | None) -> list[Prediction]:
    """Work and floor of each point by the plan's own counts; no floor without a data sheet.

    FLOPs are those of matrix units, which hardware counters see.
    """
    found: dict[str, Prediction] = {}
    for point in points:
        if not point.why and point.name not in found:
            found[point.name] = _floor(point, gpu)
    return list(found.values())


def _floor(point: Point, gpu: Gpu | None) -> Prediction:
    load = load_of(point)
    return Prediction(
        name=point.name,
        flops=load.flops,
        hbm_bytes=load.hbm_bytes,
        floor_s=None if gpu is None else max(load.memory_s(gpu), load.matrix_s(gpu)),
        floor_gpu=gpu.name if gpu is not None else "",
    )


def load_of(point: Point) -> Load:
    """What a point's call does, by the plan's own counts."""
    operations = _operations(point)
    kind = "" if point.part.matrix is not None else OF_ATTENTION
    flops: dict[str, float] = {}
    for each in operations:
        if each.compute != "vector":
            compute = f"{kind}{each.compute}"
            flops[compute] = flops.get(compute, 0.0) + float(each.rank_flops)
    moved = sum(float(each.rank_read_bytes + each.rank_write_bytes) for each in operations)
    if point.operation == "append":
        moved += _appended_bytes(point.shape)
    return Load(flops_by_compute=flops, hbm_bytes=moved)


def _appended_bytes(shape: Mapping[str, int | float | str]) -> float:
    """K and V as computed, which appending reads: the plan counts what is written, as the keys and
    values come out of the projections' caches."""
    elements = 2.0 * float(shape["kv_heads"]) * float(shape["head_dim"])
    return float(shape["batch"]) * float(shape["new_tokens"]) * elements * 2


def _operations(point: Point) -> list[Operation[float]]:
    part = point.part
    case, group = part.case, part.group
    rows = float(part.query_tokens)
    if part.matrix is not None:
        batch = Batch(tokens=rows, rank_tokens=rows, expert_tokens=rows, steps=1.0)
        return [matrix_operation("gemm", (part.matrix,), case.deployment, batch)]
    if group is None:
        return []
    names = SUMMED.get(point.operation, ATTENTION)
    if point.operation == "token_scores":
        # What the plan counts as one: scoring is what is left without attention to the latents.
        whole = _attended(part, group)
        rest = _attended(part, _without_index(group))
        both = [*whole, *(_times(each, flops=-1.0, moved=-1.0) for each in rest)]
        return [each for each in both if each.name in names]
    if point.operation == "sparse_mla_decode":
        group = _without_index(group)
    found = [each for each in _attended(part, group) if each.name in names]
    if point.operation == "attention_backward":
        return [_times(each, flops=BACKWARD_FLOPS, moved=BACKWARD_BYTES) for each in found]
    return found


def _attended(part: Part, group: LayerGroup) -> list[Operation[float]]:
    case, rows = part.case, float(part.query_tokens)
    workload, deployment = case.workload, case.deployment
    if part.phase == "prefill":
        context = float(workload.context_tokens)
        span = prefill.Span(start=context - rows, tokens=rows, chunk_tokens=rows)
        return prefill.attention_operations(group, deployment, part.kv, span)
    step = decode.Step(
        sequences=float(workload.concurrency), context_tokens=float(workload.context_tokens)
    )
    return decode.attention_operations(group, deployment, part.kv, step.in_flight(deployment))


def _without_index(group: LayerGroup) -> LayerGroup:
    """The layers as if another layer had chosen the tokens: no index keys to score or to keep."""
    mixer = group.mixer
    if not isinstance(mixer, LatentAttention) or mixer.indexer is None:
        return group
    chosen = replace(mixer.indexer, owns_keys=False)
    return replace(group, mixer=replace(mixer, indexer=chosen))


def _times(each: Operation[float], *, flops: float, moved: float) -> Operation[float]:
    return replace(
        each,
        rank_flops=flops * each.rank_flops,
        rank_read_bytes=moved * each.rank_read_bytes,
        rank_write_bytes=moved * each.rank_write_bytes,
    )
