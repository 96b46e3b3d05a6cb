"""Reading the entries of a config: typed, bounded, every fault kept until the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard

from lcprof.errors import Fault, InputError, UnsupportedModelError, shown

WIDTH_LIMIT: Final = 1_000_000
LAYER_LIMIT: Final = 10_000
VOCAB_LIMIT: Final = 100_000_000
TOKEN_LIMIT: Final = 10_000_000_000


class Keys:
    """The entries of one config. A null entry counts as absent.

    Faults (wrong values) and refusals (values that name something not modelled) are gathered;
    `settle` raises them together. After a fault the reader goes on with a harmless stand-in.
    """

    def __init__(
        self,
        values: Mapping[Any, Any],
        *,
        where: str,
        prefix: str = "",
        defaults: Mapping[str, Any] | None = None,
        parent: Keys | None = None,
    ) -> None:
        self.values = values
        self.where = where
        self.prefix = prefix
        self.defaults = dict(defaults or {})
        self.seen: set[str] = set()
        self.faults: list[Fault] = parent.faults if parent else []
        self.refusals: list[Fault] = parent.refusals if parent else []
        self.assumptions: list[str] = parent.assumptions if parent else []

    # -- findings ---------------------------------------------------------------------------

    def fault(self, key: str, given: object, expected: str) -> None:
        """Keep one wrong value for `settle`."""
        text = "nothing" if given == "nothing" else shown(given)
        found = Fault(where=self.where, key=self.prefix + key, given=text, expected=expected)
        if found not in self.faults:
            self.faults.append(found)

    def refuse(self, key: str, given: object, reason: str) -> None:
        """Keep one value that lcprof does not model for `settle`."""
        found = Fault(where=self.where, key=self.prefix + key, given=shown(given), expected=reason)
        if found not in self.refusals:
            self.refusals.append(found)

    def assume(self, sentence: str) -> None:
        """Keep one sentence on what the reader took for granted."""
        if sentence not in self.assumptions:
            self.assumptions.append(sentence)

    def settle(self) -> None:
        """Raise what was found so far: `UnsupportedModelError` first, else `InputError`."""
        if self.refusals:
            raise UnsupportedModelError([*self.refusals, *self.faults])
        if self.faults:
            raise InputError(self.faults)

    # -- access -----------------------------------------------------------------------------

    def first(self, *names: str) -> tuple[str, Any]:
        """The first of `names` that is present, with its value; `("", None)` when none is."""
        found: tuple[str, Any] = ("", None)
        for name in names:
            self.seen.add(name)
            value = self.values.get(name)
            if value is not None and not found[0]:
                found = (name, value)
        if not found[0]:
            for name in names:
                if name in self.defaults and name not in self.values:
                    self.assume(f"{name} = {self.defaults[name]} assumed (library default).")
                    return name, self.defaults[name]
        return found

    def has(self, *names: str) -> bool:
        """Whether any of `names` is present and not null."""
        self.seen.update(names)
        return any(self.values.get(name) is not None for name in names)

    def count(
        self, *names: str, low: int = 1, high: int = WIDTH_LIMIT, default: int | None = None
    ) -> int:
        """A whole number within bounds; required unless `default` is given."""
        key, value = self.first(*names)
        if not key:
            if default is not None:
                return default
            self.fault(names[0], "nothing", f"a whole number from {low} to {high:,}")
            return max(low, 1)
        return self.whole(key, value, low=low, high=high)

    def maybe_count(self, *names: str, low: int = 1, high: int = WIDTH_LIMIT) -> int | None:
        """A whole number within bounds, or None when absent."""
        key, value = self.first(*names)
        return self.whole(key, value, low=low, high=high) if key else None

    def whole(self, key: str, value: object, *, low: int, high: int) -> int:
        """`value` as a whole number within bounds, or a fault at `key`."""
        if is_whole(value) and low <= int(value) <= high:
            return int(value)
        self.fault(key, value, f"a whole number from {low} to {high:,}")
        return max(low, 1)

    def number(self, *names: str, default: float | None = None) -> float | None:
        """A finite positive number, or `default` when absent."""
        key, value = self.first(*names)
        if not key:
            return default
        if is_number(value) and 0 < value < 1e30:
            return float(value)
        self.fault(key, value, "a number above 0")
        return 1.0

    def flag(self, *names: str) -> bool | None:
        """A truth value, or None when absent."""
        key, value = self.first(*names)
        if not key:
            return None
        if isinstance(value, bool):
            return value
        self.fault(key, value, "true or false")
        return None

    def text(self, *names: str) -> str | None:
        """A string, or None when absent."""
        key, value = self.first(*names)
        if not key:
            return None
        if isinstance(value, str):
            return value
        self.fault(key, value, "text")
        return None

    def items(self, *names: str) -> tuple[str, list[Any]] | None:
        """The key and entries of a non-empty list, or None when absent or empty."""
        key, value = self.first(*names)
        if not key:
            return None
        if isinstance(value, list | tuple):
            return (key, list(value)) if value else None
        self.fault(key, value, "a list")
        return None

    def per_layer(self, layers: int, *names: str, spare: int = 0) -> tuple[str, list[Any]] | None:
        """A list with one entry for each layer; up to `spare` more (MTP layers) are cut off."""
        found = self.items(*names)
        if found is None:
            return None
        key, values = found
        if layers <= len(values) <= layers + spare:
            return key, values[:layers]
        self.fault(key, f"{len(values)} entries", f"one entry for each of the {layers} layers")
        return None

    def section(self, *names: str) -> Keys | None:
        """A nested mapping, or None when absent."""
        key, value = self.first(*names)
        if not key:
            return None
        if isinstance(value, Mapping):
            return Keys(value, where=self.where, prefix=f"{self.prefix}{key}.", parent=self)
        self.fault(key, value, "a mapping")
        return None

    def ignore(self, *names: str) -> None:
        """Say that these keys are known and change nothing here."""
        self.seen.update(names)

    def unread(self) -> Iterator[tuple[str, Any]]:
        """The entries that nobody asked for and that say something."""
        for key, value in self.values.items():
            quiet = value is None or value in (0, "", "none", [], {})
            if isinstance(key, str) and key not in self.seen and not quiet:
                yield key, value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a finite number; truth values are not numbers."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int | float]:
    """Whether `value` is a finite number without a fraction."""
    return is_number(value) and (isinstance(value, int) or value.is_integer())
