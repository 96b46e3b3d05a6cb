"""A value of a table as text, by the unit that its column's name ends in.

`page.js` says the same for what changes while a page is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lcprof.report.screen import printable
from lcprof.units import show_bytes, show_count, show_seconds, show_tokens

NOTHING = "–"


def show(column: str, value: Any) -> str:
    """`value` of `column` for a reader: bytes, seconds, tokens, joules, dollars, watts, shares and
    counts each in their unit, with three digits where they are measured rather than counted."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return printable(value)
    for found, words in UNITS:
        if found(column):
            return words(value)
    return f"{value:,.10g}"


def _short(value: float) -> str:
    """Three digits, and never an exponent below a billion."""
    return f"{float(f'{value:.3g}'):,.10g}"


UNITS: tuple[tuple[Callable[[str], bool], Callable[[Any], str]], ...] = (
    (lambda column: "bytes_per_s" in column, lambda value: show_count(value, "B/s")),
    (lambda column: "flops_per_s" in column, lambda value: show_count(value, "FLOP/s")),
    (lambda column: "flops_per_byte" in column, lambda value: _short(value)),
    (
        lambda column: "share" in column or column == "utilisation",
        lambda value: f"{_short(value * 100)}%",
    ),
    (lambda column: "bytes" in column, show_bytes),
    (lambda column: "flops" in column, lambda value: show_count(value, "FLOP")),
    (lambda column: "usd" in column, lambda value: f"${_short(value)}"),
    (
        lambda column: column.endswith(("tokens_per_s", "tokens_per_s_per_gpu")),
        lambda value: _short(value),
    ),
    (lambda column: column == "seconds" or column.endswith("_s"), show_seconds),
    (lambda column: column.endswith("_tokens"), show_tokens),
    (lambda column: column.endswith("_j"), lambda value: show_count(value, "J")),
    (lambda column: column.endswith(("_w", "_w_per_gpu")), lambda value: f"{value:,.0f} W"),
    (
        lambda column: column == "distance" or column.endswith("_distance"),
        lambda value: f"x{_short(value)}",
    ),
)
"""What a column holds, by its name, and how that is worded; the first that applies."""

HEADS = {
    "label": "strategy",
    "kv": "KV strategy",
    "gpu": "GPU",
    "gpus": "GPUs",
    "fits": "fits",
    "part": "part",
    "phase": "phase",
    "operation": "operation",
    "kernels": "measured kernels behind it",
    "risk": "risk to quality",
    "risk_why": "why",
    "risk_source": "source",
    "bytes": "bytes per GPU",
    "context_tokens": "context, tokens",
    "concurrency": "sequences",
    "kv_reserved_bytes_per_gpu": "KV per GPU",
    "total_bytes_per_gpu": "memory per GPU",
    "capacity_bytes_per_gpu": "capacity per GPU",
    "headroom_bytes_per_gpu": "to spare per GPU",
    "max_concurrency": "most sequences",
    "max_context_tokens": "longest context",
    "ttft_s": "TTFT",
    "ttft_low_s": "TTFT, low",
    "ttft_high_s": "TTFT, high",
    "ttft_floor_s": "TTFT, floor",
    "ttft_basis": "TTFT rests on",
    "ttft_distance": "TTFT, beyond measured",
    "tpot_s": "TPOT",
    "tpot_low_s": "TPOT, low",
    "tpot_high_s": "TPOT, high",
    "tpot_floor_s": "TPOT, floor",
    "tpot_basis": "TPOT rests on",
    "tpot_distance": "TPOT, beyond measured",
    "request_s": "whole request",
    "output_tokens_per_s": "tokens/s in all",
    "prefill_j": "energy of a prefill",
    "prefill_low_j": "prefill energy, low",
    "prefill_high_j": "prefill energy, high",
    "output_token_j": "energy of an output token",
    "output_token_low_j": "token energy, low",
    "output_token_high_j": "token energy, high",
    "request_usd": "cost of a request",
    "usd_per_million_output_tokens": "$ per million output tokens",
    "usd_per_million_input_tokens": "$ per million input tokens",
    "attention_share_of_prefill_flops": "attention's share of prefill FLOPs",
    "kv_share_of_step_bytes": "KV's share of a step's bytes",
    "seconds": "expected",
    "low_s": "low",
    "high_s": "high",
    "share": "share",
    "hbm_bytes": "GPU memory traffic",
    "flops_per_byte": "FLOPs per byte",
    "flops_per_s": "FLOP/s reached",
    "compute": "arithmetic in",
    "distance": "beyond measured",
    "peak_flops_per_s": "peak",
    "bandwidth_bytes_per_s": "memory bandwidth",
    "prefill_w_per_gpu": "power per GPU, prefill",
    "decode_w_per_gpu": "power per GPU, decode",
}


def head(column: str) -> str:
    """A column's name for a reader."""
    return HEADS.get(column, column.replace("_", " "))
