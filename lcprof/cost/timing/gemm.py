"""Time of one matrix product y[m, n] = x[m, k] w[k, n].

The machine runs tiles of the output in waves over its SMs while operands stream from memory. Time
is the launch, the longer of streaming and computing, and the part of the shorter one that does not
hide behind it. The tile is the fastest of a short list (what a library's heuristic aims for) or
follows from m alone (what fixed dispatch tables do), and deep products of few tiles may split k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter

PARAMETERS = {
    "launch_s": Parameter(meaning="fixed time of a call", start=3e-6, low=5e-7, high=4e-5),
    "stream": Parameter(meaning="achieved part of memory bandwidth", start=0.87, low=0.3, high=1.0),
    "compute": Parameter(
        meaning="achieved part of peak FLOP/s in a full wave of large tiles",
        start=0.85,
        low=0.2,
        high=1.3,
    ),
    "tail": Parameter(
        meaning="part of the last, incomplete wave that is paid for", start=0.4, low=0.02, high=1.0
    ),
    "edge": Parameter(
        meaning="operand traffic of a tile: its time grows by edge x (1/rows + 1/columns)",
        start=5.0,
        low=0.05,
        high=100.0,
    ),
    "wave_s": Parameter(meaning="start and end of a wave", start=1e-6, low=1e-8, high=1e-5),
    "serial": Parameter(
        meaning="part of the shorter of streaming and computing that stays exposed",
        start=0.2,
        low=0.005,
        high=1.0,
    ),
    "reread": Parameter(
        meaning="part of operand re-reads past L2 that reach memory", start=0.2, low=0.005, high=2.0
    ),
    "epilogue": Parameter(
        meaning="output traffic that computing waits for, times m n", start=0.2, low=0.01, high=2.0
    ),
    "split_s": Parameter(meaning="fixed time of splitting k", start=1e-6, low=1e-8, high=2e-5),
    "reduce": Parameter(
        meaning="bytes of partial sums moved per output and split", start=3.0, low=0.1, high=20.0
    ),
    "quantise": Parameter(
        meaning="traffic of quantising activations, times 3 m k bytes (read bf16, write 8-bit)",
        start=1.0,
        low=0.1,
        high=5.0,
    ),
    "floor_s": Parameter(
        meaning="least time of a call that is launched without CUDA graphs",
        start=6e-5,
        low=1e-5,
        high=2e-4,
    ),
    "hot": Parameter(
        meaning="slowdown that sustained work reaches as the clock gives way to the power limit",
        start=0.1,
        low=0.001,
        high=0.6,
    ),
}

BEST_TILES = (
    (16.0, 128.0),
    (32.0, 128.0),
    (64.0, 64.0),
    (64.0, 128.0),
    (128.0, 64.0),
    (64.0, 256.0),
    (128.0, 128.0),
    (128.0, 192.0),
    (128.0, 256.0),
    (256.0, 128.0),
    (192.0, 192.0),
)
SPLIT_TILES = BEST_TILES[2:7]
SPLITS = (2.0, 4.0, 8.0)
HOT_S = 1e-3
"""Busy time after which half of the slowdown of sustained work has set in."""


class GemmCall(Struct, frozen=True, kw_only=True):
    """A product's shape and storage. `rows` m, `columns` n and `depth` k are elements; bytes are
    per element; `compute` names the dtype of the matrix units; `dispatch` is "best" (the fastest
    tile of a list, k may split) or "rows" (64x64 to m = 64, 64x128 to 128, 128x128 beyond, as
    vLLM's CUTLASS fp8 product does); `quantised` says that the call turns bf16 activations into
    8-bit ones first, `eager` that it is launched without CUDA graphs."""

    rows: Any
    columns: Any
    depth: Any
    weight_bytes: float
    activation_bytes: float
    output_bytes: float = 2.0
    compute: str = "bf16"
    dispatch: str = "best"
    quantised: bool = False
    eager: bool = False


def streamed_bytes(call: GemmCall, ceilings: Ceilings, reread: float) -> Any:
    """Bytes from memory: each operand once, and the operand of the shorter output side again for
    every wave that walks the longer side, as far as it exceeds L2 (tiles are walked along the
    shorter side first, as CUTLASS does by default)."""
    weights = call.columns * call.depth * call.weight_bytes
    inputs = call.rows * call.depth * call.activation_bytes
    wide = call.columns >= call.rows
    inner = num.choose(wide, inputs, weights)
    short = num.choose(wide, call.rows, call.columns)
    long = num.choose(wide, call.columns, call.rows)
    passes = long / num.larger(ceilings.sm_count * 128.0 * 128.0 / short, 128.0)
    missed = num.larger(1.0 - ceilings.l2_bytes / num.larger(inner, 1.0), 0.0)
    again = reread * missed * inner * num.larger(passes - 1.0, 0.0)
    return weights + inputs + again + call.rows * call.columns * call.output_bytes


def waves(tiles: Any, sms: float, tail: float) -> Any:
    """Waves paid for by `tiles` over `sms`: whole ones, and `tail` of what the last one wastes."""
    fill = tiles / sms
    return tail * num.ceil(fill) + (1.0 - tail) * num.larger(fill, 1.0)


def computed_s(call: GemmCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Seconds of the tiles, by the dispatch of the call."""
    p = parameters
    m, n, k = call.rows, call.columns, call.depth
    rate = ceilings.flops_per_s(call.compute) * p["compute"] / ceilings.sm_count
    edge, tail, wave_s = p["edge"], p["tail"], p["wave_s"]

    def tiled(bm: float, bn: float, split: float) -> Any:
        count = num.ceil(m / bm) * num.ceil(n / bn) * split
        one = 2.0 * bm * bn * (k / split) / rate * (1.0 + edge * (1.0 / bm + 1.0 / bn))
        return waves(count, ceilings.sm_count, tail) * (one + wave_s)

    if call.dispatch == "rows":
        small = num.choose(m <= 64, tiled(64.0, 64.0, 1.0), tiled(64.0, 128.0, 1.0))
        return num.choose(m <= 128, small, tiled(128.0, 128.0, 1.0))
    best = tiled(*BEST_TILES[0], 1.0)
    for bm, bn in BEST_TILES[1:]:
        best = num.smaller(best, tiled(bm, bn, 1.0))
    for split in SPLITS:
        partial = split * m * n * p["reduce"] / ceilings.bandwidth_bytes_per_s + p["split_s"]
        for bm, bn in SPLIT_TILES:
            best = num.smaller(best, tiled(bm, bn, split) + partial)
    return best


def seconds(call: GemmCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Expected seconds of one call."""
    p = parameters
    bandwidth = ceilings.bandwidth_bytes_per_s
    stream = streamed_bytes(call, ceilings, p["reread"]) / (p["stream"] * bandwidth)
    compute = computed_s(call, ceilings, p)
    compute = compute + p["epilogue"] * call.rows * call.columns * call.output_bytes / bandwidth
    compute = compute * (1.0 + p["hot"] * compute / (compute + HOT_S))
    busy = num.larger(stream, compute) + p["serial"] * num.smaller(stream, compute)
    if call.quantised:
        busy = busy + p["quantise"] * call.rows * call.depth * 3.0 / bandwidth
    time = p["launch_s"] + busy
    return num.larger(time, p["floor_s"]) if call.eager else time


def features(call: GemmCall) -> Mapping[str, Any]:
    """What the box of a fit is drawn around."""
    return {"rows": call.rows, "columns": call.columns, "depth": call.depth}


def large(call: GemmCall) -> Any:
    """Many rows, or weights that take long to read."""
    return (call.rows >= 4096) | (call.columns * call.depth * call.weight_bytes > 50e6)


GEMM = Family(name="gemm", parameters=PARAMETERS, seconds=seconds, features=features, large=large)
