"""Offload: a share of the cache lives in host memory and crosses the bus when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lcprof.domain.kv.arguments import Argument, share
from lcprof.domain.kv.strategy import KvStrategy


class Offload(KvStrategy, frozen=True, kw_only=True):
    """`fraction` of what is stored lies in host memory; a decode step reads its part of it over
    PCIe (or C2C), so the bus bounds the step."""

    kind: ClassVar[str] = "offload"
    summary: ClassVar[str] = "a `fraction` of the cache in host memory, read over the bus"
    arguments: ClassVar[Mapping[str, Argument]] = {"fraction": share("fraction")}
    fraction: float = 0.5

    def host_fraction(self) -> float:
        inner = self.wrapped().host_fraction()
        return inner + (1.0 - inner) * self.fraction
