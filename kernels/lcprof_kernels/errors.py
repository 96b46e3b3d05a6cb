"""The errors a caller can cause. Each is raised before any launch, in one sentence."""

from __future__ import annotations


class KernelError(Exception):
    """Base of every error that this package raises on purpose."""


class KernelInputError(KernelError, ValueError):
    """An argument that the operation cannot use: shape, dtype, device, value or GPU."""


class MissingImplementationError(KernelError):
    """An implementation that is not installed here, or that cannot do what was asked of it."""
