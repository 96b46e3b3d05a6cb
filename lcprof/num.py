"""Arithmetic that serves one number and an array of them with the same result, bit for bit.

Cost formulas are written once over `Num`: ordinary operators, and the functions here where Python
would need an `if` on a quantity. Scalars never load numpy, so a plan of one scenario starts fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Num = TypeVar("Num", float, Array)
else:
    Array = Any
    Num = TypeVar("Num")

SCALARS = (float, int)


def smaller(a: Any, b: Any) -> Any:
    """Element-wise minimum."""
    if isinstance(a, SCALARS) and isinstance(b, SCALARS):
        return a if a <= b else b
    import numpy as np

    return np.minimum(a, b)


def larger(a: Any, b: Any) -> Any:
    """Element-wise maximum."""
    if isinstance(a, SCALARS) and isinstance(b, SCALARS):
        return a if a >= b else b
    import numpy as np

    return np.maximum(a, b)


def ceil(a: Any) -> Any:
    """Element-wise ceiling, as float64."""
    if isinstance(a, SCALARS):
        return float(math.ceil(a))
    import numpy as np

    return np.ceil(a)


def floor(a: Any) -> Any:
    """Element-wise floor, as float64."""
    if isinstance(a, SCALARS):
        return float(math.floor(a))
    import numpy as np

    return np.floor(a)


def choose(condition: Any, a: Any, b: Any) -> Any:
    """`a` where `condition` holds, else `b`."""
    if isinstance(condition, bool):
        return a if condition else b
    import numpy as np

    return np.where(condition, a, b)


def ceil_div(a: int, b: int) -> int:
    """Integer ceiling division of counts."""
    return -(-a // b)


def exp(a: Any) -> Any:
    """Element-wise e^a through the C library, so that arrays agree with scalars to the last bit
    (numpy's own vectorised exp does not promise that). Meant for small arrays."""
    if isinstance(a, SCALARS):
        return math.exp(a)
    import numpy as np

    return np.array([math.exp(each) for each in a.ravel().tolist()]).reshape(a.shape)


def doublings(a: Any) -> Any:
    """How many doublings lead from 1 to `a` (1 or more), in straight lines between powers of two:
    log2 to within 0.09, of exact operations alone."""
    if isinstance(a, SCALARS):
        mantissa, exponent = math.frexp(a)
        return (exponent - 2.0) + 2.0 * mantissa
    import numpy as np

    parts, powers = np.frexp(a)
    return (powers - 2.0) + 2.0 * parts


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of `values` lies, linear between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
