"""Power of work on one GPU, and what a power limit does to its time.

At boost clock the board draws idle_w + busy_w + joules / seconds. Where that exceeds the limit, the
firmware lowers the SM clock (the memory's stays) until the average meets it. At a clock of r times
boost the SMs draw their share times r (v + (1 - v) r)^2: dynamic power is f V^2, V is linear in f
with a share v left at clock zero. The firmware averages over milliseconds, longer than one kernel:
a step or a prefill is given as a whole, not operation by operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

from msgspec import Struct

from lcprof.domain.power import PowerModel
from lcprof.num import Num, choose, larger, smaller

TINY_S = 1e-12
LEAST_CLOCK = 0.3
"""No clock is taken below this share of boost; where that still exceeds the limit, as where memory
alone does, work waits in turns."""
NEWTON_STEPS = 6


class Sustained(Struct, Generic[Num], frozen=True, kw_only=True):
    """What work becomes under the limit, for one GPU: seconds, average watts, joules, and the SM
    clock as a share of boost."""

    seconds: Num
    watts: Num
    joules: Num
    clock: Num


def burst_w(
    model: PowerModel, seconds: Num, flops_by_compute: Mapping[str, Num], hbm_bytes: Num
) -> Any:
    """Watts that work would draw at boost clock: `seconds` of it, FLOPs by compute dtype and bytes
    of GPU memory read and written, all of one GPU."""
    time = larger(seconds, TINY_S)
    memory_w = model.joules_per_hbm_byte * hbm_bytes / time
    return model.idle_w + memory_w + _sm_w(model, time, flops_by_compute)


def sustained(
    model: PowerModel,
    seconds: Num,
    compute_seconds: Num,
    flops_by_compute: Mapping[str, Num],
    hbm_bytes: Num,
) -> Sustained[Any]:
    """The same work held to the model's power limit.

    `seconds` is its time at boost clock, of which `compute_seconds` are bound by the SMs and
    stretch as their clock falls; the rest is bound by memory, links or launches and does not.
    Memory is taken to draw no less while the work stretches, which errs to the slow side (by a
    percent or two where all of it stretches by a fifth). The limit must be above `idle_w`.
    """
    time = larger(seconds, TINY_S)
    stretching = smaller(larger(compute_seconds, 0.0), time)
    memory_j = model.joules_per_hbm_byte * hbm_bytes
    fixed_w = model.idle_w + memory_j / time
    sm_w = _sm_w(model, time, flops_by_compute)
    share = smaller(larger((model.limit_w - fixed_w) / sm_w, 0.0), 1.0)
    clock = larger(clock_at(model, share), LEAST_CLOCK)
    slowed_w = sm_w * _relative_w(model, clock)
    running = time + stretching * (1.0 / clock - 1.0)
    fed = (memory_j + slowed_w * running) / (model.limit_w - model.idle_w)
    capped = fixed_w + sm_w > model.limit_w
    total = choose(capped, larger(running, fed), time)
    watts = choose(capped, model.limit_w, fixed_w + sm_w)
    return Sustained(seconds=total, watts=watts, joules=watts * total, clock=clock)


def clock_at(model: PowerModel, share: Num) -> Any:
    """The SM clock r, as a share of boost, at which the SMs draw `share` (0 to 1) of what they draw
    at boost: r u^2 = share with the voltage u = v + (1 - v) r, so u^3 - v u^2 = (1 - v) share.

    Newton's method from u = 1: the cubic is convex above its root, so it comes down to it and never
    passes it, and a fixed number of plain steps gives scalars and arrays the same bits. Six reach
    1e-6 for shares above 0.1.
    """
    v = model.voltage_floor
    aim = (1.0 - v) * share
    volts = share * 0.0 + 1.0
    for _ in range(NEWTON_STEPS):
        volts = (volts * volts * (2.0 * volts - v) + aim) / (volts * (3.0 * volts - 2.0 * v))
    return choose(share >= 1.0, 1.0, (volts - v) / (1.0 - v))


def _sm_w(model: PowerModel, time: Any, flops_by_compute: Mapping[str, Any]) -> Any:
    """Watts of the SMs at boost clock."""
    joules: Any = 0.0
    for compute, flops in flops_by_compute.items():
        joules = joules + model.flop_j(compute) * flops
    return model.busy_w + joules / time


def _relative_w(model: PowerModel, clock: Any) -> Any:
    """Power of the SMs at a clock, as a share of that at boost."""
    v = model.voltage_floor
    volts = v + (1.0 - v) * clock
    return clock * volts * volts
