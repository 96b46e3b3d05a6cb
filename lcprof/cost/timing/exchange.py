"""Time of handing tokens to the experts of other GPUs and back (DeepEP's dispatch and combine).

A fixed set of SMs copies rows: each costs handling and its bytes at an SM's pace, and all cross the
GPU's link. The slower of the two bounds the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.family import Family
from lcprof.domain.calibration import Parameter


class ExchangeCall(Struct, frozen=True, kw_only=True):
    """One dispatch or combine. `tokens` are those of each GPU, `copies` how many rows of `hidden`
    elements each becomes: the GPUs that `reached_ranks` expects, or every chosen expert in
    low-latency mode. `sms` copy them; `expert_sms` gives low-latency mode's. `polled` are the
    experts whose arrivals a low-latency kernel waits for one by one. `far_copies` of each token go
    to other nodes, at `network_bytes_per_s`."""

    tokens: Any
    hidden: Any
    copies: Any
    sms: Any
    element_bytes: float
    polled: Any = 0.0
    far_copies: Any = 0.0
    network_bytes_per_s: float = 1.0


def expert_sms(experts: int, sm_count: int) -> float:
    """SMs of a low-latency kernel: as many experts to each as it takes to seat them all."""
    each = -(-experts // sm_count)
    return float(-(-experts // each))


PARAMETERS = {
    "launch_s": Parameter(meaning="fixed time of a call", start=1e-5, low=2e-6, high=1e-4),
    "link": Parameter(
        meaning="achieved part of the link's bandwidth", start=0.7, low=0.1, high=1.5
    ),
    "token_s": Parameter(
        meaning="time of an SM for each token it takes up", start=3e-7, low=1e-8, high=5e-6
    ),
    "row_s": Parameter(
        meaning="time of an SM for each copy of a row", start=3e-8, low=1e-9, high=1e-6
    ),
    "sm_bytes_per_s": Parameter(
        meaning="rate at which an SM copies rows", start=4e10, low=2.5e10, high=1e11
    ),
    "own": Parameter(
        meaning="what an SM moves for a token besides its copies, in rows",
        start=2.0, low=0.1, high=20.0,
    ),
    "first": Parameter(
        meaning="latency of the first row, in rows at an SM's pace", start=5.0, low=0.01, high=100.0
    ),
    "expert_s": Parameter(
        meaning="time of an SM for each expert, in low-latency mode",
        start=1e-8, low=1e-10, high=1e-7,
    ),
    "serial": Parameter(
        meaning="part of the shorter of copying and sending that stays exposed",
        start=0.2, low=0.005, high=1.0,
    ),
}  # fmt: skip


def seconds(call: ExchangeCall, ceilings: Ceilings, parameters: Mapping[str, float]) -> Any:
    """Expected seconds of one call."""
    p = parameters
    row_bytes = call.hidden * call.element_bytes
    sent = call.tokens * call.copies * row_bytes / (p["link"] * ceilings.link_bytes_per_s)
    far = call.tokens * call.far_copies * row_bytes / call.network_bytes_per_s
    sent = num.larger(sent, far)
    row_s = row_bytes / p["sm_bytes_per_s"]
    token_s = p["token_s"] + call.copies * p["row_s"] + (call.copies + p["own"]) * row_s
    copied = call.tokens * token_s / call.sms
    busy = num.larger(sent, copied) + p["serial"] * num.smaller(sent, copied)
    return p["launch_s"] + p["first"] * row_s + call.polled * p["expert_s"] + busy


def features(call: ExchangeCall) -> Mapping[str, Any]:
    """What the box of a fit is drawn around."""
    return {"tokens": call.tokens, "hidden": call.hidden, "copies": call.copies, "sms": call.sms}


def large(call: ExchangeCall) -> Any:
    """More than 1 MB of tokens."""
    return call.tokens * call.hidden * call.element_bytes > 1e6


EXCHANGE = Family(
    name="exchange", parameters=PARAMETERS, seconds=seconds, features=features, large=large
)
