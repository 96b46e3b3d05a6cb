"""The terminal page of a plan: one scenario in full, or a table of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lcprof.domain.kv.eviction import H2O, SnapKV
from lcprof.domain.kv.share import Share
from lcprof.domain.kv.window import Window
from lcprof.plan.answers import Answers
from lcprof.plan.choice import chosen
from lcprof.plan.estimate import remade
from lcprof.plan.row import Row
from lcprof.report.bar import SHADES, bar, flow, legend
from lcprof.report.screen import Screen, printable, shorten
from lcprof.report.table import HEADS, ranked, shown, table, varying
from lcprof.units import (
    show_bytes,
    show_count,
    show_params,
    show_seconds,
    show_short,
    show_tokens,
    show_usd,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

BREAKS = {"weights": "weights", "activations": "activations", "kv": "KV cache"}
INDENT = "  "
MOST_FACTS = 4
FLOOR_NOTE = "Floor: data-sheet peaks, perfect overlap."


def show_plan(rows: Sequence[Row], answers: Answers, question: str, screen: Screen) -> None:
    """Prints the page of one row, or of several. `answers` are those of `subject(rows)`."""
    page = _one(rows[0], answers, question, screen) if len(rows) == 1 else None
    screen.show(page or _several(rows, answers, question, screen))


def subject(rows: Sequence[Row]) -> Row:
    """The row that a page's offers are about: the first as it was asked for, if it does not fit;
    else the one to decide on."""
    return chosen(rows) if rows[0].estimate.fits else rows[0]


def _one(row: Row, answers: Answers, question: str, screen: Screen) -> list[RenderableType]:
    return [
        _verdict(row),
        "",
        _facts([row], question),
        "",
        *_memory(row, screen),
        "",
        *_work(row),
        "",
        *_limits(row, answers),
        *_tries(answers, "", screen.width),
    ]


def _several(
    rows: Sequence[Row], answers: Answers, question: str, screen: Screen
) -> list[RenderableType]:
    from rich.text import Text

    best = ranked(rows)[0]
    names = varying(rows)
    fitting = sum(bool(row.estimate.fits) for row in rows)
    head = f"{fitting} of {len(rows)} fit" if fitting else f"None of {len(rows)} fits"
    lead, held = "; least memory: " if fitting else "; closest: ", f", {_against_capacity(best)}"
    room = screen.width - len(head) - len(lead) - len(held)
    verdict = Text.assemble(
        (head, "bold green" if fitting else "bold red"),
        f"{lead}{shorten(row_label(best, names), max(room, 8))}{held}",
    )
    page: list[RenderableType] = [verdict, "", _facts(rows, question), ""]
    for row in {id(row): row for row in (rows[0], answers.row, best)}.values():
        page += [*_memory(row, screen, row_label(row, names)), ""]
    page += [*table(rows, names, screen.width), Text(_times_note(rows), style="dim")]
    page += [Text(note, style="dim") for note in _strategy_notes(rows)]
    return [*page, *_tries(answers, row_label(answers.row, names), screen.width)]


def _times_note(rows: Sequence[Row]) -> str:
    """What the times of a table mean."""
    stacks = dict.fromkeys(kernels_of(row) for row in rows)
    note = f"TTFT (one request alone) and TPOT as {' or '.join(stacks)} would run them."
    bare = [
        row
        for row in rows
        if row.has_times and None in (row.columns()["ttft_s"], row.columns()["tpot_s"])
    ]
    reasons = dict.fromkeys(row.no_times or "too far beyond what was measured" for row in bare)
    if reasons:
        note += f" >: a floor, where nothing is expected ({'; '.join(reasons)})."
    return note


def _strategy_notes(rows: Sequence[Row]) -> list[str]:
    """What the rows' strategies take from the answer, which bytes do not show."""
    notes: list[str] = []
    links = [link for row in rows for link in row.case.kv.chain()]
    dropping = dict.fromkeys(link.kind for link in links if isinstance(link, Window | H2O | SnapKV))
    if dropping:
        notes.append(f"{', '.join(dropping)}: tokens are dropped, and lost to the model.")
    late = dict.fromkeys(
        link.kind
        for row in rows
        for link in row.case.kv.chain()
        if row.estimate.kv_prefill_bytes_per_gpu and isinstance(link, H2O | SnapKV)
    )
    if late:
        notes.append(f"{', '.join(late)}: a prompt is held whole until it has been read.")
    asked = [row.case for row in rows if any(isinstance(x, Share) for x in row.case.kv.chain())]
    idle = [case for case in asked if remade(case.model, case.kv) is case.model]
    if len(idle) < len(asked):
        notes.append(f"share: {WHAT_IF}")
    for spec, name in dict.fromkeys((case.kv_spec, case.model.name) for case in idle):
        reason = "no layer has grouped attention that caches more"
        notes.append(f"{spec} changes nothing in {name}: {reason}.")
    return notes


WHAT_IF = "what-if on the architecture; such a model would have to be trained first."


def row_label(row: Row, names: Sequence[str]) -> str:
    """What sets a row apart from the others."""
    columns = row.columns()
    return ", ".join(f"{HEADS.get(name, name)} {shown(name, columns[name])}" for name in names)


def _against_capacity(row: Row) -> str:
    estimate = row.estimate
    total = show_bytes(estimate.total_bytes_per_gpu)
    return f"{total} of {show_bytes(estimate.capacity_bytes_per_gpu)} per GPU"


def _verdict(row: Row) -> Text:
    from rich.text import Text

    estimate = row.estimate
    held = _against_capacity(row)
    if estimate.fits:
        spare = show_bytes(estimate.headroom_bytes_per_gpu)
        return Text.assemble(("Fits", "bold green"), f": {held}, {spare} to spare")
    broken = BREAKS[estimate.limited_by]
    verb = "is" if broken == "KV cache" else "are"
    return Text.assemble(
        ("Does not fit", "bold red"), f": needs {held}; {broken} {verb} what breaks it"
    )


def _facts(rows: Sequence[Row], question: str) -> RenderableType:
    """What was planned, in one line each; of several rows, what they have in common."""
    from rich.text import Text

    grid = _grid()

    def fact(name: str, text: str) -> None:
        if text:
            grid.add_row(Text(name, style="dim"), Text(printable(text)))

    row = rows[0]
    same = set(row.columns()) - set(varying(rows))
    fact("question", question)
    if "model" in same:
        fact("model", _model_line(row, same))
    if "gpu" in same:
        fact("GPUs", _gpu_line(row, same))
    fact("workload", _workload_line(row, same))
    if len(rows) == 1:
        fact("KV", _kv_line(row))
        for note in _strategy_notes(rows):
            fact("", note)
    several(fact, "content", (note for row in rows for note in row.case.notes))
    several(fact, "config", (text for row in rows for text in row.case.model.assumptions))
    several(fact, "positions", (position_note(row) for row in rows))
    return grid


def several(fact: Callable[[str, str], None], name: str, texts: Iterable[str]) -> None:
    """Facts under one name, each once, and how many there are beyond the first few."""
    distinct = list(dict.fromkeys(filter(None, texts)))
    for text in distinct[:MOST_FACTS]:
        fact(name, text)
    if len(distinct) > MOST_FACTS:
        fact("", f"and {len(distinct) - MOST_FACTS} more of the kind")


def _model_line(row: Row, same: set[str]) -> str:
    model, estimate = row.case.model, row.estimate
    line = f"{model.name}: {show_params(estimate.params)} parameters"
    if estimate.active_params != estimate.params:
        line += f" ({show_params(estimate.active_params)} active)"
    line += f", {model.layers} layers"
    if "weights" in same:
        weights = row.columns()["weights"]
        line += f", weights as {'in its ' if weights == 'checkpoint' else ''}{weights}"
    return line


def _gpu_line(row: Row, same: set[str]) -> str:
    deployment = row.case.deployment
    gpu = deployment.gpu
    line = f"{deployment.gpus} x {gpu.name}" if "gpus" in same else gpu.name
    degrees = [
        f"{degree} {value}"
        for degree in ("tp", "pp", "cp", "dp", "ep", "dcp")
        if degree in same and (value := getattr(deployment, degree)) > 1
    ]
    if degrees:
        line += f" ({', '.join(degrees)})"
    if "utilisation" in same:
        usable = show_bytes(gpu.usable_bytes)
        kind = "marketed (driver's figure not known)"
        kind = kind if gpu.usable_bytes == gpu.marketed_bytes else "usable"
        line += f", {deployment.utilisation * 100:.4g}% of {usable} {kind} each"
    return line


def _workload_line(row: Row, same: set[str]) -> str:
    workload = row.case.workload
    pieces: list[str] = []
    if "context_tokens" in same:
        pieces.append(f"{show_tokens(workload.context_tokens)} tokens of context")
    if "output_tokens" in same:
        pieces.append(f"{show_tokens(workload.output_tokens)} of output")
    if "concurrency" in same:
        pieces.append(_sequences(workload.concurrency))
    if "prefix_tokens" in same and workload.prefix_tokens:
        pieces.append(f"shared prefix of {show_tokens(workload.prefix_tokens)}")
    if "chunk_tokens" in same:
        pieces.append(f"prefill chunks of {show_tokens(workload.chunk_tokens)}")
    return ", ".join(pieces)


def _kv_line(row: Row) -> str:
    estimate = row.estimate
    line = f"{row.case.kv_spec}: {show_bytes(estimate.kv_bytes_per_token)} per token, whole model"
    if estimate.kv_index_bytes_per_token:
        line += f"; index keys {show_bytes(estimate.kv_index_bytes_per_token)} per token"
    if estimate.kv_state_bytes_per_sequence:
        line += f"; {show_bytes(estimate.kv_state_bytes_per_sequence)} per sequence that does not "
        line += "grow (states, full windows)"
    if estimate.kv_host_bytes_per_gpu:
        line += f"; {show_bytes(estimate.kv_host_bytes_per_gpu)} per GPU in host memory"
    return line


def position_note(row: Row) -> str:
    """What a context beyond the model's positions would ask of it, or ""."""
    model, workload = row.case.model, row.case.workload
    asked = workload.context_tokens + workload.output_tokens - 1
    if model.positions is None or asked <= model.positions:
        return ""
    needed = ""
    if model.rope.kind != "none":
        # Rounded up: a smaller factor would not reach the last token.
        factor = math.ceil(asked / model.positions * 1000) / 1000
        needed = f"RoPE extension by a factor of {factor:g} would be needed; "
    return (
        f"context and output make {show_tokens(asked)} tokens, beyond the {model.positions:,} that "
        f"{model.name} states: {needed}memory and time hold, quality there is not vouched for"
    )


def _memory(row: Row, screen: Screen, label: str = "") -> list[RenderableType]:
    from rich.text import Text

    estimate = row.estimate
    shades = screen.can_print(SHADES)
    head = "Memory of the fullest GPU"
    if label:
        head = f"{label}: {_against_capacity(row)}"
    lines: list[RenderableType] = [
        Text(head, style="bold", no_wrap=True, overflow="ellipsis"),
        Text(INDENT) + bar(estimate, screen.width - 2 * len(INDENT), shades=shades),
        *flow(legend(estimate, shades=shades), screen.width, INDENT),
    ]
    return lines


def _work(row: Row) -> list[RenderableType]:
    from rich.table import Table

    estimate, workload = row.estimate, row.case.workload
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    grid.add_column("Work", no_wrap=True)
    grid.add_column("FLOPs", justify="right", no_wrap=True)
    grid.add_column("")
    attention = estimate.prefill_attention_flops
    share = attention / estimate.prefill_flops if estimate.prefill_flops else 0.0
    scores = estimate.naive_score_bytes_per_layer
    grid.add_row(
        f"{INDENT}prefill, one request",
        show_count(estimate.prefill_flops, "FLOP"),
        f"{share:.0%} of it {'attention' if scores else 'recurrence'}",
    )
    read = show_bytes(estimate.decode_step_read_bytes_per_gpu)
    grid.add_row(
        f"{INDENT}decode step, {_sequences(workload.concurrency)}",
        show_count(estimate.decode_step_flops, "FLOP"),
        f"reads {read} per GPU",
    )
    if scores:
        grid.add_row("Prefill attention", "", "T x T scores")
        grid.add_row(f"{INDENT}FlashAttention", show_count(attention, "FLOP"), "never in memory")
        grid.add_row(
            f"{INDENT}naive",
            show_count(estimate.naive_prefill_attention_flops, "FLOP"),
            f"{show_bytes(scores)} per layer",
        )
    if estimate.prefill_reexpansion_flops:
        grid.add_row(
            f"{INDENT}MLA latents again",
            show_count(estimate.prefill_reexpansion_flops, "FLOP"),
            "if chunks expand them",
        )
    return [grid, "", *_times(row)]


def _times(row: Row) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if not row.has_times:
        line = "No times: it does not fit. --hypothetical gives them all the same."
        return [Text.assemble(("Times", "bold"), f"  {line}")]
    estimate, found = row.estimate, row.columns()
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    grid.add_column("Times", no_wrap=True)
    for head in ("expected", "9 in 10 within", "floor"):
        grid.add_column(head, justify="right", no_wrap=True)
    grid.add_column("rests on")

    def interval(name: str) -> str:
        low, high = found[f"{name}_low_s"], found[f"{name}_high_s"]
        return "" if low is None else f"{show_seconds(low)} to {show_seconds(high)}"

    def add(label: str, name: str, floor_s: float) -> None:
        value = found[f"{name}_s"]
        text = "-" if value is None else show_seconds(value)
        within = interval(name) if f"{name}_low_s" in found else ""
        grid.add_row(INDENT + label, text, within, show_seconds(floor_s), basis(row, name))

    add("TTFT, one request", "ttft", estimate.ttft_floor_s)
    add("TPOT", "tpot", estimate.tpot_floor_s)
    if row.case.workload.output_tokens > 1:
        add("whole request", "request", estimate.request_floor_s)
    lines: list[RenderableType] = [grid]
    rate = found["output_tokens_per_s"]
    if rate is not None:
        each = found["output_tokens_per_s_per_gpu"]
        text = f"{INDENT}decoding {show_short(rate)} tokens/s in all, {show_short(each)} per GPU"
        lines.append(Text(text))
    lines += [Text(INDENT + line) for line in (*_energy(found), *_money(row, found))]
    unsure = {"TTFT": found["ttft_uncertain"], "TPOT": found["tpot_uncertain"]}
    if unsure["TTFT"] == unsure["TPOT"]:
        unsure = {"both": unsure["TTFT"]}
    least = " and ".join(f"{op} in {name}" for name, op in unsure.items() if op)
    notes = [f"Expected on {kernels_of(row)}. {FLOOR_NOTE}"]
    if least:
        notes.append(f"Least certain: {least}.")
    if row.no_times:
        notes = [f"No expected times: {row.no_times}. {FLOOR_NOTE}"]
    if row.case.hypothetical and not estimate.fits:
        notes.append("Hypothetical: it does not fit.")
    return [*lines, *(Padding(Text(note, style="dim"), (0, 0, 0, 2)) for note in notes)]


def _energy(found: Mapping[str, Any]) -> list[str]:
    """Joules of the whole deployment, where its power is known."""
    lines = []
    for name, what, watts in (
        ("prefill", "a prefill", "prefill_w_per_gpu"),
        ("output_token", "an output token", "decode_w_per_gpu"),
    ):
        joules = found[f"{name}_j"]
        if joules is not None:
            low, high = (show_count(found[f"{name}_{end}_j"], "J") for end in ("low", "high"))
            line = f"energy   {show_count(joules, 'J')} {what} ({low} to {high}), "
            lines.append(f"{line}{found[watts]:.0f} W per GPU")
    return lines


def _money(row: Row, found: Mapping[str, Any]) -> list[str]:
    """US dollars, where a price is known, with its source."""
    output = found["usd_per_million_output_tokens"]
    if output is None:
        return []
    deployment = row.case.deployment
    gpu = deployment.gpu
    given = deployment.price_usd_per_gpu_hour is not None
    where = "as given" if given else f"{gpu.name}, {gpu.price_date}".rstrip(", ")
    lines = [f"cost     {show_usd(output)} per million output tokens"]
    if found["usd_per_million_input_tokens"] is not None:
        lines[0] += f", {show_usd(found['usd_per_million_input_tokens'])} per million input"
    if found["request_usd"] is not None:
        request = f"{show_usd(found['request_usd'])} a request, "
        lines.append(
            f"         {request}at ${deployment.usd_per_gpu_hour:,.4g} a GPU-hour ({where})"
        )
    return lines


STACK_NAMES = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "trtllm": "TensorRT-LLM",
    "lcprof": "lcprof",
    "torch": "PyTorch",
}


def kernels_of(row: Row) -> str:
    """Whose kernels times are of, and when they were calibrated here."""
    here = f", calibrated here on {row.calibrated}" if row.calibrated else ""
    return printable(f"{STACK_NAMES[row.case.deployment.stack]}'s kernels{here}")


def basis(row: Row, name: str) -> str:
    """What an expected time rests on, and how far it is from what was measured."""
    columns = row.columns()
    text = columns.get(f"{name}_basis")
    if text is None:
        return ""
    distance = columns[f"{name}_distance"]
    return f"{text} x{distance:.3g}" if distance > 1 else str(text)


def _limits(row: Row, answers: Answers) -> list[RenderableType]:
    from rich.text import Text

    workload = row.case.workload
    grid = _grid()
    longest = "not bound by memory"
    if row.max_context_tokens is not None:
        longest = f"{show_tokens(row.max_context_tokens)} tokens" if row.max_context_tokens else "-"
    most = "not bound by memory"
    if row.max_concurrency is not None:
        most = f"{row.max_concurrency:,.0f}"
    gpus = "more than any that were tried"
    if answers.fewest is not None:
        deployment = answers.fewest.case.deployment
        degrees = [
            f"{degree} {value}"
            for degree in ("tp", "pp", "dcp")
            if (value := getattr(deployment, degree)) > 1
        ]
        gpus = f"{deployment.gpus} x {deployment.gpu.name}"
        gpus += f" ({', '.join(degrees)})" if degrees else ""
    breaks = BREAKS.get(answers.breaks, "nothing that was asked")
    if answers.grows:
        breaks += f", as {answers.grows} grows"
    at = f"at {_sequences(workload.concurrency)}"
    each = f"at {show_tokens(workload.context_tokens)} each"
    grid.add_row(Text(f"{INDENT}longest context {at}"), longest)
    grid.add_row(Text(f"{INDENT}most sequences {each}"), most)
    grid.add_row(Text(f"{INDENT}fewest GPUs"), printable(gpus))
    grid.add_row(Text(f"{INDENT}breaks first"), breaks)
    for what, tokens in (
        ("attention is most of a prefill", answers.attention_crossover_tokens),
        ("KV is most of what a step reads", answers.kv_crossover_tokens),
    ):
        beyond = "at no length" if tokens is None else f"beyond {show_tokens(tokens)} tokens"
        grid.add_row(Text(INDENT + what), beyond)
    return [Text("Limits", style="bold"), grid]


def _tries(answers: Answers, label: str, width: int) -> list[RenderableType]:
    from rich.text import Text

    if not answers.offers:
        return []
    flags = [INDENT + printable(offer.flags) for offer in answers.offers]
    results = [
        f"{'fits' if offer.row.estimate.fits else 'does not fit'}, "
        f"{show_bytes(offer.row.estimate.total_bytes_per_gpu)}: {printable(offer.why)}"
        for offer in answers.offers
    ]
    lines: list[RenderableType] = []
    column = max(map(len, flags)) + 2
    beside = column + max(map(len, results)) <= width
    for flag, result in zip(flags, results, strict=True):
        if beside:
            lines.append(Text.assemble((flag.ljust(column), "cyan"), result))
        else:
            lines += [Text(continued(flag, width), style="cyan"), Text(2 * INDENT + result)]
    head = f"Try, in place of {label}" if label else "Try"
    if answers.again:
        head += f" (each {' or '.join(answers.again)} instead of the one given)"
    return ["", Text(head, style="bold"), *lines]


def continued(flags: str, width: int) -> str:
    """Flags on as many lines as they need, joined by backslashes so that all can be pasted."""
    lines = [INDENT]
    for flag in flags.strip().split(" --"):
        text = flag if flag.startswith("--") else f"--{flag}"
        if len(lines[-1]) + len(text) + 3 > width and lines[-1].strip():
            lines[-1] += "\\"
            lines.append(2 * INDENT)
        lines[-1] += f"{text} "
    return "\n".join(line.rstrip() for line in lines)


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _sequences(count: float) -> str:
    return "1 sequence" if count == 1 else f"{count:,.10g} sequences"
