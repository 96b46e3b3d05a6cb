"""What an engine makes of a row: its launch lines, and what it reserves beside what is needed."""

from __future__ import annotations

import shlex
import textwrap
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from lcprof.cost.engine.reserve import Reserved
from lcprof.domain.engine import Engine
from lcprof.plan.row import Row
from lcprof.report.launch import CONFIG_FILE, Launch, launch_lines, launched_reservation
from lcprof.report.screen import Screen, printable
from lcprof.units import show_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

INDENT = "  "
SIZES = ("visible", "budget", "weights", "activation", "non_torch", "graph", "kv")


class EngineAnswer(Struct, frozen=True, kw_only=True):
    """A row as an engine would serve it. `reserved` is of the launched server: parts of the plan
    that `launch` names as missing are not in it."""

    row: Row
    engine: Engine
    launch: Launch
    reserved: Reserved


def engine_answer(row: Row, engine: Engine) -> EngineAnswer:
    """How `engine` is started for a row, and what it then reserves."""
    launch = launch_lines(row.case, engine)
    reserved = launched_reservation(row.case, engine, launch)
    return EngineAnswer(row=row, engine=engine, launch=launch, reserved=reserved)


def engine_record(answer: EngineAnswer) -> dict[str, Any]:
    """The `engine` object of `--json`: the launch, and the reservation of the fullest GPU in whole
    bytes; `kv_low_bytes` and `kv_high_bytes` bound 90 % of cases."""
    launch, reserved = answer.launch, answer.reserved
    sizes = [*SIZES, "kv_low", "kv_high"]
    return {
        "name": launch.engine,
        "command": launch.command,
        "environment": dict(launch.environment),
        "arguments": list(launch.arguments),
        "config_file": CONFIG_FILE if launch.config else None,
        "config": launch.config or None,
        "missing": [{"part": gap.part, "reason": gap.reason} for gap in launch.missing],
        "notes": list(launch.notes),
        "reserved": {
            **{f"{name}_bytes": round(getattr(reserved, f"{name}_bytes")) for name in sizes},
            "kv_tokens": reserved.kv_tokens,
            "max_model_len": reserved.max_model_len,
            "max_concurrency": reserved.max_concurrency,
            "starts": reserved.starts,
            "reason": reserved.reason or None,
        },
    }


def show_engine(answer: EngineAnswer, screen: Screen, label: str = "") -> None:
    """Prints an answer below a plan's page; `label` names the row where there are several."""
    screen.show(["", *engine_page(answer, label)])
    screen.paste(launch_text(answer.launch, screen.width))


def engine_page(answer: EngineAnswer, label: str = "") -> list[RenderableType]:
    """Bytes of the fullest GPU side by side, and what the server can then hold."""
    from rich.table import Table
    from rich.text import Text

    estimate, reserved = answer.row.estimate, answer.reserved
    title = answer.engine.title
    head = f"{title}, for {label}" if label else title
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    grid.add_column(f"{INDENT}GPU memory", no_wrap=True)
    grid.add_column("ideal", justify="right", no_wrap=True)
    grid.add_column("reserved", justify="right", no_wrap=True)
    grid.add_column("")
    working = sum(
        getattr(estimate, f"{name}_bytes_per_gpu") for name in ("activation", "logits", "workspace")
    )
    pool = max(0.0, reserved.kv_bytes)
    spread = f"90%: {_size(reserved.kv_low_bytes)} to {_size(reserved.kv_high_bytes)}"
    needed = estimate.kv_reserved_bytes_per_gpu + estimate.kv_prefill_bytes_per_gpu
    runtime = estimate.runtime_bytes_per_gpu
    rows = [
        ("weights", estimate.weights_bytes_per_gpu, reserved.weights_bytes, ""),
        ("KV: needed, all that is left", needed, pool, spread),
        ("activations, logits, workspace", working, reserved.activation_bytes, ""),
        ("runtime and libraries", runtime, reserved.non_torch_bytes, ""),
        ("CUDA graphs", 0.0, reserved.graph_bytes, "" if reserved.graph_bytes else "not counted"),
    ]
    held = pool + sum(row[2] for row in rows if not row[0].startswith("KV"))
    rows.append(("in all", estimate.total_bytes_per_gpu, held, ""))
    for name, ideal, real, note in rows:
        grid.add_row(f"{INDENT}{name}", _size(ideal), _size(real), note)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row(f"{INDENT}starts", _starts(reserved))
    facts.add_row(f"{INDENT}KV tokens that fit", f"{reserved.kv_tokens:,}")
    length = f"requests of {reserved.max_model_len:,} tokens at once"
    asked = f"of {_count(answer.row.case.workload.concurrency)} asked"
    if (groups := answer.launch.deployment.dp) > 1:
        asked += f", on each of {groups} data-parallel groups"
    facts.add_row(f"{INDENT}{length}", f"{reserved.max_concurrency:,.2f}, {asked}")
    parts: list[RenderableType] = [Text(printable(head), style="bold"), grid, facts]
    if answer.launch.missing:
        note = "What the launch line misses (below) is not in what is reserved."
        parts.append(Text(f"{INDENT}{note}", style="dim"))
    if not answer.engine.fitted_on:
        note = f"By {title}'s rules; its published start-ups are too few to check this by."
        parts.append(Text(f"{INDENT}{note}", style="dim"))
    return [*parts, "", Text("Launch", style="bold")]


def launch_text(launch: Launch, width: int) -> list[str]:
    """The launch lines with the command continued over lines of `width`, where its words allow."""
    end = launch.lines.index(launch.command)
    lines = [*launch.lines[:end], *command_lines(launch, width)]
    for comment in launch.lines[end + 1 :]:
        lines += textwrap.wrap(
            comment, width, subsequent_indent="#   ", break_long_words=False, break_on_hyphens=False
        )
    return lines


def command_lines(launch: Launch, width: int) -> list[str]:
    """The command on as many lines as it takes, joined by backslashes; a flag and its value stay
    together, and nothing is cut."""
    pieces = [f"{name}={shlex.quote(value)}" for name, value in launch.environment]
    for word in launch.arguments:
        quoted = shlex.quote(word)
        if pieces and pieces[-1].startswith("--") and " " not in pieces[-1] and word[:2] != "--":
            pieces[-1] += f" {quoted}"
        else:
            pieces.append(quoted)
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"{INDENT}{piece}")
        else:
            lines[-1] += f" {piece}"
    return lines


def _starts(reserved: Reserved) -> str:
    return "yes" if reserved.starts else f"no: {reserved.reason}"


def _size(count: float) -> str:
    return show_bytes(max(0.0, count)) if count else "-"


def _count(count: float) -> str:
    return f"{count:,.10g}"
