"""Finding a model: by catalog name, Hub id, file or folder.

A catalog file is named as people type the model, so a look-up parses one file: a Hub id loses its
organisation and its `-instruct` kind of ending. Names that differ more stand in the file's
`aliases`, which are searched as text.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any, Final, NoReturn

from msgspec import Struct
from msgspec.structs import replace

from lcprof.catalog import CATALOG
from lcprof.domain.model import ModelShape
from lcprof.errors import InputError, nearest
from lcprof.scenario import files
from lcprof.scenario.models.read import read_config

FOLDER: Final = CATALOG / "models"
_ENDINGS: Final = re.compile(r"-(instruct|it|hf|base|chat)$")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class ModelCard(Struct, frozen=True, kw_only=True):
    """What the catalog says of a model besides its config.

    `status` is verbatim (the vendor's own file), copy (a public copy of it) or reconstructed
    (from several sources); `published_*` are the vendor's totals in billions.
    """

    name: str
    hub_id: str
    source: str
    status: str
    aliases: tuple[str, ...] = ()
    published_params_b: float | None = None
    published_active_params_b: float | None = None
    note: str = ""


def model_names() -> list[str]:
    """Every catalog name, sorted, without opening a file."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def model_card(name: str) -> ModelCard:
    """The card of a catalog model. Raises InputError with the nearest names for any other."""
    entry = _entry(_catalog_name(name) or _unknown(name, name))
    return ModelCard(
        name=entry["name"],
        hub_id=str(entry["hub_id"]),
        source=str(entry["source"]),
        status=str(entry["status"]),
        aliases=tuple(str(alias) for alias in entry.get("aliases") or ()),
        published_params_b=entry.get("published_params_b"),
        published_active_params_b=entry.get("published_active_params_b"),
        note=str(entry.get("note") or ""),
    )


def load_model(ref: str, *, where: str, base: Path | None = None) -> ModelShape:
    """The model that `ref` names: a catalog name or Hub id (any case), a config.json or a
    folder that holds one (relative to `base`), or a Hub id to download.

    Raises InputError, with the nearest catalog names when nothing is found.
    """
    if not isinstance(ref, str) or not ref.strip():
        raise InputError.one(where, "model", given=ref, expected="a model name, Hub id or path")
    ref = ref.strip()
    if (name := _catalog_name(ref)) is not None:
        entry = _entry(name)
        shape = read_config(entry["config"], name=name, where=f"catalog model {name}")
        if not entry.get("note"):
            return shape
        note = f"catalog: {entry['note']}."
        return replace(shape, assumptions=(*shape.assumptions, note))
    path = _path(ref, base)
    if path is not None:
        return read_config(_read_json(path), name=_path_name(path), where=files.place(path))
    if _HUB_ID.fullmatch(ref) and not ref.endswith(".json"):
        path = _download(ref, where)
        return read_config(_read_json(path), name=ref, where=f"{ref} config.json")
    return _unknown(ref, where)


def _read_json(path: Path) -> Any:
    """A config.json, which Python may have written with Infinity (Nemotron-H's
    `time_step_limit`): where an entry that counts holds it, the reader refuses it."""
    try:
        return files.read_json(path)
    except InputError as error:
        if any(fault.given not in {"Infinity", "-Infinity", "NaN"} for fault in error.faults):
            raise
    return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=float)


def _catalog_name(ref: str) -> str | None:
    """The catalog name that `ref` means, or None."""
    plain = ref.strip().lower()
    owner, _, rest = plain.rpartition("/")
    if not _NAME.fullmatch(rest) or "/" in owner:
        return None
    candidates = [rest]
    while (shorter := _ENDINGS.sub("", candidates[-1])) != candidates[-1]:
        candidates.append(shorter)
    candidates += [name.removeprefix("meta-") for name in candidates if name.startswith("meta-")]
    for name in candidates:
        if (FOLDER / f"{name}.yaml").is_file() and (not owner or _owns(name, owner, plain)):
            return name
    return _alias(plain)


def _alias(plain: str) -> str | None:
    """The file whose `hub_id` or `aliases`, which stand before `source`, name `plain`."""
    named = re.compile(rf"[\s\[,'\"]{re.escape(plain)}[\s\],'\"]")
    for path in sorted(FOLDER.glob("*.yaml")):
        head, _, _ = path.read_text(encoding="utf-8").partition("\nsource:")
        if named.search(head.lower() + "\n"):
            return path.stem
    return None


def _owns(name: str, owner: str, hub_id: str) -> bool:
    entry = _entry(name)
    known = [str(entry["hub_id"]).lower(), *(str(a).lower() for a in entry.get("aliases") or ())]
    return hub_id in known or known[0].partition("/")[0] == owner


_ENTRIES: dict[str, dict[str, Any]] = {}


def _entry(name: str) -> dict[str, Any]:
    if name not in _ENTRIES:
        _ENTRIES[name] = {"name": name, **files.read_yaml(FOLDER / f"{name}.yaml")}
    return _ENTRIES[name]


def _path(ref: str, base: Path | None) -> Path | None:
    """The config.json that `ref` names, or None when it names no file or folder."""
    if "\0" in ref:
        return None
    try:
        path = Path(ref).expanduser()
        if base is not None and not path.is_absolute():
            path = base / path
        if path.is_dir():
            return path / "config.json"
        looks_like_path = ref.endswith(".json") or ref.startswith((".", "/", "~"))
        return path if looks_like_path or path.is_file() else None
    except (OSError, RuntimeError):
        return None


def _path_name(path: Path) -> str:
    return path.parent.name if path.name == "config.json" and path.parent.name else path.stem


def _download(ref: str, where: str) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        _unknown(ref, where, "huggingface_hub is not installed to download it")
    try:
        return Path(hub.hf_hub_download(ref, "config.json", etag_timeout=5))
    except Exception as error:  # the library raises many kinds; all mean that it is not to be had
        reason = type(error).__name__
        _unknown(ref, where, f"downloading its config.json failed ({reason})")


def _unknown(ref: str, where: str, reason: str = "") -> NoReturn:
    hint = nearest(ref.rpartition("/")[2], model_names())
    expected = "a catalog model (lcprof catalog models), a Hub id, or the path of a config.json"
    details = "; ".join(part for part in (reason, hint) if part)
    raise InputError.one(
        where, "model", given=ref, expected=f"{expected} ({details})" if details else expected
    )
