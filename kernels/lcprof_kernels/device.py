"""What the kernels ask of a device."""

from __future__ import annotations

import torch


def capability_of(device: torch.device) -> tuple[int, int]:
    """The compute capability whose kernels suit the device: its own; for 12.x that is 8.9, whose
    products and shared memory it has. The interpreter on a CPU stands in for (8, 0)."""
    if device.type != "cuda":
        return (8, 0)
    have = torch.cuda.get_device_capability(device)
    return have if have[0] < 12 else (8, 9)


def multiprocessors_of(device: torch.device) -> int:
    """How many multiprocessors the device has; the interpreter counts as four."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
