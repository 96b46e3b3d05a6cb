"""Time of a DeepSeek sparse attention module: projections, indexer, selection, sparse attention.

An indexer scores every earlier token for each query with a few small heads in fp8; the 2,048 best
are attended to in the latent form. DeepSeek-V3.2-Exp report, section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.pairs import capped_pairs, causal_pairs
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.cost.timing.latent import PROJECTION_PARAMETERS, LatentShape, projection_seconds
from lcprof.domain.calibration import Parameter

SELECTED_TOKENS = 2048.0
INDEX_DIM = 128.0
INDEX_BYTES = 132.0
"""Of one token's index key: 128 fp8 elements and a float32 scale."""
HEADS_PER_TILE = 64.0
LARGE_PREFILL_TOKENS = 4096.0
LARGE_INDEX_BYTES = 50e6

PARAMETERS = {
    **PROJECTION_PARAMETERS,
    "host_s": Parameter(
        meaning="least time of a call whose kernels are launched one by one",
        start=2e-4,
        low=1e-6,
        high=4e-3,
    ),
    "host_quantise_s": Parameter(
        meaning="what fp8 projections add to that least time", start=1e-5, low=1e-8, high=2e-3
    ),
    "host_index_s": Parameter(
        meaning="what the indexer adds to that least time", start=1e-5, low=1e-8, high=2e-3
    ),
    "index": Parameter(
        meaning="achieved part of peak fp8 FLOP/s in scoring", start=0.5, low=0.02, high=1.2
    ),
    "select_bytes": Parameter(
        meaning="bytes moved per scored pair in writing scores and selecting the best",
        start=20.0,
        low=0.5,
        high=300.0,
    ),
    "row_s": Parameter(
        meaning="time per token of selecting in one query's row of scores",
        start=1e-10,
        low=1e-12,
        high=1e-8,
    ),
    "index_s": Parameter(
        meaning="fixed time of scoring and selecting", start=1e-5, low=1e-7, high=1e-3
    ),
    "sparse": Parameter(
        meaning="achieved part of peak FLOP/s on the selected tokens, in tiles of 64 heads",
        start=0.5,
        low=0.02,
        high=1.5,
    ),
    "gather": Parameter(
        meaning="achieved part of memory bandwidth in gathering the selected tokens",
        start=1.5,
        low=0.05,
        high=20.0,
    ),
    "prefix_s": Parameter(
        meaning="time per query of using a prefix's cache rather than what is at hand",
        start=1e-8,
        low=1e-10,
        high=1e-6,
    ),
}


class DsaModuleCall(Struct, frozen=True, kw_only=True):
    """`query_tokens` new tokens after `prefix_tokens` cached ones in each of `batch` sequences.
    `fp8_weights` and `indexed` (whether this layer scores, or reuses another's selection) are 1.0
    or 0.0; `cold` is that of `ceilings.missed`."""

    shape: LatentShape
    index_heads: Any
    batch: Any
    q_heads: Any
    query_tokens: Any
    prefix_tokens: Any
    kv_bytes_per_element: Any
    fp8_weights: Any
    indexed: Any
    cold: Any = 0.0


def scored_pairs(call: DsaModuleCall) -> Any:
    """Pairs of a query and an earlier token, over all sequences."""
    return call.batch * causal_pairs(call.prefix_tokens, call.query_tokens)


def selected_pairs(call: DsaModuleCall) -> Any:
    """Pairs of a query and a token it attends to."""
    return call.batch * capped_pairs(call.prefix_tokens, call.query_tokens, SELECTED_TOKENS)


def seconds(call: DsaModuleCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Time of the call."""
    tokens = call.batch * call.query_tokens
    bandwidth = ceilings.bandwidth_bytes_per_s
    index_elements = call.index_heads * INDEX_DIM * call.shape.q_rank
    index_elements = index_elements + call.shape.hidden * (INDEX_DIM + call.index_heads)
    projections = projection_seconds(
        call.shape,
        tokens=tokens,
        q_heads=call.q_heads,
        fp8_weights=call.fp8_weights,
        extra_elements=call.indexed * index_elements,
        cold=call.cold,
        ceilings=ceilings,
        parameters=parameters,
    )
    pairs = scored_pairs(call)
    scoring = 2.0 * call.index_heads * INDEX_DIM * pairs
    scoring = scoring / (ceilings.flops_per_s("fp8") * parameters["index"])
    keys = call.query_tokens + call.prefix_tokens
    reading = call.batch * keys * INDEX_BYTES / bandwidth
    selecting = pairs * parameters["select_bytes"] / bandwidth
    selecting = num.larger(selecting, keys * parameters["row_s"])
    index = num.larger(scoring, reading) + selecting + parameters["index_s"]
    heads = num.ceil(call.q_heads / HEADS_PER_TILE) * HEADS_PER_TILE
    chosen = selected_pairs(call)
    latent = call.shape.kv_rank + call.shape.rope_dim
    products = 2.0 * (latent + call.shape.kv_rank) * heads * chosen
    products = products / (ceilings.flops_per_s("bf16") * parameters["sparse"])
    gather = chosen * latent * call.kv_bytes_per_element / (bandwidth * parameters["gather"])
    prefix = num.choose(call.prefix_tokens > 0, parameters["prefix_s"] * tokens, 0.0)
    total = projections + call.indexed * index + products + gather + prefix
    host = parameters["host_s"] + call.fp8_weights * parameters["host_quantise_s"]
    host = host + call.indexed * parameters["host_index_s"]
    # The host's part shows fully where it is the longer and fades where it hides behind the work.
    return total + host * host / (host + total)


def features(call: DsaModuleCall) -> Mapping[str, Any]:
    """What the box of a fit is made of."""
    return {
        "tokens": call.batch * call.query_tokens,
        "context_tokens": call.query_tokens + call.prefix_tokens,
        "q_heads": call.q_heads,
    }


def large(call: DsaModuleCall) -> Any:
    """Whether the work, and not launching, takes most of the time."""
    keys = call.batch * (call.query_tokens + call.prefix_tokens)
    prompt = call.batch * call.query_tokens >= LARGE_PREFILL_TOKENS
    return prompt | (call.indexed * keys * INDEX_BYTES > LARGE_INDEX_BYTES)


DSA_MODULE = Family(
    name="dsa_module",
    parameters=PARAMETERS,
    seconds=seconds,
    features=features,
    large=large,
)
