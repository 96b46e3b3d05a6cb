"""The first section of a page: the answer, how sure it is, and what would change it."""

from __future__ import annotations

from lcprof.report.html.markup import Markup, section

NOTES_AS = {
    "content": "Content",
    "config": "Config",
    "positions": "Positions",
    "times": "Times",
}


def plan_verdict(page: Markup) -> str:
    """The answer in a sentence, its figures, the configuration, and what would change it."""
    at = page.figure
    fits = page.value("rows", "fits")
    memory = f"{at('rows', 'total_bytes_per_gpu')} of {at('rows', 'capacity_bytes_per_gpu')}"
    if fits:
        lead = f'<span class="yes">Fits.</span> {_asked(page)} takes {memory} on each GPU'
        if page.value("rows", "ttft_s") is not None:
            lead += f"; the first token comes after {at('rows', 'ttft_s')}"
        if page.value("rows", "tpot_s") is not None:
            lead += f", each further one after {at('rows', 'tpot_s')}"
        if page.value("rows", "request_usd") is not None:
            lead += f"; a request costs {at('rows', 'request_usd')}"
        lead += "."
    else:
        lead = (
            f'<span class="no">Does not fit.</span> {_asked(page)} needs {memory} on each GPU; '
            f"first to break: {at('rows', 'limited_by')}."
        )
    parts = [
        f'<p class="verdict">{lead}</p>',
        _tiles(page),
        _confidence(page),
        _choice(page),
        "<h3>Configuration</h3>",
        _configuration(page),
        _changes(page),
    ]
    return section("verdict", "Verdict", *parts, hidden=True)


def _asked(page: Markup) -> str:
    at = page.figure
    many = "sequence" if page.value("rows", "concurrency") == 1 else "sequences"
    return (
        f"{at('rows', 'model')} with KV {at('rows', 'kv')}, {at('rows', 'concurrency')} {many} of "
        f"{at('rows', 'context_tokens')} tokens on {at('rows', 'gpus')} {at('rows', 'gpu')}"
    )


def _tiles(page: Markup) -> str:
    at = page.figure
    tiles = [
        ("Memory per GPU", "total_bytes_per_gpu", f"of {at('rows', 'capacity_bytes_per_gpu')}"),
        ("Time to first token", "ttft_s", page.within("rows", "ttft", "s")),
        ("Time per output token", "tpot_s", page.within("rows", "tpot", "s")),
        ("Cost of a request", "request_usd", _price(page)),
        (
            "Energy of an output token",
            "output_token_j",
            page.within("rows", "output_token", "j"),
        ),
    ]
    found = [
        f"<div class=tile><span>{name}</span><strong>{at('rows', column)}</strong>"
        f"<small>{under}</small></div>"
        for name, column, under in tiles
        if page.value("rows", column) is not None
    ]
    return f'<div class="tiles">{"".join(found)}</div>'


def _price(page: Markup) -> str:
    return f"at {page.figure('rows', 'price_usd_per_gpu_hour')} a GPU-hour"


def _confidence(page: Markup) -> str:
    at = page.figure
    if page.value("rows", "ttft_basis") is None and page.value("rows", "tpot_basis") is None:
        if not page.value("rows", "fits"):
            return "<p>There are no times for what does not fit.</p>"
        return (
            "<p>No time is expected, since no measured kernel is like it: "
            f"{at('about', 'no_times')}. Floors are data-sheet peaks with everything overlapped: "
            f"TTFT {at('rows', 'ttft_floor_s')}, TPOT {at('rows', 'tpot_floor_s')}.</p>"
        )
    lines = "".join(
        f'<tr><th class="text" scope="row">{name}</th>'
        f'<td class="text">{_basis(page, stem)}</td><td>{at("rows", f"{stem}_floor_s")}</td>'
        f'<td class="text">{at("rows", f"{stem}_uncertain")}</td></tr>'
        for name, stem in (("first token", "ttft"), ("output token", "tpot"))
    )
    heads = (
        '<th scope="col" class="text">time of</th><th scope="col" class="text">rests on</th>'
        '<th scope="col">floor</th><th scope="col" class="text">least certain</th>'
    )
    supposed = "" if page.value("rows", "fits") else " They suppose that it fitted."
    risk = at("rows", "risk")
    if page.value("rows", "risk") != "none":
        risk += f": {at('rows', 'risk_why')} ({at('rows', 'risk_source')})"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Times"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
        f"<p>Times are those of {at('about', 'timed_as')}, sustained under the power limit; "
        f"the small figures hold nine in ten measurements.{supposed} "
        f"Risk to quality is {risk}.</p>"
    )


def _basis(page: Markup, stem: str) -> str:
    if page.value("rows", f"{stem}_basis") is None:
        return page.figure("rows", f"{stem}_basis")
    said = page.figure("rows", f"{stem}_basis")
    if (page.value("rows", f"{stem}_distance") or 1) > 1:
        said += f" {page.figure('rows', f'{stem}_distance')}"
    return said


def _choice(page: Markup) -> str:
    if page.value("about", "rows_planned") == 1:
        return ""
    at = page.figure
    text = (
        f"{at('about', 'rows_planned')} combinations were planned, "
        f"{at('about', 'rows_fitting')} fit. "
    )
    if page.value("rows", "fits"):
        text += (
            "Chosen is one that fits, drops nothing and keeps eight bits or more where there is "
            "such a one, has the longest context, and of these the cheapest request. "
        )
    asked = page.value("about", "asked")
    if asked:
        fits = "fits" if page.value("rows", "fits", asked) else "does not fit"
        text += (
            f"The first as asked for, {at('rows', 'label', asked)}, {fits}: it needs "
            f"{at('rows', 'total_bytes_per_gpu', asked)}."
        )
    return f'<p class="muted">{text}</p>'


def _configuration(page: Markup) -> str:
    at = page.figure
    facts: list[tuple[str, str]] = []
    model = f"{at('rows', 'model')}, {at('rows', 'params')} parameters"
    if page.value("rows", "active_params") != page.value("rows", "params"):
        model += f" ({at('rows', 'active_params')} active)"
    own = "in its " if page.value("rows", "weights") == "checkpoint" else ""
    facts.append(("Model", f"{model}, weights as {own}{at('rows', 'weights')}"))
    degrees = [
        f"{degree} {at('rows', degree)}"
        for degree in ("tp", "pp", "cp", "dp", "ep", "dcp")
        if (page.value("rows", degree) or 1) > 1
    ]
    layout = f" ({', '.join(degrees)})" if degrees else ""
    gpus = f"{at('rows', 'gpus')} {at('rows', 'gpu')}{layout}"
    facts.append(("GPUs", f"{gpus}, {at('rows', 'utilisation')} of their memory usable"))
    work = (
        f"{at('rows', 'context_tokens')} tokens of context, {at('rows', 'output_tokens')} of "
        f"output, {at('rows', 'concurrency')} at once, prefill chunks of "
        f"{at('rows', 'chunk_tokens')}"
    )
    if page.value("rows", "prefix_tokens"):
        work += f", {at('rows', 'prefix_tokens')} shared"
    facts.append(("Workload", work))
    kv = f"{at('rows', 'kv')}, {at('rows', 'kv_bytes_per_token')} per token in the whole model"
    facts.append(("KV cache", kv))
    if page.value("about", "note"):
        facts.append(("Note", at("about", "note")))
    notes = page.columns("notes")
    for index, about in enumerate(notes.get("about", ())):
        if about in NOTES_AS:
            facts.append((NOTES_AS[about], at("notes", "text", index)))
    lines = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts)
    return f"<dl>{lines}</dl>"


def _changes(page: Markup) -> str:
    """Up to three things that would change the verdict: what runs out first, and what to do."""
    at = page.figure
    found: list[str] = []
    if page.value("rows", "fits"):
        if page.value("limits", "max_context_tokens"):
            found.append(
                f"A context beyond {at('limits', 'max_context_tokens')} tokens: "
                f"{_breaks(page, 'the context')} no longer fits."
            )
        if page.value("limits", "max_concurrency"):
            found.append(
                f"A batch of more than {at('limits', 'max_concurrency')} at this length: it no "
                "longer fits."
            )
    found += [
        f"<code>{at('offers', 'flags', index)}</code>: {at('offers', 'why', index)} "
        f"({at('offers', 'total_bytes_per_gpu', index)} on each GPU)."
        for index in range(page.size("offers"))
    ]
    if page.value("rows", "ttft_low_s") is not None:
        found.append(
            f"The first token may come after {page.within('rows', 'ttft', 's')}; cost and energy "
            "move with it."
        )
    if not found:
        return ""
    items = "".join(f"<li>{text}</li>" for text in found[:3])
    return f"<h3>What would change this</h3><ol>{items}</ol>"


def _breaks(page: Markup, grown: str) -> str:
    if page.value("limits", "grows") == grown and page.value("limits", "breaks"):
        return page.figure("limits", "breaks")
    return "it"
