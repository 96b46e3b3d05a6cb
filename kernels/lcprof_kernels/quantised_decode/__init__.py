"""Decode attention over fp8, int8 and int4 caches."""

from .api import quantised_decode

__all__ = ["quantised_decode"]
