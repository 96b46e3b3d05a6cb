"""Kernel tests run in Triton's CPU interpreter: the variable must be set before any import."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


INTERPRETER_WARNINGS = (
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning:triton",
    "ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning:triton",
)
"""What NumPy says while Triton's interpreter works; a card computes the same silently."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no card."""
    skip = pytest.mark.skip(reason="no GPU here")
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        for warning in INTERPRETER_WARNINGS:
            item.add_marker(pytest.mark.filterwarnings(warning))
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(skip)
