"""Charts of runs: predictions against measurements, and what the board did meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcprof.report.html.charts import HEIGHT, Drawing, Record, columns
from lcprof.report.html.looks import (
    COUNTS,
    INK,
    LIMIT,
    LINE,
    MUTED,
    SECONDS,
    SERIES,
    bands,
    coloured,
    labels_above,
    logarithmic,
    of,
    shaped,
    tips,
    tokens,
)

NEAR, WIDE = 0.05, 0.1
"""The bands that errors are held to."""
EDGE = 1.0
"""Errors beyond it are drawn at the edge."""
LANE = 36
FEW_TIMES = 6.0
"""Values that differ by less lie on an even axis, not on a logarithmic one."""
TIMED = ("run", "point", "seconds_predicted", "seconds_measured", "seconds_error", "basis")
COUNTED = {
    "hbm_bytes_error": "bytes of GPU memory",
    "flops_error": "FLOPs",
    "peak_bytes_error": "peak memory",
}
PERCENT = "datum.value === 0 ? '0%' : format(datum.value, '+~%')"


def _known(values: Sequence[Any]) -> list[float]:
    return [value for value in values if value is not None]


def _names(record: Record, column: str, needed: Sequence[str]) -> list[str]:
    """The names of a column of points that have one of some values; lanes by their names, so that
    those of one operation lie together."""
    held = columns(record, "points")
    rows = zip(held[column], *(held[name] for name in needed), strict=True)
    found = dict.fromkeys(name for name, *values in rows if _known(values))
    return sorted(found) if column == "lane" else list(found)


def parity(record: Record) -> Any:
    """Expected against measured time of every point, with bands of 5 and 10 % about equality."""
    import altair as alt

    held = columns(record, "points")
    pairs = zip(held["seconds_predicted"], held["seconds_measured"], strict=True)
    both = [value for pair in pairs if None not in pair for value in pair]
    if not both:
        return None
    low, high = min(both) / 1.5, max(both) * 1.5
    looks = logarithmic(low, high, SECONDS)
    x = alt.X(field="seconds_measured", type="quantitative", title="measured", **looks)
    y = alt.Y(field="seconds_predicted", type="quantitative", title="expected", **looks)
    edges = [{"at": at, **_around(at)} for at in (low / 1.25, high * 1.25)]
    ends = alt.Chart(alt.InlineData(values=edges)).encode(x=alt.X(field="at", type="quantitative"))
    layers = [
        ends.mark_area(color=MUTED, opacity=0.16, clip=True).encode(
            y=alt.Y(field=f"low_{width}", type="quantitative"), y2=f"high_{width}"
        )
        for width in ("wide", "near")
    ]
    layers.append(
        ends.mark_line(color=MUTED, strokeWidth=1, clip=True).encode(
            y=alt.Y(field="at", type="quantitative")
        )
    )
    names = _names(record, "operation", ("seconds_error",))
    points = of("points").transform_filter("datum.seconds_error != null")
    layers.append(
        points.mark_rule(opacity=0.35, color=INK)
        .transform_filter("datum.seconds_low != null")
        .encode(x=x, y=alt.Y(field="seconds_low", type="quantitative"), y2="seconds_high")
    )
    layers.append(
        points.mark_point(filled=True, size=70, opacity=0.9).encode(
            x=x,
            y=y,
            color=coloured("operation", names, SERIES),
            shape=shaped("operation", names),
            tooltip=tips(*TIMED, "seconds_low", "seconds_high"),
        )
    )
    chart: Any = alt.layer(*layers)
    return chart.properties(width="container", height=360)


def _around(at: float) -> dict[str, float]:
    return {
        f"{end}_{name}": at * (1 + sign * width)
        for name, width in (("near", NEAR), ("wide", WIDE))
        for end, sign in (("low", -1), ("high", 1))
    }


def _errors_axis(values: Sequence[float]) -> dict[str, Any]:
    """Scale and axis of errors about nought, both ways alike."""
    import altair as alt

    most = min(EDGE, max(1.2 * WIDE, *(abs(value) for value in values)))
    return {
        "scale": alt.Scale(domain=[-most, most], nice=True, clamp=True),
        "axis": alt.Axis(labelExpr=PERCENT, tickCount=5, grid=False),
    }


def _guides(axis: str) -> list[Any]:
    """Nought and both bands, across an axis of errors."""
    import altair as alt

    kind = {"x": alt.X, "y": alt.Y}[axis]
    marks = []
    for values, colour, dash in (
        ([0.0], MUTED, [1, 0]),
        ([-NEAR, NEAR], MUTED, [2, 3]),
        ([-WIDE, WIDE], LINE, [6, 3]),
    ):
        base = alt.Chart(alt.InlineData(values=[{"guide": value} for value in values]))
        rule = base.mark_rule(color=colour, strokeDash=dash, strokeWidth=1)
        marks.append(rule.encode(**{axis: kind(field="guide", type="quantitative")}))
    return marks


def errors_by_operation(record: Record) -> Any:
    """The error of every expected time, by operation."""
    import altair as alt

    held = columns(record, "points")
    order = _names(record, "lane", ("seconds_error",))
    if not order:
        return None
    base = of("points").transform_filter("datum.seconds_error != null")
    x = alt.X(
        field="seconds_error",
        type="quantitative",
        title="expected over measured, less one",
        **_errors_axis(_known(held["seconds_error"])),
    )
    dots = base.mark_point(filled=True, size=50, opacity=0.6, yOffset=8, color=SERIES[0])
    layers = [*_guides("x"), dots.encode(x=x, y=bands(order, "lane"), tooltip=tips(*TIMED))]
    chart: Any = alt.layer(*layers, labels_above(base, order, "lane"))
    return chart.properties(width="container", height=LANE * len(order))


def errors_by_length(record: Record) -> Any:
    """The error of every expected time, over the context that its operation sees."""
    import altair as alt

    held = columns(record, "points")
    pairs = zip(held["length_tokens"], held["seconds_error"], strict=True)
    lengths = [length for length, error in pairs if length and error is not None]
    if not lengths:
        return None
    names = _names(record, "operation", ("seconds_error",))
    base = of("points").transform_filter("datum.seconds_error != null && datum.length_tokens > 0")
    y = alt.Y(
        field="seconds_error",
        type="quantitative",
        title="expected over measured, less one",
        **_errors_axis(_known(held["seconds_error"])),
    )
    dots = base.mark_point(filled=True, size=60, opacity=0.85).encode(
        x=tokens(lengths, "length_tokens"),
        y=y,
        color=coloured("operation", names, SERIES),
        shape=shaped("operation", names),
        tooltip=tips(*TIMED, "length_tokens"),
    )
    chart: Any = alt.layer(*_guides("y"), dots)
    return chart.properties(width="container", height=HEIGHT)


def _strip(record: Record, field: str, title: str, words: str, *, rule: float | None = None) -> Any:
    """Every point's value of a column by operation, on a logarithmic axis."""
    import altair as alt

    held = columns(record, "points")
    values = [value for value in _known(held[field]) if value > 0]
    if not values:
        return None
    order = _names(record, "lane", (field,))
    low, high = min(*values, rule or values[0]), max(*values, rule or values[0])
    looks = logarithmic(low, high, words)
    if high < FEW_TIMES * low:
        ends = alt.Scale(domain=[low / 1.05, high * 1.05], nice=True, zero=False)
        looks = {"scale": ends, "axis": alt.Axis(labelExpr=words, tickCount=5)}
    x = alt.X(field=field, type="quantitative", title=title, **looks)
    base = of("points").transform_filter(f"datum.{field} > 0")
    dots = base.mark_point(filled=True, size=50, opacity=0.6, yOffset=8, color=SERIES[0]).encode(
        x=x, y=bands(order, "lane"), tooltip=tips("run", "point", field, "seconds_measured")
    )
    layers = [dots, labels_above(base, order, "lane")]
    if rule is not None:
        line = alt.Chart(alt.InlineData(values=[{"guide": rule}])).mark_rule(color=LIMIT)
        guide = alt.X(field="guide", type="quantitative", scale=looks["scale"])
        layers.insert(0, line.encode(x=guide))
    chart: Any = alt.layer(*layers)
    return chart.properties(width="container", height=LANE * len(order))


def took(record: Record) -> Any:
    """How long a single call of each point took."""
    return _strip(record, "seconds_measured", "time of a single call", SECONDS)


def floors(record: Record) -> Any:
    """Measured time of each point over what the data sheet allows."""
    words = f"{COUNTS} + ' x'"
    return _strip(record, "measured_over_floor", "measured over floor", words, rule=1.0)


def counters(record: Record) -> Any:
    """Predicted over counted bytes, FLOPs and peak memory of each point, less one."""
    import altair as alt

    held = columns(record, "points")
    values = [value for name in COUNTED for value in _known(held[name])]
    if not values:
        return None
    order = _names(record, "lane", list(COUNTED))
    words = [what for name, what in COUNTED.items() if _known(held[name])]
    said = "{" + ", ".join(f"'{name}': '{what}'" for name, what in COUNTED.items()) + "}"
    base = of("points").transform_fold(list(COUNTED), as_=["column", "error"])
    base = base.transform_filter("datum.error != null")
    base = base.transform_calculate(what=f"({said})[datum.column]")
    x = alt.X(
        field="error",
        type="quantitative",
        title="predicted over counted, less one",
        **_errors_axis(values),
    )
    dots = base.mark_point(filled=True, size=50, opacity=0.75, yOffset=8).encode(
        x=x,
        y=bands(order, "lane"),
        color=coloured("what", words, SERIES),
        shape=shaped("what", words),
        tooltip=tips("run", "point", *COUNTED),
    )
    chart: Any = alt.layer(*_guides("x"), dots, labels_above(base, order, "lane"))
    return chart.properties(width="container", height=LANE * len(order))


def sustained(record: Record) -> Any:
    """How much longer a call takes in a sustained run than alone."""
    import altair as alt

    held = columns(record, "points")
    values = _known(held["sustained_over_burst"])
    if not values:
        return None
    names = _names(record, "operation", ("sustained_over_burst",))
    base = of("points").transform_filter("datum.sustained_over_burst != null")
    times = _known(held["seconds_measured"])
    x = alt.X(
        field="seconds_measured",
        type="quantitative",
        title="time of a single call",
        **logarithmic(min(times), max(times), SECONDS),
    )
    scale = alt.Scale(domain=[min(0.9, *values), max(1.1, *values)], nice=True, zero=False)
    y = alt.Y(
        field="sustained_over_burst",
        type="quantitative",
        title="sustained over single",
        scale=scale,
        axis=alt.Axis(labelExpr=f"{COUNTS} + ' x'", tickCount=5),
    )
    dots = base.mark_point(filled=True, size=60, opacity=0.85).encode(
        x=x,
        y=y,
        color=coloured("operation", names, SERIES),
        shape=shaped("operation", names),
        tooltip=tips("run", "point", "seconds_measured", "sustained_s_measured",
                     "sustained_over_burst", "power_w", "sm_clock_hz", "throttle"),
    )  # fmt: skip
    one = alt.Chart(alt.InlineData(values=[{"guide": 1.0}])).mark_rule(color=LIMIT)
    rule = one.encode(y=alt.Y(field="guide", type="quantitative", scale=scale))
    chart: Any = alt.layer(rule, dots)
    return chart.properties(width="container", height=HEIGHT)


def _over_time(record: Record, field: str, title: str, words: str, limit: str) -> Any:
    """A reading of the board over the time since the run began, and its limit."""
    import altair as alt

    held = columns(record, "board")
    values = _known(held[field])
    if not values:
        return None
    limits = _known(columns(record, "runs")[limit])
    names = list(dict.fromkeys(held["operation"]))
    top = max(*values, *limits) if limits else max(values)
    y = alt.Y(
        field=field,
        type="quantitative",
        title=title,
        scale=alt.Scale(domain=[0, top * 1.05], nice=False),
        axis=alt.Axis(labelExpr=words, tickCount=5),
    )
    x = alt.X(
        field="moment_s",
        type="quantitative",
        title="since the run began",
        scale=alt.Scale(nice=False),
        axis=alt.Axis(labelExpr=SECONDS, tickCount=5, grid=False),
    )
    lines = (
        of("board")
        .mark_line(strokeWidth=1.5, point={"size": 14, "filled": True})
        .encode(
            x=x,
            y=y,
            color=coloured("operation", names, SERIES),
            detail=alt.Detail(field="point"),
            tooltip=tips("run", "point", "moment_s", "power_w", "sm_clock_hz", "temperature_c"),
        )
    )
    layers = [lines]
    if limits:
        rule = of("runs").mark_rule(color=LIMIT).encode(y=alt.Y(field=limit, type="quantitative"))
        layers.insert(0, rule)
    chart: Any = alt.layer(*layers)
    return chart.properties(width="container", height=HEIGHT)


def power_over_time(record: Record) -> Any:
    """Power of the board during sustained runs."""
    words = f"{COUNTS} + ' W'"
    return _over_time(record, "power_w", "power", words, "power_limit_w")


def clock_over_time(record: Record) -> Any:
    """The SM clock during sustained runs."""
    words = "format(datum.value / 1e9, '.2~f') + ' GHz'"
    return _over_time(record, "sm_clock_hz", "SM clock", words, "sm_clock_max_hz")


RUN_DRAWINGS = (
    Drawing(name="parity", table="points", draw=parity),
    Drawing(name="errors-by-operation", table="points", draw=errors_by_operation),
    Drawing(name="errors-by-length", table="points", draw=errors_by_length),
    Drawing(name="took", table="points", draw=took),
    Drawing(name="floors", table="points", draw=floors),
    Drawing(name="counters", table="points", draw=counters),
    Drawing(name="sustained", table="points", draw=sustained),
    Drawing(name="power-over-time", table="board", draw=power_over_time),
    Drawing(name="clock-over-time", table="board", draw=clock_over_time),
)
"""Every chart that a page of runs may hold, in the order of its sections."""
