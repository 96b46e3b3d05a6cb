"""Decode attention over dense caches of bfloat16 or float16: contiguous, paged, windowed, ring."""

from .api import decode_attention
from .launch import Workspace

__all__ = ["Workspace", "decode_attention"]
