"""Dense: every K and V element in 16 bits, nothing dropped."""

from __future__ import annotations

from typing import ClassVar

from lcprof.domain.kv.strategy import (
    ExtraWork,
    KvStrategy,
    Sight,
    attended_tokens,
    kept_tokens,
)
from lcprof.domain.kv.stream import Stream
from lcprof.domain.model import Mixer
from lcprof.num import Num

ELEMENT_BYTES = 2.0
DTYPE_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0}


class Dense(KvStrategy, frozen=True, kw_only=True):
    """The cache as the model computes it, in bf16, fp16 or fp32; innermost in every chain."""

    kind: ClassVar[str] = "bf16"
    summary: ClassVar[str] = "every element in 16 bits (bf16, fp16) or 32 (fp32)"
    kernel: ClassVar[str | None] = "decode"
    dtype: str = "bf16"

    def remake(self, mixer: Mixer) -> Mixer:
        return mixer

    def sight(self) -> Sight | None:
        return None

    def stored_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        return kept_tokens(stream, context_tokens)

    def late_tokens(self, stream: Stream, context_tokens: Num) -> Num | None:
        return None

    def read_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        stored = self.stored_tokens(stream, context_tokens, decoded_tokens)
        return attended_tokens(stream, stored)

    def bytes_per_token(self, stream: Stream) -> float:
        if stream.kind == "index":
            return stream.index_bytes
        return stream.elements * self.element_bytes() / stream.tokens_per_entry

    def held_bytes(self, stream: Stream, tokens: Num) -> Num:
        return tokens * self.bytes_per_token(stream)

    def payload_bytes(self, stream: Stream, tokens: Num) -> Num:
        return tokens * self.bytes_per_token(stream)

    def scan_bytes(self, stream: Stream, stored_tokens: Num) -> Num:
        return stored_tokens * 0.0

    def host_fraction(self) -> float:
        return 0.0

    def extra_work(self, stream: Stream) -> ExtraWork:
        return ExtraWork()

    def products(self) -> str:
        return "bf16"

    def element_bytes(self) -> float:
        return DTYPE_BYTES[self.dtype]
