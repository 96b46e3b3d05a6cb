"""Eviction to a budget: H2O keeps a share of the context, SnapKV a fixed part of the prompt.

Both choose once the prompt has been read, so a chunked prefill holds the whole prompt until then;
an unchunked one holds one layer of it at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lcprof.domain.kv.arguments import Argument, budget, whole
from lcprof.domain.kv.strategy import ExtraWork, KvStrategy, Risk
from lcprof.domain.kv.stream import Stream
from lcprof.num import Num, ceil, smaller


def _late(strategy: KvStrategy, stream: Stream, context_tokens: Num) -> Num | None:
    if stream.kind == "index":
        return None
    whole: Num = strategy.wrapped().stored_tokens(stream, context_tokens)
    return whole - strategy.stored_tokens(stream, context_tokens)


class H2O(KvStrategy, frozen=True, kw_only=True):
    """Heavy hitters and recent tokens, together `budget` of the context when it is at most 1, else
    `budget` tokens (arXiv:2306.14048, section 4). Prefill attends to everything; the scores that
    rank tokens cost one addition for each token read.
    """

    kind: ClassVar[str] = "h2o"
    summary: ClassVar[str] = "H2O: heavy hitters and recent tokens within a budget (% or tokens)"
    risk: ClassVar[Risk] = Risk(
        level=3,
        why="tokens are dropped by the attention that they had so far",
        source="arXiv:2306.14048, section 4",
    )
    arguments: ClassVar[Mapping[str, Argument]] = {"budget": budget("budget")}
    budget: float = 0.2

    def _kept(self, stream: Stream, inner: Num, context_tokens: Num) -> Num:
        if stream.kind == "index":
            return inner
        limit = ceil(self.budget * context_tokens) if self.budget <= 1 else self.budget
        kept: Num = smaller(inner, limit)
        return kept

    def stored_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        inner: Num = self.wrapped().stored_tokens(stream, context_tokens, decoded_tokens)
        return self._kept(stream, inner, context_tokens)

    def late_tokens(self, stream: Stream, context_tokens: Num) -> Num | None:
        return _late(self, stream, context_tokens)

    def read_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        inner: Num = self.wrapped().read_tokens(stream, context_tokens, decoded_tokens)
        return self._kept(stream, inner, context_tokens)

    def extra_work(self, stream: Stream) -> ExtraWork:
        inner = self.wrapped().extra_work(stream)
        return ExtraWork(
            quantise_flops=inner.quantise_flops,
            dequantise_flops=inner.dequantise_flops,
            select_flops=inner.select_flops + (0.0 if stream.kind == "index" else 1.0),
        )


class SnapKV(KvStrategy, frozen=True, kw_only=True):
    """`budget` tokens of the prompt, its observation window included, and every decoded token
    (arXiv:2404.14469, section 4). Prefill attends to everything."""

    kind: ClassVar[str] = "snapkv"
    summary: ClassVar[str] = "SnapKV: `budget` prompt tokens, and all that is decoded"
    risk: ClassVar[Risk] = Risk(
        level=3,
        why="a prompt keeps what its end attends to; later questions may need more",
        source="arXiv:2404.14469, section 4",
    )
    arguments: ClassVar[Mapping[str, Argument]] = {"budget": whole("budget", 1)}
    budget: int = 4096

    def _kept(self, stream: Stream, inner: Num, decoded_tokens: float) -> Num:
        if stream.kind == "index":
            return inner
        kept: Num = smaller(inner, self.budget + decoded_tokens)
        return kept

    def stored_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        inner: Num = self.wrapped().stored_tokens(stream, context_tokens, decoded_tokens)
        return self._kept(stream, inner, decoded_tokens)

    def late_tokens(self, stream: Stream, context_tokens: Num) -> Num | None:
        return _late(self, stream, context_tokens)

    def read_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        inner: Num = self.wrapped().read_tokens(stream, context_tokens, decoded_tokens)
        return self._kept(stream, inner, decoded_tokens)
