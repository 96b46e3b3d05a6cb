"""Calibrations from a user's folder or the catalog. A damaged one is refused, never patched."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcprof.catalog import CATALOG
from lcprof.domain.calibration import Calibration, Fit, Parameter, Residuals
from lcprof.errors import Fault, InputError, nearest, shown
from lcprof.scenario.fields import given_text
from lcprof.scenario.files import place, read_yaml

FOLDER = CATALOG / "calibrations"

FOLDER_VARIABLE = "LCPROF_CALIBRATIONS"
"""The environment variable that names the user's folder."""

Families = Mapping[str, Mapping[str, Parameter]]
"""The parameters of each known operation family."""

_TEXTS = ("gpu", "stack", "source", "licence", "date", "split")
_RESIDUALS = ("rows", "median", "p90", "low", "high")
_KINDS = ("large", "small")


def user_folder() -> Path:
    """Where a user's own calibrations lie: `$LCPROF_CALIBRATIONS`, else lcprof/calibrations in the
    folder for users' data (XDG Base Directory Specification). It need not exist; InputError says
    when the variable names a file."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    if named:
        if os.path.isfile(named):
            raise InputError.one(f"${FOLDER_VARIABLE}", given=named, expected="a folder")
        return Path(named)
    given = os.environ.get("XDG_DATA_HOME", "")
    # The specification has relative paths ignored.
    base = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.local/share"))
    return base / "lcprof" / "calibrations"


def calibration_stacks(gpu: str) -> list[str]:
    """The kernel stacks that the catalog has a calibration of for a GPU, by name."""
    return sorted(path.stem.partition("--")[2] for path in FOLDER.glob(f"{gpu}--*.yaml"))


def calibration_path(gpu: str, stack: str, folder: Path = FOLDER) -> Path:
    """Where the calibration of a GPU and a stack lies."""
    return folder / f"{gpu}--{stack}.yaml"


def load_calibration(
    gpu: str, stack: str, *, families: Families, folder: Path | None = None
) -> Calibration | None:
    """The calibration of a GPU and a stack in a folder (the catalog's without one), or None where
    there is none. Raises InputError with every fault of a damaged file."""
    path = calibration_path(gpu, stack, FOLDER if folder is None else folder)
    try:
        if not path.exists():
            return None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError.one(place(path), given=reason, expected="a readable folder") from None
    return read_calibration(read_yaml(path), where=place(path), gpu=gpu, families=families)


def read_calibration(data: object, *, where: str, gpu: str, families: Families) -> Calibration:
    """A calibration from a mapping, for the GPU named `gpu`.

    Raises InputError with every fault: another GPU's data, an unknown family, a parameter missing,
    unknown or outside its bounds, a box or residuals that are no numbers, a fit given twice.
    """
    faults: list[Fault] = []
    reader = _Reader(where=where, faults=faults)
    top = reader.mapping(data, "", (*_TEXTS, "fits"), may=("points",))
    texts = {name: reader.text(top.get(name), name) for name in _TEXTS}
    if texts["gpu"] and texts["gpu"] != gpu:
        reader.fault("gpu", shown(texts["gpu"]), f"measurements of {gpu}, no other GPU's")
    listed = top.get("fits")
    fits: list[Fit] = []
    if not isinstance(listed, list) or not listed:
        if top:
            reader.fault("fits", given_text(listed), "a list of fits, at least one")
        listed = []
    seen: set[tuple[str, str]] = set()
    for index, entry in enumerate(listed):
        fit = reader.fit(entry, f"fits[{index}]", families)
        if fit is None:
            continue
        if (fit.family, fit.variant) in seen:
            given = f"{fit.family}, {fit.variant} again"
            reader.fault(f"fits[{index}]", given, "each family and variant once")
        seen.add((fit.family, fit.variant))
        fits.append(fit)
    points = top.get("points", [])
    if not isinstance(points, list) or not all(isinstance(each, str) for each in points):
        reader.fault("points", given_text(points), "a list of keys of measured rows")
        points = []
    if faults:
        raise InputError(faults)
    return Calibration(**texts, fits=tuple(fits), points=frozenset(points))


class _Reader:
    """Reads parts of one file, gathering faults."""

    def __init__(self, *, where: str, faults: list[Fault]) -> None:
        self.where = where
        self.faults = faults

    def fault(self, key: str, given: str, expected: str) -> None:
        self.faults.append(Fault(where=self.where, key=key, given=given, expected=expected))

    def mapping(
        self, data: object, key: str, names: tuple[str, ...], may: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """`data` with `names` as its keys, as far as it has them; it may have others of `may`."""
        if not isinstance(data, Mapping):
            self.fault(key, given_text(data), f"a mapping of {', '.join(names)}")
            return {}
        prefix = f"{key}." if key else ""
        for name in names:
            if name not in data:
                self.fault(prefix + name, "nothing", "a value")
        for name in data:
            if name not in names and name not in may:
                expected = nearest(str(name), names) or f"one of {', '.join(names)}"
                self.fault(prefix + str(name), "an unknown key", expected)
        return dict(data)

    def text(self, value: object, key: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str) or not value:
            self.fault(key, given_text(value), "text")
            return ""
        return value

    def number(self, value: object, key: str, low: float, high: float, what: str) -> float:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not plain or not math.isfinite(float(value)) or not low <= float(value) <= high:  # type: ignore[arg-type]  # plain says it is a number
            self.fault(key, given_text(value), what)
            return math.nan
        return float(value)  # type: ignore[arg-type]  # checked above

    def fit(self, data: object, key: str, families: Families) -> Fit | None:
        before = len(self.faults)
        names = ("family", "variant", "parameters", "box", "residuals", "rows")
        entry = self.mapping(data, key, names)
        family = self.text(entry.get("family"), f"{key}.family")
        variant = self.text(entry.get("variant"), f"{key}.variant")
        if family and family not in families:
            expected = nearest(family, families) or f"one of {', '.join(families)}"
            self.fault(f"{key}.family", shown(family), expected)
        if len(self.faults) > before:
            return None
        called = f"{key} ({family}, {variant})"
        known = families[family]
        given = self.mapping(entry["parameters"], f"{called}.parameters", tuple(known))
        parameters = {}
        for name, parameter in known.items():
            if name in given:
                what = f"a number from {parameter.low:g} to {parameter.high:g}"
                where = f"{called}.parameters.{name}"
                low, high = parameter.low * (1 - 1e-6), parameter.high * (1 + 1e-6)
                parameters[name] = self.number(given[name], where, low, high, what)
        box = self.box(entry["box"], f"{called}.box")
        residuals = self.residuals(entry["residuals"], f"{called}.residuals")
        rows = self.number(entry["rows"], f"{called}.rows", 1, 1e9, "a count of measurements")
        if len(self.faults) > before:
            return None
        return Fit(
            family=family,
            variant=variant,
            parameters=parameters,
            box=box,
            residuals=residuals,
            rows=int(rows),
        )

    def box(self, data: object, key: str) -> dict[str, tuple[float, float]]:
        if not isinstance(data, Mapping) or not data:
            self.fault(key, given_text(data), "a mapping of features to [low, high]")
            return {}
        box = {}
        for name, ends in data.items():
            if not isinstance(name, str) or not name.strip():
                self.fault(key, f"a feature named {shown(str(name))}", "the name of a feature")
                continue
            what = "[low, high], two numbers of which the second is not less"
            if not isinstance(ends, list) or len(ends) != 2:
                self.fault(f"{key}.{name}", given_text(ends), what)
                continue
            low, high = (self.number(end, f"{key}.{name}", 0.0, 1e30, what) for end in ends)
            if low > high:
                self.fault(f"{key}.{name}", f"{low:g} above {high:g}", what)
            box[name] = (low, high)
        return box

    def residuals(self, data: object, key: str) -> dict[str, Residuals]:
        if not isinstance(data, Mapping) or not data or not set(data) <= set(_KINDS):
            self.fault(key, given_text(data), f"a mapping of {' or '.join(_KINDS)}")
            return {}
        found = {}
        for kind, entry in data.items():
            given = self.mapping(entry, f"{key}.{kind}", _RESIDUALS)
            numbers = {
                name: self.number(
                    given[name],
                    f"{key}.{kind}.{name}",
                    -10.0 if name in {"low", "high"} else 0.0,
                    1e9,
                    "a finite number" if name in {"low", "high"} else "a number, not negative",
                )
                for name in _RESIDUALS
                if name in given
            }
            if len(numbers) < len(_RESIDUALS) or any(map(math.isnan, numbers.values())):
                continue
            if numbers["low"] > numbers["high"]:
                self.fault(f"{key}.{kind}", "low above high", "a 5 % quantile below the 95 % one")
            found[kind] = Residuals(rows=int(numbers.pop("rows")), **numbers)
        return found


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Writes a calibration where `load_calibration` reads it; the old file stays whole until the
    new one is."""
    import yaml

    data: dict[str, Any] = {name: getattr(calibration, name) for name in _TEXTS}
    data["fits"] = [
        {
            "family": fit.family,
            "variant": fit.variant,
            "rows": fit.rows,
            "parameters": dict(fit.parameters),
            "box": {name: list(ends) for name, ends in fit.box.items()},
            "residuals": {
                kind: {name: getattr(found, name) for name in _RESIDUALS}
                for kind, found in fit.residuals.items()
            },
        }
        for fit in calibration.fits
    ]
    if calibration.points:
        data["points"] = sorted(calibration.points)
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
