"""Time of attention over many query tokens: prompts, chunks of prompts, and encoders.

A kernel gives each CTA a tile of one head's queries, which walks over the keys they see. SMs take
tiles until none are left, so a call lasts as long as all tiles spread evenly, or as the longest
tile where there are few. Tensor cores and the exponentials of the softmax overlap in part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.pairs import capped_pairs, causal_pairs
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter

KEYS_PER_TILE = 128.0
SPLIT_BELOW = 0.8
SPLITS = 8
SPLIT_FILL = 0.85
"""FlashAttention 3 splits keys when tiles fill less than 0.8 of the SMs, into the fewest parts that
fill waves to 0.85 of the best, which with up to 128 parts is nearly full (`num_splits_heuristic`).
"""


class Kernel(Struct, frozen=True, kw_only=True):
    """What is known of a kernel's tiles: the head dimensions it is built for (others are padded
    up), its query rows for heads of less than 128, of 128 and of more (`rows` where `wide_rows` is
    0), and whether it splits the keys of encoders and of chunks after a prefix."""

    head_dims: tuple[float, ...]
    small_head_rows: float = 128.0
    rows: float = 128.0
    wide_rows: float = 0.0
    splits_keys: bool = False


KERNELS = {
    "fa2": Kernel(head_dims=(32.0, 64.0, 96.0, 128.0, 192.0, 256.0)),
    "fa3": Kernel(
        head_dims=(64.0, 96.0, 128.0, 192.0, 256.0), small_head_rows=192.0, splits_keys=True
    ),
    "fa3_absorbed": Kernel(head_dims=(512.0, 576.0), rows=64.0),
    "flashinfer": Kernel(head_dims=(64.0, 128.0, 256.0), splits_keys=True),
    "fmha": Kernel(head_dims=(64.0, 128.0, 192.0, 256.0)),
    "fmha_ampere": Kernel(head_dims=(64.0, 128.0, 192.0, 256.0), small_head_rows=64.0, rows=64.0),
    "cudnn": Kernel(head_dims=(64.0, 128.0, 192.0, 256.0)),
    "triton": Kernel(
        head_dims=(64.0, 96.0, 128.0, 192.0, 256.0),
        small_head_rows=64.0,
        rows=64.0,
        wide_rows=128.0,
    ),
    "triton_ampere": Kernel(head_dims=(64.0, 96.0, 128.0, 192.0, 256.0)),
}
"""FlashAttention 2 and 3 (their tile size tables), the latter on absorbed latent attention,
FlashInfer, TensorRT-LLM's fused attention on Hopper and Ampere, cuDNN's (which does not publish its
tiles), and lcprof's on Hopper and Ampere. Of lcprof's two dimensions are rounded: on Hopper heads
of 96 have 128 rows, on Ampere heads of 256 have 64."""
EXPONENTIALS_PER_CLOCK = 16.0
"""Of one SM's special function units (NVIDIA CUDA programming guide, instruction throughput)."""
LARGE_FLOPS = 2e10

PARAMETERS = {
    "launch_s": Parameter(meaning="fixed time of a call", start=1e-5, low=1e-6, high=1e-4),
    "compute": Parameter(
        meaning="achieved part of peak FLOP/s in the products", start=0.8, low=0.1, high=1.5
    ),
    "softmax": Parameter(
        meaning="part of the exponentials' time that does not hide behind the products",
        start=0.3,
        low=0.01,
        high=3.0,
    ),
    "tile_start_s": Parameter(
        meaning="filling and draining the pipeline of one tile", start=1e-6, low=1e-8, high=2e-5
    ),
    "diagonal": Parameter(
        meaning="masked work done in tiles that only part of the keys are seen in, times a tile",
        start=0.5,
        low=0.02,
        high=10.0,
    ),
    "tail": Parameter(
        meaning="part of the last, incomplete wave that is paid for",
        start=0.5,
        low=0.01,
        high=1.0,
    ),
    "imbalance": Parameter(
        meaning="part of the shorter of an even share and the longest tile that adds to the longer",
        start=0.2,
        low=0.005,
        high=1.0,
    ),
    "solo": Parameter(
        meaning="how much faster a tile runs while most SMs are idle", start=1.2, low=1.0, high=4.0
    ),
    "split_s": Parameter(
        meaning="writing and combining the partial results of one tile and split",
        start=2e-7,
        low=1e-9,
        high=1e-5,
    ),
    "stream": Parameter(
        meaning="achieved part of memory bandwidth in moving queries, keys, values and results",
        start=0.7,
        low=0.05,
        high=2.0,
    ),
}


class PrefillAttentionCall(Struct, frozen=True, kw_only=True):
    """Attention of `query_tokens` new tokens after `prefix_tokens` cached ones in each of `batch`
    sequences. Heads are one GPU's. `window_tokens` is 0 where every earlier token is seen,
    `causal` is 1.0 or 0.0, `compute` the dtype of the products, `kernel` a key of `KERNELS`.
    """

    batch: Any
    q_heads: Any
    kv_heads: Any
    qk_dim: Any
    v_dim: Any
    query_tokens: Any
    prefix_tokens: Any
    window_tokens: Any
    causal: Any
    compute: str
    kernel: str
    kv_bytes_per_element: Any


def pairs(call: PrefillAttentionCall) -> Any:
    """Pairs of a query and a key it sees, in one head of one sequence."""
    queries, keys = call.query_tokens, call.query_tokens + call.prefix_tokens
    lower = causal_pairs(call.prefix_tokens, queries)
    seen = call.causal * lower + (1.0 - call.causal) * queries * keys
    windowed = capped_pairs(call.prefix_tokens, queries, call.window_tokens)
    return num.choose(call.window_tokens > 0, windowed, seen)


def kept_tokens(call: PrefillAttentionCall) -> Any:
    """Keys that any query of the call sees: its own, and of the prefix what a window reaches."""
    reach = num.smaller(call.prefix_tokens + 0.0, call.window_tokens)
    kept = num.choose(call.window_tokens > 0, reach, call.prefix_tokens + 0.0)
    return call.query_tokens + kept


def flops(call: PrefillAttentionCall) -> Any:
    """Multiply-adds of both products, counted as two."""
    per_pair = 2.0 * (call.qk_dim + call.v_dim)
    return call.batch * call.q_heads * pairs(call) * per_pair


def padded(dim: Any, sizes: tuple[float, ...]) -> Any:
    """A head dimension as the kernel computes it."""
    found = dim + 0.0
    for size in reversed(sizes):
        found = num.choose(dim <= size, size, found)
    return found


def key_splits(ctas: Any, sm_count: float) -> Any:
    """In how many parts FlashAttention 3 walks over the keys of each tile."""
    chosen = SPLITS + 0.0 * ctas
    for splits in range(SPLITS, 0, -1):
        waves = ctas * splits / sm_count
        good = waves / num.ceil(waves) >= SPLIT_FILL
        chosen = num.choose(good, float(splits), chosen)
    return num.choose(ctas < SPLIT_BELOW * sm_count, chosen, 1.0 + 0.0 * ctas)


def seconds(call: PrefillAttentionCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Time of the call."""
    keys = call.query_tokens + call.prefix_tokens
    kernel = KERNELS[call.kernel]
    qk_dim, v_dim = padded(call.qk_dim, kernel.head_dims), padded(call.v_dim, kernel.head_dims)
    rows = num.choose(qk_dim < 128.0, kernel.small_head_rows, kernel.rows)
    rows = num.choose(qk_dim > 128.0, kernel.wide_rows or kernel.rows, rows)
    tiles = num.ceil(call.query_tokens / rows)
    windowed = call.window_tokens > 0
    edges = num.choose(windowed, 2.0, call.causal + 0.0)
    masked = parameters["diagonal"] * edges * tiles * rows * KEYS_PER_TILE / 2.0
    filled = tiles * rows / call.query_tokens
    work = (pairs(call) * filled + masked) / tiles
    seen = num.choose(windowed, num.smaller(call.window_tokens + rows, keys), keys)
    exponentials_per_s = EXPONENTIALS_PER_CLOCK * ceilings.clock_hz
    product_s = 2.0 * (qk_dim + v_dim) * ceilings.sm_count
    pair_s = (
        product_s / (ceilings.flops_per_s(call.compute) * parameters["compute"])
        + parameters["softmax"] / exponentials_per_s
    )
    ctas = call.batch * call.q_heads * tiles
    splits: Any = 1.0
    if kernel.splits_keys:
        bare = (call.causal > 0) & (call.prefix_tokens <= 0)
        splits = num.choose(bare, 1.0, key_splits(ctas, ceilings.sm_count))
    start_s = parameters["tile_start_s"]
    mean_tile = start_s + work * pair_s / splits
    longest = start_s + rows * seen * pair_s / splits / parameters["solo"]
    waves = ctas * splits / ceilings.sm_count
    waves = waves + parameters["tail"] * (num.ceil(waves) - waves)
    even = mean_tile * waves
    busy = num.larger(even, longest) + parameters["imbalance"] * num.smaller(even, longest)
    combine = num.choose(splits > 1.0, parameters["split_s"] * splits * ctas, 0.0)
    tokens = call.batch * call.query_tokens
    q_bytes = 2.0 * tokens * call.q_heads * (call.qk_dim + call.v_dim)
    kv = (
        call.batch
        * kept_tokens(call)
        * call.kv_heads
        * (call.qk_dim + call.v_dim)
        * call.kv_bytes_per_element
    )
    moved = (q_bytes + kv) / (ceilings.bandwidth_bytes_per_s * parameters["stream"])
    return parameters["launch_s"] + busy + combine + moved


def features(call: PrefillAttentionCall) -> Mapping[str, Any]:
    """What the box of a fit is made of."""
    return {
        "query_tokens": call.query_tokens,
        "context_tokens": kept_tokens(call),
        "sequence_heads": call.batch * call.q_heads,
        "head_dim": call.qk_dim,
    }


def large(call: PrefillAttentionCall) -> Any:
    """Whether the products take most of the time."""
    return flops(call) > LARGE_FLOPS


PREFILL_ATTENTION = Family(
    name="prefill_attention",
    parameters=PARAMETERS,
    seconds=seconds,
    features=features,
    large=large,
)
