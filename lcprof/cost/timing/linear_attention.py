"""Time of the kernels of linear attention: gated delta net, Mamba-2 and their short convolutions.

All move bytes; a chunked scan also walks over its sequence chunk by chunk, so it lasts at least
what one head's walk takes. A decode step reads and writes the recurrent state, whose part that
stays in L2 from step to step is cheaper. Gated DeltaNet: arXiv 2412.06464; Mamba-2: arXiv
2405.21060.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter

ACTIVATION_BYTES = 2.0
STATE_BYTES = 4.0
LARGE_BYTES = 30e6
LARGE_SCAN_TOKENS = 4096.0

PARAMETERS = {
    "launch_s": Parameter(meaning="fixed time of a call", start=4e-6, low=5e-7, high=1e-4),
    "stream": Parameter(meaning="achieved part of memory bandwidth", start=0.7, low=0.02, high=1.3),
    "cached": Parameter(
        meaning="part of the time of moving less than L2 holds that staying there saves",
        start=0.1,
        low=0.005,
        high=0.95,
    ),
    "token_s": Parameter(
        meaning="time of a scan per token of its sequence", start=4e-8, low=1e-11, high=1e-6
    ),
    "crowding": Parameter(
        meaning="part by which a scan slows as heads come to fill the SMs",
        start=0.02,
        low=1e-4,
        high=1.0,
    ),
}


class LinearAttentionCall(Struct, frozen=True, kw_only=True):
    """`moved_bytes` are read or written once; `scan_tokens` is the length of each sequence that is
    walked over (0 where nothing is), by `scan_heads` heads of all sequences together."""

    moved_bytes: Any
    scan_tokens: Any
    scan_heads: Any


def convolution(*, tokens: Any, channels: Any) -> LinearAttentionCall:
    """A short causal convolution over a prompt: each activation read and written."""
    moved = 2.0 * tokens * channels * ACTIVATION_BYTES
    return LinearAttentionCall(moved_bytes=moved, scan_tokens=0.0 * moved, scan_heads=0.0 * moved)


def convolution_step(*, batch: Any, channels: Any, width: Any) -> LinearAttentionCall:
    """The same for one new token, `width` - 1 earlier ones held as state, read and written."""
    moved = 2.0 * batch * channels * width * ACTIVATION_BYTES
    return LinearAttentionCall(moved_bytes=moved, scan_tokens=0.0 * moved, scan_heads=0.0 * moved)


def scan(
    *, batch: Any, tokens: Any, k_heads: Any, v_heads: Any, k_dim: Any, v_dim: Any
) -> LinearAttentionCall:
    """A chunked scan over `batch` prompts of `tokens`: queries, keys, values and results move."""
    widths = 2.0 * k_heads * k_dim + 2.0 * v_heads * v_dim
    return LinearAttentionCall(
        moved_bytes=batch * tokens * widths * ACTIVATION_BYTES,
        scan_tokens=tokens + 0.0,
        scan_heads=batch * v_heads,
    )


def recurrent_step(*, batch: Any, heads: Any, k_dim: Any, v_dim: Any) -> LinearAttentionCall:
    """One new token per sequence: the float32 state of every head is read and written."""
    moved = 2.0 * batch * heads * k_dim * v_dim * STATE_BYTES
    return LinearAttentionCall(moved_bytes=moved, scan_tokens=0.0 * moved, scan_heads=0.0 * moved)


def seconds(call: LinearAttentionCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Time of the call."""
    stream = call.moved_bytes / (ceilings.bandwidth_bytes_per_s * parameters["stream"])
    # A state is read and written: half of what moves is what would have to stay.
    held = call.moved_bytes / 2.0 / ceilings.l2_bytes
    stream = stream * (1.0 - parameters["cached"] * num.exp(-(held * held)))
    fill = call.scan_heads / ceilings.sm_count
    waves = num.larger(num.ceil(fill), 1.0)
    slower = 1.0 + parameters["crowding"] * fill / waves
    walk = call.scan_tokens * parameters["token_s"] * waves * slower
    return parameters["launch_s"] + num.larger(stream, walk)


def features(call: LinearAttentionCall) -> Mapping[str, Any]:
    """What the box of a fit is made of."""
    return {
        "moved_bytes": call.moved_bytes,
        "scan_tokens": call.scan_tokens,
        "scan_heads": call.scan_heads,
    }


def large(call: LinearAttentionCall) -> Any:
    """Whether moving or walking takes most of the time."""
    return (call.moved_bytes > LARGE_BYTES) | (call.scan_tokens >= LARGE_SCAN_TOKENS)


LINEAR_ATTENTION = Family(
    name="linear_attention",
    parameters=PARAMETERS,
    seconds=seconds,
    features=features,
    large=large,
)
