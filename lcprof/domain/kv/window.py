"""Sliding window with attention sinks (StreamingLLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lcprof.domain.kv.arguments import Argument, whole
from lcprof.domain.kv.strategy import KvStrategy, Risk, Sight
from lcprof.domain.kv.stream import Stream
from lcprof.num import Num, smaller


class Window(KvStrategy, frozen=True, kw_only=True):
    """Keeps the first `sinks` and the last `tokens` tokens (arXiv:2309.17453, section 3.2).

    Prefill attention is limited alike. It bounds memory; it does not let the model use what it
    dropped.
    """

    kind: ClassVar[str] = "window"
    summary: ClassVar[str] = "StreamingLLM: the last `tokens` and the first `sinks` tokens"
    risk: ClassVar[Risk] = Risk(
        level=3,
        why="what lies between the first and the last tokens is dropped",
        source="arXiv:2309.17453, section 3.2",
    )
    kernel: ClassVar[str | None] = "decode"
    arguments: ClassVar[Mapping[str, Argument]] = {
        "tokens": whole("tokens", 1),
        "sinks": whole("sinks", 0),
    }
    tokens: int = 4096
    sinks: int = 4

    def sight(self) -> Sight | None:
        return Sight(window_tokens=self.tokens, sink_tokens=self.sinks)

    def stored_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        inner: Num = self.wrapped().stored_tokens(stream, context_tokens, decoded_tokens)
        if stream.kind == "index":
            return inner
        return self._within(inner)

    def late_tokens(self, stream: Stream, context_tokens: Num) -> Num | None:
        late: Num | None = self.wrapped().late_tokens(stream, context_tokens)
        if late is None or stream.kind == "index":
            return late
        return self._within(late)

    def read_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        inner: Num = self.wrapped().read_tokens(stream, context_tokens, decoded_tokens)
        if stream.kind == "index":
            return inner
        return self._within(inner)

    def _within(self, tokens: Num) -> Num:
        """What of `tokens` is kept."""
        kept: Num = smaller(tokens, float(self.tokens + self.sinks))
        return kept
