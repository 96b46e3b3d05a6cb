"""lcprof: what does long context cost?

`plan_scenario`, `sweep` and `read_run` are the ways in from Python; they load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lcprof.notebook import Plan, Run
    from lcprof.plan.sweep import sweep as sweep

__version__ = "0.1.0"
__all__ = ["InputError", "__version__", "plan_scenario", "read_run", "sweep"]


def plan_scenario(source: str | Path | Mapping[str, Any], **changes: Any) -> Plan:
    """The plan of a scenario: a YAML file's path, or the mapping that such a file holds.

    `changes` replace its keys, as `context="1M"` or `kv=["bf16", "fp8"]`. A plan is a sequence of
    rows: a row's `columns()` are those of `lcprof plan --json`, `row.estimate.fits` says whether it
    fits. Raises InputError, which carries every fault found.
    """
    from lcprof.notebook import planned

    return planned(source, changes)


def read_run(path: str | Path) -> Run:
    """A run of `lcprof measure`, from its folder or its record. Raises InputError."""
    from lcprof.notebook import measured

    return measured(path)


def __getattr__(name: str) -> Any:
    if name == "sweep":
        from lcprof.plan.sweep import sweep

        return sweep
    if name == "InputError":
        from lcprof.errors import InputError

        return InputError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
