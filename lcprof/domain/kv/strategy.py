"""What a KV strategy answers. Every strategy is one file beside this one and wraps another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from msgspec import Struct

from lcprof.domain.kv.arguments import Argument
from lcprof.domain.kv.stream import Stream
from lcprof.domain.model import Mixer
from lcprof.num import Num, smaller


class Sight(Struct, frozen=True, kw_only=True):
    """What a prefill query sees of the tokens before it: the last `window_tokens` (itself
    included) and the first `sink_tokens`."""

    window_tokens: int
    sink_tokens: int

    @property
    def tokens(self) -> int:
        """The most that a query sees."""
        return self.window_tokens + self.sink_tokens


class ExtraWork(Struct, frozen=True, kw_only=True):
    """Vector FLOPs that a strategy adds, and the dtype-free counts they come from.

    Per element written (`quantise_flops`) and per element read (`dequantise_flops`); per cached
    token and query head, the FLOPs of choosing what to read (`select_flops`).
    """

    quantise_flops: float = 0.0
    dequantise_flops: float = 0.0
    select_flops: float = 0.0


RISKS = ("none", "low", "some", "high", "another model")
"""What a strategy may take from the answers, from nothing to everything; the level is the position.
Low: 8-bit elements. Some: fewer bits, or a part of the cache read. High: tokens dropped."""


class Risk(Struct, frozen=True, kw_only=True):
    """What a strategy puts the quality of answers at: a level of `RISKS`, why, and a source."""

    level: int
    why: str
    source: str

    @property
    def name(self) -> str:
        return RISKS[self.level]


NO_RISK = Risk(level=0, why="every element as the model computes it", source="by construction")


class KvStrategy(Struct, frozen=True, kw_only=True):
    """A way of keeping and reading the KV cache; by itself, the strategy that it wraps.

    Quantities are for one sequence in one layer and one `Stream`, all heads, before sharding.
    `context_tokens` counts what the sequence has seen, its `decoded_tokens` included. Tokens are
    the model's tokens: a stream that packs several into an entry divides its bytes.
    """

    kind: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    kernel: ClassVar[str | None] = None
    arguments: ClassVar[Mapping[str, Argument]] = {}
    risk: ClassVar[Risk] = NO_RISK
    inner: KvStrategy | None = None

    def wrapped(self) -> KvStrategy:
        """The strategy inside this one."""
        if self.inner is None:
            raise TypeError(f"{self.kind} wraps nothing")
        return self.inner

    def remake(self, mixer: Mixer) -> Mixer:
        """The mixer that the model would have: itself, unless the strategy is a what-if on the
        architecture."""
        return self.wrapped().remake(mixer)

    def sight(self) -> Sight | None:
        """What prefill attention is limited to; None: what the model itself sees."""
        return self.wrapped().sight()

    def stored_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        """Tokens whose K and V are kept, on the GPU or on the host."""
        return self.wrapped().stored_tokens(stream, context_tokens, decoded_tokens)

    def late_tokens(self, stream: Stream, context_tokens: Num) -> Num | None:
        """Tokens of a prompt that are kept only until it has been read to its end; None when the
        strategy drops nothing that late."""
        return self.wrapped().late_tokens(stream, context_tokens)

    def read_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        """Tokens whose K and V one decode step reads."""
        return self.wrapped().read_tokens(stream, context_tokens, decoded_tokens)

    def bytes_per_token(self, stream: Stream) -> float:
        """Bytes of one stored token in all heads, with scales and metadata."""
        return self.wrapped().bytes_per_token(stream)

    def held_bytes(self, stream: Stream, tokens: Num) -> Num:
        """Bytes of a cache of `tokens` stored tokens, scales and metadata included: the most that
        it took on the way there, never less for more tokens."""
        return self.wrapped().held_bytes(stream, tokens)

    def payload_bytes(self, stream: Stream, tokens: Num) -> Num:
        """Bytes of K and V, with their scales, of `tokens` tokens that a step reads."""
        return self.wrapped().payload_bytes(stream, tokens)

    def scan_bytes(self, stream: Stream, stored_tokens: Num) -> Num:
        """Bytes of metadata that a step reads of all stored tokens, to choose among them."""
        return self.wrapped().scan_bytes(stream, stored_tokens)

    def stored_bytes(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        """Bytes kept of `context_tokens`."""
        stored: Num = self.stored_tokens(stream, context_tokens, decoded_tokens)
        return self.held_bytes(stream, stored)

    def read_bytes(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        """Bytes that one decode step reads at `context_tokens`."""
        stored: Num = self.stored_tokens(stream, context_tokens, decoded_tokens)
        read: Num = self.read_tokens(stream, context_tokens, decoded_tokens)
        return self.scan_bytes(stream, stored) + self.payload_bytes(stream, read)

    def host_fraction(self) -> float:
        """The share of stored bytes that lies in host memory."""
        return self.wrapped().host_fraction()

    def extra_work(self, stream: Stream) -> ExtraWork:
        """What the strategy computes beside attention."""
        return self.wrapped().extra_work(stream)

    def element_bytes(self) -> float:
        """Bytes of a K or V element without scales; sets what a collective moves."""
        return self.wrapped().element_bytes()

    def products(self) -> str:
        """The narrowest dtype that attention over this cache can multiply in."""
        return self.wrapped().products()

    def chain(self) -> tuple[KvStrategy, ...]:
        """This strategy and what it wraps, innermost first."""
        return (*(self.inner.chain() if self.inner else ()), self)

    def risks(self) -> tuple[Risk, ...]:
        """What of the chain may cost quality, the worst first; `NO_RISK` alone where nothing."""
        held = [link.risk for link in self.chain() if link.risk.level]
        return tuple(sorted(held, key=lambda risk: -risk.level)) or (NO_RISK,)


def kept_tokens(stream: Stream, context_tokens: Num) -> Num:
    """Tokens that the model's own window or chunk leaves in a stream."""
    if stream.cap_tokens is None:
        return context_tokens
    kept: Num = smaller(context_tokens, float(stream.cap_tokens))
    return kept


def attended_tokens(stream: Stream, stored_tokens: Num) -> Num:
    """Tokens that the model's own selection (indexer, blocks) reads of what is stored."""
    if stream.read_tokens is None:
        return stored_tokens
    read: Num = smaller(stored_tokens, float(stream.read_tokens))
    return read
