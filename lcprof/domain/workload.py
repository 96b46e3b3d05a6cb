"""What is asked of the deployment."""

from __future__ import annotations

from typing import Generic

from msgspec import Struct

from lcprof.num import Num


class Workload(Struct, Generic[Num], frozen=True, kw_only=True):
    """`concurrency` sequences of a prompt of `context_tokens`, answered by `output_tokens`.

    The first output token comes out of the prefill, so a sequence ends holding
    context + output - 1 tokens of KV. The first `prefix_tokens` of every prompt are the same:
    stored once per attention replica, and already computed when a request arrives.
    `chunk_tokens` is the prefill budget of one step.
    """

    context_tokens: Num
    concurrency: Num
    output_tokens: float = 1.0
    prefix_tokens: float = 0.0
    chunk_tokens: float = 8192.0

    @property
    def new_tokens(self) -> Num:
        """Tokens of a prompt beyond the shared prefix."""
        return self.context_tokens - self.prefix_tokens
