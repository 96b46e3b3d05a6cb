"""Time of collectives between GPUs.

A ring moves (n - 1)/n of the buffer over each rank's link once (all-gather, reduce-scatter,
all-to-all) or twice (all-reduce), hop by hop, and touches the rank's own 1/n locally. Switches
that reduce (NVLink SHARP) take an all-reduce's buffer once. Engines send small all-reduces through
kernels of their own, which read the peers' buffers directly, either whole (one shot) or by parts
(two shots), and leave large ones to NCCL.

Between nodes each node is one member of the ring, whatever GPUs it holds: the network is what
binds. NCCL sends small buffers by its low-latency protocol (LL), in which every 8 bytes carry 4 of
data and a flag of 4 (its documentation of NCCL_PROTO), so at half the network's rate, and turns to
another above a size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter


class CollectiveCall(Struct, frozen=True, kw_only=True):
    """One collective over `ranks` GPUs. `buffer_bytes` is the whole buffer, as nccl-tests counts
    it. `passes` is how often (n - 1)/n of it crosses each link: 2 for all-reduce, 1 for
    all-gather, reduce-scatter and all-to-all; for send and receive give 2 ranks, 2 passes. The
    ranks lie on `nodes` machines, evenly; between them buffers of up to `narrow_bytes` go by the
    low-latency protocol.
    `on_bus` is 1 where they meet on the host's bus rather than by NVLink, `in_switch` where
    switches reduce, else 0. `own_limit_bytes` is the largest buffer that the engine's own kernel
    takes (0: none has one) and `one_shot_bytes` the largest that it takes in one shot. `eager`
    calls are launched without CUDA graphs and copy the buffer in and out."""

    buffer_bytes: Any
    ranks: Any
    passes: Any
    nodes: Any = 1.0
    narrow_bytes: Any = 0.0
    on_bus: Any = 0.0
    in_switch: Any = 0.0
    own_limit_bytes: Any = 0.0
    one_shot_bytes: Any = 0.0
    eager: bool = False


MIB = 2.0**20
OWN_LIMITS = {
    ("vllm", False): 8.0 * MIB - 1.0,
    ("vllm", True): 8.0 * MIB - 1.0,
    ("sglang", False): 8.0 * MIB,
    ("sglang", True): 16.0 * MIB,
    ("trtllm", False): MIB,
    ("trtllm", True): MIB,
}
"""Largest buffer of each engine's own all-reduce, before and since Hopper."""
PAIR_LIMIT_BYTES = 4.0 * MIB
"""TensorRT-LLM's limit between two GPUs, since Hopper."""
SWITCHED_RANKS = 8
"""NCCL reduces in NVSwitch (NVLink SHARP) on Hopper when all eight GPUs of a node take part."""

NARROW = 0.5
"""The part of a link that carries data in NCCL's low-latency protocol."""
NARROW_LIMIT_BYTES = (8.0 * MIB, MIB / 2)
"""Largest buffer that NCCL reduces by that protocol between nodes: with one GPU in each, and more
for every further one, whose hops the other protocol makes dearer. As measured on A100s: between
8.2 and 9.6 MB on two nodes of two, between 11 and 22 MB on two nodes of eight."""


class OwnKernel(Struct, frozen=True, kw_only=True):
    """The largest buffers that an engine's own all-reduce takes, and takes in one shot."""

    limit_bytes: Any
    one_shot_bytes: Any


def own_kernel(stack: str, ranks: Any, *, hopper: bool) -> OwnKernel:
    """An engine's own all-reduce between `ranks` GPUs."""
    limit = OWN_LIMITS.get((stack, hopper), 8.0 * MIB) + 0.0 * ranks
    if stack == "trtllm" and hopper:
        limit = num.choose(ranks <= 2, PAIR_LIMIT_BYTES, limit)
    few = num.choose(ranks <= 4, MIB / 2 - 1.0, MIB / 4 - 1.0)
    return OwnKernel(limit_bytes=limit, one_shot_bytes=num.choose(ranks <= 2, 1e15, few))


def narrow_limit(ranks: Any, nodes: Any) -> Any:
    """The largest buffer that NCCL reduces between nodes by its low-latency protocol."""
    first, further = NARROW_LIMIT_BYTES
    return first + further * (ranks / nodes - 1.0)


PARAMETERS = {
    "launch_s": Parameter(meaning="fixed time of a call", start=5e-6, low=1e-6, high=1e-4),
    "hop_s": Parameter(
        meaning="time of one more hop of the ring", start=7e-7, low=1e-7, high=2e-5
    ),
    "link": Parameter(
        meaning="achieved part of the link's bandwidth; between nodes the network's rate",
        start=0.8, low=0.001, high=1.1,
    ),
    "local": Parameter(
        meaning="rate at which a rank touches its own part, in link bandwidths",
        start=1.9, low=0.3, high=8.0,
    ),
    "ramp_s": Parameter(
        meaning="time lost until the link runs at full rate", start=5e-5, low=1e-6, high=1e-3
    ),
    "ramp_bytes": Parameter(
        meaning="bytes on the link after which half of that is lost", start=3e6, low=3e4, high=2e8
    ),
    "switch_launch_s": Parameter(
        meaning="fixed time more where switches reduce", start=3e-5, low=3e-6, high=6e-5
    ),
    "switch": Parameter(
        meaning="achieved part of the link's bandwidth where switches reduce",
        start=0.58, low=0.4, high=0.8,
    ),
    "own_launch_s": Parameter(
        meaning="fixed time of the engine's own kernel", start=3e-6, low=1e-6, high=2e-5
    ),
    "own_hop_s": Parameter(
        meaning="its time for one more rank", start=1.5e-7, low=3e-8, high=2e-6
    ),
    "own_link": Parameter(
        meaning="its part of the link's bandwidth", start=0.65, low=0.35, high=0.95
    ),
    "two_shot_s": Parameter(
        meaning="its fixed time for the second shot", start=3e-6, low=5e-7, high=2e-5
    ),
    "floor_s": Parameter(
        meaning="least time of an eager call", start=3e-5, low=5e-6, high=2e-4
    ),
    "copy": Parameter(
        meaning="copies of the buffer that an eager call makes (read and write)",
        start=0.7, low=0.1, high=2.0,
    ),
}  # fmt: skip


def ring_s(call: CollectiveCall, ceilings: Ceilings, p: Mapping[str, float]) -> Any:
    """Seconds of the library's collective."""
    link = link_of(call, ceilings)
    n = call.ranks
    part = call.buffer_bytes / n
    inside = call.passes * (n - 1.0) * part
    between = call.passes * (call.nodes - 1.0) / call.nodes * call.buffer_bytes
    narrow = num.choose(call.buffer_bytes <= call.narrow_bytes, NARROW, 1.0)
    across = call.nodes > 1.0
    wire = num.choose(across, between, inside)
    rate = num.choose(across, narrow, 1.0) * p["link"] * link
    ring = wire / rate + part / (p["local"] * link)
    ring = ring + p["hop_s"] * call.passes * (n - 1.0)
    switched = p["switch_launch_s"] + call.buffer_bytes / (p["switch"] * link)
    wire = num.choose(call.in_switch > 0.0, call.buffer_bytes, wire)
    ramp = p["ramp_s"] * wire / (wire + p["ramp_bytes"])
    return p["launch_s"] + ramp + num.choose(call.in_switch > 0.0, switched, ring)


def link_of(call: CollectiveCall, ceilings: Ceilings) -> Any:
    """Bytes/s of what joins the ranks, in one direction."""
    bus = ceilings.host_bytes_per_s
    return num.choose(call.on_bus > 0.0, bus, ceilings.link_bytes_per_s or bus)


def own_s(call: CollectiveCall, ceilings: Ceilings, p: Mapping[str, float]) -> Any:
    """Seconds of an engine's own all-reduce."""
    n = call.ranks
    rate = p["own_link"] * link_of(call, ceilings)
    once = call.buffer_bytes * (n - 1.0) / rate
    twice = p["two_shot_s"] + 2.0 * call.buffer_bytes * (n - 1.0) / n / rate
    moved = num.choose(call.buffer_bytes <= call.one_shot_bytes, once, twice)
    return p["own_launch_s"] + p["own_hop_s"] * (n - 1.0) + moved


def seconds(call: CollectiveCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Expected seconds of one call."""
    p = parameters
    own = call.buffer_bytes <= call.own_limit_bytes
    time = num.choose(own, own_s(call, ceilings, p), ring_s(call, ceilings, p))
    if not call.eager:
        return time
    copies = p["copy"] * 2.0 * call.buffer_bytes / ceilings.bandwidth_bytes_per_s
    return num.larger(time + copies, p["floor_s"])


def features(call: CollectiveCall) -> Mapping[str, Any]:
    """What the box of a fit is drawn around."""
    return {"buffer_bytes": call.buffer_bytes, "ranks": call.ranks}


def large(call: CollectiveCall) -> Any:
    """More than 1 MB."""
    return call.buffer_bytes > 1e6


COLLECTIVE = Family(
    name="collective", parameters=PARAMETERS, seconds=seconds, features=features, large=large
)
