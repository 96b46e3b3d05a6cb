"""Quantised K and V with a scale per tensor, per token and head, or per group of channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lcprof.domain.kv.arguments import Argument, one_of, whole
from lcprof.domain.kv.strategy import ExtraWork, KvStrategy, Risk
from lcprof.domain.kv.stream import Stream
from lcprof.num import Num, ceil_div

Granularity = Literal["tensor", "token-head", "group"]
ROPE_BYTES = 2
SCALE_ARGUMENTS: Mapping[str, Argument] = {
    "scale": one_of("granularity", "tensor", "token-head", "group"),
    "group": whole("group", 8, 1024),
    "scale_bytes": whole("scale_bytes", 1, 8),
}


class Quantised(KvStrategy, frozen=True, kw_only=True):
    """K and V in `bits` bits, with scales counted to the byte.

    - `tensor`: one scale per layer, which no token pays.
    - `token-head`: one of `scale_bytes` for K and one for V, per token and head.
    - `group`: one per `group` channels of a token; the rope part of an MLA latent stays in bf16.
      With group 128 and fp32 scales, 512 + 64 fp8 elements take the 656 B of FlashMLA's layout.
    """

    kernel: ClassVar[str | None] = "quantised_decode"
    risk: ClassVar[Risk] = Risk(
        level=1,
        why="8-bit K and V; models have failed on uncalibrated scales",
        source="github.com/verl-project/verl/pull/4435",
    )
    bits: int
    granularity: Granularity
    group: int = 128
    scale_bytes: int = 4

    def bytes_per_token(self, stream: Stream) -> float:
        if stream.kind == "index":
            return stream.index_bytes
        keys = self._head_bytes(stream.k_elements, stream.plain_elements)
        values = self._head_bytes(stream.v_elements, 0)
        return stream.heads * (keys + values) / stream.tokens_per_entry

    def held_bytes(self, stream: Stream, tokens: Num) -> Num:
        return tokens * self.bytes_per_token(stream)

    def payload_bytes(self, stream: Stream, tokens: Num) -> Num:
        return tokens * self.bytes_per_token(stream)

    def _head_bytes(self, elements: int, plain: int) -> float:
        if not elements:
            return 0.0
        if self.granularity == "tensor":
            return elements * self.bits / 8
        if self.granularity == "token-head":
            return elements * self.bits / 8 + self.scale_bytes
        coded = elements - plain
        scales = ceil_div(coded, self.group) * self.scale_bytes
        return coded * self.bits / 8 + scales + plain * ROPE_BYTES

    def element_bytes(self) -> float:
        return self.bits / 8

    def extra_work(self, stream: Stream) -> ExtraWork:
        """One multiply and one rounding an element written, one multiply-add an element read."""
        if stream.kind == "index":
            return ExtraWork()
        return ExtraWork(quantise_flops=2.0, dequantise_flops=2.0)


class Fp8(Quantised, frozen=True, kw_only=True):
    """fp8 e4m3."""

    kind: ClassVar[str] = "fp8"
    summary: ClassVar[str] = "fp8 e4m3; scale=tensor (default), token-head or group"
    bits: int = 8
    granularity: Granularity = "tensor"
    arguments: ClassVar[Mapping[str, Argument]] = SCALE_ARGUMENTS

    def products(self) -> str:
        """FlashAttention 3 quantises queries and probabilities too (arXiv:2407.08608, section
        3.3)."""
        return "fp8"


class Int8(Quantised, frozen=True, kw_only=True):
    """int8, symmetric."""

    kind: ClassVar[str] = "int8"
    summary: ClassVar[str] = "int8; scale=token-head (default), tensor or group"
    bits: int = 8
    granularity: Granularity = "token-head"
    arguments: ClassVar[Mapping[str, Argument]] = SCALE_ARGUMENTS

    def products(self) -> str:
        """INT-FlashAttention multiplies both products so (arXiv:2409.16997)."""
        return "int8"


class Int4(Quantised, frozen=True, kw_only=True):
    """int4 per token and group of channels, an fp16 scale and an fp16 zero for each group."""

    kind: ClassVar[str] = "int4"
    summary: ClassVar[str] = "int4 per token and group of channels, fp16 scale and zero"
    risk: ClassVar[Risk] = Risk(
        level=2,
        why="4-bit K and V by token, where keys have outlier channels",
        source="arXiv:2402.02750, section 3",
    )
    bits: int = 4
    granularity: Granularity = "group"
    arguments: ClassVar[Mapping[str, Argument]] = {
        "group": whole("group", 8, 1024),
        "scale_bytes": whole("scale_bytes", 1, 8),
    }
