"""The axes whose values name something: models, GPUs, KV strategies, weight formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from lcprof.domain.kv import parse_kv
from lcprof.errors import Fault, InputError
from lcprof.scenario.gpus import load_gpu, read_gpu
from lcprof.scenario.models import load_model, read_inline
from lcprof.scenario.weights import parse_weights

NAMED = ("model", "gpu", "kv", "weights")


def load_named(
    key: str, refs: tuple[Any, ...], *, where: str, base: Path | None
) -> tuple[list[Any], list[Fault]]:
    """What the values of an axis name, each loaded once, and the faults of those that could not
    be. `key` is one of `NAMED`."""
    loaded: list[Any] = []
    faults: list[Fault] = []
    for index, ref in enumerate(refs):
        at = f"{key}[{index}]" if len(refs) > 1 else key
        try:
            loaded.append(_load(key, ref, where=where, at=at, base=base))
        except InputError as error:
            faults += error.faults
    return loaded, faults


def _load(key: str, ref: Any, *, where: str, at: str, base: Path | None) -> Any:
    if key == "kv":
        return parse_kv(ref, where=where, key=at)
    if key == "weights":
        return parse_weights(ref, where=where, key=at)
    if key == "gpu":
        if isinstance(ref, str):
            return load_gpu(ref, where=where, key=at, base=base)
        return read_gpu(ref, where=where, key=at)
    if isinstance(ref, str):
        return load_model(ref, where=where, base=base)
    try:
        return read_inline(ref, where=where)
    except InputError as error:
        faults = [replace(fault, key=f"{at}.{fault.key}".rstrip(".")) for fault in error.faults]
        raise type(error)(faults) from None
