"""Kernels run in Triton's CPU interpreter here: the variable must be set before any import."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no card."""
    skip = pytest.mark.skip(reason="no GPU here")
    for item in items:
        here = item.path.is_relative_to(Path(__file__).parent)
        if here and item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(skip)
