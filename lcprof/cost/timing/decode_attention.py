"""Time of one decode step's attention over a KV cache, one query token per sequence.

A kernel gives each CTA one KV head of one sequence, or a split of its tokens when those are fewer
than the SMs. The CTAs together stream the cache at the memory's rate, and each alone no faster than
one SM can ask for and use it; the split results are combined at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings, missed
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter

BLOCK_TOKENS = 128.0
LARGE_BYTES = 100e6

PARAMETERS = {
    "launch_s": Parameter(meaning="fixed time of a call", start=1e-5, low=1e-6, high=1e-4),
    "stream": Parameter(
        meaning="achieved part of memory bandwidth with every SM busy", start=0.9, low=0.2, high=1.2
    ),
    "cta_bytes_per_s": Parameter(
        meaning="bytes/s that one CTA streams alone",
        start=6e10,
        low=5e9,
        high=4e11,
        bandwidth=True,
    ),
    "token_s": Parameter(
        meaning="a CTA's time per token that does not depend on its bytes",
        start=2e-10,
        low=1e-12,
        high=2e-8,
    ),
    "group_s": Parameter(
        meaning="a CTA's time per token and query head that shares its KV head",
        start=2e-11,
        low=1e-13,
        high=2e-9,
    ),
    "wide_cost": Parameter(
        meaning="growth of a CTA's time per 128 head dimensions beyond the first 128",
        start=0.05,
        low=1e-4,
        high=4.0,
    ),
    "cta_start_s": Parameter(meaning="start and end of a CTA", start=2e-6, low=1e-7, high=5e-5),
    "serial": Parameter(
        meaning="part of the shorter of streaming and a CTA's own time that stays exposed",
        start=0.2,
        low=0.005,
        high=1.0,
    ),
    "cold_s": Parameter(
        meaning="time lost before streams run at full rate, where the L2 does not hold the cache",
        start=5e-6,
        low=1e-7,
        high=5e-5,
    ),
}


class DecodeAttentionCall(Struct, frozen=True, kw_only=True):
    """A decode step: heads are one GPU's, `context_tokens` includes the new token, and
    `window_tokens` is 0 where every token is seen. `cold` is that of `ceilings.missed`."""

    batch: Any
    q_heads: Any
    kv_heads: Any
    head_dim: Any
    context_tokens: Any
    window_tokens: Any
    kv_bytes_per_element: Any
    cold: Any = 0.0


def read_tokens(call: DecodeAttentionCall) -> Any:
    """Tokens of the cache that each sequence's query sees."""
    windowed = num.smaller(call.context_tokens, call.window_tokens)
    return num.choose(call.window_tokens > 0, windowed, call.context_tokens + 0.0)


def kv_bytes(call: DecodeAttentionCall) -> Any:
    """Bytes of keys and values read."""
    per_token = 2.0 * call.kv_heads * call.head_dim * call.kv_bytes_per_element
    return call.batch * read_tokens(call) * per_token


def seconds(call: DecodeAttentionCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Time of the call."""
    tokens = read_tokens(call)
    items = call.batch * call.kv_heads
    blocks = num.ceil(tokens / BLOCK_TOKENS)
    splits = num.larger(num.floor(ceilings.sm_count / items), 1.0)
    splits = num.smaller(splits, blocks)
    waves = num.larger(items * splits / ceilings.sm_count, 1.0)
    waves = num.choose(waves < 4.0, num.ceil(waves), waves)
    cta_tokens = num.ceil(blocks / splits) * BLOCK_TOKENS
    cta_bytes = num.smaller(cta_tokens, tokens) * 2.0 * call.head_dim * call.kv_bytes_per_element
    group = call.q_heads / call.kv_heads
    wide = num.larger(call.head_dim / 128.0 - 1.0, 0.0)
    rate = parameters["cta_bytes_per_s"] / (1.0 + parameters["wide_cost"] * wide)
    token_s = parameters["token_s"] + parameters["group_s"] * group
    seen = num.smaller(cta_tokens, tokens)
    alone = waves * (parameters["cta_start_s"] + cta_bytes / rate + seen * token_s)
    total = kv_bytes(call)
    cold = missed(total, ceilings, call.cold)
    stream = total / (ceilings.bandwidth_bytes_per_s * parameters["stream"])
    longer, shorter = num.larger(stream, alone), num.smaller(stream, alone)
    exposed = parameters["serial"] * shorter + parameters["cold_s"] * cold
    return parameters["launch_s"] + longer + exposed


def features(call: DecodeAttentionCall) -> Mapping[str, Any]:
    """What the box of a fit is made of."""
    return {
        "context_tokens": call.context_tokens,
        "kv_bytes": kv_bytes(call),
        "sequence_heads": call.batch * call.kv_heads,
        "head_dim": call.head_dim,
    }


def large(call: DecodeAttentionCall) -> Any:
    """Whether reading the cache takes most of the time."""
    return kv_bytes(call) > LARGE_BYTES


DECODE_ATTENTION = Family(
    name="decode_attention",
    parameters=PARAMETERS,
    seconds=seconds,
    features=features,
    large=large,
)
