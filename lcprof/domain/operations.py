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
COLLECTIVES: Mapping[str, float] = {
    "all_reduce": 2.0,
    "all_gather": 1.0,
    "reduce_scatter": 1.0,
    "all_to_all": 1.0,
    "send_recv": 2.0,
}
"""What ranks exchange, and how often (n - 1)/n of the buffer crosses each one's link (nccl-tests,
doc/PERFORMANCE.md; of two ranks the one sends all of it)."""
GROUPED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(COLLECTIVES, ("nccl", "gloo")),
    "context_prefill": ("triton", "naive"),
    "context_decode": ("triton", "naive"),
}
"""Operations of several ranks together, and who can compute them; the device chooses the library
of exchanges."""
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
    return (ALL, *OPERATIONS, *GROUPED)


def implementation_names() -> tuple[str, ...]:
    """What may compute: the names for several, then single implementations."""
    known = {impl for found in OPERATIONS.values() for impl in found}
    return (*STACKS, *sorted(known - set(STACKS)))
