"""From a point of several ranks to tensors, a call of all ranks and a check of one rank's part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from lcprof.domain.operations import COLLECTIVES
from lcprof.measure.counters import Counted
from lcprof.measure.groups import link_bytes
from lcprof.measure.points import Point
from lcprof.measure.ranks import Ranks
from lcprof.measure.shapes import CHECKED_TOKENS, DTYPES, Dimensions
from lcprof.measure.work import Work, ends
from lcprof_kernels.attention.problem import Problem, check_problem
from lcprof_kernels.attention.reference import naive, reference
from lcprof_kernels.budget import tolerance
from lcprof_kernels.decode.reference import decode_reference
from lcprof_kernels.errors import KernelError
from lcprof_kernels.merge.api import merge_partials
from lcprof_kernels.ring import context_decode, context_prefill, join_tokens
from lcprof_kernels.ring.shards import chunks_of_rank

Tensor = torch.Tensor
# PyTorch 2.13 has new names for them, and warns of the old ones.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
SEED = 20_261_126
WORD = torch.int32
"""Buffers are of whole numbers, which wrap: sums that are repeated in place stay random."""


def prepare_group(point: Counted, place: torch.device, ranks: Ranks) -> Work:
    """Draws a rank's inputs. Ranks beyond the group of a point have nothing to do."""
    shape = Dimensions(point.shape)
    size = shape.count("ranks")
    group = ranks.group(size)
    if ranks.rank >= size:
        return Work(run=lambda: None, check=lambda result: (0.0, 0.0))
    me = _Me(rank=ranks.rank, ranks=size, group=group, place=place)
    if point.operation in COLLECTIVES:
        return _COLLECTIVES[point.operation](shape.count("buffer_bytes") // WORD.itemsize, me)
    attend = _prefill if point.operation == "context_prefill" else _decode
    return attend(shape, point.implementation, me)


@dataclass(frozen=True, kw_only=True)
class _Me:
    rank: int
    ranks: int
    group: Any
    place: torch.device

    def words(self, rank: int, count: int) -> Tensor:
        """What a rank's buffer holds at the start; every rank can draw it."""
        generator = torch.Generator(self.place).manual_seed(SEED + rank)
        return torch.randint(-(2**30), 2**30, (count,), generator=generator, device=self.place,
                             dtype=WORD)  # fmt: skip

    def every(self, count: int) -> list[Tensor]:
        """The buffers of all ranks."""
        return [self.words(rank, count) for rank in range(self.ranks)]

    def normal(self, rank: int, *sizes: int, dtype: torch.dtype) -> list[Tensor]:
        """A rank's keys and values."""
        generator = torch.Generator(self.place).manual_seed(SEED + rank)
        return [
            torch.randn(*sizes, generator=generator, device=self.place, dtype=torch.float32)
            .to(dtype) for _ in range(2)
        ]  # fmt: skip


def _exactly(wanted: Callable[[], Tensor]) -> Callable[[Tensor], tuple[float, float]]:
    """Every word must be the one wanted."""

    def check(found: Tensor) -> tuple[float, float]:
        want = wanted()
        return float((found != want).sum()) if found.shape == want.shape else float("inf"), 0.0

    return check


def _all_reduce(count: int, me: _Me) -> Work:
    buffer = me.words(me.rank, count)

    def run() -> Tensor:
        dist.all_reduce(buffer, group=me.group)
        return buffer

    def wanted() -> Tensor:
        total = torch.zeros(count, device=me.place, dtype=WORD)
        for rank in range(me.ranks):
            total += me.words(rank, count)
        return total

    return Work(run=run, check=_exactly(wanted))


def _all_gather(count: int, me: _Me) -> Work:
    part = me.words(me.rank, count // me.ranks)
    whole = torch.empty(count, device=me.place, dtype=WORD)

    def run() -> Tensor:
        _ALL_GATHER(whole, part, group=me.group)
        return whole

    return Work(run=run, check=_exactly(lambda: torch.cat(me.every(count // me.ranks))))


def _reduce_scatter(count: int, me: _Me) -> Work:
    whole, part = me.words(me.rank, count), torch.empty(
        count // me.ranks, device=me.place, dtype=WORD
    )  # fmt: skip

    def run() -> Tensor:
        _REDUCE_SCATTER(part, whole, group=me.group)
        return part

    def wanted() -> Tensor:
        total = torch.zeros_like(part)
        for each in range(me.ranks):
            total += me.words(each, count).chunk(me.ranks)[me.rank]
        return total

    return Work(run=run, check=_exactly(wanted))


def _all_to_all(count: int, me: _Me) -> Work:
    sent = me.words(me.rank, count)
    got = torch.empty_like(sent)

    def run() -> Tensor:
        dist.all_to_all_single(got, sent, group=me.group)
        return got

    def wanted() -> Tensor:
        return torch.cat([each.chunk(me.ranks)[me.rank] for each in me.every(count)])

    return Work(run=run, check=_exactly(wanted))


def _send_recv(count: int, me: _Me) -> Work:
    return sent_between(count, 0, 1, me.rank, me.place)


def sent_between(count: int, source: int, target: int, rank: int, place: torch.device) -> Work:
    """Words that one rank of all sends to another; the others have nothing to do."""
    me = _Me(rank=rank, ranks=2, group=None, place=place)
    if rank not in (source, target):
        return Work(run=lambda: None, check=lambda result: (0.0, 0.0))
    mine = me.words(source, count) if rank == source else torch.zeros(
        count, device=place, dtype=WORD
    )  # fmt: skip
    operation, peer = (dist.isend, target) if rank == source else (dist.irecv, source)

    def run() -> Tensor:
        for transfer in dist.batch_isend_irecv([dist.P2POp(operation, mine, peer)]):
            transfer.wait()
        return mine

    return Work(run=run, check=_exactly(lambda: me.words(source, count)))


_COLLECTIVES: dict[str, Callable[[int, _Me], Work]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "send_recv": _send_recv,
}


def _prefill(shape: Dimensions, impl: str, me: _Me) -> Work:
    """Checked on the last tokens of the rank's last chunk, for the first and the last KV head."""
    batch, q_heads, kv_heads, dim = (
        shape.count(name) for name in ("batch", "q_heads", "kv_heads", "head_dim")
    )
    local, dtype = shape.count("context_tokens") // me.ranks, DTYPES[shape.text("dtype")]
    sizes = (batch, kv_heads, local, dim)
    k, v = me.normal(me.rank, *sizes, dtype=dtype)
    q = torch.randn(batch, local, q_heads, dim, device=me.place, dtype=dtype)
    exchange: Any = shape.text("exchange")
    chosen: Any = impl

    def check(out: Tensor) -> tuple[float, float]:
        picks = ends(kv_heads)
        drawn = [me.normal(rank, *sizes, dtype=dtype) for rank in range(me.ranks)]
        keys, values = (
            join_tokens([each[side][:, picks].clone() for each in drawn], dim=2)
            for side in (0, 1)
        )  # fmt: skip
        chunk = chunks_of_rank(me.rank, me.ranks, "zigzag")[-1]
        size = local // 2
        seen, tail = (chunk + 1) * size, min(CHECKED_TOKENS, size)
        group = q_heads // kv_heads
        found = []
        for place, head in enumerate(picks):
            heads = slice(head * group, (head + 1) * group)
            part = slice(place, place + 1)

            def seen_from(
                start: int, end: int, part: slice = part, heads: slice = heads
            ) -> Problem:
                return check_problem(
                    q[:, -tail:, heads], keys[:, part, start:end], values[:, part, start:end],
                    causal=end == seen, window_tokens=None, sink_tokens=0, scale=None,
                    cu_query_tokens=None, cu_context_tokens=None, q_scale=1.0, k_scale=1.0,
                    v_scale=1.0,
                )  # fmt: skip

            step = size if exchange == "ring" else seen
            low = [naive(seen_from(start, start + step)) for start in range(0, seen, step)]
            budget = tolerance(reference(seen_from(0, seen))[0], merged(low, dtype))
            found.append(budget.judge(out[:, -tail:, heads]))
        return worst(found)

    def run() -> Tensor:
        return context_prefill(q, k, v, exchange=exchange, group=me.group, impl=chosen)[0]

    return Work(run=run, check=check)


def _decode(shape: Dimensions, impl: str, me: _Me) -> Work:
    """Checked on the rank's first sequence, for the first and the last KV head."""
    batch, q_heads, kv_heads, dim = (
        shape.count(name) for name in ("batch", "q_heads", "kv_heads", "head_dim")
    )
    local, dtype = shape.count("context_tokens") // me.ranks, DTYPES[shape.text("dtype")]
    sizes, mine = (batch, kv_heads, local, dim), batch // me.ranks
    k, v = me.normal(me.rank, *sizes, dtype=dtype)
    q = torch.randn(mine, 1, q_heads, dim, device=me.place, dtype=dtype)
    lengths = torch.full((batch,), local, device=me.place, dtype=torch.int32)
    chosen: Any = impl

    def check(out: Tensor) -> tuple[float, float]:
        picks, one = ends(kv_heads), slice(me.rank * mine, me.rank * mine + 1)
        drawn = [me.normal(rank, *sizes, dtype=dtype) for rank in range(me.ranks)]
        keys, values = (
            torch.cat([each[side][one][:, picks] for each in drawn], 2) for side in (0, 1)
        )
        group = q_heads // kv_heads
        found = []
        for place, head in enumerate(picks):
            heads = slice(head * group, (head + 1) * group)
            part = slice(place, place + 1)

            def seen_from(
                start: int, end: int, low: bool, part: slice = part, heads: slice = heads
            ) -> tuple[Tensor, Tensor]:
                where = slice(start, end)
                return decode_reference(
                    q[:1, :, heads], keys[:, part, where], values[:, part, where],
                    low_precision=low,
                )  # fmt: skip

            seen = local * me.ranks
            low = [seen_from(start, start + local, True) for start in range(0, seen, local)]
            budget = tolerance(seen_from(0, seen, False)[0], merged(low, dtype))
            found.append(budget.judge(out[:1, :, heads]))
        return worst(found)

    def run() -> Tensor:
        return context_decode(q, k, v, lengths=lengths, group=me.group, impl=chosen)[0]

    return Work(run=run, check=check)


def merged(parts: list[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """Attention from its results over parts of the keys, each rounded as a rank hands it on."""
    outs = torch.stack([out.to(dtype).float() for out, _ in parts])
    lses = torch.stack([lse.float() for _, lse in parts])
    return merge_partials(outs, lses, dtype=dtype, impl="torch")[0]


def worst(found: list[tuple[float, float]]) -> tuple[float, float]:
    """The error that is largest beside what is allowed."""
    return max(found, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0])


@dataclass(frozen=True, kw_only=True)
class GroupWorkshop:
    """What the runner needs to know of points of several ranks."""

    place: torch.device
    ranks: Ranks

    def prepare(self, task: Point) -> Work:
        """Draws a rank's inputs."""
        return prepare_group(task, self.place, self.ranks)

    def needed_bytes(self, task: Point) -> float:
        """The most memory that a rank takes."""
        return needed_group(task)

    def is_refusal(self, error: BaseException) -> bool:
        """Whether a kernel said that it cannot do this."""
        return isinstance(error, KernelError)

    def rates(self, task: Point, seconds: float) -> dict[str, float]:
        """Bytes a second on each rank's link, of a collective."""
        if task.operation not in COLLECTIVES:
            return {}
        return {"rate_bytes_per_s": link_bytes(task.operation, task.shape) / seconds}

    def tensor_rate(self, task: Point) -> float:
        """How much faster than in bf16 tensor cores work."""
        return 1.0


def needed_group(task: Point) -> float:
    """Bytes of a rank's tensors and of what its check draws: every rank's part again."""
    shape = Dimensions(task.shape)
    ranks = shape.count("ranks")
    if task.operation in COLLECTIVES:
        parts: Literal[2, 3] = 3 if task.operation == "all_reduce" else 2
        return float(shape.count("buffer_bytes")) * (parts + ranks)
    batch, context, q_heads, kv_heads, dim = (
        shape.count(name) for name in ("batch", "context_tokens", "q_heads", "kv_heads", "head_dim")
    )
    held = 2.0 * 2 * batch * kv_heads * context * dim / ranks
    queries = batch * (context / ranks if task.operation == "context_prefill" else 1)
    around = 12.0 * queries * q_heads * dim
    scores = 16.0 * queries * q_heads * context / ranks if task.implementation == "naive" else 0.0
    # The check draws all ranks' parts again, in float32 first, and attends with a few queries of a
    # group of heads to all of them, keys and values repeated for each.
    check = (12.0 * 2 * dim + 16.0 * CHECKED_TOKENS) * context * q_heads / kv_heads
    return held * (4 + ranks) + around + scores + check
