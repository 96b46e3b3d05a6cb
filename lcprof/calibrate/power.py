"""`python -m lcprof.calibrate.power DATA`: fits the constants of `lcprof/catalog/power/`.

Two kinds of measurement: power of servers in a steady state, below the limit, and rates of one
kernel run briefly and at the limit. What they fix is busy_w and the energies of FLOPs and bytes;
idle power and the clock's exponent are given. Prints the fit and the errors of models left out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from lcprof.cost.power import burst_w, sustained
from lcprof.domain.power import PowerModel
from lcprof.errors import InputError, LcprofError
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.power import power_model

PROMPT_TOKENS = {"lm-arena-chat": 200.0, "gpqa": 250.0}
"""About how long the prompts of a task are; the source does not say."""
MEAN_CONTEXT = 0.7
"""The mean context of a sequence in a steady batch, as a share of its answer: half for answers of
one length, all for exponentially distributed ones."""
BELOW_LIMIT = 0.93
"""Servers that draw more than this share of the limit say nothing of what they would draw."""
LIMIT_WEIGHT = 6.0
SOFT = 0.08
NOT_FITTED = ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8")
"""Experts in FP8 with a scale per block: their kernels draw up to twice what their FLOPs and bytes
explain. They are scored with the others' constants and stretch no fit."""
FITTED = {"h100-sxm": ("h100-sxm", "h200-sxm"), "b200": ("b200",)}
"""The GPU of the servers, and those whose rates at the limit are fitted with it."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """One server's steady state, per GPU."""

    gpu: str
    model: str
    compute: str
    flops_per_s: float
    bytes_per_s: float
    power_w: float


@dataclass(frozen=True, kw_only=True)
class Limited:
    """One kernel's rate, briefly and at the power limit."""

    gpu: str
    work: str
    compute: str
    burst: float
    sustained: float
    bytes_per_s: float
    limit_w: float


def read_serving(folder: Path) -> list[Serving]:
    """The rows of serving.csv. Every answer token and its share of the prompt is multiplied with
    all weights that a token reads; a step reads the weights once and every sequence's KV."""
    rows = []
    for row in _rows(folder / "serving.csv"):
        number = {key: float(row[key]) for key in row if key not in _TEXTS}
        prompt = PROMPT_TOKENS[row["task"]]
        tokens_per_s = number["output_tokens_per_s"]
        steps_per_s = tokens_per_s / number["sequences"]
        weight_bytes = number["step_params"] * (1.0 if row["weights"] == "fp8" else 2.0)
        context = prompt + MEAN_CONTEXT * number["answer_tokens"]
        step_bytes = weight_bytes + number["sequences"] * number["kv_bytes_per_token"] * context
        flops = 2.0 * number["active_params"] * (1.0 + prompt / number["answer_tokens"])
        rows.append(
            Serving(
                gpu=row["gpu"],
                model=row["model"],
                compute=row["weights"],
                flops_per_s=flops * tokens_per_s / number["gpus"],
                bytes_per_s=step_bytes * steps_per_s / number["gpus"],
                power_w=number["power_w"] / number["gpus"],
            )
        )
    return rows


_TEXTS = ("task", "gpu", "model", "weights")


def read_limited(folder: Path) -> list[Limited]:
    """The rows of limits.csv."""
    return [
        Limited(
            gpu=row["gpu"],
            work=row["work"],
            compute=row["compute"],
            burst=float(row["burst_flops_per_s"]),
            sustained=float(row["sustained_flops_per_s"]),
            bytes_per_s=float(row["hbm_bytes_per_s"]),
            limit_w=float(row["limit_w"]),
        )
        for row in _rows(folder / "limits.csv")
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predicted_w(model: PowerModel, row: Serving) -> float:
    """Watts of one GPU in a server's steady state."""
    work = {row.compute: row.flops_per_s}
    return float(sustained(model, 1.0, 1.0, work, row.bytes_per_s).watts)


def predicted_share(model: PowerModel, row: Limited) -> float:
    """Sustained over burst rate of a kernel bound by the SMs."""
    held = model.held_to(row.limit_w)
    work = {f"attention {row.compute}" if "attention" in row.work else row.compute: row.burst}
    return 1.0 / float(sustained(held, 1.0, 1.0, work, row.bytes_per_s).seconds)


def fit(start: PowerModel, serving: Sequence[Serving], limited: Sequence[Limited]) -> PowerModel:
    """The model with busy_w and the energies that fit best: relative errors of power (soft, since
    servers have bubbles and sampling that are not counted) and of sustained rates."""
    import numpy as np
    from scipy.optimize import least_squares

    below = [row for row in serving if row.power_w < BELOW_LIMIT * start.limit_w]

    def model(values: Any) -> PowerModel:
        busy, bf16, fp8, byte, attention = (float(value) for value in values)
        energies = {"bf16": bf16, "fp8": fp8, "attention bf16": attention * bf16}
        energies = {**start.joules_per_flop, **{name: 1e-12 * j for name, j in energies.items()}}
        return replace(
            start, busy_w=busy, joules_per_flop=energies, joules_per_hbm_byte=byte * 1e-12
        )

    def residuals(values: Any) -> Any:
        now = model(values)
        power = np.array(
            [
                burst_w(now, 1.0, {r.compute: r.flops_per_s}, r.bytes_per_s) / r.power_w - 1.0
                for r in below
            ]
        )
        softened = np.sign(power) * SOFT * np.sqrt(2.0 * (np.hypot(1.0, power / SOFT) - 1.0))
        rates = [np.log(predicted_share(now, r) * r.burst / r.sustained) for r in limited]
        return np.concatenate([softened, LIMIT_WEIGHT * np.array(rates)])

    kinds = {"attention" in row.work for row in limited}
    # One kernel's rates cannot tell attention's energy from that of other FLOPs.
    least, most = (0.5, 3.0) if len(kinds) > 1 else (1.0 - 1e-9, 1.0 + 1e-9)
    bounds = ([10.0, 0.1, 0.05, 10.0, least], [600.0, 5.0, 5.0, 400.0, most])
    found = least_squares(residuals, [150.0, 1.0, 0.7, 100.0, 1.0], bounds=bounds)
    return model(found.x)


def left_out(
    start: PowerModel, serving: Sequence[Serving], limited: Sequence[Limited]
) -> list[tuple[Serving, float]]:
    """Each server's row with the watts predicted by a fit that saw no row of its model."""
    found = []
    for name in sorted({row.model for row in serving}):
        kept = fit(start, [row for row in serving if row.model != name], limited)
        found += [(row, predicted_w(kept, row)) for row in serving if row.model == name]
    return found


def main() -> int:
    """Fits and prints. Returns the exit code."""
    import numpy as np

    parser = argparse.ArgumentParser(prog="python -m lcprof.calibrate.power")
    parser.add_argument("data", type=Path, help="benchmarks/data/power")
    folder = parser.parse_args().data
    try:
        serving, limited = read_serving(folder), read_limited(folder)
        for gpu, alike in FITTED.items():
            start = power_model(load_gpu(gpu, where=gpu))
            if start is None:
                raise InputError.one(gpu, "tdp", given="nothing", expected="watts")
            there = [row for row in serving if row.gpu == gpu]
            rows = [row for row in there if row.model not in NOT_FITTED]
            limits = [row for row in limited if row.gpu in alike]
            best = fit(start, rows, limits)
            energies = ", ".join(
                f"{name} {1e12 * best.flop_j(name):.3f} pJ" for name in ("bf16", "fp8")
            )
            print(f"{gpu}: busy {best.busy_w:.1f} W, {energies} a FLOP,", end=" ")
            ratio = best.flop_j("attention bf16") / best.flop_j("bf16")
            print(
                f"{ratio:.2f} of it in attention, {1e12 * best.joules_per_hbm_byte:.1f} pJ a byte"
            )
            pairs = left_out(start, rows, limits)
            errors = np.array([abs(watts / row.power_w - 1.0) for row, watts in pairs])
            above = [(r.power_w - best.idle_w) / (watts - best.idle_w) for r, watts in pairs]
            print(
                f"  {len(pairs)} servers, their model left out: median error "
                f"{100 * np.median(errors):.1f} %, 90th percentile "
                f"{100 * np.quantile(errors, 0.9):.1f} %; nine in ten draw "
                f"{np.quantile(above, 0.05):.2f} to {np.quantile(above, 0.95):.2f} of the "
                "prediction, idle put aside"
            )
            others = [row for row in there if row.model in NOT_FITTED]
            ratios = [row.power_w / predicted_w(best, row) for row in others]
            print(
                f"  {len(others)} servers of experts in block FP8, not fitted: measured over "
                f"predicted {min(ratios):.2f} to {max(ratios):.2f}"
            )
            for row in limits:
                share, measured = predicted_share(best, row), row.sustained / row.burst
                print(f"  {row.gpu} {row.work}: {share:.3f} of burst, measured {measured:.3f}")
    except (LcprofError, OSError, KeyError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
