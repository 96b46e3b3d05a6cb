"""What a GPU is: its data-sheet peaks (dense), memory and links, each with a source."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Gpu(Struct, frozen=True, kw_only=True, eq=False):
    """One accelerator, compared by identity.

    `peak_flops` maps a compute dtype ("fp32", "tf32", "bf16", "fp8", "int8", "fp4") to dense
    FLOP/s. `marketed_bytes` is the data sheet's memory, `usable_bytes` what the driver reports
    (nvidia-smi); they are two facts. Link and PCIe bandwidths count one direction, 0 where there
    is no such link; `link_gpus` GPUs are joined by it. `sources` names where each figure comes
    from, by field name.
    """

    name: str
    vendor: str
    form_factor: str
    architecture: str
    compute_capability: str
    memory_type: str
    marketed_bytes: float
    usable_bytes: float
    bandwidth_bytes_per_s: float
    peak_flops: Mapping[str, float]
    link_bytes_per_s: float = 0.0
    link_gpus: int = 8
    pcie_bytes_per_s: float = 0.0
    sm_count: int | None = None
    boost_hz: float | None = None
    l2_bytes: float | None = None
    tdp_w: float | None = None
    price_usd_per_hour: float | None = None
    price_date: str = ""
    sources: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()

    def flops_per_s(self, compute: str) -> float:
        """Dense peak for a compute dtype. A dtype that the chip has no unit for runs in bf16
        (weights are widened in registers), so it gets the bf16 rate."""
        return self.peak_flops.get(compute) or self.peak_flops["bf16"]
