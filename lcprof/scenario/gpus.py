"""GPUs from the catalog, from a user's own file or written inline: one form for all three."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from lcprof.catalog import CATALOG
from lcprof.domain.gpu import Gpu
from lcprof.errors import Fault, InputError, nearest, shown
from lcprof.scenario.fields import (
    Bytes,
    Flops,
    Hertz,
    Rate,
    Watts,
    check_keys,
    convert,
    given_text,
    quantity_schema,
)
from lcprof.scenario.files import place, read_yaml

FOLDER = CATALOG / "gpus"

T = TypeVar("T")


class Figure(msgspec.Struct, Generic[T], frozen=True, forbid_unknown_fields=True):
    """A value with where it comes from beside it."""

    value: T
    source: str = "given by the user"
    note: str = ""
    date: str = ""


class Peak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Dense peak rates by compute dtype."""

    bf16: Figure[Flops]
    fp32: Figure[Flops] | None = None
    tf32: Figure[Flops] | None = None
    fp8: Figure[Flops] | None = None
    int8: Figure[Flops] | None = None
    fp4: Figure[Flops] | None = None


class GpuFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU as its YAML says it. Links and PCIe count one direction."""

    name: Annotated[str, Meta(min_length=1, max_length=80)]
    title: str = ""
    vendor: str = ""
    form_factor: str = ""
    architecture: str = ""
    compute_capability: str = ""
    memory_type: str = ""
    memory_marketed: Figure[Bytes]
    memory_driver: Figure[Bytes] | None = None
    bandwidth: Figure[Rate]
    peak: Peak
    link: Figure[Rate] | None = None
    link_gpus: Figure[Annotated[int, Meta(ge=1, le=100_000)]] | None = None
    pcie: Figure[Rate] | None = None
    sm_count: Figure[Annotated[int, Meta(ge=1, le=100_000)]] | None = None
    boost: Figure[Hertz] | None = None
    l2: Figure[Bytes] | None = None
    tdp: Figure[Watts] | None = None
    price_usd_per_hour: Figure[Annotated[float, Meta(ge=0, le=1e6)]] | None = None
    notes: list[str] = []


_TEXTS = ("title", "vendor", "form_factor", "architecture", "compute_capability", "memory_type")
_LEAST = {
    **dict.fromkeys(("memory_marketed", "memory_driver", "bandwidth", "boost"), 1e6),
    **dict.fromkeys(Peak.__struct_fields__, 1e6),
    **dict.fromkeys(("l2", "tdp"), 1.0),
}
"""Below these a figure was surely given without its unit."""
_MARKETED_NOTE = "the driver's memory is not known; the marketed size is taken as usable ({source})"


class CardLine(Struct, frozen=True, kw_only=True):
    """One line of a GPU's card: what, how much (as its file writes it), and from where."""

    key: str
    value: str
    source: str
    note: str = ""
    date: str = ""


def gpu_names() -> list[str]:
    """The catalog's GPUs, by name."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.yaml"))


def load_gpu(name: str, *, where: str, key: str = "gpu", base: Path | None = None) -> Gpu:
    """A GPU by catalog name ("h200-sxm", "H200") or by the path of a YAML file of the same form.

    A relative path is looked up in `base`, the scenario's folder, then in the current one.
    Raises InputError: an unknown name with the nearest ones, or the faults of the file.
    """
    if path := _own_file(name, base):
        return read_gpu(read_yaml(path), where=place(path), key="")
    return _catalog_gpu(_catalog_name(name, where=where, key=key))


def read_gpu(data: object, *, where: str, key: str = "gpu") -> Gpu:
    """A GPU from a mapping of the catalog's form, where a figure may also be a bare value.

    `memory_driver` absent: the marketed size is taken as usable, and `notes` say so.
    Raises InputError with every fault.
    """
    file = _read_file(data, where=where, key=key)
    figures = {name: getattr(file, name) for name in _figure_names()}
    figures |= {f"peak.{name}": getattr(file.peak, name) for name in Peak.__struct_fields__}
    known = {name: figure for name, figure in figures.items() if figure is not None}
    notes = [f"{name}: {figure.note}" for name, figure in known.items() if figure.note]
    usable = file.memory_driver
    if usable is None:
        usable = file.memory_marketed
        notes.append(_MARKETED_NOTE.format(source=usable.source))
    price = file.price_usd_per_hour
    return Gpu(
        name=file.name,
        vendor=file.vendor,
        form_factor=file.form_factor,
        architecture=file.architecture,
        compute_capability=file.compute_capability,
        memory_type=file.memory_type,
        marketed_bytes=float(file.memory_marketed.value),
        usable_bytes=float(usable.value),
        bandwidth_bytes_per_s=float(file.bandwidth.value),
        peak_flops={
            name: float(known[f"peak.{name}"].value)
            for name in Peak.__struct_fields__
            if f"peak.{name}" in known
        },
        link_bytes_per_s=float(file.link.value) if file.link else 0.0,
        link_gpus=_link_gpus(file),
        pcie_bytes_per_s=float(file.pcie.value) if file.pcie else 0.0,
        sm_count=file.sm_count.value if file.sm_count else None,
        boost_hz=float(file.boost.value) if file.boost else None,
        l2_bytes=float(file.l2.value) if file.l2 else None,
        tdp_w=float(file.tdp.value) if file.tdp else None,
        price_usd_per_hour=price.value if price else None,
        price_date=price.date if price else "",
        sources={_FIELDS.get(name, name): figure.source for name, figure in known.items()}
        | ({} if file.memory_driver else {"usable_bytes": file.memory_marketed.source}),
        notes=(*notes, *file.notes),
    )


def gpu_card(name: str) -> list[CardLine]:
    """A catalog GPU line by line, each figure as its file writes it with its source.

    Raises InputError for an unknown name.
    """
    known = _catalog_name(name, where="catalog gpus", key="")
    raw: dict[str, Any] = read_yaml(FOLDER / f"{known}.yaml")
    _read_file(raw, where=f"{known}.yaml", key="")
    lines = [CardLine(key=key, value=str(raw[key]), source="") for key in _TEXTS if key in raw]
    figures = {key: raw[key] for key in _figure_names() if key in raw}
    figures |= {f"peak.{dtype}": figure for dtype, figure in raw["peak"].items()}
    lines += [
        CardLine(key=key, **{part: str(text) for part, text in figure.items()})
        for key, figure in figures.items()
    ]
    return lines + [CardLine(key="note", value=note, source="") for note in raw.get("notes", [])]


def gpu_schema() -> dict[str, Any]:
    """JSON Schema of an inline GPU."""

    def loose(kind: Any) -> dict[str, Any]:
        bare = kind.__args__[0] if hasattr(kind, "__args__") else kind
        if getattr(bare, "__origin__", None) is Figure:
            bare = bare.__args__[0]
        value = msgspec.json.schema(bare, schema_hook=quantity_schema)
        parts = {part: {"type": "string"} for part in ("source", "note", "date")}
        full = {
            "type": "object",
            "properties": {"value": value, **parts},
            "required": ["value"],
            "additionalProperties": False,
        }
        return {"anyOf": [value, full]}

    peaks = msgspec.structs.fields(Peak)
    properties: dict[str, Any] = {}
    for item in msgspec.structs.fields(GpuFile):
        if item.name == "peak":
            properties["peak"] = {
                "type": "object",
                "description": "dense peak rates by compute dtype",
                "properties": {peak.name: loose(peak.type) for peak in peaks},
                "required": [peak.name for peak in peaks if peak.required],
                "additionalProperties": False,
            }
        elif item.name in _figure_names():
            properties[item.name] = loose(item.type)
        else:
            properties[item.name] = msgspec.json.schema(item.type)
    return {
        "type": "object",
        "properties": properties,
        "required": [item.name for item in msgspec.structs.fields(GpuFile) if item.required],
        "additionalProperties": False,
    }


_FIELDS = {
    "memory_marketed": "marketed_bytes",
    "memory_driver": "usable_bytes",
    "bandwidth": "bandwidth_bytes_per_s",
    "link": "link_bytes_per_s",
    "pcie": "pcie_bytes_per_s",
    "boost": "boost_hz",
    "l2": "l2_bytes",
    "tdp": "tdp_w",
    **{f"peak.{name}": f"peak_flops.{name}" for name in Peak.__struct_fields__},
}


def _link_gpus(file: GpuFile) -> int:
    """How many GPUs the link joins: as the file says, or pairs of cards, or a board of eight."""
    if file.link is None or not float(file.link.value):
        return 1
    if file.link_gpus is not None:
        return file.link_gpus.value
    cards = file.form_factor == "NVL" or file.form_factor.startswith("PCIe")
    return 2 if cards else 8


def _figure_names() -> list[str]:
    words = {"name", "peak", "notes", *_TEXTS}
    return [name for name in GpuFile.__struct_fields__ if name not in words]


def _own_file(name: str, base: Path | None) -> Path | None:
    if not (name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name):
        return None
    path = Path(name)
    if base is not None and not path.is_absolute():
        beside = base / path
        try:
            if beside.exists():
                return beside
        except (OSError, ValueError):
            return path
    return path


def _catalog_name(name: str, *, where: str, key: str) -> str:
    """The file stem that `name` means. Case, spaces, underscores and the vendor do not matter."""
    names = gpu_names()
    plain = "-".join(name[:80].lower().replace("_", "-").split())
    plain = plain.removeprefix("nvidia-").removeprefix("amd-").removeprefix("instinct-")
    if plain in names:
        return plain
    aliases: dict[str, str] = read_yaml(FOLDER / "_aliases.yaml")
    if plain in aliases:
        return aliases[plain]
    hint = nearest(plain, [*names, *aliases]) or f"one of {', '.join(names)}"
    expected = f"a GPU of the catalog, a mapping or a YAML file; {hint}"
    raise InputError([Fault(where=where, key=key, given=shown(name), expected=expected)])


@cache
def _catalog_gpu(name: str) -> Gpu:
    path = FOLDER / f"{name}.yaml"
    return read_gpu(read_yaml(path), where=str(path), key="")


def _read_file(data: object, *, where: str, key: str) -> GpuFile:
    if not isinstance(data, Mapping):
        expected = "a mapping that describes a GPU"
        raise InputError([Fault(where=where, key=key, given=given_text(data), expected=expected)])
    faults: list[Fault] = []
    prefix = f"{key}." if key else ""
    read = _read_struct(GpuFile, data, where=where, prefix=prefix, faults=faults)
    if faults:
        raise InputError(faults)
    return GpuFile(**read)


def _read_struct(
    kind: type[msgspec.Struct],
    data: Mapping[str, Any],
    *,
    where: str,
    prefix: str,
    faults: list[Fault],
) -> dict[str, Any]:
    """The fields of `kind` that `data` gives; figures may be bare values."""
    check_keys(data, kind.__struct_fields__, where=where, prefix=prefix, faults=faults)
    read: dict[str, Any] = {}
    figures = {*_figure_names(), *Peak.__struct_fields__}
    for item in msgspec.structs.fields(kind):
        key = prefix + item.name
        if item.name not in data:
            if item.required:
                expected = f"a value; a GPU needs {_needed(kind)}"
                faults.append(Fault(where=where, key=key, given="nothing", expected=expected))
            continue
        value = data[item.name]
        if item.name == "peak" and isinstance(value, Mapping):
            prefix_peak = f"{key}."
            peaks = _read_struct(Peak, value, where=where, prefix=prefix_peak, faults=faults)
            if "bf16" in peaks:
                read["peak"] = Peak(**peaks)
            continue
        if item.name in figures and value is not None and not isinstance(value, Mapping):
            value = {"value": value}
        elif value is None:
            faults.append(Fault(where=where, key=key, given="nothing", expected="a value"))
            continue
        found = convert(value, item.type, where=where, key=key, faults=faults)
        if found is None:
            continue
        if isinstance(found, Figure) and found.value < _LEAST.get(item.name, 0.0):
            given = f"{found.value:g} in base units"
            expected = "more; is a unit missing?"
            faults.append(Fault(where=where, key=key, given=given, expected=expected))
        read[item.name] = found
    return read


def _needed(kind: type[msgspec.Struct]) -> str:
    return ", ".join(item.name for item in msgspec.structs.fields(kind) if item.required)
