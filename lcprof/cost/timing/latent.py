"""The projections around latent attention: what they compute and read.

Names and shapes are those of DeepSeek-V2 (arXiv 2405.04434, section 2.1): hidden -> query latent ->
heads, hidden -> key-value latent and rope key, heads -> hidden; in a decode step the key and value
expansions are absorbed into the query and the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings, missed
from lcprof.domain.calibration import Parameter


class LatentShape(Struct, frozen=True, kw_only=True):
    """Dimensions of one layer's latent attention; without a query latent `q_rank` is 0."""

    hidden: Any
    q_rank: Any
    kv_rank: Any
    nope_dim: Any
    rope_dim: Any
    v_dim: Any


DEEPSEEK_V3 = LatentShape(
    hidden=7168.0, q_rank=1536.0, kv_rank=512.0, nope_dim=128.0, rope_dim=64.0, v_dim=128.0
)
"""deepseek-ai/DeepSeek-V3 and V3.2, config.json."""
GLM_5 = LatentShape(
    hidden=6144.0, q_rank=2048.0, kv_rank=512.0, nope_dim=192.0, rope_dim=64.0, v_dim=256.0
)
"""zai-org/GLM-5, config.json."""

PROJECTION_PARAMETERS = {
    "launch_s": Parameter(
        meaning="fixed time of a call: its kernels' launches and the small ones between",
        start=5e-5,
        low=2e-6,
        high=3e-3,
    ),
    "quantise_s": Parameter(
        meaning="fixed time added by quantising activations for fp8 weights",
        start=5e-6,
        low=1e-8,
        high=1e-3,
    ),
    "projection": Parameter(
        meaning="achieved part of peak FLOP/s in bf16 projections", start=0.65, low=0.1, high=1.2
    ),
    "projection_fp8": Parameter(
        meaning="achieved part of peak FLOP/s in fp8 projections", start=0.45, low=0.05, high=1.2
    ),
    "weights": Parameter(
        meaning="achieved part of memory bandwidth in reading weights", start=0.7, low=0.1, high=1.2
    ),
    "passes": Parameter(
        meaning="how often norms, rope, copies and quantising move the activations",
        start=3.0,
        low=0.1,
        high=60.0,
    ),
}


def projection_elements(shape: LatentShape, q_heads: Any) -> tuple[Any, Any]:
    """Weight elements of the projections: those outside the heads' key and value expansion, and
    the expansion's (bf16 in every engine, since absorbing needs it so)."""
    down = shape.hidden * (shape.q_rank + shape.kv_rank + shape.rope_dim)
    source = num.choose(shape.q_rank > 0, shape.q_rank, shape.hidden)
    up = source * q_heads * (shape.nope_dim + shape.rope_dim)
    out = q_heads * shape.v_dim * shape.hidden
    return down + up + out, shape.kv_rank * q_heads * (shape.nope_dim + shape.v_dim)


def projection_seconds(
    shape: LatentShape,
    *,
    tokens: Any,
    q_heads: Any,
    fp8_weights: Any,
    extra_elements: Any,
    cold: Any,
    ceilings: Ceilings,
    parameters: Mapping[str, float],
) -> Any:
    """Time of the projections of `tokens` tokens and of what lies between them. `fp8_weights` is
    1.0 where weights are fp8, else 0.0; `extra_elements` are weight elements of projections that
    not every such layer has (an indexer's); `cold` is that of `ceilings.missed`."""
    plain, expansion = projection_elements(shape, q_heads)
    plain = plain + extra_elements
    bf16 = ceilings.flops_per_s("bf16") * parameters["projection"]
    fp8 = ceilings.flops_per_s("fp8") * parameters["projection_fp8"]
    rate = num.choose(fp8_weights > 0, fp8, bf16)
    compute = 2.0 * tokens * (plain / rate + expansion / bf16)
    weight_bytes = plain * (2.0 - fp8_weights) + expansion * 2.0
    bandwidth = ceilings.bandwidth_bytes_per_s
    read = weight_bytes * missed(weight_bytes, ceilings, cold)
    stream = read / (bandwidth * parameters["weights"])
    widths = 2.0 * shape.hidden + q_heads * (shape.nope_dim + shape.rope_dim + shape.v_dim)
    between = parameters["passes"] * 2.0 * tokens * widths / bandwidth
    fixed = parameters["launch_s"] + fp8_weights * parameters["quantise_s"]
    return fixed + num.larger(compute, stream) + between
