"""The memory bar of a GPU: what fills it, readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from lcprof.plan.estimate import Estimate
from lcprof.units import show_bytes

if TYPE_CHECKING:
    from rich.text import Text

CAPACITY_MARK = "|"


SHADES = "█▓▞▒░·"


class Part(Struct, frozen=True, kw_only=True):
    """A kind of content of a GPU's memory, and how the bar draws it."""

    name: str
    fill: str
    plain_fill: str
    style: str
    columns: tuple[str, ...]

    def bytes_held(self, estimate: Estimate[float]) -> float:
        """Its bytes on the fullest GPU; headroom below zero is none."""
        held = sum(float(getattr(estimate, f"{name}_bytes_per_gpu")) for name in self.columns)
        return max(0.0, held)


PARTS = (
    Part(name="weights", fill="█", plain_fill="#", style="blue", columns=("weights",)),
    Part(name="KV cache", fill="▓", plain_fill="=", style="green", columns=("kv_reserved",)),
    Part(
        name="KV of a prompt being read",
        fill="▞",
        plain_fill="%",
        style="cyan",
        columns=("kv_prefill",),
    ),
    Part(name="activations", fill="▒", plain_fill="+", style="yellow", columns=("activation",)),
    Part(
        name="runtime, logits, workspace",
        fill="░",
        plain_fill="~",
        style="magenta",
        columns=("runtime", "logits", "workspace"),
    ),
    Part(name="headroom", fill="·", plain_fill=".", style="bright_black", columns=("headroom",)),
)


def bar(estimate: Estimate[float], width: int, *, shades: bool) -> Text:
    """A bar of `width` characters, `shades` or ASCII. When the total is more than the capacity,
    the bar is the total and `CAPACITY_MARK` stands where the capacity ends."""
    from rich.text import Text

    over = estimate.total_bytes_per_gpu > estimate.capacity_bytes_per_gpu
    lengths = cells([part.bytes_held(estimate) for part in PARTS], width - over)
    line = Text()
    for part, length in zip(PARTS, lengths, strict=True):
        line.append((part.fill if shades else part.plain_fill) * length, style=part.style)
    if over:
        share = estimate.capacity_bytes_per_gpu / estimate.total_bytes_per_gpu
        mark = min(round(share * (width - 1)), width - 2)
        line = line[:mark] + Text(CAPACITY_MARK, style="bold red") + line[mark:]
    return line


def legend(estimate: Estimate[float], *, shades: bool) -> list[Text]:
    """The fill, name and bytes of each part that is there, and what the figures leave unsaid."""
    from rich.text import Text

    pieces: list[Text] = []
    for part in PARTS:
        if held := part.bytes_held(estimate):
            fill = (part.fill if shades else part.plain_fill) * 2
            pieces.append(Text.assemble((fill, part.style), f" {part.name} {show_bytes(held)}"))
    if estimate.total_bytes_per_gpu > estimate.capacity_bytes_per_gpu:
        limit = f" limit {show_bytes(estimate.capacity_bytes_per_gpu)}"
        pieces.append(Text.assemble((CAPACITY_MARK, "bold red"), limit))
    parts_bytes = sum(part.bytes_held(estimate) for part in PARTS[:-1])
    if parts_bytes > estimate.total_bytes_per_gpu * 1.001:
        pieces.append(Text("(each of the pipeline stage where it is largest)"))
    return pieces


def flow(pieces: Sequence[Text], width: int, indent: str) -> list[Text]:
    """`pieces` side by side, on as many indented lines of `width` as they take."""
    from rich.text import Text

    lines: list[Text] = []
    for piece in pieces:
        if lines and lines[-1].cell_len + 3 + piece.cell_len <= width:
            lines[-1] = lines[-1] + Text("   ") + piece
        else:
            lines.append(Text(indent) + piece)
    return lines


def cells(amounts: Sequence[float], width: int) -> list[int]:
    """`width` characters shared in proportion, at least one for whatever is not nothing (the
    largest remainders round up)."""
    total = sum(amounts)
    shares = [amount / total * width if total else 0.0 for amount in amounts]
    lengths = [max(int(s), 1 if a else 0) for a, s in zip(amounts, shares, strict=True)]
    order = sorted(range(len(shares)), key=lambda i: int(shares[i]) - shares[i])
    index = 0
    while sum(lengths) < width and total:
        lengths[order[index % len(order)]] += 1
        index += 1
    while sum(lengths) > width:
        lengths[lengths.index(max(lengths))] -= 1
    return lengths
