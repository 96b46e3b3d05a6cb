"""Attention over many query tokens: prefill and training, forward and backward."""

from .api import attention, attention_with_lse

__all__ = ["attention", "attention_with_lse"]
