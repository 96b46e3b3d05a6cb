"""The record of a page: every table that it shows, gathered once, from which it is rebuilt.

A table maps columns to values of one length. Where `axes` stand beside them, the columns are flat
over the axes' values, the last axis fastest.
"""

from __future__ import annotations

import heapq
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from msgspec import Struct

from lcprof import __version__
from lcprof.domain.calibration import Found
from lcprof.domain.case import Case
from lcprof.domain.gpu import Gpu
from lcprof.errors import InputError
from lcprof.plan import study
from lcprof.plan.answers import Answers
from lcprof.plan.choice import rank, risk
from lcprof.plan.fits import power_for
from lcprof.plan.row import Row
from lcprof.report.bar import PARTS
from lcprof.report.console import BREAKS, kernels_of, position_note
from lcprof.report.export import csv_table, records
from lcprof.report.screen import printable, shorten
from lcprof.report.table import HEADS, abbreviated, shown, varying

if TYPE_CHECKING:
    from lcprof.report.engine import EngineAnswer

FORMAT = 1
"""The version of a record; a page is built from records of this version alone."""
MOST_ROWS = 40
MOST_BARS = 16
MOST_LINES = 6
MOST_NOTES = 12
MOST_OFFERS = 3
LABEL = 50
"""Letters of a label: as many as the chart of a phone is wide."""
DIGITS = 6
GRID_DIGITS = 5
TEXT_LIMIT = 10_000

Table = dict[str, Any]


class About(Struct, frozen=True, kw_only=True):
    """What a page is about: the file's `question` and `note`, the `command` that rebuilds it, and
    the `date` that its maker gave ("" for none). `planned` rows, of which `fitting` fit, where they
    are more than the page is given."""

    question: str = ""
    note: str = ""
    command: str = ""
    date: str = ""
    planned: int | None = None
    fitting: int | None = None


def record_of(
    rows: Sequence[Row],
    answers: Answers,
    engines: Sequence[EngineAnswer],
    gpus: Iterable[Gpu],
    asked: About,
) -> dict[str, Any]:
    """The record of a plan's page. `answers` and `engines` are those of `choice.chosen(rows)`,
    `gpus` what the sliders may choose from."""
    row = answers.row
    kept = _first(rows, row)
    names = labels(kept)
    tables: dict[str, Table] = {
        "about": _about(rows, kept, row, asked),
        "rows": _rows(kept, names),
        "memory": _memory(kept, names),
        "limits": _limits(answers),
        "offers": _offers(answers),
        **_lines(kept, row),
        **_curves(kept, row),
        **_operations(row),
        **_grid(kept, row, gpus),
        "launch": _launch(engines),
        "notes": _notes(asked.planned or len(rows), kept, row),
    }
    return {"format": FORMAT, "lcprof": __version__, "tables": tables}


def write_record(record: Mapping[str, Any]) -> str:
    """A record as JSON: one line a column, keys in their order."""
    lines: list[str] = []
    for name, table in record["tables"].items():
        parts = []
        for part in ("axes", "columns"):
            if part in table:
                columns = ",\n    ".join(
                    f"{json.dumps(key)}: {_compact(values)}" for key, values in table[part].items()
                )
                parts.append(f'"{part}": {{\n    {columns}}}')
        lines.append(f"  {json.dumps(name)}: {{{', '.join(parts)}}}")
    tables = ",\n".join(lines)
    head = f'"format": {record["format"]}, "lcprof": {json.dumps(record["lcprof"])}'
    return f'{{{head}, "tables": {{\n{tables}\n}}}}\n'


class _TableFile(Struct, frozen=True, forbid_unknown_fields=True):
    columns: dict[str, list[bool | int | float | str | None]]
    axes: dict[str, list[bool | int | float | str | None]] = {}


class _RecordFile(Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    lcprof: str
    tables: dict[str, _TableFile]


def read_record(path: Path) -> dict[str, Any]:
    """A record from its file. Raises InputError for what is no record, for one that is damaged, and
    for one of another version, which it names."""

    def refuse(given: str, expected: str) -> NoReturn:
        raise InputError.one(str(path), given=given, expected=expected) from None

    try:
        data = msgspec.json.decode(path.read_bytes())
        version = data.get("format") if isinstance(data, dict) else None
        if version != FORMAT:
            made = data.get("lcprof", "unknown") if isinstance(data, dict) else "unknown"
            refuse(
                f"format {version} of lcprof {made}",
                f"a record of format {FORMAT}, as lcprof {__version__} writes",
            )
        read = msgspec.convert(data, _RecordFile)
    except OSError as error:
        refuse(error.strerror or "unreadable", "a record that lcprof report wrote")
    except msgspec.DecodeError as error:
        refuse(str(error), "a record that lcprof report wrote")
    for name, table in read.tables.items():
        sizes = {len(values) for values in table.columns.values()}
        points = math.prod(len(values) for values in table.axes.values())
        whole = len(sizes) <= 1 and (not table.axes or sizes == {points})
        if not (whole and all(_NAME.fullmatch(n) for n in (name, *table.columns, *table.axes))):
            refuse(f"table {name[:40]!r}", "columns of one length, by names of small letters")
    held = {name for name, table in read.tables.items() if any(table.columns.values())}
    lacking = [[name for name in needed if name not in held] for needed in NEEDED]
    if all(lacking):
        wanted = " or ".join(", ".join(needed) for needed in NEEDED)
        refuse(f"no table {lacking[0][0]}", f"the tables {wanted}")
    return dict(data)


_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")
NEEDED = (("about", "rows", "limits"), ("about", "runs"))
"""The tables that the page of a plan has, and those of the page of runs."""


def expanded(table: Table) -> dict[str, list[Any]]:
    """A table's columns, its axes repeated over the points that they span."""
    axes: dict[str, list[Any]] = table.get("axes", {})
    size = math.prod(len(values) for values in axes.values())
    columns: dict[str, list[Any]] = {}
    inner = size
    for name, values in axes.items():
        inner //= len(values)
        once = [value for value in values for _ in range(inner)]
        columns[name] = once * (size // len(once))
    return {**columns, **table["columns"]}


def table_csv(table: Table) -> str:
    """A table as CSV."""
    columns = expanded(table)
    values = zip(*columns.values(), strict=True)
    return csv_table(list(columns), [dict(zip(columns, each, strict=True)) for each in values])


def _compact(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Numbers to so many digits, whole ones as ints; what is not finite is None."""
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    near = float(f"{value:.{digits}g}") if not value.is_integer() else value
    return int(near) if near.is_integer() and abs(near) < 2**53 else near


def _round(table: Mapping[str, Sequence[Any]], digits: int = DIGITS) -> dict[str, list[Any]]:
    return {name: [rounded(value, digits) for value in values] for name, values in table.items()}


def from_lines(names: Sequence[str], lines: Sequence[Sequence[Any]]) -> Table:
    """A table of lines, its numbers rounded."""
    columns = {name: [line[index] for line in lines] for index, name in enumerate(names)}
    return {"columns": _round(columns)}


def _first(rows: Sequence[Row], row: Row) -> list[Row]:
    """The row that was chosen, the first as it was asked for, then the others as they rank, as
    many as a page shows: the best of each kind among them."""
    named = [row] if rows[0] is row else [row, rows[0]]
    others = [each for each in rows[1:] if each is not row]
    room = MOST_ROWS - len(named)
    if len(others) <= room:
        return [*named, *sorted(others, key=rank)]
    best: dict[Any, Row] = {}
    for each in others:
        kind = study.kind(each.case)
        if kind not in best or rank(each) < rank(best[kind]):
            best[kind] = each
    leading = heapq.nsmallest(room // 2, best.values(), key=rank)
    kept = {id(each) for each in leading}
    rest = (each for each in others if id(each) not in kept)
    filled = [*leading, *heapq.nsmallest(room - len(leading), rest, key=rank)]
    return [*named, *sorted(filled, key=rank)]


def labels(rows: Sequence[Row]) -> list[str]:
    """What sets each row apart, no two alike."""
    names = varying(rows)
    found = [_label(row, names) for row in rows]
    seen: dict[str, int] = {}
    for index, label in enumerate(found):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1:
            found[index] = f"{label} ({seen[label]})"
    return found


def _label(row: Row, names: Iterable[str]) -> str:
    """What is said of a row; a KV strategy in short where there is no room for it, and then only as
    much as there is room for."""
    columns = row.columns()
    texts = {name: shown(name, columns[name]) for name in names}
    for each in (texts, {**texts, "kv": abbreviated(texts.get("kv", ""))}):
        label = ", ".join(
            WORDED.get(name, f"{HEADS.get(name, name)} {{}}").format(each[name]) for name in texts
        )
        if len(label) <= LABEL:
            return label
    return shorten(label, LABEL)


WORDED = {
    **dict.fromkeys(("model", "gpu", "kv"), "{}"),
    "weights": "{} weights",
    "gpus": "GPUs: {}",
    "context_tokens": "{} context",
    "output_tokens": "{} output",
    "concurrency": "{} at once",
    "price_usd_per_gpu_hour": "${} a GPU-hour",
    "power_limit_w": "{} W",
    "stack": "kernels of {}",
}
"""How a label says a column of a case."""


def _about(rows: Sequence[Row], kept: Sequence[Row], row: Row, asked: About) -> Table:
    columns = row.columns()
    title = f"{columns['model']} on {columns['gpus']} x {columns['gpu']}"
    fitting = sum(bool(each.estimate.fits) for each in rows)
    facts = {
        "title": printable(asked.question or title)[:TEXT_LIMIT],
        "note": printable(asked.note)[:TEXT_LIMIT],
        "rows_planned": len(rows) if asked.planned is None else asked.planned,
        "rows_fitting": fitting if asked.fitting is None else asked.fitting,
        "rows_shown": len(kept),
        "chosen": 0,
        "asked": next(i for i, each in enumerate(kept) if each is rows[0]),
        "no_times": row.no_times,
        "timed_as": kernels_of(row),
        "command": asked.command,
        "lcprof_version": __version__,
        "date": printable(asked.date),
    }
    return {"columns": {name: [value] for name, value in facts.items()}}


def _rows(rows: Sequence[Row], names: Sequence[str]) -> Table:
    lines = []
    for row, label, columns in zip(rows, names, records(rows), strict=True):
        worst = risk(row.case)
        limits = {} if row.estimate.fits else {"limited_by": BREAKS[row.estimate.limited_by]}
        extra = {"risk": worst.name, "risk_why": worst.why, "risk_source": worst.source}
        lines.append({"label": label, **extra, **columns, **limits})
    return from_lines(list(lines[0]), [list(line.values()) for line in lines])


def _memory(rows: Sequence[Row], names: Sequence[str]) -> Table:
    lines = []
    barred = _barred(rows)
    for row, label in zip(rows, names, strict=True):
        if id(row) not in barred:
            continue
        capacity = row.estimate.capacity_bytes_per_gpu
        for part in PARTS[:-1]:
            held = part.bytes_held(row.estimate)
            lines.append((label, part.name, round(held), round(capacity)))
    return from_lines(("label", "part", "bytes", "capacity_bytes_per_gpu"), lines)


def _barred(rows: Sequence[Row]) -> set[int]:
    """The rows that get a bar: the first of each kind before others, as many as there is room."""
    kinds = {id(case) for case in study.kinds(row.case for row in rows)}
    firsts = [row for row in rows if id(row.case) in kinds]
    others = [row for row in rows if id(row.case) not in kinds]
    return {id(row) for row in [*firsts, *others][:MOST_BARS]}


def _limits(answers: Answers) -> Table:
    fewest = answers.fewest.case.deployment if answers.fewest else None
    facts = {
        "max_context_tokens": answers.row.max_context_tokens,
        "max_concurrency": answers.row.max_concurrency,
        "fewest_gpus": fewest.gpus if fewest else None,
        "fewest_layout": f"tp {fewest.tp}, pp {fewest.pp}, dcp {fewest.dcp}" if fewest else None,
        "breaks": BREAKS.get(answers.breaks, ""),
        "grows": answers.grows,
        "attention_crossover_tokens": answers.attention_crossover_tokens,
        "kv_crossover_tokens": answers.kv_crossover_tokens,
    }
    return from_lines(list(facts), [list(facts.values())])


def _offers(answers: Answers) -> Table:
    """What to change; for a plan that fits without what its limits say already."""
    case = answers.row.case
    lines = []
    for offer in answers.offers:
        other = offer.row.case
        same = other.deployment == case.deployment and other.kv_spec == case.kv_spec
        if not (same and answers.row.estimate.fits):
            total = round(offer.row.estimate.total_bytes_per_gpu)
            fits = bool(offer.row.estimate.fits)
            lines.append((printable(offer.flags), printable(offer.why), fits, total))
    return from_lines(("flags", "why", "fits", "total_bytes_per_gpu"), lines[:MOST_OFFERS])


CURVE = (
    *("context_tokens", "ttft_s", "ttft_low_s", "ttft_high_s", "ttft_floor_s", "ttft_basis"),
    *("tpot_s", "tpot_low_s", "tpot_high_s", "tpot_floor_s", "tpot_basis"),
    *("total_bytes_per_gpu", "capacity_bytes_per_gpu"),
)
LINE = (
    *("context_tokens", "kv_reserved_bytes_per_gpu", "total_bytes_per_gpu"),
    *("capacity_bytes_per_gpu", "max_concurrency"),
)
BATCH = (
    *("concurrency", "total_bytes_per_gpu", "capacity_bytes_per_gpu", "tpot_s"),
    "output_tokens_per_s",
    *("usd_per_million_output_tokens", "output_token_j", "output_token_low_j"),
    "output_token_high_j",
)


def _curves(rows: Sequence[Row], row: Row) -> dict[str, Table]:
    """What lies around the chosen row: over context, and over the batch."""
    case = row.case
    workload = case.workload
    planned = [workload.context_tokens, rows[0].case.workload.context_tokens]
    contexts = study.lengths(case, planned, study.PER_OCTAVE)
    (curve,) = study.swept(case, contexts, [workload.concurrency], CURVE)
    most = min(row.max_concurrency or study.MOST_SEQUENCES, study.MOST_SEQUENCES)
    sequences = study.batches(most, [workload.concurrency, most])
    (batch,) = study.swept(case, [workload.context_tokens], sequences, BATCH)
    for table in (curve, batch):
        _blank_beyond_memory(table, case.hypothetical)
    return {
        "curve": {"columns": _round(curve)},
        "shares": {"columns": _round(study.context_shares(case, contexts))},
        "planned": {"columns": {"context_tokens": [rounded(workload.context_tokens)]}},
        "batch": {"columns": _round(batch)},
    }


def _blank_beyond_memory(table: dict[str, list[Any]], hypothetical: bool) -> None:
    """Takes away the times of points that do not fit, unless they are asked for."""
    sized = ("context_tokens", "concurrency", "total_bytes_per_gpu", "capacity_bytes_per_gpu")
    held = zip(table["total_bytes_per_gpu"], table["capacity_bytes_per_gpu"], strict=True)
    for index, (total, capacity) in enumerate(held):
        if total > capacity and not hypothetical:
            for name in table.keys() - set(sized):
                table[name][index] = None


def _lines(rows: Sequence[Row], row: Row) -> dict[str, Table]:
    """Memory over context of strategies that differ, all at the chosen row's batch."""
    batch = row.case.workload.concurrency
    cases = study.kinds(each.case for each in rows)
    few = study.lengths(row.case, [row.case.workload.context_tokens], 2)
    lines: dict[str, list[Any]] = {name: [] for name in ("label", *LINE)}
    crossings: list[tuple[Any, ...]] = []
    drawn: list[list[float]] = []
    for case, label in zip(cases, _kind_labels(rows, cases), strict=True):
        (table,) = study.swept(case, few, [batch], LINE)
        totals = table["total_bytes_per_gpu"]
        if len(drawn) == MOST_LINES or any(study.alike(totals, other) for other in drawn):
            continue
        drawn.append(totals)
        lines["label"] += [label] * len(few)
        for name in LINE:
            lines[name] += table[name]
        longest = study.longest_tokens(case, batch)
        if longest is not None and few[0] <= longest <= few[-1]:
            crossings.append((label, longest, table["capacity_bytes_per_gpu"][0]))
    return {
        "contexts": {"columns": _round(lines)},
        "crossings": from_lines(("label", "context_tokens", "capacity_bytes_per_gpu"), crossings),
    }


def _kind_labels(rows: Sequence[Row], cases: Sequence[Case]) -> list[str]:
    """What sets kinds apart: neither context nor batch."""
    held = {id(each.case): each for each in rows}
    kinds = [held[id(case)] for case in cases]
    names = [name for name in varying(rows) if name not in ("context_tokens", "concurrency")]
    said = [_label(each, names or ["kv"]) for each in kinds]
    return said if len(set(said)) == len(said) else labels(kinds)


def _operations(row: Row) -> dict[str, Table]:
    """Operations, and the roofs that they lie under; nothing where no time is expected."""
    table, kernels = study.operations(row)
    if not table["phase"]:
        return {}
    flops, moved, seconds = table["flops"], table["hbm_bytes"], table["seconds"]
    rates = [
        (done / took if took and done else None, done / read if read and done else None)
        for done, read, took in zip(flops, moved, seconds, strict=True)
    ]
    table["flops_per_s"] = [rate for rate, _ in rates]
    table["flops_per_byte"] = [intensity for _, intensity in rates]
    gpu = row.case.deployment.gpu
    used = [c for c in dict.fromkeys(table["compute"]) if c and c != "vector"]
    roofs = [(c, gpu.flops_per_s(c), gpu.bandwidth_bytes_per_s) for c in used]
    points = [
        (c, intensity, min(peak, intensity * bandwidth), peak, bandwidth)
        for c, peak, bandwidth in roofs
        for intensity in sorted({0.1, peak / bandwidth, 1e5})
    ]
    names = (
        "compute",
        "flops_per_byte",
        "flops_per_s",
        "peak_flops_per_s",
        "bandwidth_bytes_per_s",
    )
    return {
        "operations": {"columns": _round(table)},
        "roofs": from_lines(names, points),
        "kernels": _kernels(kernels),
    }


def _kernels(found: Sequence[Found]) -> Table:
    lines = []
    for each in found:
        stack, variant = each.variant
        held = each.fit.residuals.get("large") or next(iter(each.fit.residuals.values()))
        standing = "stand-in" if each.stands_in else "as planned"
        lines.append(
            (stack, variant, each.measured_on, each.fit.rows, held.median, held.p90, standing)
        )
    names = ("stack", "kernel", "measured_on", "rows")
    return from_lines((*names, "median_error_share", "high_error_share", "use"), lines)


def _grid(rows: Sequence[Row], row: Row, gpus: Iterable[Gpu]) -> dict[str, Table]:
    found = study.grid(rows, row, gpus)
    axes: dict[str, list[Any]] = {
        "label": _kind_labels(rows, found.cases),
        "gpu": [printable(deployment.gpu.name) for deployment in found.deployments],
        "context_tokens": [rounded(tokens) for tokens in found.contexts],
        "concurrency": [rounded(count) for count in found.sequences],
    }
    prompt_axes = {name: values for name, values in axes.items() if name != "concurrency"}
    capacity = {
        "gpu": axes["gpu"],
        "capacity_bytes_per_gpu": found.capacity_bytes,
        "price_usd_per_gpu_hour": [d.usd_per_gpu_hour for d in found.deployments],
    }
    return {
        "grid_steps": {"axes": axes, "columns": _round(found.step, GRID_DIGITS)},
        "grid_prompts": {"axes": prompt_axes, "columns": _round(found.prompt, GRID_DIGITS)},
        "grid_gpus": {"columns": _round(capacity)},
    }


def _launch(engines: Sequence[EngineAnswer]) -> Table:
    from lcprof.report.engine import launch_text

    lines = []
    for answer in engines:
        reserved = answer.reserved
        lines.append(
            (
                answer.engine.title,
                printable_lines(launch_text(answer.launch, 100)),
                bool(reserved.starts),
                reserved.reason or "",
                round(max(0.0, reserved.kv_bytes)),
                reserved.kv_tokens,
                round(reserved.max_concurrency, 2),
                "; ".join(f"{gap.part}: {gap.reason}" for gap in answer.launch.missing),
            )
        )
    names = ("engine", "launch", "starts", "reason", "kv_bytes_per_gpu", "kv_tokens")
    return from_lines((*names, "requests", "missing"), lines)


def printable_lines(lines: Iterable[str]) -> str:
    """Lines as one text, what cannot be printed made visible."""
    return "\n".join(printable(line) for line in lines)


def _notes(planned: int, kept: Sequence[Row], row: Row) -> Table:
    """Assumptions, sources and what was left out, each with its kind."""
    gpu = row.case.deployment.gpu
    found: list[tuple[str, str]] = []
    for kind, texts in (
        ("content", [note for each in kept for note in each.case.notes]),
        ("config", [text for each in kept for text in each.case.model.assumptions]),
        ("positions", [position_note(row)]),
        ("times", [f"no times: {row.no_times}" if row.no_times else ""]),
    ):
        found += [
            (kind, printable(text)) for text in list(dict.fromkeys(texts))[:MOST_NOTES] if text
        ]
    for name, source in gpu.sources.items():
        found.append((f"GPU: {_plain(name)}", printable(source)))
    if row.case.deployment.price_usd_per_gpu_hour is not None:
        found.append(("price", "as given"))
    power = power_for(gpu, row.case.deployment.power_limit_w)
    if power is not None:
        for name, source in power.sources.items():
            found.append((f"power: {_plain(name)}", printable(source)))
    if planned > len(kept):
        text = (
            f"{planned:,} rows were planned; {len(kept)} are on this page: the one to decide on, "
            "the first as asked for, the best of each kind, then those that rank first. Curves and "
            "sliders were planned anew at lengths and batches of their own"
        )
        found.append(("left out", text))
    return from_lines(("about", "text"), found)


SOURCED = {
    "marketed_bytes": "memory as marketed",
    "usable_bytes": "memory that can be used",
    "bandwidth_bytes_per_s": "memory bandwidth",
    "link_bytes_per_s": "bandwidth between GPUs",
    "pcie_bytes_per_s": "bandwidth of the bus",
    "sm_count": "streaming multiprocessors",
    "boost_hz": "boost clock",
    "l2_bytes": "L2 cache",
    "tdp_w": "power limit",
    "limit_w": "power limit",
    "price_usd_per_hour": "price",
    "peak_flops": "peak arithmetic in",
    "idle_w": "at rest",
    "busy_w": "whenever it works",
    "attention": "attention's share",
    "clock_exponent": "clock under a limit",
    "joules_per_hbm_byte": "energy of a byte",
    "joules_per_flop": "energy of a FLOP in",
    "low": "low end of the interval",
    "high": "high end of the interval",
}
"""What figures with a source are called."""


def _plain(name: str) -> str:
    figure, _, dtype = name.partition(".")
    return f"{SOURCED.get(figure, figure.replace('_', ' '))} {dtype}".rstrip()
