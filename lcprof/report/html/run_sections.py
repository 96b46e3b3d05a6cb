"""What a page says of runs: how far predictions were off, where, and under which conditions."""

from __future__ import annotations

from lcprof.report.html.figures import head
from lcprof.report.html.markup import Markup, section
from lcprof.report.html.run_record import PLACE

WORST = 12
TIMES = ("run", "point", "seconds_predicted", "seconds_low", "seconds_high", "seconds_measured",
         "seconds_error", "inside", "basis")  # fmt: skip
FLOORS = ("run", "point", "floor_s", "seconds_measured", "measured_over_floor", "floor_gpu")
COUNTERS = (
    *("run", "point", "hbm_bytes_predicted", "hbm_bytes_measured", "hbm_bytes_error"),
    *("flops_predicted", "flops_measured", "flops_error", "tensor_utilisation"),
    *("peak_bytes_predicted", "peak_bytes_measured", "peak_bytes_error"),
)
SUSTAINED = (
    *("run", "point", "seconds_measured", "sustained_s_measured", "sustained_s_error"),
    *("sustained_over_burst", "warm", "power_w", "energy_j_measured", "energy_j_error"),
    *("sm_clock_hz", "throttle"),
)
KEY = (
    "Points are worded as kernels are benchmarked: B is the batch, q the query tokens, kv the "
    "tokens of context, a pair with a slash the query and KV heads, D the width of a head; m, k "
    "and n are the sides of a matrix product."
)


def run_sentences(page: Markup) -> str:
    """A sentence for each run: how much was measured, how far predictions were off."""
    return "".join(_sentence(page, row) for row in range(page.size("runs")))


def _sentence(page: Markup, row: int) -> str:
    def at(column: str) -> str:
        return page.figure("runs", column, row)

    called = f"{at('run')}: " if page.size("runs") > 1 else ""
    text = f"{called}{at('measured')} of {at('points')} points were measured on {at('gpu')}"
    if page.value("runs", "seconds_points", row):
        text += (
            f"; expected times are off by {at('seconds_median_error_share')} in the median, nine "
            f"in ten by less than {at('seconds_high_error_share')}. The worst is "
            f"{at('worst_point')}, at {at('worst_error')}"
        )
    elif page.value("runs", "measured_over_floor", row) is not None:
        text += (
            f"; no time was expected of them, and they took {at('measured_over_floor')} the data "
            "sheet's floor in the median"
        )
    else:
        text += "; no time was expected of them"
    return f'<p class="verdict">{text}.</p>'


def run_verdict(page: Markup) -> str:
    """The first section of a page about runs alone."""
    return section(
        "verdict", "Verdict", run_sentences(page), _tiles(page), _trust(page), hidden=True
    )


def measured(page: Markup) -> str:
    """Predictions against measurements, the worst points, and what hardware counted."""
    if not page.size("runs"):
        return ""
    told = "" if "rows" not in page.tables else run_sentences(page) + _tiles(page) + _trust(page)
    parity = page.chart(
        "parity",
        "Expected against measured",
        "A point on the line was predicted exactly; the inner band is five percent wide either "
        "way, the outer one ten. Upright lines: where nine in ten measurements were expected.",
        "points",
        TIMES,
    )
    by_operation = page.chart(
        "errors-by-operation",
        "Error by operation",
        "Right of the middle: expected to take longer than it did. Dashed: five and ten percent. "
        "What is off by more than its own size is drawn at the edge.",
        "points",
        TIMES,
    )
    by_length = page.chart(
        "errors-by-length",
        "Error by length",
        "Above the middle: expected to take longer than it did. Dashed: five and ten percent. "
        "Operations that see no context, as matrix products, are left out.",
        "points",
        ("run", "point", "length_tokens", "seconds_predicted", "seconds_measured", "seconds_error"),
    )
    floors = page.chart(
        "floors",
        "Measured over the floor",
        "How many times longer each point took than the data sheet allows; the rule is the floor.",
        "points",
        FLOORS,
    )
    took = page.chart(
        "took",
        "How long each took",
        "The median of single calls.",
        "points",
        ("run", "point", "seconds_measured", "burst_p20_s", "burst_p80_s", "rounds", "launch"),
    )
    pairs = [pair for pair in (parity + by_length, by_operation + floors, took) if pair]
    charts = "".join(f'<div class="pair">{pair}</div>' for pair in pairs)
    predicted = any(page.columns("runs")["seconds_points"])
    title = "Prediction against measurement" if predicted else "What was measured"
    return section("measured", title, told, charts, _worst(page))


def _trust(page: Markup) -> str:
    """What the errors rest on."""
    parts = []
    if any(page.columns("runs")["seconds_points"]):
        parts.append(
            "Errors are expected over measured time, less one; expectations were written down "
            "before the run."
        )
        seen = [row for row, count in enumerate(page.columns("runs")["seen_points"]) if count]
        parts += [
            f"{page.figure('runs', 'seen_points', row)} of "
            f"{page.figure('runs', 'seconds_points', row)} points of "
            f"{page.figure('runs', 'run', row)} had been seen by the fit that predicted them: "
            "their errors say little."
            for row in seen
        ]
    for row, shown in enumerate(page.columns("runs")["shown"]):
        every = page.value("runs", "measured", row)
        if shown + _ceilings_of(page, row) < every:
            parts.append(
                f"{page.figure('runs', 'shown', row)} points of {page.figure('runs', 'run', row)} "
                "are on this page: those that are worst predicted, and of the others an even "
                "choice. Sums are over all."
            )
    for row, torn in enumerate(page.columns("runs")["torn_bytes"]):
        if torn:
            parts.append(
                f"The last line of {page.figure('runs', 'run', row)} is torn: "
                f"{page.figure('runs', 'torn_bytes', row)} of it are not read."
            )
    return f'<p class="muted">{" ".join(parts)}</p>' if parts else ""


def _ceilings_of(page: Markup, row: int) -> int:
    name = page.value("runs", "run", row)
    return list(page.columns("ceilings").get("run", ())).count(name)


TILES = (
    ("Error of the time, median", "seconds_median_error_share", "seconds_points"),
    ("Nine in ten are below", "seconds_high_error_share", "seconds_points"),
    ("Within their interval", "inside_share", "seconds_points"),
    ("Error of the bytes, median", "hbm_bytes_median_error_share", "hbm_bytes_points"),
    ("Error of the FLOPs, median", "flops_median_error_share", "flops_points"),
    ("Sustained over single, median", "sustained_over_burst", "measured"),
    ("Over the floor, median", "measured_over_floor", "measured"),
)


def _tiles(page: Markup) -> str:
    """Figures of one run; of several a table."""
    if page.size("runs") > 1:
        names = ["run", "gpu", "points", "measured", *(column for _, column, _ in TILES)]
        return page.data_table("runs", names, "Runs")
    found = [
        f"<div class=tile><span>{name}</span><strong>{page.figure('runs', column)}</strong>"
        f"<small>of {page.figure('runs', count)} points</small></div>"
        for name, column, count in TILES
        if page.value("runs", column) is not None
    ]
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def worst_points(page: Markup) -> str:
    """The points that were predicted worst; "" where none was predicted."""
    if not any(page.columns("runs")["seconds_points"]):
        return ""
    return f"<h3>Worst points</h3>{page.data_table('points', TIMES, 'Worst', WORST)}"


def _worst(page: Markup) -> str:
    """The points that were predicted worst, and the errors of each operation."""
    parts = [worst_points(page)]
    if page.size("errors"):
        parts.append(
            f"<h3>Errors by operation</h3>{page.data_table('errors', title='Errors')}"
            '<p class="csv"><button type="button" data-csv="errors">CSV</button></p>'
        )
    if page.size("points"):
        parts.append(f'<p class="muted">{KEY}</p>')
        parts.append(
            '<p class="csv"><button type="button" data-csv="points">CSV of every column</button>'
            "</p>"
        )
    return "".join(parts)


def hardware(page: Markup) -> str:
    """What hardware counted, single calls against sustained runs, power and clocks over time."""
    counters = page.chart(
        "counters",
        "Bytes and FLOPs, predicted against counted",
        "Counted by the GPU's own counters during the sustained run, and by the allocator for "
        "memory. Right of the middle: more was predicted than was counted. FLOPs are compared "
        "where tensor cores are busy.",
        "points",
        COUNTERS,
    )
    sustained = page.chart(
        "sustained",
        "Sustained against single calls",
        "Above the rule: calls one after the other take longer than one alone, as power and heat "
        "hold the clock down. Below it: they find part of what they read in the cache.",
        "points",
        SUSTAINED,
    )
    over_time = "".join(
        page.chart(name, title, words, "board")
        for name, title, words in (
            (
                "power-over-time",
                "Power over time",
                "The board during each point's sustained run; the rule is the power limit. "
                "Between them points were prepared and checked.",
            ),
            (
                "clock-over-time",
                "Clock over time",
                "The clock of the streaming multiprocessors; the rule is the highest it can reach.",
            ),
        )
    )
    ceilings = ""
    if page.size("ceilings"):
        ceilings = (
            "<h3>What the GPU reached at best</h3>"
            f"{page.data_table('ceilings', title='Ceilings')}"
            '<p class="csv"><button type="button" data-csv="ceilings">CSV</button></p>'
        )
    pairs = [pair for pair in (counters + sustained, over_time) if pair]
    charts = "".join(f'<div class="pair">{pair}</div>' for pair in pairs)
    return section("hardware", "What the hardware did", charts, ceilings)


def several(page: Markup) -> str:
    """What was not the same around runs, and what took another time."""
    if page.size("runs") < 2:
        return ""
    apart = "<p>All took place under the same conditions.</p>"
    if page.size("apart"):
        apart = f"<h3>Conditions that differ</h3>{page.data_table('apart', title='Conditions')}"
    changes = "<p>No point was measured in two of them.</p>"
    if page.size("changes"):
        changes = (
            f"<h3>Largest changes</h3>{page.data_table('changes', title='Changes')}"
            '<p class="csv"><button type="button" data-csv="changes">CSV</button></p>'
        )
    words = f"<p>Each run against the first, {page.figure('runs', 'run')}.</p>"
    return section("several", "Runs against each other", words, apart, changes)


def left_out(page: Markup) -> str:
    """What was not measured, and what stayed empty, with the reasons."""
    parts = []
    if page.size("unmeasured"):
        parts.append(
            f"<h3>Points without a measurement</h3>{page.data_table('unmeasured', title='Points')}"
        )
    if page.size("empty"):
        parts.append(f"<h3>Figures that stayed empty</h3>{page.data_table('empty', title='Empty')}")
    return section("left-out", "What could not be measured", *parts)


def conditions(page: Markup) -> str:
    """Where each run took place, and what it was asked for."""
    parts = []
    for row in range(page.size("runs")):
        facts = "".join(
            f"<dt>{head(name)}</dt><dd>{page.figure('runs', name, row)}</dd>"
            for name in ("gpu", *PLACE)
            if page.value("runs", name, row) not in (None, "")
        )
        parts.append(
            f"<h3>{page.figure('runs', 'run', row)}</h3><dl>{facts}</dl>"
            f'<pre tabindex="0">{page.figure("runs", "command", row)}</pre>'
            "<details><summary>What was planned</summary>"
            f'<pre tabindex="0">{page.figure("runs", "scenario", row)}</pre></details>'
        )
    if parts:
        parts.append('<p class="csv"><button type="button" data-csv="runs">CSV</button></p>')
    return section("conditions", "Where it was measured", *parts)
