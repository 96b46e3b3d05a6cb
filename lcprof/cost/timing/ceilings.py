"""The data-sheet rates that bound a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from lcprof import num
from lcprof.domain.gpu import Gpu

TYPICAL_SM_COUNT = 132
TYPICAL_L2_BYTES = 50.0 * 2**20
TYPICAL_CLOCK_HZ = 1.8e9
TYPICAL_HOST_BYTES_PER_S = 32e9


class Ceilings(Struct, frozen=True, kw_only=True):
    """What a GPU's data sheet promises: bytes/s, dense FLOP/s by compute dtype, SM count, bytes/s
    of its links in one direction (0 without) and of its bus to the host, L2 bytes, boost clock."""

    bandwidth_bytes_per_s: float
    peak_flops: Mapping[str, float]
    sm_count: float
    link_bytes_per_s: float
    l2_bytes: float
    clock_hz: float
    host_bytes_per_s: float = TYPICAL_HOST_BYTES_PER_S

    def flops_per_s(self, compute: str) -> float:
        """Dense peak of a compute dtype; bf16's where the chip has no unit for it."""
        return self.peak_flops.get(compute) or self.peak_flops["bf16"]


def missed(read_bytes: Any, ceilings: Ceilings, cold: Any) -> Any:
    """The share of what a call reads that the L2 does not hold from the call before. `cold` is 1.0
    where other work has been in between, as the other layers of a model, and 0.0 for a call
    that is repeated alone, as kernels are measured."""
    return num.larger(cold, 1.0 - num.exp(-(read_bytes / ceilings.l2_bytes)))


def ceilings_of(gpu: Gpu) -> Ceilings:
    """A GPU's ceilings. Where its file does not say how many SMs, how much L2 or which clock it
    has, those of an H100 stand in: they shape small calls only; so does PCIe 4.0 for its bus."""
    return Ceilings(
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s,
        peak_flops=gpu.peak_flops,
        sm_count=float(gpu.sm_count or TYPICAL_SM_COUNT),
        link_bytes_per_s=gpu.link_bytes_per_s,
        l2_bytes=gpu.l2_bytes or TYPICAL_L2_BYTES,
        clock_hz=gpu.boost_hz or TYPICAL_CLOCK_HZ,
        host_bytes_per_s=gpu.pcie_bytes_per_s or TYPICAL_HOST_BYTES_PER_S,
    )
