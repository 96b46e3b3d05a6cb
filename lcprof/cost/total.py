"""From operations of one layer to the whole model and to its fullest rank, and to floors of time.

A floor is what physics allows at data-sheet peaks: each rank overlaps its arithmetic, its memory
traffic and its messages perfectly, and nothing has a fixed cost. Nothing can run faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic

from msgspec import Struct

from lcprof.cost import decode, prefill
from lcprof.cost.operation import Operation
from lcprof.cost.sharding import stages
from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import KvStrategy
from lcprof.domain.model import LayerGroup, ModelShape
from lcprof.num import Num, larger

VECTOR_COMPUTE = "fp32"


class Share(Struct, Generic[Num], frozen=True, kw_only=True):
    """An operation and how many layers of a stage run it."""

    operation: Operation[Num]
    count: int


class StageTotals(Struct, Generic[Num], frozen=True, kw_only=True):
    """The fullest rank's work of a pipeline stage: FLOPs by the dtype that bounds them, bytes
    read and written in HBM, bytes sent to other GPUs, bytes read from host memory."""

    compute_flops: tuple[tuple[str, Num], ...]
    read_bytes: Num
    write_bytes: Num
    link_bytes: Num
    host_bytes: Num

    def floors_s(self, gpu: Gpu) -> dict[str, Num]:
        """Seconds of arithmetic at the peak of its dtype, of HBM traffic, messages and host reads,
        each at its data-sheet rate. Matrix and vector units run side by side."""
        matrix_s = self.read_bytes * 0.0
        vector_s = matrix_s
        for compute, flops in self.compute_flops:
            if compute == "vector":
                vector_s = vector_s + flops / gpu.flops_per_s(VECTOR_COMPUTE)
            else:
                matrix_s = matrix_s + flops / gpu.flops_per_s(compute)
        hbm_s: Num = (self.read_bytes + self.write_bytes) / gpu.bandwidth_bytes_per_s
        floors = {"HBM traffic": hbm_s, "vector units": vector_s, "matrix units": matrix_s}
        link_rate = gpu.link_bytes_per_s or gpu.pcie_bytes_per_s
        if link_rate:
            floors["messages"] = self.link_bytes / link_rate
        if gpu.pcie_bytes_per_s:
            floors["host reads"] = self.host_bytes / gpu.pcie_bytes_per_s
        return floors

    def floor_s(self, gpu: Gpu) -> Num:
        """The largest of `floors_s`: everything overlaps."""
        floor_s, *others = self.floors_s(gpu).values()
        for other in others:
            floor_s = larger(floor_s, other)
        return floor_s


class Work(Struct, Generic[Num], frozen=True, kw_only=True):
    """All operations of a step or a prefill by pipeline stage, and what they sum to in each."""

    parts: tuple[tuple[Share[Num], ...], ...]
    stages: tuple[StageTotals[Num], ...]

    @property
    def whole(self) -> tuple[Share[Num], ...]:
        """All operations, stage by stage."""
        return tuple(part for stage in self.parts for part in stage)

    def flops(self, *names: str) -> Num:
        """The whole model's FLOPs, or those of the operations named."""
        whole = self.whole
        chosen = [s for s in whole if not names or s.operation.name in names]
        total = whole[0].operation.flops * 0.0
        for part in chosen:
            total = total + part.operation.flops * part.count
        return total

    def fullest(self, quantity: str) -> Num:
        """A quantity of `StageTotals` ("read_bytes", ...) in the stage where it is largest."""
        fullest: Num = getattr(self.stages[0], quantity)
        for stage in self.stages[1:]:
            here: Num = getattr(stage, quantity)
            fullest = larger(fullest, here)
        return fullest


def _totals(parts: Sequence[Share[Num]]) -> StageTotals[Num]:
    flops: dict[str, Num] = {}
    zero = parts[0].operation.flops * 0.0
    read, write, link, host = zero, zero, zero, zero
    for part in parts:
        operation, count = part.operation, part.count
        rank_flops = operation.rank_flops * count
        seen = flops.get(operation.compute)
        flops[operation.compute] = rank_flops if seen is None else seen + rank_flops
        read = read + operation.rank_read_bytes * count
        write = write + operation.rank_write_bytes * count
        link = link + operation.rank_link_bytes * count
        host = host + operation.rank_host_bytes * count
    return StageTotals(
        compute_flops=tuple(flops.items()),
        read_bytes=read,
        write_bytes=write,
        link_bytes=link,
        host_bytes=host,
    )


def _gather(
    model: ModelShape,
    deployment: Deployment,
    layer: Callable[[LayerGroup], list[Operation[Num]]],
    ends: tuple[Operation[Num], Operation[Num]],
) -> Work[Num]:
    by_group = {id(group): layer(group) for group in model.groups}
    embedding, logits = ends
    cut: list[tuple[Share[Num], ...]] = []
    for stage in stages(model, deployment.pp):
        parts = [
            Share(operation=operation, count=count)
            for group, count in stage.counts
            for operation in by_group[id(group)]
        ]
        if stage.first:
            parts.append(Share(operation=embedding, count=1))
        if stage.last:
            parts.append(Share(operation=logits, count=1))
        cut.append(tuple(parts))
    return Work(
        parts=tuple(cut),
        stages=tuple(_totals(stage) for stage in cut),
    )


def prefill_work(
    model: ModelShape, deployment: Deployment, kv: KvStrategy, span: prefill.Span[Num]
) -> Work[Num]:
    """A chunked prefill of one sequence."""
    return _gather(
        model,
        deployment,
        lambda group: prefill.prefill_operations(model, group, deployment, kv, span),
        prefill.end_operations(model, deployment, span),
    )


def decode_work(
    model: ModelShape, deployment: Deployment, kv: KvStrategy, step: decode.Step[Num]
) -> Work[Num]:
    """One decode step of all sequences."""
    return _gather(
        model,
        deployment,
        lambda group: decode.decode_operations(model, group, deployment, kv, step),
        decode.end_operations(model, deployment, step),
    )


def prefill_floor_s(work: Work[Num], gpu: Gpu, span: prefill.Span[Num]) -> Num:
    """Floor of a prefill: the slowest stage, kept busy by its chunks, and the bubble of filling the
    pipeline."""
    floors = [stage.floor_s(gpu) for stage in work.stages]
    slowest = floors[0]
    for floor_s in floors[1:]:
        slowest = larger(slowest, floor_s)
    return slowest * span.bubble(len(floors))


def decode_floor_s(work: Work[Num], gpu: Gpu) -> Num:
    """Floor of a decode step: a token passes the stages one after the other, with the sequences of
    `Step.in_flight`."""
    floors = [stage.floor_s(gpu) for stage in work.stages]
    total = floors[0]
    for floor_s in floors[1:]:
        total = total + floor_s
    return total
