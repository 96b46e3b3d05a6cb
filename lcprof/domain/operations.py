"""The operations that can be measured, and who can compute each."""

from __future__ import annotations

from collections.abc import Mapping

OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "prefill_attention": ("triton", "flash", "cudnn", "naive"),
    "mla_prefill": ("triton", "naive"),
    "decode_attention": ("triton", "flash", "cudnn", "naive"),
    "quantised_decode": ("triton", "torch", "naive"),
    "quest_decode": ("triton", "naive"),
    "mla_decode": ("triton", "naive"),
    "token_scores": ("triton", "naive"),
    "sparse_mla_decode": ("triton",),
    "append": ("triton", "torch"),
    "gemm": ("torch",),
    "attention_backward": ("triton", "flash", "cudnn", "naive"),
}
"""Every operation and who can compute it: `impl=` of its kernel, or PyTorch itself."""
UNPLANNED = ("attention_backward",)
"""What no plan has, as it belongs to training; measured where it is asked for."""
STACKS: Mapping[str, tuple[str, ...]] = {
    "lcprof": ("triton",),
    "torch": ("flash", "cudnn", "torch"),
    "naive": ("naive",),
}
"""Names for several implementations at once."""
ALL = "all"
"""Names every operation at once."""


def operation_names() -> tuple[str, ...]:
    """What may be asked for: one operation, or all of them."""
    return (ALL, *OPERATIONS)


def implementation_names() -> tuple[str, ...]:
    """What may compute: the names for several, then single implementations."""
    known = {impl for found in OPERATIONS.values() for impl in found}
    return (*STACKS, *sorted(known - set(STACKS)))
