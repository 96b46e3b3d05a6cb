"""Power models from the catalog, transported to GPUs that were not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from lcprof.catalog import CATALOG
from lcprof.domain.gpu import Gpu
from lcprof.domain.power import PowerModel
from lcprof.errors import Fault, InputError, shown
from lcprof.scenario.fields import check_keys, convert, given_text
from lcprof.scenario.files import place, read_yaml
from lcprof.scenario.gpus import load_gpu

FOLDER = CATALOG / "power"

BASE = "hopper"
"""What GPUs of an architecture without a file are transported from."""
SAME_CHIP_SPREAD = 1.15
OTHER_CHIP_SPREAD = 1.5
"""How much wider each side of an interval becomes, as a factor: on another board of the same
architecture and kind of memory, and on any other chip (where only the data sheet's watts, FLOP/s
and bytes/s are known)."""

Name = Annotated[str, Meta(min_length=1)]


class Figure(Struct, frozen=True, forbid_unknown_fields=True):
    """A number with where it comes from."""

    value: float
    source: Name


class PowerFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One architecture's constants: watts, joules at boost clock, factors (`attention` on the
    energy of a FLOP in attention over one in a matrix product). They hold for `gpus`;
    `measured_on` names those that were measured, `basis` whether these are the same."""

    architecture: Name
    basis: Literal["measured", "transported"]
    gpus: Annotated[list[Name], Meta(min_length=1)]
    measured_on: Annotated[list[Name], Meta(min_length=1)]
    idle_w: Figure
    busy_w: Figure
    joules_per_flop: dict[str, Figure]
    attention: Figure
    joules_per_hbm_byte: Figure
    clock_exponent: Figure
    low: Figure
    high: Figure


_RANGES = {
    "idle_w": (1.0, 1000.0, "watts from 1 to 1000"),
    "busy_w": (1.0, 2000.0, "watts from 1 to 2000"),
    "attention": (0.5, 3.0, "a factor from 0.5 to 3"),
    "joules_per_hbm_byte": (1e-12, 1e-9, "joules from 1e-12 to 1e-9"),
    "clock_exponent": (1.2, 3.0, "a number from 1.2 to 3"),
    "low": (0.2, 1.0, "a factor from 0.2 to 1"),
    "high": (1.0, 5.0, "a factor from 1 to 5"),
}
_FLOP_RANGE = (1e-14, 1e-10, "joules from 1e-14 to 1e-10")
_COMPUTES = ("fp32", "tf32", "bf16", "fp8", "int8", "fp4")


def power_model(gpu: Gpu, limit_w: float | None = None) -> PowerModel | None:
    """The power model of a GPU, held to its TDP or to `limit_w` where that is less; None for a GPU
    whose TDP is not known.

    A GPU that its architecture's file names has that file's constants. One of the same
    architecture and kind of memory has the same energies, idle and busy power by TDP, and a wider
    interval. Any other is scaled from an H100 so that its peak rates take the same shares of its
    TDP, with a much wider interval. Raises InputError for a damaged file, or for a limit that
    leaves nothing above idle.
    """
    if gpu.tdp_w is None:
        return None
    model = _own(gpu, gpu.tdp_w) or _transported(gpu, gpu.tdp_w)
    if limit_w is None:
        return model
    if limit_w <= model.idle_w:
        expected = f"more than the {model.idle_w:.0f} W that {gpu.name} draws idle"
        raise InputError.one("power_limit", given=f"{limit_w:g} W", expected=expected)
    return model.held_to(min(limit_w, gpu.tdp_w))


def read_power(data: object, *, where: str) -> PowerFile:
    """One architecture's constants from a mapping. Raises InputError with every fault: a key that
    is missing or unknown, a figure without its source, a number out of its range."""
    if not isinstance(data, Mapping):
        expected = "a mapping of an architecture's power constants"
        raise InputError([Fault(where=where, given=given_text(data), expected=expected)])
    faults: list[Fault] = []
    check_keys(data, PowerFile.__struct_fields__, where=where, faults=faults)
    values: dict[str, Any] = {}
    for item in msgspec.structs.fields(PowerFile):
        if item.name not in data:
            faults.append(Fault(where=where, key=item.name, given="nothing", expected="a value"))
            continue
        value = convert(data[item.name], item.type, where=where, key=item.name, faults=faults)
        if value is not None:
            values[item.name] = value

    def check(key: str, figure: Figure, low: float, high: float, expected: str) -> None:
        if not (math.isfinite(figure.value) and low <= figure.value <= high):
            given = f"{figure.value:g}"
            faults.append(Fault(where=where, key=f"{key}.value", given=given, expected=expected))

    for name, bounds in _RANGES.items():
        if name in values:
            check(name, values[name], *bounds)
    if (energies := values.get("joules_per_flop")) is not None:
        for compute, figure in energies.items():
            key = f"joules_per_flop.{compute}"
            check(key, figure, *_FLOP_RANGE)
            if compute not in _COMPUTES:
                expected = f"one of {', '.join(_COMPUTES)}"
                faults.append(Fault(where=where, key=key, given=shown(compute), expected=expected))
        if "bf16" not in energies:
            key = "joules_per_flop.bf16"
            faults.append(Fault(where=where, key=key, given="nothing", expected="a value"))
    if faults:
        raise InputError(faults)
    return PowerFile(**values)


@cache
def _load(path: Path) -> PowerFile:
    file = read_power(read_yaml(path), where=place(path))
    if file.architecture.lower() != path.stem:
        expected = f"the constants of {path.stem}"
        raise InputError.one(
            place(path), "architecture", given=file.architecture, expected=expected
        )
    return file


def _own(gpu: Gpu, tdp_w: float) -> PowerModel | None:
    """From the file of the GPU's architecture; None where it has none that fits its memory."""
    chip = gpu.architecture.lower().removesuffix(" ultra")
    path = FOLDER / f"{chip}.yaml"
    if not chip.isalnum() or not path.exists():
        return None
    file = _load(path)
    if gpu.name in file.gpus:
        return _model(gpu, file, basis=file.basis, tdp_w=tdp_w)
    alike = load_gpu(file.gpus[0], where=place(path), key="gpus")
    if _memory(gpu) != _memory(alike) or not alike.tdp_w:
        return None
    return _model(
        gpu,
        file,
        basis="transported",
        tdp_w=tdp_w,
        watts=tdp_w / alike.tdp_w,
        spread=SAME_CHIP_SPREAD,
    )


def _transported(gpu: Gpu, tdp_w: float) -> PowerModel:
    """From another architecture by data sheets: each peak rate takes the same share of the TDP."""
    file = _load(FOLDER / f"{BASE}.yaml")
    base = load_gpu(file.gpus[0], where=f"{BASE}.yaml", key="gpus")
    watts = tdp_w / (base.tdp_w or tdp_w)
    per_flop = {
        compute: watts * peak / gpu.peak_flops[compute]
        for compute, peak in base.peak_flops.items()
        if compute in gpu.peak_flops
    }
    return _model(
        gpu,
        file,
        basis="transported",
        tdp_w=tdp_w,
        watts=watts,
        per_flop=per_flop,
        per_byte=watts * base.bandwidth_bytes_per_s / gpu.bandwidth_bytes_per_s,
        spread=OTHER_CHIP_SPREAD,
    )


def _model(
    gpu: Gpu,
    file: PowerFile,
    *,
    basis: str,
    tdp_w: float,
    watts: float = 1.0,
    per_flop: Mapping[str, float] | None = None,
    per_byte: float = 1.0,
    spread: float = 1.0,
) -> PowerModel:
    """A file's constants times factors. A dtype that the file lacks draws at its peak rate what
    bf16 (for int8 and fp4: fp8, and never more for a FLOP) draws at its own; element-wise work
    ("vector") is that of fp32."""
    factors = per_flop or {}
    energies = {
        compute: figure.value * factors.get(compute, 1.0)
        for compute, figure in file.joules_per_flop.items()
        if compute in gpu.peak_flops
    }
    for compute, peak in gpu.peak_flops.items():
        short = compute in ("int8", "fp4")
        like = "fp8" if short and "fp8" in energies else "bf16"
        ratio = gpu.peak_flops[like] / peak
        energies.setdefault(compute, energies[like] * (min(ratio, 1.0) if short else ratio))
    for compute in ("bf16", "fp8"):
        if compute in energies:
            energies[f"attention {compute}"] = energies[compute] * file.attention.value
    energies["vector"] = energies.get("fp32", energies["bf16"])
    figures = {name: getattr(file, name) for name in _RANGES}
    sources = {name: figure.source for name, figure in figures.items()}
    for compute, figure in file.joules_per_flop.items():
        sources[f"joules_per_flop.{compute}"] = figure.source
    return PowerModel(
        gpu=gpu.name,
        basis=basis,
        measured_on=tuple(file.measured_on),
        idle_w=file.idle_w.value * watts,
        busy_w=file.busy_w.value * watts,
        limit_w=tdp_w,
        joules_per_flop=energies,
        joules_per_hbm_byte=file.joules_per_hbm_byte.value * per_byte,
        clock_exponent=file.clock_exponent.value,
        low=file.low.value / spread,
        high=file.high.value * spread,
        sources={**sources, "limit_w": gpu.sources.get("tdp_w", "")},
    )


def _memory(gpu: Gpu) -> str:
    """The kind of memory: stacked on the package (HBM) or beside it."""
    return "HBM" if gpu.memory_type.upper().startswith("HBM") else "GDDR"
