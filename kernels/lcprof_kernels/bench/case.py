"""What one benchmark case is, and where each operation keeps its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

CASES: dict[str, str] = {
    "attention": "lcprof_kernels.attention.cases",
    "decode": "lcprof_kernels.decode.cases",
    "append": "lcprof_kernels.append.cases",
    "mla": "lcprof_kernels.mla.cases",
    "quantised_decode": "lcprof_kernels.quantised_decode.cases",
    "selection": "lcprof_kernels.selection.cases",
}
"""Operation -> module whose `cases(quick: bool) -> list[Case]` lists what to time."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What our kernel's launch may choose on one case: records of its own kind, equal by value.

    `place` is where the launch takes the record from (a table and its key), `present` what it takes
    now, `others` what is worth trying. `run(inputs, record)` is our implementation with a record.
    """

    place: str
    present: Any
    others: tuple[Any, ...]
    run: Callable[[Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of one operation, and every implementation that is timed on it.

    `make_inputs(device)` draws fresh random inputs. Each implementation takes those inputs, does
    the whole operation and returns its result (for backward passes, the gradients). `check(inputs,
    result)` returns (error found, error allowed); a result over its allowance is not timed.
    `bytes` and `flops` are plain counts of what the operation must read and write and multiply.
    `choices(device)` lists launch records for `bench.tune`, where the operation offers any.
    """

    op: str
    variant: str = ""
    dtype: str
    kv_dtype: str
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    query_tokens: int
    context_tokens: int
    window_tokens: int | None = None
    page_tokens: int | None = None
    causal: bool = True
    bytes: int
    flops: int
    make_inputs: Callable[[torch.device], Any]
    implementations: Mapping[str, Callable[[Any], Any]]
    check: Callable[[Any, Any], tuple[float, float]]
    choices: Callable[[torch.device], Choices] | None = None

    @property
    def title(self) -> str:
        """The shape on one line."""
        parts = [
            f"{self.op}{' ' + self.variant if self.variant else ''}",
            f"B{self.batch} {self.q_heads}/{self.kv_heads} D{self.head_dim}",
            f"q{self.query_tokens} kv{self.context_tokens} {self.kv_dtype}",
        ]
        if self.window_tokens is not None:
            parts.append(f"window {self.window_tokens}")
        if self.page_tokens is not None:
            parts.append(f"page {self.page_tokens}")
        return " ".join(parts)


def cases_of(op: str, *, quick: bool) -> list[Case]:
    """The cases of one operation; a `quick` list is a small sample for a first look."""
    found: list[Case] = importlib.import_module(CASES[op]).cases(quick=quick)
    return found
