"""What every operation family offers: its parameters, its time, its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from lcprof.cost.timing.ceilings import Ceilings
from lcprof.domain.calibration import Parameter


class Family(Struct, frozen=True, kw_only=True):
    """One operation family. Every callable takes a call whose quantities are floats or arrays.

    `seconds(call, ceilings, parameters)` is the expected time of one call. `features(call)` are
    the quantities whose measured range makes the box of a fit. `large(call)` tells calls bound by
    their work from calls bound by launching.
    """

    name: str
    parameters: Mapping[str, Parameter]
    seconds: Callable[[Any, Ceilings, Mapping[str, float]], Any]
    features: Callable[[Any], Mapping[str, Any]]
    large: Callable[[Any], Any]
