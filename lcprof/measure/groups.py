"""From what a scenario plans to the operations that several ranks run together.

Collectives of tensor, data, expert and pipeline parallelism at the sizes of a plan's passes, and
the attention of contexts that are cut by tokens over ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from msgspec.structs import replace

from lcprof.cost.operation import ACTIVATION_BYTES
from lcprof.cost.pairs import causal_pairs
from lcprof.domain.case import Case
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv.dense import Dense
from lcprof.domain.model import GroupedAttention, LayerGroup
from lcprof.domain.operations import COLLECTIVES, GROUPED
from lcprof.errors import InputError
from lcprof.measure.floors import Prediction
from lcprof.measure.points import Entries, Part, Point, Shape, sequences
from lcprof.num import ceil_div

LIBRARIES = {"cuda": "nccl", "cpu": "gloo"}
"""Which library exchanges between devices of a kind."""
HALF = "half of an all-reduce, as sequence parallelism cuts it"


def group_points(
    cases: Iterable[Case],
    *,
    impls: Sequence[str],
    only: Sequence[str],
    device: Literal["cuda", "cpu"],
) -> list[Point]:
    """The points of some cases that several ranks run together, each key once."""
    found: dict[str, Point] = {}
    for case in cases:
        for point in _points_of_case(case):
            if point.operation in only:
                for each in _by_implementation(point, impls, device):
                    found.setdefault(each.key, each)
    return list(found.values())


def check_ranks(points: Sequence[Point], ranks: int) -> None:
    """Raises InputError where the points' largest group is not of as many ranks as there are."""
    wanted = sorted({point.ranks for point in points})
    if not wanted:
        given = f"{ranks} ranks"
        expected = f"a scenario with tp, cp, dcp, dp, ep or pp above 1 (--only {'|'.join(GROUPED)})"
        raise InputError.one("torchrun", given=given, expected=expected)
    if wanted[-1] != ranks:
        expected = f"--nproc-per-node={wanted[-1]}, the scenario's largest group"
        if ranks > 1:
            expected += f"; or degrees that make one of {ranks}"
        raise InputError.one("torchrun", given=f"{ranks} ranks", expected=expected)


def _by_implementation(
    point: Point, impls: Sequence[str], device: Literal["cuda", "cpu"]
) -> Iterator[Point]:
    if point.why:
        yield point
        return
    if point.operation in COLLECTIVES:
        yield replace(point, implementation=LIBRARIES[device])
        return
    able = GROUPED[point.operation]
    wanted = [impl for impl in able if impl in impls]
    if not wanted:
        why = f"{point.operation} is computed by {', '.join(able)}, not by {', '.join(impls)}"
        yield replace(point, why=why)
    for impl in wanted:
        yield replace(point, implementation=impl)


def _points_of_case(case: Case) -> Iterator[Point]:
    deployment, model = case.deployment, case.model
    workload = case.workload
    chunk = min(workload.chunk_tokens, workload.context_tokens - workload.prefix_tokens)
    state_bytes = model.hidden * ACTIVATION_BYTES
    for phase, tokens in (("prefill", ceil_div(int(chunk), deployment.cp)),
                          ("decode", sequences(case))):  # fmt: skip
        part = Part(case=case, group=None, phase=phase, kv=case.kv, query_tokens=tokens)
        if deployment.tp > 1:
            yield _collective("all_reduce", deployment.tp, tokens * state_bytes, part)
            for half in ("reduce_scatter", "all_gather"):
                yield _collective(half, deployment.tp, tokens * state_bytes, part, note=HALF)
        routed = [group.ffn for group in model.groups if group.ffn and group.ffn.experts]
        both = deployment.tp * deployment.dp
        if routed and deployment.ep > 1:
            copies = max(ffn.experts_per_token for ffn in routed)
            mine = ceil_div(tokens, deployment.tp)
            note = "every token to each of its experts in bf16, an even part to every rank"
            buffer = mine * copies * state_bytes
            yield _collective("all_to_all", deployment.ep, buffer, part, note=note)
        elif routed and deployment.dp > 1:
            for name in ("all_gather", "reduce_scatter"):
                yield _collective(name, both, tokens * deployment.dp * state_bytes, part)
        if deployment.pp > 1:
            sent = ceil_div(tokens * state_bytes, deployment.tp)
            yield _collective("send_recv", 2, sent, part)
    for group in model.groups:
        if group.mixer is not None:
            yield from _attention(case, group)


def _collective(name: str, ranks: int, buffer_bytes: int, part: Part, note: str = "") -> Point:
    """`buffer_bytes` is the whole buffer, as nccl-tests counts it, of which each rank has a part of
    whole words."""
    step = 4 * ranks
    shape: Entries = {"ranks": ranks, "buffer_bytes": ceil_div(buffer_bytes, step) * step}
    return Point(operation=name, shape=shape, part=part, note=note)


def _attention(case: Case, group: LayerGroup) -> Iterator[Point]:
    deployment, mixer = case.deployment, group.mixer
    cut = [name for name, ranks in (("context_prefill", deployment.cp),
                                    ("context_decode", deployment.dcp)) if ranks > 1]  # fmt: skip
    for operation in cut:
        prompt = operation == "context_prefill"
        ranks = deployment.cp if prompt else deployment.dcp
        part = Part(case=case, group=group, phase="prefill" if prompt else "decode", kv=Dense())
        if not isinstance(mixer, GroupedAttention):
            shape: Entries = {"ranks": ranks, "layers": group.name}
            why = f"no kernel cuts {type(mixer).__name__} layers over ranks"
            yield Point(operation=operation, shape=shape, part=part, why=why)
            continue
        context = int(case.workload.context_tokens)
        why = "" if mixer.k_dim == mixer.v_dim else "keys and values differ in their dimension"
        if mixer.window_tokens or mixer.chunk_tokens:
            why = "windows and chunks are not cut over ranks"
        heads = _heads(mixer, deployment.tp if prompt else deployment.tp // deployment.dcp)
        if prompt:
            # A zigzag's ranks hold two chunks each.
            whole = ceil_div(context, 2 * ranks) * 2 * ranks
            shape = {"ranks": ranks, "batch": 1, "context_tokens": whole, **heads,
                     "exchange": "ring", "dtype": "bf16"}  # fmt: skip
            yield Point(operation=operation, shape=shape, part=part, why=why,
                        note="a whole prompt at once; the plan cuts it into chunks")  # fmt: skip
            yield Point(operation=operation, shape={**shape, "exchange": "all_gather"},
                        part=part, why=why)  # fmt: skip
            continue
        batch = ceil_div(sequences(case), ranks) * ranks
        shape = {"ranks": ranks, "batch": batch, "context_tokens": ceil_div(context, ranks) * ranks,
                 **heads, "dtype": "bf16"}  # fmt: skip
        yield Point(operation=operation, shape=shape, part=part, why=why)


def _heads(mixer: GroupedAttention, ranks: int) -> Entries:
    return {
        "q_heads": ceil_div(mixer.q_heads, ranks),
        "kv_heads": max(1, ceil_div(mixer.kv_heads, ranks)),
        "head_dim": mixer.k_dim,
    }


def group_floors(points: Iterable[Point], gpu: Gpu | None) -> list[Prediction]:
    """What a rank does at least, at the data sheet's rates: a collective's bytes on its link, the
    FLOPs of its part of attention, the cached tokens that it reads."""
    return [_floor(point, gpu) for point in points if not point.why]


def _floor(point: Point, gpu: Gpu | None) -> Prediction:
    shape = point.shape
    name = gpu.name if gpu is not None else ""
    if point.operation in COLLECTIVES:
        rate = None if gpu is None else gpu.link_bytes_per_s or gpu.pcie_bytes_per_s
        floor_s = link_bytes(point.operation, shape) / rate if rate else None
        return Prediction(name=point.name, floor_s=floor_s, floor_gpu=name)
    ranks, batch, context, q_heads, kv_heads, dim = (
        float(shape[key])
        for key in ("ranks", "batch", "context_tokens", "q_heads", "kv_heads", "head_dim")
    )
    cached = batch * context / ranks * kv_heads * 2.0 * dim * ACTIVATION_BYTES
    if point.operation == "context_prefill":
        pairs = batch * causal_pairs(0.0, context) / ranks
        around = 2.0 * batch * context / ranks * q_heads * dim * ACTIVATION_BYTES
        moved = cached * ranks + around
    else:
        pairs, moved = batch * context / ranks, cached
    flops = 4.0 * pairs * q_heads * dim
    floor_s = None
    if gpu is not None:
        floor_s = max(flops / gpu.flops_per_s("bf16"), moved / gpu.bandwidth_bytes_per_s)
    return Prediction(
        name=point.name, flops=flops, hbm_bytes=moved, floor_s=floor_s, floor_gpu=name
    )


def link_bytes(operation: str, shape: Shape) -> float:
    """Bytes of a collective that cross each rank's link in one direction."""
    ranks = float(shape["ranks"])
    return COLLECTIVES[operation] * (ranks - 1.0) / ranks * float(shape["buffer_bytes"])
