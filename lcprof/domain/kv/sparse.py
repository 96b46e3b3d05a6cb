"""Sparse reads of a full cache: Quest pages and token top-k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lcprof.domain.kv.arguments import Argument, whole
from lcprof.domain.kv.strategy import ExtraWork, KvStrategy, Risk
from lcprof.domain.kv.stream import Stream
from lcprof.num import Num, ceil, smaller

METADATA_BYTES = 2
"""Quest keeps the minimum and maximum of each key channel of a page in 16 bits."""
INDEX_SCALE_BYTES = 4


def _choosing(inner: ExtraWork, select_flops: float) -> ExtraWork:
    return ExtraWork(
        quantise_flops=inner.quantise_flops,
        dequantise_flops=inner.dequantise_flops,
        select_flops=inner.select_flops + select_flops,
    )


class Quest(KvStrategy, frozen=True, kw_only=True):
    """Reads the `top` pages of `page` tokens whose key bounds score highest, and the bounds of all
    pages (arXiv:2406.10774, section 3). Everything stays stored; a page adds two key vectors.
    """

    kind: ClassVar[str] = "quest"
    summary: ClassVar[str] = "Quest: keeps everything, reads the `top` pages of `page` tokens"
    risk: ClassVar[Risk] = Risk(
        level=2,
        why="each step sees only the pages that it chose",
        source="arXiv:2406.10774, section 3",
    )
    kernel: ClassVar[str | None] = "selection"
    arguments: ClassVar[Mapping[str, Argument]] = {
        "page": whole("page", 1, 65536),
        "top": whole("top", 1),
    }
    page: int = 16
    top: int = 256

    def _bound_bytes(self, stream: Stream) -> float:
        if stream.kind == "index":
            return 0.0
        vectors = 2 * stream.heads * stream.k_elements * METADATA_BYTES
        return vectors / self.page / stream.tokens_per_entry

    def bytes_per_token(self, stream: Stream) -> float:
        return self.wrapped().bytes_per_token(stream) + self._bound_bytes(stream)

    def held_bytes(self, stream: Stream, tokens: Num) -> Num:
        return self.wrapped().held_bytes(stream, tokens) + self._bounds(stream, tokens)

    def scan_bytes(self, stream: Stream, stored_tokens: Num) -> Num:
        inner: Num = self.wrapped().scan_bytes(stream, stored_tokens)
        return inner + self._bounds(stream, stored_tokens)

    def _bounds(self, stream: Stream, tokens: Num) -> Num:
        pages: Num = ceil(tokens / self.page)
        return pages * (self.page * self._bound_bytes(stream))

    def read_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        inner: Num = self.wrapped().read_tokens(stream, context_tokens, decoded_tokens)
        if stream.kind == "index":
            return inner
        read: Num = smaller(inner, float(self.page * self.top))
        return read

    def extra_work(self, stream: Stream) -> ExtraWork:
        """Two products and a maximum per channel of a page: 3·k / page FLOPs a token and head."""
        flops = 0.0 if stream.kind == "index" else 3.0 * stream.k_elements / self.page
        return _choosing(self.wrapped().extra_work(stream), flops)


class TopK(KvStrategy, frozen=True, kw_only=True):
    """Reads the `tokens` best tokens of a full cache, chosen by small index keys.

    `index_dim` fp8 elements and one fp32 scale a token and layer, all of them read and scored by
    every query head in each step: the indexer of DeepSeek-V3.2 (DSA) put on any model.
    """

    kind: ClassVar[str] = "topk"
    summary: ClassVar[str] = "token top-k with an index of small keys (DSA-like) on a full cache"
    risk: ClassVar[Risk] = Risk(
        level=2,
        why="each step sees only the tokens that it chose; the index has to be trained",
        source="the indexer of DeepSeek-V3.2, trained with its model",
    )
    kernel: ClassVar[str | None] = "selection"
    arguments: ClassVar[Mapping[str, Argument]] = {
        "tokens": whole("tokens", 1),
        "index_dim": whole("index_dim", 8, 4096),
    }
    tokens: int = 2048
    index_dim: int = 128

    def _index_bytes(self, stream: Stream) -> float:
        if stream.kind == "index":
            return 0.0
        return (self.index_dim + INDEX_SCALE_BYTES) / stream.tokens_per_entry

    def bytes_per_token(self, stream: Stream) -> float:
        return self.wrapped().bytes_per_token(stream) + self._index_bytes(stream)

    def held_bytes(self, stream: Stream, tokens: Num) -> Num:
        return self.wrapped().held_bytes(stream, tokens) + tokens * self._index_bytes(stream)

    def scan_bytes(self, stream: Stream, stored_tokens: Num) -> Num:
        inner: Num = self.wrapped().scan_bytes(stream, stored_tokens)
        return inner + stored_tokens * self._index_bytes(stream)

    def read_tokens(self, stream: Stream, context_tokens: Num, decoded_tokens: float = 0) -> Num:
        inner: Num = self.wrapped().read_tokens(stream, context_tokens, decoded_tokens)
        if stream.kind == "index":
            return inner
        read: Num = smaller(inner, float(self.tokens))
        return read

    def extra_work(self, stream: Stream) -> ExtraWork:
        """One dot product with each index key: 2·index_dim FLOPs a token and head."""
        flops = 0.0 if stream.kind == "index" else 2.0 * self.index_dim
        return _choosing(self.wrapped().extra_work(stream), flops)
