"""Merging attention results over disjoint parts of the keys."""

from .api import merge_partials

__all__ = ["merge_partials"]
