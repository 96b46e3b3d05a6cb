"""What the kernels ask of a device."""

from __future__ import annotations

import torch


def capability_of(device: torch.device) -> tuple[int, int]:
    """The device's compute capability; the interpreter on a CPU stands in for (8, 0)."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


def multiprocessors_of(device: torch.device) -> int:
    """How many multiprocessors the device has; the interpreter counts as four."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
