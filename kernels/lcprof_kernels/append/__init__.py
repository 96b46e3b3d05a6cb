"""Quantise new keys and values and append them to a compressed cache."""

from .api import append

__all__ = ["append"]
