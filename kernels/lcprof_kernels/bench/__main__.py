"""Time ours and every other implementation in one process, on one card.

    python -m lcprof_kernels.bench [--op decode] [--out timings.csv] [--quick] [--budget-s 300]

Every result is checked before it is timed. Rows are written as they are measured, so an
interrupted run keeps what it has; a point that cannot run is a row with a reason. With
`--measured FILE` the cases that FILE holds no timing of come first, so that a budget that ends a
run early never leaves the same cases out again.
"""

from __future__ import annotations

import argparse
import csv
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from .case import CASES, Case, cases_of
from .ceilings import Ceilings, measure_ceilings
from .nvml import Nvml
from .timing import Flush, Timing, interleaved

COLUMNS = (
    "op", "variant", "impl", "dtype", "kv_dtype", "batch", "q_heads", "kv_heads", "head_dim",
    "query_tokens", "context_tokens", "window_tokens", "page_tokens", "causal", "median_s",
    "p20_s", "p80_s", "rounds", "launch", "bytes", "flops", "sm_mhz", "power_w", "max_error",
    "allowed_error", "status", "read_ceiling_bytes_per_s", "copy_ceiling_bytes_per_s",
    "gemm_ceiling_flops", "gpu", "torch", "commit",
)  # fmt: skip


def describe(case: Case) -> dict[str, object]:
    """The columns that say what was asked."""
    named = (
        "op", "variant", "dtype", "kv_dtype", "batch", "q_heads", "kv_heads", "head_dim",
        "query_tokens", "context_tokens", "window_tokens", "page_tokens", "causal", "bytes",
        "flops",
    )  # fmt: skip
    return {name: getattr(case, name) for name in named}


def shape_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """What tells one case from another in a CSV's row, or in what `describe` says."""
    named = (
        "op", "variant", "kv_dtype", "batch", "q_heads", "kv_heads", "head_dim", "query_tokens",
        "context_tokens", "window_tokens", "page_tokens",
    )  # fmt: skip
    return tuple("" if row[name] is None else str(row[name]) for name in named)


def unmeasured_first(cases: Sequence[Case], files: Sequence[Path]) -> list[Case]:
    """The cases in their order, but those without a timing in any of the CSV files first."""
    known = set()
    for path in files:
        with path.open(newline="") as file:
            known |= {shape_of(row) for row in csv.DictReader(file) if row["status"] == "ok"}
    return sorted(cases, key=lambda case: shape_of(describe(case)) in known)


def first_line(error: BaseException) -> str:
    """The error as one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]


def run_case(
    case: Case, device: torch.device, *, flush: Flush, nvml: Nvml, limit_s: float
) -> list[dict[str, object]]:
    """Check every implementation of a case, time those that are right; one row each."""
    rows: dict[str, dict[str, object]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    inputs = case.make_inputs(device)
    for name, implementation in case.implementations.items():
        row = rows[name] = {**describe(case), "impl": name}
        try:
            error, allowed = case.check(inputs, implementation(inputs))
        except Exception as reason:  # any library's refusal is a row with a reason
            row["status"] = first_line(reason)
            continue
        row |= {"max_error": error, "allowed_error": allowed}
        if error <= allowed:
            runs[name] = lambda implementation=implementation: implementation(inputs)  # type: ignore[misc]
        else:
            row["status"] = "wrong result"
    if runs:
        timed = interleaved(runs, flush=flush, nvml=nvml, limit_s=limit_s)
        for name, timing in timed.items():
            rows[name] |= {"status": "ok", **columns_of(timing)}
    return list(rows.values())


def columns_of(timing: Timing) -> dict[str, object]:
    """The columns that say what was measured."""
    return {
        "median_s": timing.median_s,
        "p20_s": timing.p20_s,
        "p80_s": timing.p80_s,
        "rounds": timing.rounds,
        "launch": timing.launch,
        "sm_mhz": timing.sm_mhz,
        "power_w": timing.power_w,
    }


def show(case: Case, rows: Sequence[dict[str, object]], ceilings: Ceilings, out: TextIO) -> None:
    """Print a case: achieved rates beside the ceilings."""
    print(case.title, file=out)
    for row in rows:
        if row["status"] != "ok":
            print(f"  {row['impl']:<14} {row['status']}", file=out)
            continue
        seconds = float(str(row["median_s"]))
        byte_rate, flop_rate = case.bytes / seconds, case.flops / seconds
        print(
            f"  {row['impl']:<14} {seconds * 1e6:10.1f} us"
            f"  {byte_rate / 1e12:6.3f} TB/s ({byte_rate / ceilings.read_bytes_per_s:4.0%} of read)"
            f"  {flop_rate / 1e12:7.1f} TFLOP/s ({flop_rate / ceilings.gemm_flops:4.0%} of GEMM)",
            file=out,
        )
    out.flush()


def commit_here() -> str:
    """The commit of the source tree, or "" outside one."""
    done = subprocess.run(  # noqa: S603 (git, with our own folder)
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m lcprof_kernels.bench", description=__doc__)
    parser.add_argument("--op", action="append", choices=sorted(CASES), help="may be repeated")
    parser.add_argument("--match", default="", help="only cases whose title holds this text")
    parser.add_argument("--out", type=Path, help="CSV file, one row a timing")
    parser.add_argument(
        "--measured", type=Path, action="append", default=[], help="CSV of earlier timings"
    )
    parser.add_argument("--quick", action="store_true", help="a few shapes and fewer rounds")
    parser.add_argument("--budget-s", type=float, default=600.0, help="start no case after this")
    parser.add_argument("--commit", default=None, help="recorded in each row")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit 2 without a CUDA GPU, 1 when a result was wrong."""
    begun = time.perf_counter()
    options = arguments(argv)
    if not torch.cuda.is_available():
        print("lcprof_kernels.bench: no CUDA GPU here", file=sys.stderr)
        return 2
    listed = [c for op in options.op or CASES for c in cases_of(op, quick=options.quick)]
    cases = unmeasured_first(
        [case for case in listed if options.match in case.title], options.measured
    )
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    nvml, flush = Nvml(device), Flush(device, properties.L2_cache_size)
    ceilings = measure_ceilings(device, flush, nvml)
    print(
        f"{properties.name}: read {ceilings.read_bytes_per_s / 1e12:.2f} TB/s, "
        f"copy {ceilings.copy_bytes_per_s / 1e12:.2f} TB/s, "
        f"bf16 GEMM {ceilings.gemm_flops / 1e12:.0f} TFLOP/s"
    )
    common: dict[str, object] = {
        "gpu": properties.name,
        "torch": torch.__version__,
        "commit": options.commit if options.commit is not None else commit_here(),
        "read_ceiling_bytes_per_s": ceilings.read_bytes_per_s,
        "copy_ceiling_bytes_per_s": ceilings.copy_bytes_per_s,
        "gemm_ceiling_flops": ceilings.gemm_flops,
    }
    file = options.out.open("w", newline="") if options.out else None
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n") if file else None
    if writer is not None:
        writer.writeheader()
    wrong = 0
    try:
        for case in cases:
            if time.perf_counter() - begun > options.budget_s:
                print(f"the budget of {options.budget_s:g} s is spent")
                return 1 if wrong else 0
            limit_s = 0.1 if options.quick else 0.25
            try:
                rows = run_case(case, device, flush=flush, nvml=nvml, limit_s=limit_s)
            except torch.cuda.OutOfMemoryError as reason:
                rows = [{**describe(case), "impl": "all", "status": first_line(reason)}]
            wrong += sum(row["status"] == "wrong result" for row in rows)
            show(case, rows, ceilings, sys.stdout)
            if writer is not None and file is not None:
                writer.writerows({**row, **common} for row in rows)
                file.flush()
            gc.collect()
            torch.cuda.empty_cache()
    finally:
        if file is not None:
            file.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
