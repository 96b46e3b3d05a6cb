"""The views of what is known by name: models, GPUs and KV strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import KvStrategy
from lcprof.domain.model import ModelShape
from lcprof.plan.estimate import TokenBytes
from lcprof.report.screen import printable, shorten
from lcprof.scenario.gpus import CardLine
from lcprof.scenario.models import ModelCard
from lcprof.units import show_bytes, show_count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NAME_WIDTH = 32
MOST_WIDTH = 40


def model_list(cards: Sequence[ModelCard], *, titled: bool) -> list[RenderableType]:
    """A line for each model: its name, published size and Hub id."""
    table = _table("model", "params", "Hub id", right=("params",))
    for card in cards:
        size = f"{card.published_params_b:,.4g} B" if card.published_params_b else ""
        table.add_row(
            shorten(card.name, NAME_WIDTH), size, shorten(printable(card.hub_id), MOST_WIDTH)
        )
    return _titled("Models", table, titled)


def gpu_list(gpus: Sequence[Gpu], *, titled: bool) -> list[RenderableType]:
    """A line for each GPU: usable memory, bandwidth and dense bf16 rate."""
    table = _table(
        "gpu", "usable", "bandwidth", "bf16 dense", "made by", right=("usable", "bandwidth")
    )
    for gpu in gpus:
        table.add_row(
            gpu.name,
            show_bytes(gpu.usable_bytes),
            f"{show_bytes(gpu.bandwidth_bytes_per_s)}/s",
            f"{show_count(gpu.peak_flops['bf16'], 'FLOP')}/s",
            f"{gpu.vendor} {gpu.architecture}",
        )
    return _titled("GPUs", table, titled)


def kv_list(strategies: Sequence[type[KvStrategy]], *, titled: bool) -> list[RenderableType]:
    """A line for each strategy: its kind and what it does."""
    table = _table("kv", "what it does")
    for strategy in strategies:
        table.add_row(strategy.kind, strategy.summary)
    return _titled("KV strategies, joined by + to wrap: fp8+window:tokens=4096", table, titled)


def model_page(
    model: ModelShape, card: ModelCard | None, cached: TokenBytes
) -> list[RenderableType]:
    """A model: where its config comes from, its layers, and what a token leaves in the cache."""
    grid = _grid()

    def line(name: str, text: str) -> None:
        if text:
            grid.add_row(name, printable(text))

    line("model", model.name)
    if card is not None:
        line("Hub id", card.hub_id)
        line("config", f"{card.status}, {card.source}")
        line("also", ", ".join(card.aliases))
        line("note", card.note)
        if card.published_params_b:
            line("published", f"{card.published_params_b:,.6g} B parameters")
    line("parameters", f"{model.params:,} ({model.active_params:,} active)")
    line("hidden", f"{model.hidden:,}")
    line("vocabulary", f"{model.vocab:,}{', tied' if model.tied_embeddings else ''}")
    for group, count in zip(model.groups, model.group_counts(), strict=True):
        line("layers", f"{count} x {group.name}")
    line("KV, bf16", f"{show_bytes(cached.growing)} per token of context")
    if cached.all_layers != cached.growing:
        line("", f"{show_bytes(cached.all_layers)} without window eviction")
    if cached.index:
        line("", f"{show_bytes(cached.index)} of index keys per token")
    if cached.per_sequence:
        line("", f"{show_bytes(cached.per_sequence)} per sequence (states, full windows)")
    line("positions", f"{model.positions:,}" if model.positions else "not stated")
    line("RoPE", _rope(model))
    for text in model.assumptions:
        line("assumed", text)
    return [grid]


def gpu_page(lines: Sequence[CardLine]) -> list[RenderableType]:
    """A GPU, every figure with its source."""
    table = _table("", "value", "source")
    table.columns[1].overflow = "fold"
    for line in lines:
        if line.key == "note":
            continue
        source = ", ".join(part for part in (line.source, line.date, line.note) if part)
        table.add_row(line.key, printable(line.value), printable(source))
    notes = _grid()
    for line in lines:
        if line.key == "note":
            notes.add_row("note", printable(line.value))
    return [table, notes]


def kv_page(strategy: type[KvStrategy]) -> list[RenderableType]:
    """A strategy: what it does, its arguments, and whether it can be measured."""
    grid = _grid()
    grid.add_row("kv", strategy.kind)
    grid.add_row("", strategy.summary)
    defaults = {name: getattr(strategy, arg.field) for name, arg in strategy.arguments.items()}
    for name, argument in strategy.arguments.items():
        grid.add_row(f"  {name}=", f"{argument.expected}; default {defaults[name]}")
    grid.add_row("kernel", strategy.kernel or "none: can be planned, not measured")
    grid.add_row("about", " ".join((strategy.__doc__ or "").split()))
    return [grid]


def _rope(model: ModelShape) -> str:
    rope = model.rope
    parts = [rope.kind]
    if rope.theta is not None:
        parts.append(f"theta {rope.theta:,.10g}")
    if rope.factor != 1.0:
        parts.append(f"factor {rope.factor:g}")
    if rope.original_positions:
        parts.append(f"over {rope.original_positions:,} positions")
    return ", ".join(parts)


def _titled(title: str, table: Table, titled: bool) -> list[RenderableType]:
    from rich.text import Text

    return [Text(title, style="bold"), table, ""] if titled else [table]


def _table(*heads: str, right: Sequence[str] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for index, head in enumerate(heads):
        table.add_column(
            head, no_wrap=index == 0, justify="right" if head in right else "left", overflow="fold"
        )
    return table


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
