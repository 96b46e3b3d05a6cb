"""Charts of a record: one function each, from named tables to a Vega-Lite specification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from lcprof.report.bar import PARTS
from lcprof.report.html.looks import (
    CONFIG,
    COUNTS,
    GB,
    INK,
    LIMIT,
    MUTED,
    POWERS,
    SECONDS,
    SERIES,
    SHAPES,
    bands,
    coloured,
    dashed,
    labels_above,
    ladder,
    logarithmic,
    of,
    tips,
    tokens,
)

Record = Mapping[str, Any]

WEIGHTY = 0.002
"""The share of its phase from which an operation is on the roofline."""
BAR_STEP = 40
HEIGHT = 260


class Drawing(Struct, frozen=True, kw_only=True):
    """A chart of a page: its name, what it draws from which table, and whether there is anything
    to draw."""

    name: str
    table: str
    draw: Callable[[Record], Any]


def columns(record: Record, table: str) -> Mapping[str, Sequence[Any]]:
    """The columns of a table of a record; empty where it has none."""
    found: Mapping[str, Sequence[Any]] = record["tables"].get(table, {}).get("columns", {})
    return found


def drawn(record: Record, drawing: Drawing) -> dict[str, Any] | None:
    """The Vega-Lite specification of a chart, its data left to the page; None where there is
    nothing to draw."""
    chart = drawing.draw(record) if any(columns(record, drawing.table).values()) else None
    if chart is None:
        return None
    sizing = {"type": "fit-x", "contains": "padding"}
    return {**chart.to_dict(validate=False), "config": CONFIG, "autosize": sizing}


def memory_bars(record: Record) -> Any:
    """What fills a GPU under each strategy, against what may be filled."""
    import altair as alt

    held = columns(record, "memory")
    order = list(dict.fromkeys(held["label"]))
    names = [p.name for p in PARTS if any(_parts(held, p.name))]
    most = max(*held["capacity_bytes_per_gpu"], *_totals(held))
    base = of("memory")
    bars = base.mark_bar(height=14, yOffset=6).encode(
        x=alt.X(
            field="bytes",
            type="quantitative",
            stack="zero",
            title="bytes per GPU; the line is the limit",
            scale=alt.Scale(domain=[0, most * 1.03], nice=False),
            axis=alt.Axis(labelExpr=GB, tickCount=5),
        ),
        y=bands(order),
        color=coloured("part", names, SERIES),
        order=alt.Order(field="rank", type="quantitative"),
        tooltip=tips("label", "part", "bytes", "capacity_bytes_per_gpu"),
    )
    ranks = " : ".join(f"datum.part == '{name}' ? {i}" for i, name in enumerate(names))
    bars = bars.transform_calculate(rank=f"{ranks} : {len(names)}")
    limit = (
        base.transform_aggregate(limit="max(capacity_bytes_per_gpu)", groupby=["label"])
        .mark_tick(thickness=2, size=22, yOffset=6, color=LIMIT)
        .encode(x=alt.X(field="limit", type="quantitative"), y=bands(order))
    )
    chart: Any = alt.layer(bars, limit, labels_above(base, order, up=6))
    return chart.properties(width="container", height=BAR_STEP * len(order))


def _parts(held: Mapping[str, Sequence[Any]], name: str) -> list[float]:
    pairs = zip(held["part"], held["bytes"], strict=True)
    return [size for part, size in pairs if part == name]


def _totals(held: Mapping[str, Sequence[Any]]) -> list[float]:
    totals: dict[str, float] = {}
    for label, size in zip(held["label"], held["bytes"], strict=True):
        totals[label] = totals.get(label, 0.0) + size
    return list(totals.values())


def memory_lines(record: Record) -> Any:
    """Bytes of a GPU over context for strategies that differ, and where each meets its capacity."""
    import altair as alt

    held = columns(record, "contexts")
    order = list(dict.fromkeys(held["label"]))
    top = max(*held["capacity_bytes_per_gpu"], min(held["total_bytes_per_gpu"])) * 1.5
    y = alt.Y(
        field="total_bytes_per_gpu",
        type="quantitative",
        title="memory of a GPU",
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(labelExpr=GB, tickCount=6),
    )
    shown = ("label", "context_tokens", "kv_reserved_bytes_per_gpu", "total_bytes_per_gpu")
    lines = (
        of("contexts")
        .mark_line(clip=True, strokeWidth=2)
        .encode(
            x=tokens(held["context_tokens"]),
            y=y,
            color=coloured("label", order, SERIES, wide=True),
            strokeDash=dashed(order),
            tooltip=tips(*shown),
        )
    )
    dots = (
        of("contexts")
        .mark_point(clip=True, opacity=0, size=120)
        .encode(x=tokens(held["context_tokens"]), y=y, tooltip=tips(*shown))
    )
    capacity = (
        of("contexts")
        .transform_aggregate(
            limit="max(capacity_bytes_per_gpu)", groupby=["capacity_bytes_per_gpu"]
        )
        .mark_rule(color=LIMIT, strokeWidth=1.5)
        .encode(y=alt.Y(field="limit", type="quantitative"))
    )
    layers = [capacity, lines, dots]
    if any(columns(record, "crossings").values()):
        layers.append(
            of("crossings")
            .mark_point(filled=True, size=60, color=LIMIT)
            .encode(
                x=tokens(held["context_tokens"]),
                y=alt.Y(field="capacity_bytes_per_gpu", type="quantitative"),
                tooltip=tips("label", "context_tokens", "capacity_bytes_per_gpu"),
            )
        )
    chart: Any = alt.layer(*layers)
    return chart.properties(width="container", height=HEIGHT)


def frontier(record: Record) -> Any:
    """How many sequences fit at each context."""
    import altair as alt

    held = columns(record, "contexts")
    order = list(dict.fromkeys(held["label"]))
    if not any(held["max_concurrency"]):
        return None
    chart: Any = (
        of("contexts")
        .transform_filter("datum.max_concurrency > 0")
        .mark_line(strokeWidth=2)
        .encode(
            x=tokens(held["context_tokens"]),
            y=alt.Y(
                field="max_concurrency",
                type="quantitative",
                title="most sequences that fit",
                **logarithmic(1.0, max(v for v in held["max_concurrency"] if v), COUNTS),
            ),
            color=coloured("label", order, SERIES, wide=True),
            strokeDash=dashed(order),
            tooltip=tips("label", "context_tokens", "max_concurrency"),
        )
    )
    return chart.properties(width="container", height=HEIGHT)


def _timed(record: Record, name: str, title: str) -> Any:
    """Expected seconds over context between the ends of their interval, above their floor."""
    import altair as alt

    held = columns(record, "curve")
    x = tokens(held["context_tokens"])
    known = [v for v in (*held[f"{name}_high_s"], *held[f"{name}_floor_s"]) if v]
    if len(known) < 2:
        return None
    low = min(v for v in held[f"{name}_floor_s"] if v)
    looks = logarithmic(low, max(known), SECONDS)

    def y(field: str) -> Any:
        return alt.Y(field=field, type="quantitative", title=title, **looks)

    expected = f"{name}_s"
    shown = tips("context_tokens", expected, f"{name}_low_s", f"{name}_high_s",
                 f"{name}_floor_s", f"{name}_basis")  # fmt: skip
    base = of("curve")
    some = base.transform_filter(f"datum.{expected} != null")
    floored = base.transform_filter(f"datum.{name}_floor_s != null")
    floor = floored.mark_line(color=MUTED, strokeDash=[3, 3], strokeWidth=1.5)
    layers = [floor.encode(x=x, y=y(f"{name}_floor_s"), tooltip=shown)]
    if any(held[expected]):
        pairs = zip(held[f"{name}_basis"], held[expected], strict=True)
        bases = list(dict.fromkeys(basis for basis, value in pairs if value))
        shapes = alt.Scale(domain=bases, range=list(SHAPES)[: len(bases)])
        band = some.mark_area(opacity=0.22, color=SERIES[0])
        line = some.mark_line(color=SERIES[0], strokeWidth=2)
        dots = some.mark_point(color=SERIES[0], filled=True, size=34)
        layers += [
            band.encode(x=x, y=y(f"{name}_low_s"), y2=f"{name}_high_s"),
            line.encode(x=x, y=y(expected)),
            dots.encode(
                x=x,
                y=y(expected),
                shape=alt.Shape(
                    field=f"{name}_basis",
                    type="nominal",
                    scale=shapes,
                    legend=alt.Legend(title="rests on", columns=3, symbolFillColor=MUTED),
                ),
                tooltip=shown,
            ),
        ]
    planned = (
        of("planned")
        .mark_rule(color=INK, strokeDash=[1, 3], strokeWidth=1.5)
        .encode(x=alt.X(field="context_tokens", type="quantitative"))
    )
    chart: Any = alt.layer(*layers, planned)
    return chart.properties(width="container", height=HEIGHT)


def ttft_curve(record: Record) -> Any:
    """Time to the first token over context."""
    return _timed(record, "ttft", "time to first token")


def tpot_curve(record: Record) -> Any:
    """Time of a decode step over position."""
    return _timed(record, "tpot", "time per output token")


def _by_operation(record: Record, phase: str) -> Any:
    """Expected seconds of each operation of a phase, with their intervals."""
    import altair as alt

    held = columns(record, "operations")
    lines = zip(held["phase"], held["operation"], held["seconds"], held["high_s"], strict=True)
    found = sorted(((s, o, high) for p, o, s, high in lines if p == phase), reverse=True)
    if not found:
        return None
    order = [operation for _, operation, _ in found]
    most = max(high for _, _, high in found)
    unit, size = _unit(most)
    base = of("operations").transform_filter(f"datum.phase == '{phase}'")
    x_axis = alt.Axis(labelExpr=f"format(datum.value / {size}, ',~r') + ' {unit}'", tickCount=4)
    scale = alt.Scale(domain=[0, most], nice=True)
    bars = base.mark_bar(height=12, yOffset=6, color=SERIES[0]).encode(
        x=alt.X(field="seconds", type="quantitative", title="expected", scale=scale, axis=x_axis),
        y=bands(order, "operation"),
        tooltip=tips("operation", "seconds", "low_s", "high_s", "share", "kernels"),
    )
    ends = base.mark_rule(color=INK, strokeWidth=1.5, yOffset=6).encode(
        x=alt.X(field="low_s", type="quantitative"), x2="high_s", y=bands(order, "operation")
    )
    names = labels_above(base, order, "operation")
    chart: Any = alt.layer(bars, ends, names)
    return chart.properties(width="container", height=34 * len(order))


def _unit(most: float) -> tuple[str, float]:
    for unit, size in (("h", 3600.0), ("s", 1.0), ("ms", 1e-3)):
        if most >= size * (10 if unit == "h" else 1):
            return unit, size
    return "µs", 1e-6


def prefill_operations(record: Record) -> Any:
    """Where the time of a prefill goes."""
    return _by_operation(record, "prefill")


def step_operations(record: Record) -> Any:
    """Where the time of a decode step goes."""
    return _by_operation(record, "decode step")


def roofline(record: Record) -> Any:
    """Every operation's FLOP/s over its FLOPs per byte, under the roofs of the data sheet."""
    import altair as alt

    held = columns(record, "operations")
    lines = zip(held["operation"], held["flops_per_s"], held["share"], strict=True)
    points = [(name, rate) for name, rate, share in lines if rate and share >= WEIGHTY]
    if not points:
        return None
    names = list(dict.fromkeys(name for name, _ in points))
    peak = max(columns(record, "roofs")["peak_flops_per_s"])
    low = min(rate for _, rate in points)
    x = alt.X(
        field="flops_per_byte",
        type="quantitative",
        title="FLOPs per byte of GPU memory",
        scale=alt.Scale(type="log", domain=[0.1, 1e5], nice=False, clamp=True),
        axis=alt.Axis(labelExpr=COUNTS, values=[0.1, 1, 10, 100, 1e3, 1e4, 1e5], grid=False),
    )
    y = alt.Y(
        field="flops_per_s",
        type="quantitative",
        title="FLOP/s of a GPU",
        scale=alt.Scale(type="log", domain=[low / 3, peak * 2], nice=False),
        axis=alt.Axis(labelExpr=POWERS, values=ladder(low / 3, peak * 2)),
    )
    roofs = (
        of("roofs")
        .mark_line(color=LIMIT, strokeWidth=1.5, clip=True)
        .encode(
            x=x,
            y=y,
            detail=alt.Detail(field="compute"),
            tooltip=tips("compute", "peak_flops_per_s"),
        )
    )
    dots = (
        of("operations")
        .transform_filter(f"datum.flops_per_s > 0 && datum.share >= {WEIGHTY}")
        .mark_point(filled=True, size=90, opacity=0.95, stroke="var(--page)", strokeWidth=0.5)
        .encode(
            x=x,
            y=y,
            color=coloured("operation", names, SERIES),
            shape=alt.Shape(
                field="phase",
                type="nominal",
                scale=alt.Scale(domain=["prefill", "decode step"], range=["circle", "triangle-up"]),
                legend=alt.Legend(title=None, symbolFillColor=MUTED),
            ),
            tooltip=tips(
                "phase", "operation", "flops_per_byte", "flops_per_s", "compute", "seconds"
            ),
        )
    )
    chart: Any = alt.layer(roofs, dots)
    return chart.properties(width="container", height=320)


def share_curves(record: Record) -> Any:
    """Attention's share of a prefill, and the cache's of what a step reads, over context."""
    import altair as alt

    held = columns(record, "shares")
    names = ("attention_share_of_prefill_flops", "kv_share_of_step_bytes")
    said = ("attention in the FLOPs of a prefill", "KV in the bytes that a decode step reads")
    folded = of("shares").transform_fold(list(names), as_=["name", "share"])
    words = f"datum.name == '{names[0]}' ? '{said[0]}' : '{said[1]}'"
    encoded = folded.transform_calculate(what=words)
    half = alt.Chart(alt.InlineData(values=[{"half": 0.5}])).mark_rule(color=LIMIT)
    lines = encoded.mark_line(strokeWidth=2, point={"size": 26, "filled": True}).encode(
        x=tokens(held["context_tokens"]),
        y=alt.Y(
            field="share",
            type="quantitative",
            title="share",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", tickCount=5),
        ),
        color=coloured("what", said, SERIES, wide=True),
        tooltip=tips("context_tokens", *names),
    )
    rule = half.encode(y=alt.Y(field="half", type="quantitative"))
    chart: Any = alt.layer(rule, lines)
    return chart.properties(width="container", height=HEIGHT)


def _ranked(record: Record, name: str, title: str) -> Any:
    """Expected seconds of each row with their intervals; a floor where nothing is expected."""
    import altair as alt

    held = columns(record, "rows")
    floors = zip(held["label"], held[f"{name}_s"], held[f"{name}_floor_s"], strict=True)
    order = [label for label, value, _ in floors if value]
    if not order:
        return None
    base = of("rows").transform_filter(f"datum.{name}_s > 0")
    timed = [[v for v in held[f"{name}_{end}_s"] if v] for end in ("floor", "high")]
    x = {
        "title": title,
        "type": "quantitative",
        **logarithmic(min(timed[0]), max(timed[1]), SECONDS),
    }
    shown = tips("label", f"{name}_s", f"{name}_low_s", f"{name}_high_s", f"{name}_floor_s",
                 f"{name}_basis")  # fmt: skip
    ends = base.mark_rule(strokeWidth=3, opacity=0.45, yOffset=6, color=SERIES[0]).encode(
        x=alt.X(field=f"{name}_low_s", **x), x2=f"{name}_high_s", y=bands(order), tooltip=shown
    )
    dots = base.mark_point(filled=True, size=70, yOffset=6, color=SERIES[0]).encode(
        x=alt.X(field=f"{name}_s", **x), y=bands(order), tooltip=shown
    )
    floors_ = base.mark_tick(thickness=2, size=12, yOffset=6, color=MUTED).encode(
        x=alt.X(field=f"{name}_floor_s", **x), y=bands(order), tooltip=shown
    )
    chart: Any = alt.layer(ends, floors_, dots, labels_above(base, order))
    return chart.properties(width="container", height=36 * len(order))


def ttft_ranked(record: Record) -> Any:
    """Time to the first token of each row."""
    return _ranked(record, "ttft", "time to first token")


def tpot_ranked(record: Record) -> Any:
    """Time per output token of each row."""
    return _ranked(record, "tpot", "time per output token")


def _by_batch(
    record: Record, name: str, title: str, band: tuple[str, str] | None, axis: str
) -> Any:
    import altair as alt

    held = columns(record, "batch")
    if len([value for value in held[name] if value]) < 2:
        return None
    known = [value for column in (name, *(band or ())) for value in held[column] if value]
    counts = list(dict.fromkeys(held["concurrency"]))
    x = alt.X(
        field="concurrency",
        type="quantitative",
        title="sequences at once",
        scale=alt.Scale(type="log", base=2, nice=False),
        axis=alt.Axis(labelExpr=COUNTS, values=counts, grid=False),
    )
    y = alt.Y(
        field=name,
        type="quantitative",
        title=title,
        **logarithmic(min(known), max(known), axis),
    )
    base = of("batch").transform_filter(f"datum.{name} > 0")
    layers = []
    if band:
        low = alt.Y(field=band[0], type="quantitative")
        layers.append(base.mark_area(opacity=0.22, color=SERIES[0]).encode(x=x, y=low, y2=band[1]))
    line = base.mark_line(color=SERIES[0], strokeWidth=2, point={"size": 40, "color": SERIES[0]})
    layers.append(line.encode(x=x, y=y, tooltip=tips("concurrency", name, *(band or ()))))
    chart: Any = alt.layer(*layers)
    return chart.properties(width="container", height=220)


def cost_by_batch(record: Record) -> Any:
    """Dollars for a million output tokens over the batch."""
    name = "usd_per_million_output_tokens"
    return _by_batch(
        record, name, "$ per million output tokens", None, "'$' + format(datum.value, ',~r')"
    )


def energy_by_batch(record: Record) -> Any:
    """Joules of an output token over the batch."""
    ends = ("output_token_low_j", "output_token_high_j")
    axis = "format(datum.value, ',~r') + ' J'"
    return _by_batch(record, "output_token_j", "energy of an output token", ends, axis)


DRAWINGS = (
    Drawing(name="memory-bars", table="memory", draw=memory_bars),
    Drawing(name="memory-lines", table="contexts", draw=memory_lines),
    Drawing(name="frontier", table="contexts", draw=frontier),
    Drawing(name="ttft-curve", table="curve", draw=ttft_curve),
    Drawing(name="tpot-curve", table="curve", draw=tpot_curve),
    Drawing(name="prefill-operations", table="operations", draw=prefill_operations),
    Drawing(name="step-operations", table="operations", draw=step_operations),
    Drawing(name="roofline", table="operations", draw=roofline),
    Drawing(name="share-curves", table="shares", draw=share_curves),
    Drawing(name="ttft-ranked", table="rows", draw=ttft_ranked),
    Drawing(name="tpot-ranked", table="rows", draw=tpot_ranked),
    Drawing(name="cost-by-batch", table="batch", draw=cost_by_batch),
    Drawing(name="energy-by-batch", table="batch", draw=energy_by_batch),
)
"""Every chart that a page may hold, in the order of its sections."""
