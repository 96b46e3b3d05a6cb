"""lcprof: what does long context cost?

`plan_scenario` and `sweep` are the two ways in from Python; both load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lcprof.plan.row import Row
    from lcprof.plan.sweep import sweep as sweep

__version__ = "0.1.0"
__all__ = ["InputError", "__version__", "plan_scenario", "sweep"]


def plan_scenario(source: str | Path | Mapping[str, Any], **changes: Any) -> list[Row]:
    """The rows of a scenario: a YAML file's path, or the mapping that such a file holds.

    `changes` replace its keys, as `context="1M"` or `kv=["bf16", "fp8"]`. A row's `columns()` are
    those of `lcprof plan --json`, `row.estimate.fits` says whether it fits.
    Raises InputError, which carries every fault found.
    """
    from collections.abc import Mapping
    from pathlib import Path

    from lcprof.plan.row import plan_cases
    from lcprof.scenario.cases import expand
    from lcprof.scenario.files import place, read_yaml
    from lcprof.scenario.schema import read_scenario

    where, base, data = "scenario", None, source
    if isinstance(source, (str, Path)):
        path = Path(source)
        where, base, data = place(path), path.parent, read_yaml(path)
    if isinstance(data, Mapping):
        data = {**data, **changes}
    scenario = read_scenario(data, where=where, base=base)
    return plan_cases(expand(scenario, where=where, base=base))


def __getattr__(name: str) -> Any:
    if name == "sweep":
        from lcprof.plan.sweep import sweep

        return sweep
    if name == "InputError":
        from lcprof.errors import InputError

        return InputError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
