"""Time of one decode step's latent attention (MLA), the part between the projections.

All heads read one latent vector per token, so a head adds work but no bytes: with 128 heads a step
is bound by compute. A CTA takes 64 heads of one sequence (lcprof's kernel fewer, of fewer), or an
even share of all tokens where the kernel splits them. DeepSeek-V2, arXiv 2405.04434, section 2.1,
in its absorbed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings, missed
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter

LATENT_DIM = 512.0
ROPE_DIM = 64.0
HEADS_PER_TILE = 64.0
BLOCK_TOKENS = 64.0
LARGE_BYTES = 50e6
LARGE_FLOPS = 1e10

PARAMETERS = {
    "launch_s": Parameter(meaning="fixed time of a call", start=1e-5, low=1e-6, high=1e-4),
    "stream": Parameter(
        meaning="achieved part of memory bandwidth with every SM busy",
        start=0.85,
        low=0.03,
        high=1.2,
    ),
    "compute": Parameter(
        meaning="achieved part of peak FLOP/s, in tiles of 64 heads", start=0.6, low=0.01, high=1.2
    ),
    "cta_bytes_per_s": Parameter(
        meaning="bytes/s that one CTA streams alone",
        start=6e10,
        low=2e9,
        high=4e11,
        bandwidth=True,
    ),
    "cta_start_s": Parameter(
        meaning="start and end of a CTA's work on one sequence", start=2e-6, low=1e-8, high=5e-5
    ),
    "serial": Parameter(
        meaning="part of the shorter of streaming and computing that stays exposed",
        start=0.1,
        low=0.005,
        high=1.0,
    ),
    "cold_s": Parameter(
        meaning="time lost before streams run at full rate, where the L2 does not hold the cache",
        start=5e-6,
        low=1e-8,
        high=5e-5,
    ),
}


class MlaDecodeCall(Struct, frozen=True, kw_only=True):
    """A decode step of `batch` sequences with `context_tokens` each, the new token included. Heads
    are one GPU's; `compute` is the dtype of the products; `splits` whether the kernel spreads one
    sequence's tokens over SMs; `tile_heads` how many heads a CTA takes; `cold` is that of
    `ceilings.missed`."""

    batch: Any
    q_heads: Any
    context_tokens: Any
    kv_bytes_per_element: Any
    compute: str
    splits: bool = True
    tile_heads: Any = HEADS_PER_TILE
    cold: Any = 0.0


def kv_bytes(call: MlaDecodeCall) -> Any:
    """Bytes of latents read."""
    per_token = (LATENT_DIM + ROPE_DIM) * call.kv_bytes_per_element
    return call.batch * call.context_tokens * per_token


def flops(call: MlaDecodeCall) -> Any:
    """Multiply-adds of both products, counted as two, with absorbed projections."""
    per_pair = 2.0 * (2.0 * LATENT_DIM + ROPE_DIM)
    return call.batch * call.q_heads * call.context_tokens * per_pair


def seconds(call: MlaDecodeCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Time of the call."""
    tiles = num.ceil(call.q_heads / call.tile_heads)
    items = call.batch * tiles
    token_flops = 2.0 * (2.0 * LATENT_DIM + ROPE_DIM) * call.tile_heads
    rate = ceilings.flops_per_s(call.compute) * parameters["compute"] / ceilings.sm_count
    token_bytes = (LATENT_DIM + ROPE_DIM) * call.kv_bytes_per_element
    token_s = token_flops / rate + token_bytes / parameters["cta_bytes_per_s"]
    if call.splits:
        share = items * call.context_tokens / ceilings.sm_count
        share = num.larger(share, num.smaller(call.context_tokens + 0.0, BLOCK_TOKENS))
        starts = num.larger(items / ceilings.sm_count, 1.0)
    else:
        starts = num.ceil(items / ceilings.sm_count)
        share = starts * call.context_tokens
    alone = share * token_s + starts * parameters["cta_start_s"]
    total = kv_bytes(call)
    stream = total / (ceilings.bandwidth_bytes_per_s * parameters["stream"])
    exposed = parameters["serial"] * num.smaller(stream, alone)
    cold = parameters["cold_s"] * missed(total, ceilings, call.cold)
    return parameters["launch_s"] + num.larger(stream, alone) + exposed + cold


def features(call: MlaDecodeCall) -> Mapping[str, Any]:
    """What the box of a fit is made of."""
    return {
        "context_tokens": call.context_tokens,
        "kv_bytes": kv_bytes(call),
        "q_heads": call.q_heads,
        "batch": call.batch,
    }


def large(call: MlaDecodeCall) -> Any:
    """Whether reading or using the cache takes most of the time."""
    return (kv_bytes(call) > LARGE_BYTES) | (flops(call) > LARGE_FLOPS)


MLA_DECODE = Family(
    name="mla_decode",
    parameters=PARAMETERS,
    seconds=seconds,
    features=features,
    large=large,
)
