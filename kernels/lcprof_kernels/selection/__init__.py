"""Choosing what a query reads from a full cache: pages by bounds, tokens by an indexer."""

from .pages import page_bounds, quest_decode, score_pages, select_pages
from .tokens import score_tokens, select_tokens, sparse_mla_decode

__all__ = [
    "page_bounds",
    "quest_decode",
    "score_pages",
    "score_tokens",
    "select_pages",
    "select_tokens",
    "sparse_mla_decode",
]
