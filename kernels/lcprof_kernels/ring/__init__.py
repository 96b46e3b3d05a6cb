"""Context parallelism over `torch.distributed`: prefill and decode of a context cut by tokens."""

from .decode import context_decode
from .prefill import context_prefill
from .shards import join_tokens, shard_tokens

__all__ = ["context_decode", "context_prefill", "join_tokens", "shard_tokens"]
