"""KIVI: keys quantised per channel, values per token, the newest tokens in bf16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lcprof.domain.kv.arguments import Argument, one_of_numbers, whole
from lcprof.domain.kv.dense import ELEMENT_BYTES
from lcprof.domain.kv.strategy import ExtraWork, KvStrategy, Risk
from lcprof.domain.kv.stream import Stream
from lcprof.num import Num, floor, larger, smaller

PAIR_BYTES = 4
"""An fp16 scale and an fp16 zero point for each group."""


class Kivi(KvStrategy, frozen=True, kw_only=True):
    """int-`bits` K and V in groups of `group` (arXiv:2402.02750, section 3).

    Keys are quantised per channel over `group` tokens, values per token over `group` channels.
    The last `residual` tokens of V stay in bf16, and so do the T mod `residual` newest tokens of
    K, which are quantised all at once when `residual` of them are there.
    """

    kind: ClassVar[str] = "kivi"
    summary: ClassVar[str] = "KIVI: keys per channel, values per token, bf16 residual"
    risk: ClassVar[Risk] = Risk(
        level=2,
        why="K and V in 2 or 4 bits; read its evaluation before a longer context",
        source="arXiv:2402.02750, section 4",
    )
    kernel: ClassVar[str | None] = "quantised_decode"
    arguments: ClassVar[Mapping[str, Argument]] = {
        "bits": one_of_numbers("bits", 2, 4),
        "group": whole("group", 8, 1024),
        "residual": whole("residual", 1, 65536),
    }
    bits: int = 4
    group: int = 32
    residual: int = 128

    def _coded_bytes(self, elements: int, stream: Stream) -> float:
        each = self.bits / 8 + PAIR_BYTES / self.group
        return stream.heads * elements * each / stream.tokens_per_entry

    def bytes_per_token(self, stream: Stream) -> float:
        if stream.kind == "index":
            return stream.index_bytes
        return self._coded_bytes(stream.k_elements + stream.v_elements, stream)

    def held_bytes(self, stream: Stream, tokens: Num) -> Num:
        # Closing a block of keys frees memory: the peak came one token before the last closing.
        before = larger(floor(tokens / self.residual) * self.residual - 1, 0.0)
        peak: Num = larger(self.payload_bytes(stream, tokens), self.payload_bytes(stream, before))
        return peak

    def payload_bytes(self, stream: Stream, tokens: Num) -> Num:
        if stream.kind == "index":
            return tokens * stream.index_bytes
        plain = stream.heads * ELEMENT_BYTES / stream.tokens_per_entry
        recent = smaller(tokens, float(self.residual))
        older = tokens - recent
        closed = floor(tokens / self.residual) * self.residual
        coded_keys = closed * self._coded_bytes(stream.k_elements, stream)
        coded_values = older * self._coded_bytes(stream.v_elements, stream)
        plain_keys = (tokens - closed) * (stream.k_elements * plain)
        plain_values = recent * (stream.v_elements * plain)
        held: Num = coded_keys + plain_keys + coded_values + plain_values
        return held

    def element_bytes(self) -> float:
        return self.bits / 8

    def extra_work(self, stream: Stream) -> ExtraWork:
        """A minimum, a maximum, a multiply-add and a rounding an element written; one multiply-add
        an element read."""
        if stream.kind == "index":
            return ExtraWork()
        return ExtraWork(quantise_flops=5.0, dequantise_flops=2.0)
