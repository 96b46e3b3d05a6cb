"""The sections of a page, each "" when it has nothing to say.

Digits in these sentences come from tables alone; what is said without one is said in words.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from lcprof.report.html.figures import head
from lcprof.report.html.markup import Markup, section
from lcprof.report.html.run_sections import (
    conditions,
    hardware,
    left_out,
    measured,
    run_verdict,
    several,
)
from lcprof.report.html.verdict import plan_verdict


def verdict(page: Markup) -> str:
    """The answer of the plan; of runs alone, how far predictions were off."""
    return plan_verdict(page) if "rows" in page.tables else run_verdict(page)


def memory(page: Markup) -> str:
    """Bytes by part and over context, and how many sequences fit."""
    at = page.figure
    crossing = "No line meets it within the chart."
    if page.size("crossings"):
        crossing = (
            f"{at('crossings', 'label')} meets it at {at('crossings', 'context_tokens')} tokens."
        )
    bars = page.chart(
        "memory-bars",
        "What fills a GPU",
        f"The fullest GPU under each strategy. {at('rows', 'label')} takes "
        f"{at('rows', 'total_bytes_per_gpu')} of {at('rows', 'capacity_bytes_per_gpu')}, "
        f"{at('rows', 'kv_reserved_bytes_per_gpu')} of it KV.",
        "memory",
    )
    lines = page.chart(
        "memory-lines",
        "Memory over context",
        "Weights, KV and working memory of the fullest GPU as the context grows, for "
        f"{at('rows', 'concurrency')} at once. The rule is the capacity; points mark where a line "
        f"meets it. {crossing} Strategies of about the same size share a line.",
        "contexts",
        ("label", "context_tokens", "kv_reserved_bytes_per_gpu", "total_bytes_per_gpu",
         "capacity_bytes_per_gpu"),
    )  # fmt: skip
    most = page.value("rows", "max_concurrency")
    held = at("rows", "max_concurrency") if most is not None else "any number"
    fits = page.chart(
        "frontier",
        "How many sequences fit",
        f"The most sequences that fit at once at each context. Of {at('rows', 'context_tokens')} "
        f"tokens, {at('rows', 'label')} holds {held}.",
        "contexts",
        ("label", "context_tokens", "max_concurrency"),
    )
    pair = f'<div class="pair">{lines}{fits}</div>' if lines or fits else ""
    return section("memory", "Memory", bars, pair)


def time(page: Markup) -> str:
    """Expected times over context with intervals and floors, and what they are made of."""
    at = page.figure
    curves = "".join(
        page.chart(
            f"{stem}-curve",
            title,
            f"{words} Line: expected, {at('rows', 'label')}. Band: nine in ten measurements. "
            f"Dashed: floor of the data sheet. Dotted: the planned context{_there(page, stem)}. "
            "Lines end with memory, or where measurements are too far away.",
            "curve",
            ("context_tokens", f"{stem}_s", f"{stem}_low_s", f"{stem}_high_s", f"{stem}_floor_s",
             f"{stem}_basis"),
        )
        for stem, title, words in (
            ("ttft", "Time to first token over context", "One request alone."),
            ("tpot", "Time per output token over position", "A step of the planned batch."),
        )
    )  # fmt: skip
    names = ("phase", "operation", "seconds", "low_s", "high_s", "share", "kernels", "distance")
    parts = "".join(
        page.chart(
            f"{stem}-operations",
            title,
            f"{_largest(page, phase)} The rule spans nine in ten measurements.",
            "operations",
            names,
        )
        for stem, title, phase in (
            ("prefill", "Where the time of a prefill goes", "prefill"),
            ("step", "Where the time of a decode step goes", "decode step"),
        )
    )
    roof = page.chart(
        "roofline",
        "Roofline",
        "Each operation by its FLOPs for a byte of GPU memory and the FLOP/s that it reaches; "
        "those that hardly weigh are left out. "
        f"The roof is the data sheet of {at('rows', 'gpu')}: "
        f"{at('roofs', 'bandwidth_bytes_per_s')} of memory, {at('roofs', 'peak_flops_per_s')} in "
        f"{at('roofs', 'compute')}. Points on the slope wait for memory, points under the "
        "flat part for arithmetic.",
        "operations",
        ("phase", "operation", "flops", "hbm_bytes", "compute", "flops_per_byte", "flops_per_s"),
    )
    shares = page.chart(
        "share-curves",
        "When attention decides",
        f"{_crossover(page)} The rule is one half.",
        "shares",
    )
    pairs = [f'<div class="pair">{pair}</div>' for pair in (curves, parts, roof + shares) if pair]
    return section("time", "Time", *pairs)


def _there(page: Markup, stem: str) -> str:
    """What a time is at the planned context, where it is."""
    floor = f"{stem}_floor_s"
    if page.value("rows", floor) is None:
        return ""
    if page.value("rows", f"{stem}_s") is None:
        return f", a floor of {page.figure('rows', floor)}"
    expected = page.figure("rows", f"{stem}_s")
    return f", {expected} expected above a floor of {page.figure('rows', floor)}"


def _largest(page: Markup, phase: str) -> str:
    held = page.columns("operations")
    if not held:
        return ""
    where = [i for i, name in enumerate(held["phase"]) if name == phase]
    if not where:
        return ""
    top = max(where, key=lambda i: held["seconds"][i])
    return (
        f"Most goes to {page.figure('operations', 'operation', top)}: "
        f"{page.figure('operations', 'seconds', top)}, {page.figure('operations', 'share', top)} "
        "of it."
    )


def _crossover(page: Markup) -> str:
    said = []
    for column, what in (
        ("attention_crossover_tokens", "Attention is most of a prefill's FLOPs"),
        ("kv_crossover_tokens", "KV is most of what a decode step reads"),
    ):
        if page.value("limits", column):
            said.append(f"{what} beyond {page.figure('limits', column)} tokens.")
        else:
            said.append(f"{what} at no length.")
    return " ".join(said)


RANKED = (
    *("risk", "total_bytes_per_gpu", "max_context_tokens", "max_concurrency", "ttft_s"),
    *("tpot_s", "output_token_j", "usd_per_million_output_tokens", "request_usd"),
)
COMPARED = (
    *("fits", "total_bytes_per_gpu", "kv_reserved_bytes_per_gpu", "headroom_bytes_per_gpu"),
    *("max_context_tokens", "max_concurrency", "ttft_s", "ttft_basis", "tpot_s", "tpot_basis"),
    *("request_s", "output_tokens_per_s", "prefill_j", "output_token_j", "request_usd"),
    *("usd_per_million_output_tokens", "usd_per_million_input_tokens"),
    *("risk", "risk_why", "risk_source"),
)


def strategies(page: Markup) -> str:
    """Every row against the others, and any two side by side."""
    if page.size("rows") < 2:
        return ""
    charts = "".join(
        page.chart(
            f"{stem}-ranked",
            title,
            "Dot: expected. Bar: nine in ten measurements. Tick: floor of the data sheet. "
            f"{page.figure('rows', 'label')} takes {page.figure('rows', f'{stem}_s')}.",
            "rows",
            ("label", "fits", f"{stem}_s", f"{stem}_low_s", f"{stem}_high_s",
             f"{stem}_floor_s", f"{stem}_basis"),
        )
        for stem, title in (("ttft", "Time to first token"), ("tpot", "Time per output token"))
    )  # fmt: skip
    heads = "".join(f'<th scope="col">{escape(head(name))}</th>' for name in RANKED[1:])
    lines = "".join(_ranked_line(page, row) for row in range(page.size("rows")))
    table = (
        '<p class="muted">What fits first, then what keeps every token in eight bits or more, then '
        "by the longest context and the cheapest request. Small: nine in ten measurements.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Strategies ranked"><table>'
        f'<thead><tr><th class="text" scope="col">strategy</th>'
        f'<th class="text" scope="col">risk to quality</th>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
        '<p class="csv"><button type="button" data-csv="rows">CSV of every column</button></p>'
    )
    left = ""
    if page.value("about", "rows_shown") != page.value("about", "rows_planned"):
        left = (
            f"<p>{page.figure('about', 'rows_shown')} of "
            f"{page.figure('about', 'rows_planned')} rows are shown, those that rank first and "
            "the best of each kind; charts show fewer. A CSV of the plan holds all.</p>"
        )
    pair = f'<div class="pair">{charts}</div>' if charts else ""
    return section("strategies", "Strategies", table, left, pair, _compare(page), _risks(page))


def _ranked_line(page: Markup, row: int) -> str:
    at = page.figure
    kind = "is-chosen" if row == page.value("about", "chosen") else ""
    if not page.value("rows", "fits", row):
        kind = f"{kind} fails".strip()
    cells = [
        f'<th class="text" scope="row">{at("rows", "label", row)}</th>',
        f'<td class="text">{at("rows", "risk", row)}</td>',
    ]
    for name in RANKED[1:]:
        stem, _, unit = name.rpartition("_")
        small = page.within("rows", stem, unit, row)
        floored = stem in ("ttft", "tpot") and page.value("rows", name, row) is None
        if name == "total_bytes_per_gpu":
            small = "fits" if page.value("rows", "fits", row) else "does not fit"
        elif floored and page.value("rows", "fits", row):
            small = f"floor {at('rows', f'{stem}_floor_s', row)}"
        under = f"<small>{small}</small>" if small else ""
        any_ = name.startswith("max_") and page.value("rows", name, row) is None
        figure = "any" if any_ else at("rows", name, row)
        cells.append(f"<td>{figure}{under}</td>")
    marked = f' class="{kind}"' if kind else ""
    return f"<tr{marked}>{''.join(cells)}</tr>"


def _compare(page: Markup) -> str:
    second = page.value("about", "asked") or 1

    def pick(which: str, chosen: int) -> str:
        options = "".join(
            f'<option value="{row}"{" selected" if row == chosen else ""} '
            f'data-cell="rows.label.{row}">{escape(str(page.value("rows", "label", row)))}</option>'
            for row in range(page.size("rows"))
        )
        return f"<label>{which}<select>{options}</select></label>"

    lines = "".join(
        f'<tr data-column="{name}"><th class="text" scope="row">{escape(head(name))}</th>'
        "<td></td><td></td></tr>"
        for name in COMPARED
    )
    return (
        '<div class="compare"><h3>Compare two</h3><div class="controls">'
        f"{pick('One', 0)}{pick('Other', second)}</div>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Comparison"><table aria-live='
        '"polite"><thead><tr><th></th><th scope="col">one</th><th scope="col">other</th></tr>'
        f"</thead><tbody>{lines}</tbody></table></div></div>"
    )


def _risks(page: Markup) -> str:
    """What each risk rests on, once for each reason."""
    held = page.columns("rows")
    first: dict[str, int] = {}
    for row, why in enumerate(held["risk_why"]):
        first.setdefault(why, row)
    lines = "".join(
        f"<dt>{page.figure('rows', 'risk', row)}</dt><dd>{page.figure('rows', 'risk_why', row)} "
        f'<span class="muted">({page.figure("rows", "risk_source", row)})</span></dd>'
        for row in first.values()
    )
    return f"<h3>Risk to quality, and its sources</h3><dl>{lines}</dl>"


ASKED_OF_GRID = (
    ("grid_steps", "kv_reserved_bytes_per_gpu"),
    ("grid_prompts", "ttft_s"),
    ("grid_steps", "tpot_s"),
    ("grid_steps", "output_tokens_per_s"),
    ("grid_prompts", "prefill_j"),
    ("grid_steps", "output_token_j"),
    ("grid_steps", "request_usd"),
    ("grid_steps", "usd_per_million_output_tokens"),
)


def what_if(page: Markup) -> str:
    """Selects and sliders over the planned grid; each position is a point that was planned."""
    axes = page.tables.get("grid_steps", {}).get("axes")
    if not axes:
        return ""

    def pick(name: str, title: str) -> str:
        options = "".join(
            f'<option value="{index}">{escape(str(value))}</option>'
            for index, value in enumerate(axes[name])
        )
        return f'<label>{title}<select data-axis="{name}">{options}</select></label>'

    def slide(name: str, title: str) -> str:
        start = axes[name].index(page.value("rows", name))
        return (
            f'<label>{title} <output data-of="{name}"></output><input type="range" '
            f'data-axis="{name}" min="0" max="{len(axes[name]) - 1}" step="1" value="{start}">'
            "</label>"
        )

    lines = "".join(
        f'<tr data-table="{table}" data-column="{column}"><th class="text" scope="row">'
        f"{escape(head(column))}</th><td></td></tr>"
        for table, column in ASKED_OF_GRID
    )
    body = (
        '<div class="what-if"><div class="controls">'
        f"{pick('label', 'Strategy')}{pick('gpu', 'GPU')}"
        f"{slide('context_tokens', 'Context, tokens')}{slide('concurrency', 'Sequences at once')}"
        '</div><p class="answer" aria-live="polite"></p>'
        '<div class="gauge" aria-hidden="true"><div></div></div>'
        f'<div class="scroll"><table><tbody>{lines}</tbody></table></div>'
        '<p class="muted">Each position is a point that was planned; nothing between is '
        "interpolated. Small: nine in ten measurements. What does not fit has no times, nor has "
        "what no measured kernel is like. Other GPUs are at the catalog's price.</p>"
        '<p class="csv"><button type="button" data-csv="grid_steps">CSV of steps</button> '
        '<button type="button" data-csv="grid_prompts">CSV of prompts</button></p></div>'
    )
    return section("what-if", "What if", body)


def cost(page: Markup) -> str:
    """Dollars and joules of the chosen row, and over the batch."""
    at = page.figure
    lines = []
    for label, column, unit in (
        ("Request", "request_usd", ""),
        ("Million output tokens", "usd_per_million_output_tokens", ""),
        ("Million input tokens", "usd_per_million_input_tokens", ""),
        ("Energy of a prefill", "prefill_j", "prefill"),
        ("Energy of an output token", "output_token_j", "output_token"),
        ("Power of a GPU in prefill", "prefill_w_per_gpu", ""),
        ("Power of a GPU in decode", "decode_w_per_gpu", ""),
    ):
        if page.value("rows", column) is not None:
            small = f" ({page.within('rows', unit, 'j')})" if unit else ""
            lines.append(f"<dt>{label}</dt><dd>{at('rows', column)}{small}</dd>")
    facts = f"<dl>{''.join(lines)}</dl>" if lines else ""
    if page.value("rows", "request_usd") is not None:
        facts += (
            f"<p>At {at('rows', 'price_usd_per_gpu_hour')} for a GPU for an hour; cost scales with "
            "it. A request is one in a batch that is always full.</p>"
        )
    charts = page.chart(
        "cost-by-batch",
        "Cost over the batch",
        f"{at('rows', 'label')} at {at('rows', 'context_tokens')} tokens each, up to what memory "
        "holds. More sequences share the reading of the weights.",
        "batch",
    ) + page.chart(
        "energy-by-batch",
        "Energy over the batch",
        f"Joules of an output token at {at('rows', 'context_tokens')} tokens each. Band: nine in "
        "ten measurements.",
        "batch",
    )
    pair = f'<div class="pair">{charts}</div>' if charts else ""
    return section("cost", "Cost and energy", facts, pair)


def launch(page: Markup) -> str:
    """The command of each engine, and what it has no flag for."""
    parts = []
    for row in range(page.size("launch")):
        starts = "starts" if page.value("launch", "starts", row) else "does not start"
        reason = page.value("launch", "reason", row)
        said = f": {page.figure('launch', 'reason', row)}" if reason else ""
        parts.append(
            f"<h3>{page.figure('launch', 'engine', row)}</h3>"
            f'<pre tabindex="0">{page.figure("launch", "launch", row)}</pre>'
            f"<p>By its own memory rule the server {starts}{said}, with "
            f"{page.figure('launch', 'kv_bytes_per_gpu', row)} of KV on a GPU for "
            f"{page.figure('launch', 'kv_tokens', row)} tokens: "
            f"{page.figure('launch', 'requests', row)} requests of this length.</p>"
        )
    return section("launch", "Launch lines", *parts)


TRUST = (
    "<p>Bytes follow from the model's config and are exact, apart from activations, workspace and "
    "runtime, which are estimates. Times are expected values: interpolated when all that weighs "
    "lies within the measured shapes, extrapolated when some lies so many times beyond, "
    "transported when another GPU or kernel was measured. A floor is what the data sheet allows "
    "with everything overlapped; no engine is faster. TTFT, the time to the first token, is that "
    "of one request alone; TPOT, the time per output token, that of a step of the whole batch.</p>"
)


def sources(page: Markup) -> str:
    """Assumptions, measured kernels, sources, and the command that rebuilds the page."""
    kernels = ""
    if page.size("kernels"):
        kernels = (
            "<h3>Measured kernels behind the times</h3><p>Errors are those of predictions on "
            "held-out measurements: the median, and what nine in ten stay below.</p>"
            f"{page.data_table('kernels', title='Measured kernels')}"
        )
    notes = page.data_table("notes", title="Assumptions and sources") if page.size("notes") else ""
    built = f"<p>lcprof {page.figure('about', 'lcprof_version')}"
    if page.value("about", "date"):
        built += f", {page.figure('about', 'date')}"
    built += ". This page is rebuilt by</p>"
    command = f'<pre tabindex="0">{page.figure("about", "command")}</pre>'
    rebuilt = built + command if page.value("about", "command") else ""
    if "rows" not in page.tables:
        return section("sources", "Provenance", rebuilt)
    heading = "<h3>Assumptions and sources</h3>" if notes else ""
    return section(
        "sources",
        "How far to trust it",
        TRUST,
        kernels,
        heading,
        notes,
        "<h3>Provenance</h3>",
        rebuilt,
    )


SECTIONS: tuple[Callable[[Markup], str], ...] = (
    verdict,
    memory,
    time,
    strategies,
    measured,
    hardware,
    several,
    left_out,
    what_if,
    cost,
    launch,
    conditions,
    sources,
)
"""A page from its top to its end."""
