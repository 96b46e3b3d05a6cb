"""Multi-head latent attention: absorbed decode over a cache of latent rows."""

from .api import mla_decode, mla_prefill
from .fp8 import pack_fp8, unpack_fp8

__all__ = ["mla_decode", "mla_prefill", "pack_fp8", "unpack_fp8"]
