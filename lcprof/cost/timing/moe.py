"""Time of one layer's routed experts on one GPU: two grouped products, activation and combine.

Each expert that got a token streams its weights once and computes whole tiles of rows, so the time
follows from how the tokens fall over the experts: how many are touched, and how many tiles their
shares fill. `balanced` gives that for an even spread; a caller with another spread fills in
`Routing` itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.cost.timing.gemm import waves
from lcprof.domain.calibration import Parameter

TILE_COLUMNS = {"best": 128.0, "wide": 64.0}


class Routing(Struct, frozen=True, kw_only=True):
    """How tokens fall over the experts of one GPU. `assignments` are (token, expert) pairs,
    `touched` the experts that have any, `tiles_16`, `tiles_64` and `tiles_128` the tiles of so
    many rows that their shares fill or begin, `filled_128` the tiles of 128 rows that are at least
    half full."""

    assignments: Any
    touched: Any
    tiles_16: Any
    tiles_64: Any
    tiles_128: Any
    filled_128: Any


def balanced(tokens: Any, top_k: Any, experts: Any, local_experts: Any) -> Routing:
    """An even spread of `tokens` over `experts`, of which `local_experts` are on this GPU."""
    assignments = num.larger(tokens * top_k * local_experts / experts, 1.0)
    touched = num.smaller(local_experts + 0.0, num.ceil(assignments))
    share = assignments / touched
    return Routing(
        assignments=assignments,
        touched=touched,
        tiles_16=touched * num.ceil(share / 16.0),
        tiles_64=touched * num.ceil(share / 64.0),
        tiles_128=touched * num.ceil(share / 128.0),
        filled_128=touched * num.floor(share / 128.0 + 0.5),
    )


def random_routing(assignments: Any, touched: Any) -> Routing:
    """The expected routing when `assignments` pairs fall on `touched` experts at random: shares
    differ, so a last tile is half full on average, whatever the mean share."""
    share = assignments / num.larger(touched, 1e-9)

    def tiles(rows: float) -> Any:
        return touched * num.larger(share / rows + (rows - 1.0) / (2.0 * rows), 1.0)

    return Routing(
        assignments=assignments,
        touched=touched,
        tiles_16=tiles(16.0),
        tiles_64=tiles(64.0),
        tiles_128=tiles(128.0),
        filled_128=touched * num.larger(share / 128.0 - 0.25, 0.0),
    )


class MoeCall(Routing, frozen=True, kw_only=True):
    """The routed experts of one layer on one GPU. `tokens` are those before routing, `hidden` the
    model's width, `inter` this GPU's part of an expert's width.
    `expert_parallel` is 1 where other GPUs hold some of the experts, else 0. `kernel` is "best"
    (tiles of the rows that suit) or "wide" (tiles of 128 rows only)."""

    tokens: Any
    top_k: Any
    hidden: Any
    inter: Any
    weight_bytes: float
    expert_parallel: Any = 0.0
    compute: str = "bf16"
    kernel: str = "best"


PARAMETERS = {
    "launch_s": Parameter(
        meaning="fixed time of the kernels of one call", start=2.5e-5, low=2e-6, high=1e-4
    ),
    "stream": Parameter(meaning="achieved part of memory bandwidth", start=0.8, low=0.1, high=1.0),
    "compute": Parameter(
        meaning="achieved part of peak FLOP/s in a full wave of tiles",
        start=0.6,
        low=0.05,
        high=1.3,
    ),
    "tail": Parameter(
        meaning="part of the last, incomplete wave that is paid for", start=0.3, low=0.02, high=1.0
    ),
    "edge": Parameter(
        meaning="operand traffic of a tile: its time grows by edge x (1/rows + 1/columns)",
        start=10.0,
        low=0.05,
        high=200.0,
    ),
    "wave_s": Parameter(meaning="start and end of a wave", start=1e-6, low=1e-8, high=2e-5),
    "serial": Parameter(
        meaning="part of the shorter of streaming and computing that stays exposed",
        start=0.2,
        low=0.005,
        high=1.0,
    ),
    "partial": Parameter(
        meaning="time of a tile of 128 rows that is less than half full, in full ones",
        start=1.0,
        low=0.1,
        high=4.0,
    ),
    "rows": Parameter(
        meaning="traffic of activation, quantising and combining, in passes over the routed rows",
        start=1.0,
        low=0.02,
        high=10.0,
    ),
    "local_rows": Parameter(
        meaning="the same traffic that only rows of this GPU's experts need, in passes over them",
        start=0.5,
        low=0.01,
        high=10.0,
    ),
    "map_s": Parameter(
        meaning="time more of picking out this GPU's tokens under expert parallelism",
        start=3e-6,
        low=1e-8,
        high=6e-5,
    ),
    "hot": Parameter(
        meaning="slowdown that sustained work reaches as the clock gives way to the power limit",
        start=0.05,
        low=0.001,
        high=0.6,
    ),
}
HOT_S = 2e-3
"""Busy time after which half of the slowdown of sustained work has set in."""


def computed_s(call: MoeCall, ceilings: Ceilings, p: Mapping[str, float]) -> Any:
    """Seconds of both products' tiles."""
    rate = ceilings.flops_per_s(call.compute) * p["compute"] / ceilings.sm_count
    width = TILE_COLUMNS[call.kernel]

    def product(tiles: Any, rows: float, columns: Any, depth: Any) -> Any:
        count = tiles * num.ceil(columns / width)
        grown = 1.0 + p["edge"] * (1.0 / rows + 1.0 / width)
        one = 2.0 * rows * width * depth / rate * grown
        return waves(count, ceilings.sm_count, p["tail"]) * (one + p["wave_s"])

    def both(tiles: Any, rows: float) -> Any:
        up = product(tiles, rows, 2.0 * call.inter, call.hidden)
        return up + product(tiles, rows, call.hidden, call.inter)

    wide = both(call.filled_128 + p["partial"] * (call.tiles_128 - call.filled_128), 128.0)
    if call.kernel == "wide":
        return wide
    return num.smaller(num.smaller(both(call.tiles_16, 16.0), both(call.tiles_64, 64.0)), wide)


def seconds(call: MoeCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Expected seconds of one call."""
    p = parameters
    bandwidth = ceilings.bandwidth_bytes_per_s
    stream = touched_bytes(call) / (p["stream"] * bandwidth)
    compute = computed_s(call, ceilings, p)
    compute = compute * (1.0 + p["hot"] * compute / (compute + HOT_S))
    busy = num.larger(stream, compute) + p["serial"] * num.smaller(stream, compute)
    row_bytes = (3.0 * call.inter + 2.0 * call.hidden) * 2.0
    passes = p["rows"] * call.tokens * call.top_k + p["local_rows"] * call.assignments
    fixed = p["launch_s"] + p["map_s"] * call.expert_parallel
    return fixed + busy + passes * row_bytes / bandwidth


def touched_bytes(call: MoeCall) -> Any:
    """Weights of the experts that have a token, gate and up and down."""
    return call.touched * 3.0 * call.hidden * call.inter * call.weight_bytes


def features(call: MoeCall) -> Mapping[str, Any]:
    """What the box of a fit is drawn around."""
    return {
        "tokens": call.tokens,
        "hidden": call.hidden,
        "inter": call.inter,
        "touched": call.touched,
        "assignments": call.assignments,
    }


def large(call: MoeCall) -> Any:
    """Many tokens, or experts that take long to read."""
    return (call.tokens >= 1024) | (touched_bytes(call) > 50e6)


MOE = Family(name="moe", parameters=PARAMETERS, seconds=seconds, features=features, large=large)
