"""Weight formats by name."""

from __future__ import annotations

import re

from lcprof.domain.weights import WEIGHT_FORMATS, WeightFormat, int4
from lcprof.errors import Fault, InputError, nearest, shown

CHECKPOINT = "checkpoint"
WEIGHTS_PATTERN = rf"^({CHECKPOINT}|{'|'.join(WEIGHT_FORMATS)}|int4-g[1-9][0-9]{{0,4}})$"


def parse_weights(name: str, *, where: str, key: str = "weights") -> WeightFormat | None:
    """A weight format by its name, "int4-g64" with any group; None for "checkpoint", which keeps
    the formats that the model's config states. Raises InputError."""
    if name == CHECKPOINT:
        return None
    if name in WEIGHT_FORMATS:
        return WEIGHT_FORMATS[name]
    if group := re.fullmatch(r"int4-g([1-9][0-9]{0,4})", name, re.ASCII):
        return int4(int(group[1]))
    names = [CHECKPOINT, *WEIGHT_FORMATS]
    hint = nearest(name, names) or ", ".join(names)
    expected = f"a weight format; {hint}"
    raise InputError([Fault(where=where, key=key, given=shown(name), expected=expected)])
