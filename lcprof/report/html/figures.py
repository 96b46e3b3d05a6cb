"""A value of a table as text, by the unit that its column's name ends in.

`page.js` says the same for what changes while a page is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lcprof.report.screen import printable
from lcprof.units import (
    show_bytes,
    show_count,
    show_params,
    show_seconds,
    show_short,
    show_tokens,
    show_usd,
)

NOTHING = "–"
NOUGHT = 1e-3
"""Percent of an error that are as good as none."""


def show(column: str, value: Any) -> str:
    """`value` of `column` for a reader: bytes, seconds, tokens, joules, dollars, watts, shares and
    counts each in their unit, with three digits where they are measured rather than counted."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return "\n".join(printable(line) for line in value.split("\n"))
    quantity = column.removesuffix("_predicted").removesuffix("_measured")
    for found, words in UNITS:
        if found(quantity):
            return words(value)
    return f"{value:,.10g}"


def _signed(value: float) -> str:
    """Three digits behind a sign; nought where there is next to nothing."""
    return f"{'+' * (value > 0)}{show_short(value)}" if abs(value) >= NOUGHT else "0"


def _counted(unit: str) -> Callable[[float], str]:
    return lambda value: show_count(value, unit)


def _within(*parts: str) -> Callable[[str], bool]:
    return lambda column: any(part in column for part in parts)


def _ends(*ends: str) -> Callable[[str], bool]:
    return lambda column: column.endswith(ends)


UNITS: tuple[tuple[Callable[[str], bool], Callable[[Any], str]], ...] = (
    (_ends("points"), lambda value: f"{value:,}"),
    (_ends("_error", "change"), lambda value: f"{_signed(value * 100)}%"),
    (_ends("_over_floor", "_over_burst"), lambda value: f"x{show_short(value)}"),
    (_ends("seconds_low", "seconds_high"), show_seconds),
    (_within("bytes_per_s"), _counted("B/s")),
    (_within("flops_per_s"), _counted("FLOP/s")),
    (_within("flops_per_byte"), show_short),
    (_within("share", "utilisation"), lambda value: f"{show_short(value * 100)}%"),
    (_ends("params"), show_params),
    (_within("bytes"), show_bytes),
    (_within("flops"), _counted("FLOP")),
    (_within("usd"), show_usd),
    (_ends("tokens_per_s", "tokens_per_s_per_gpu"), show_short),
    (_ends("seconds", "_s"), show_seconds),
    (_ends("_tokens"), show_tokens),
    (_ends("_j"), _counted("J")),
    (_ends("_w", "_w_per_gpu"), lambda value: f"{value:,.0f} W"),
    (_ends("_hz"), _counted("Hz")),
    (_ends("_c"), lambda value: f"{value:,.0f} °C"),
    (_ends("distance"), lambda value: f"x{show_short(value)}"),
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
    "median_error_share": "error, median",
    "high_error_share": "error, nine in ten below",
    "measured_on": "measured on",
    "about": "about",
    "prefill_w_per_gpu": "power per GPU, prefill",
    "decode_w_per_gpu": "power per GPU, decode",
    "seconds_predicted": "time expected",
    "seconds_measured": "time measured",
    "seconds_error": "error of the time",
    "seconds_low": "expected, low",
    "seconds_high": "expected, high",
    "basis": "rests on",
    "held_out": "not seen by its fit",
    "inside": "within the interval",
    "floor_s": "floor",
    "measured_over_floor": "over the floor",
    "sustained_over_burst": "sustained over single",
    "sustained_s": "sustained",
    "sustained_s_measured": "sustained",
    "sustained_s_error": "error of the sustained time",
    "length_tokens": "context, tokens",
    "hbm_bytes_predicted": "bytes predicted",
    "hbm_bytes_measured": "bytes counted",
    "hbm_bytes_error": "error of the bytes",
    "flops_predicted": "FLOPs predicted",
    "flops_measured": "FLOPs counted",
    "flops_error": "error of the FLOPs",
    "peak_bytes_predicted": "memory predicted",
    "peak_bytes_measured": "memory measured",
    "peak_bytes_error": "error of the memory",
    "power_w": "power",
    "energy_j": "energy",
    "energy_j_measured": "energy",
    "energy_j_error": "error of the energy",
    "sm_clock_hz": "SM clock",
    "temperature_c": "temperature",
    "moment_s": "since the run began",
    "seconds_median_error_share": "error of the time, median",
    "seconds_high_error_share": "error of the time, nine in ten below",
    "hbm_bytes_median_error_share": "error of the bytes, median",
    "flops_median_error_share": "error of the FLOPs, median",
    "bias_error": "bias",
    "seen_points": "seen by the fit",
    "power_limit_w": "power limit",
    "sm_clock_max_hz": "SM clock, highest",
    "memory_clock_max_hz": "memory clock, highest",
    "memory_bytes": "memory",
    "flops_per_cycle": "FLOPs a clock cycle",
    "cuda": "CUDA",
    "torch": "PyTorch",
    "triton": "Triton",
    "python": "Python",
    "mig": "MIG",
    "ecc": "ECC",
    "example": "first of them",
    "first": "first run",
    "here": "this run",
    "columns": "figures",
    "flops": "FLOPs",
    "peak_allocated_bytes": "peak memory",
    "peak_used_bytes": "memory of the board in use",
    "memory_clock_hz": "memory clock",
    "dram_utilisation": "memory bandwidth in use",
    "sm_occupancy": "warps resident",
    "idle_power_w": "power at rest",
    "floor_gpu": "floor of",
    "burst_p20_s": "single call, low",
    "burst_p80_s": "single call, high",
    "tensor_utilisation": "tensor cores busy",
    "inside_share": "within the interval",
    "points": "points",
    "burst_s": "single call",
    "rate_bytes_per_s": "bandwidth reached",
    "rate_flops_per_s": "FLOP/s reached",
    "lane": "operation",
}


def head(column: str) -> str:
    """A column's name for a reader."""
    return HEADS.get(column, column.replace("_", " "))
