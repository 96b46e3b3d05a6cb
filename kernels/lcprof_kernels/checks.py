"""Checks of arguments before a launch. Each raises `KernelInputError` with one sentence."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import torch

from lcprof_kernels.errors import KernelInputError


def require(condition: bool, message: str) -> None:
    """Raise `KernelInputError(message)` unless `condition` holds."""
    if not condition:
        raise KernelInputError(message)


def interpreting() -> bool:
    """Whether Triton's CPU interpreter runs the kernels (TRITON_INTERPRET=1 at import)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "on", "true"}


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int | None], words: str) -> None:
    """`tensor` must have this shape; None allows any size. `words` shows it: "[batch, heads]"."""
    given = tuple(tensor.shape)
    fits = len(given) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, given, strict=True)
    )
    wanted = ", ".join("any" if want is None else str(want) for want in shape)
    require(fits, f"{name} must have shape {words} = [{wanted}], got {list(given)}")


def check_dtype(name: str, tensor: torch.Tensor, allowed: Collection[torch.dtype]) -> None:
    """`tensor.dtype` must be one of `allowed`."""
    words = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in allowed))
    require(
        tensor.dtype in allowed,
        f"{name} must be {words}, got {str(tensor.dtype).removeprefix('torch.')}",
    )


def check_one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """`value` must be one of `allowed`."""
    words = ", ".join(str(item) for item in allowed)
    require(value in allowed, f"{name} must be one of {words}; got {value}")


def check_last_dim_dense(name: str, tensor: torch.Tensor) -> None:
    """The last dimension must have stride 1: kernels read rows in 16-byte pieces."""
    require(
        tensor.shape[-1] <= 1 or tensor.stride(-1) == 1,
        f"{name} must be dense in its last dimension, got stride {tensor.stride(-1)}",
    )


def check_rows_aligned(name: str, tensor: torch.Tensor) -> None:
    """The base and every stride but the last must be multiples of 16 bytes."""
    size = tensor.element_size()
    offsets = [
        stride * size
        for stride, n in zip(tensor.stride()[:-1], tensor.shape[:-1], strict=True)
        if n > 1
    ]
    require(
        tensor.data_ptr() % 16 == 0 and all(offset % 16 == 0 for offset in offsets),
        f"{name} must start on, and step by, multiples of 16 bytes",
    )


def check_same_device(**tensors: torch.Tensor | None) -> torch.device:
    """All tensors (None is skipped) must be on one device, which is returned."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {tensor.device for tensor in present.values()}
    where = ", ".join(f"{name} on {tensor.device}" for name, tensor in present.items())
    require(len(devices) == 1, f"all tensors must be on one device, got {where}")
    return devices.pop()


def check_triton_device(device: torch.device, *, capability: tuple[int, int] = (8, 0)) -> None:
    """A Triton kernel needs a CUDA GPU of at least `capability`, or the CPU interpreter."""
    if device.type == "cpu":
        require(
            interpreting(),
            "impl='triton' needs a CUDA GPU (or TRITON_INTERPRET=1 set before the import)",
        )
        return
    require(device.type == "cuda", f"impl='triton' needs a CUDA GPU, got {device.type}")
    have = torch.cuda.get_device_capability(device)
    require(
        have >= capability,
        f"this kernel needs compute capability {capability[0]}.{capability[1]} or newer, "
        f"{torch.cuda.get_device_name(device)} has {have[0]}.{have[1]}",
    )
