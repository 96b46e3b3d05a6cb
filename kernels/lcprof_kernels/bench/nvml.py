"""The card's clock and power through NVML, or nothing where pynvml is not installed."""

from __future__ import annotations

from typing import Any

import torch


class Nvml:
    """Reads the SM clock (MHz) and power (W) of one device; (None, None) without NVML."""

    def __init__(self, device: torch.device) -> None:
        self.handle: Any = None
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:
            return
        self.pynvml = pynvml

    def read(self) -> tuple[float | None, float | None]:
        """SM clock in MHz and board power in W, now."""
        if self.handle is None:
            return None, None
        try:
            clock = self.pynvml.nvmlDeviceGetClockInfo(self.handle, self.pynvml.NVML_CLOCK_SM)
            power = self.pynvml.nvmlDeviceGetPowerUsage(self.handle) / 1e3
        except self.pynvml.NVMLError:
            return None, None
        return float(clock), float(power)
