"""How charts look: colours by name, axes and legends, labels above bars.

Colours are names of the page's style, so that one drawing serves light, dark and paper. Labels of
bars stand above them, which leaves a phone the whole width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

SERIES = tuple(f"var(--c{index})" for index in range(1, 9))
INK, MUTED, LINE, LIMIT = "var(--ink)", "var(--muted)", "var(--line)", "var(--limit)"
PAGE = "var(--page)"
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4], [12, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")

TOKENS = (
    "datum.value >= 1048576 ? format(datum.value / 1048576, '~r') + 'M'"
    " : format(datum.value / 1024, '~r') + 'K'"
)
GB = "format(datum.value / 1e9, ',~r') + ' GB'"
SECONDS = (
    "datum.value < 1e-3 ? format(datum.value * 1e6, '~r') + ' µs'"
    " : datum.value < 1 ? format(datum.value * 1e3, '~r') + ' ms'"
    " : datum.value < 36000 ? format(datum.value, ',~r') + ' s'"
    " : format(datum.value / 3600, '.3~r') + ' h'"
)
COUNTS = "format(datum.value, ',~r')"
POWERS = "format(datum.value, '~s')"

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "titleFontWeight": "normal",
        "domainColor": LINE,
        "tickColor": LINE,
        "gridColor": LINE,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "labelOverlap": "greedy",
        "labelSeparation": 6,
    },
    "axisX": {"labelBound": True},
    "legend": {
        "labelColor": INK,
        "titleColor": MUTED,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "labelLimit": 330,
        "orient": "bottom",
        "symbolSize": 70,
        "rowPadding": 3,
    },
}

NARROW_NAME = 12
"""Letters of a name of which three fit side by side on a phone."""


def tips(*names: str) -> list[Any]:
    """A tooltip of raw values under their columns' names; the page words both."""
    import altair as alt

    return [alt.Tooltip(field=name, type="nominal", title=name) for name in names]


def of(table: str) -> alt.Chart:
    """A chart of a table by name; the page gives it the values."""
    import altair as alt

    return alt.Chart(alt.NamedData(name=table))


def tokens(values: Sequence[float], field: str = "context_tokens") -> alt.X:
    """A logarithmic axis of contexts, its ticks powers of two."""
    import altair as alt

    low, high = min(values), max(values)
    if low == high:
        low, high = low / 2, high * 2
    ticks = [2.0**power for power in range(10, 33) if low <= 2.0**power <= high]
    ticks = ticks[::2] if len(ticks) > 6 else ticks
    return alt.X(
        field=field,
        type="quantitative",
        title="context, tokens",
        scale=alt.Scale(type="log", base=2, domain=[low, high], nice=False),
        axis=alt.Axis(values=ticks, labelExpr=TOKENS, grid=False),
    )


def ladder(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5, or decades alone where there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def logarithmic(low: float, high: float, words: str) -> dict[str, Any]:
    """Scale and axis of positive values from `low` to `high`, with room around them."""
    import altair as alt

    ends = [low / 1.25, high * 1.25]
    return {
        "scale": alt.Scale(type="log", domain=ends, nice=False),
        "axis": alt.Axis(labelExpr=words, values=ladder(*ends)),
    }


def labels_above(base: alt.Chart, order: Sequence[str], field: str = "label", up: int = 3) -> Any:
    """The names of bars, above them, on a ground of their own where lines run through."""
    import altair as alt

    names = base.transform_aggregate(groupby=[field]).encode(
        x=alt.value(0), y=bands(order, field), text=alt.Text(field=field, type="nominal")
    )
    looks: dict[str, Any] = {"align": "left", "baseline": "bottom", "dy": -up, "limit": 350}
    ground = names.mark_text(**looks, fontSize=12, stroke=PAGE, strokeWidth=4, color=PAGE)
    return alt.layer(ground, names.mark_text(**looks, fontSize=12, color=INK))


def bands(order: Sequence[str], field: str = "label") -> alt.Y:
    """A band for each bar, without an axis."""
    import altair as alt

    return alt.Y(field=field, type="nominal", sort=list(order), axis=None)


def coloured(field: str, domain: Sequence[str], colours: Sequence[str], wide: bool = False) -> Any:
    """A colour for each name; `wide` names stand below each other in the legend."""
    import altair as alt

    return alt.Color(
        field=field,
        type="nominal",
        scale=alt.Scale(
            domain=list(domain), range=[c for c, _ in zip(cycle(colours), domain, strict=False)]
        ),
        legend=alt.Legend(title=None, columns=1 if wide else _columns(domain)),
    )


def _columns(domain: Sequence[str]) -> int:
    """How many names of a legend stand side by side on a phone."""
    return 3 if max(map(len, domain), default=0) <= NARROW_NAME else 2


def shaped(field: str, domain: Sequence[str]) -> Any:
    """A shape for each name, so that colour is not all that tells points apart."""
    import altair as alt

    shapes = [SHAPES[index % len(SHAPES)] for index in range(len(domain))]
    return alt.Shape(
        field=field,
        type="nominal",
        scale=alt.Scale(domain=list(domain), range=shapes),
        legend=alt.Legend(title=None, columns=_columns(domain)),
    )


def dashed(order: Sequence[str]) -> Any:
    """A dash for each line, so that colour is not all that tells them apart."""
    import altair as alt

    dashes = [list(dash) for dash in DASHES][: len(order)]
    return alt.StrokeDash(
        field="label",
        type="nominal",
        scale=alt.Scale(domain=list(order), range=dashes),
        legend=alt.Legend(title=None, columns=1),
    )
