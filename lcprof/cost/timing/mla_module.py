"""Time of a whole latent attention (MLA) module: projections and attention of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing import mla_decode, prefill_attention
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.cost.timing.latent import PROJECTION_PARAMETERS, LatentShape, projection_seconds
from lcprof.domain.calibration import Parameter

LARGE_PREFILL_TOKENS = 4096.0

PREFILL_PARAMETERS = {
    **PROJECTION_PARAMETERS,
    "attention": Parameter(
        meaning="achieved part of peak FLOP/s in attention", start=0.65, low=0.1, high=1.5
    ),
    "imbalance": Parameter(
        meaning="part of the longest tile that an even share of attention waits for",
        start=0.5,
        low=0.005,
        high=1.0,
    ),
}
_CORE = {
    "launch_s": 0.0,
    "softmax": 0.3,
    "tile_start_s": 1e-7,
    "diagonal": 1.0,
    "tail": 0.2,
    "solo": 1.4,
    "split_s": 0.0,
    "stream": 1.0,
}
"""What the attention core's own fits agree on; a module's times do not tell these apart."""

DECODE_PARAMETERS = {
    **PROJECTION_PARAMETERS,
    "stream": Parameter(
        meaning="achieved part of memory bandwidth in reading the cache",
        start=0.85,
        low=0.03,
        high=1.2,
    ),
    "compute": Parameter(
        meaning="achieved part of peak FLOP/s in attention, in tiles of 64 heads",
        start=0.7,
        low=0.05,
        high=1.5,
    ),
    "cold_s": Parameter(
        meaning="time lost before streams run at full rate, where the L2 does not hold the cache",
        start=1e-5,
        low=1e-7,
        high=5e-5,
    ),
    "cta_bytes_per_s": Parameter(
        meaning="bytes/s that one CTA streams alone",
        start=1e11,
        low=5e9,
        high=4e11,
        bandwidth=True,
    ),
}


class MlaModuleCall(Struct, frozen=True, kw_only=True):
    """`query_tokens` new tokens in each of `batch` sequences: a prompt (`context_tokens` equal to
    them) or one token at `context_tokens`. `fp8_weights` is 1.0 or 0.0, `compute` the dtype of a
    decode step's attention, `kernel` a key of `prefill_attention.KERNELS`. A prompt's queries see
    `window_tokens` (0: all). The heads of `gathered` ranks share a decode step's attention, each
    rank projecting its own. `cold` is that of `ceilings.missed`."""

    shape: LatentShape
    batch: Any
    q_heads: Any
    query_tokens: Any
    context_tokens: Any
    kv_bytes_per_element: Any
    fp8_weights: Any
    compute: str
    kernel: str
    window_tokens: Any = 0.0
    gathered: Any = 1.0
    cold: Any = 0.0


def prefill_core(call: MlaModuleCall) -> prefill_attention.PrefillAttentionCall:
    """The attention of a prompt, keys and values expanded."""
    return prefill_attention.PrefillAttentionCall(
        batch=call.batch,
        q_heads=call.q_heads,
        kv_heads=call.q_heads,
        qk_dim=call.shape.nope_dim + call.shape.rope_dim + 0.0 * call.batch,
        v_dim=call.shape.v_dim + 0.0 * call.batch,
        query_tokens=call.query_tokens,
        prefix_tokens=call.context_tokens - call.query_tokens,
        window_tokens=call.window_tokens + 0.0 * call.batch,
        causal=1.0 + 0.0 * call.batch,
        compute="bf16",
        kernel=call.kernel,
        kv_bytes_per_element=call.kv_bytes_per_element,
    )


def decode_core(call: MlaModuleCall) -> mla_decode.MlaDecodeCall:
    """The attention of a decode step, absorbed."""
    return mla_decode.MlaDecodeCall(
        batch=call.batch,
        q_heads=call.q_heads * call.gathered,
        context_tokens=call.context_tokens,
        kv_bytes_per_element=call.kv_bytes_per_element,
        compute=call.compute,
        cold=call.cold,
    )


def prefill_seconds(
    call: MlaModuleCall, ceilings: Ceilings, parameters: Mapping[str, float]
) -> Any:
    """Time of a prompt's module."""
    core = {
        **_CORE,
        "compute": parameters["attention"],
        "imbalance": parameters["imbalance"],
    }
    attention = prefill_attention.seconds(prefill_core(call), ceilings, core)
    return attention + _projections(call, ceilings, parameters)


def decode_seconds(call: MlaModuleCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Time of a decode step's module."""
    core = {
        "launch_s": 0.0,
        "stream": parameters["stream"],
        "compute": parameters["compute"],
        "cta_bytes_per_s": parameters["cta_bytes_per_s"],
        "cta_start_s": 5e-6,
        "serial": 0.01,
        "cold_s": parameters["cold_s"],
    }
    attention = mla_decode.seconds(decode_core(call), ceilings, core)
    return attention + _projections(call, ceilings, parameters)


def _projections(call: MlaModuleCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    return projection_seconds(
        call.shape,
        tokens=call.batch * call.query_tokens,
        q_heads=call.q_heads,
        fp8_weights=call.fp8_weights,
        extra_elements=0.0,
        cold=call.cold,
        ceilings=ceilings,
        parameters=parameters,
    )


def features(call: MlaModuleCall) -> Mapping[str, Any]:
    """What the box of a fit is made of."""
    windowed = num.choose(call.window_tokens > 0, call.window_tokens, call.context_tokens)
    kept = num.smaller(call.context_tokens, call.query_tokens + windowed)
    return {
        "tokens": call.batch * call.query_tokens,
        "context_tokens": kept,
        "cached_tokens": call.batch * kept,
        "q_heads": call.q_heads,
    }


def prefill_large(call: MlaModuleCall) -> Any:
    """Whether the products take most of the time."""
    return call.batch * call.query_tokens >= LARGE_PREFILL_TOKENS


def decode_large(call: MlaModuleCall) -> Any:
    """Whether reading or using the cache takes most of the time."""
    return mla_decode.large(decode_core(call))


MLA_PREFILL_MODULE = Family(
    name="mla_prefill_module",
    parameters=PREFILL_PARAMETERS,
    seconds=prefill_seconds,
    features=features,
    large=prefill_large,
)
MLA_DECODE_MODULE = Family(
    name="mla_decode_module",
    parameters=DECODE_PARAMETERS,
    seconds=decode_seconds,
    features=features,
    large=decode_large,
)
