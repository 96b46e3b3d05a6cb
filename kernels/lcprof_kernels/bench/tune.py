"""Time the launch choices of our kernels beside the present ones, on the benchmark's own cases.

    python -m lcprof_kernels.bench.tune quantised_decode:'page 64' append --out tune.csv
    python -m lcprof_kernels.bench.tune --missed --budget 240 --out tune.csv

OP[:ROW] names an operation and, if given, text that the title of a case must hold; `--missed`
takes the rows that miss their bars. Each choice is checked before it is timed, in turn with the
present one, and is a row of the CSV at once. Every case gets an equal share of the budget that is
left. The last lines name, for each place that holds a record, the choices that were best over all
of its cases.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import torch

from .__main__ import columns_of, commit_here, describe, first_line
from .case import CASES, Case, Choices, cases_of
from .nvml import Nvml
from .timing import Flush, Timing, interleaved

COLUMNS = (
    "op", "variant", "dtype", "kv_dtype", "batch", "q_heads", "kv_heads", "head_dim",
    "query_tokens", "context_tokens", "window_tokens", "page_tokens", "causal", "place", "choice",
    "median_s", "p20_s", "p80_s", "present_s", "ratio", "rounds", "launch", "bytes", "flops",
    "sm_mhz", "power_w", "max_error", "allowed_error", "status", "gpu", "torch", "commit",
)  # fmt: skip

MISSED = (
    "append int4-kivi-64 prefill B1 8/8 D128 q131072 kv131072 int4",
    "append int4-kivi-128 prefill B1 8/8 D128 q131072 kv131072 int4",
    "append int4-kivi-64 prefill B1 8/8 D128 q131072 kv131072 int4 page 64",
    "append int4-kivi-128 prefill B1 8/8 D128 q131072 kv131072 int4 page 128",
    "append int4-token-64 prefill B1 8/8 D128 q131072 kv131072 int4 page 64",
    "append int4-token-128 prefill B1 8/8 D128 q131072 kv131072 int4 page 64",
    "quantised_decode fp8-token B8 32/8 D128 q1 kv131072 fp8 page 64",
    "quantised_decode int8-token B8 32/8 D128 q1 kv131072 int8 page 64",
    "quantised_decode int4-token-64 B8 32/8 D128 q1 kv131072 int4 page 64",
    "quantised_decode int4-token-64 B1 32/8 D128 q1 kv262144 int4",
    "quantised_decode int4-token-64 B8 32/8 D128 q1 kv131072 int4",
    "quantised_decode int4-kivi-64 B1 32/8 D128 q1 kv262144 int4",
    "quantised_decode int4-kivi-64 B8 64/8 D128 q1 kv131072 int4",
    "quantised_decode int4-kivi-64 B8 32/8 D128 q1 kv131072 int4 page 64",
    "quantised_decode int4-kivi-128 B1 32/8 D128 q1 kv262144 int4",
    "quantised_decode int4-kivi-128 B8 32/8 D128 q1 kv131072 int4 page 128",
    "mla B64 32/1 D576 q1 kv8192 bfloat16",
    "mla B64 32/1 D576 q1 kv32768 bfloat16",
    "mla B64 32/1 D576 q1 kv32768 bfloat16 page 64",
    "quantised_decode int4-token-64 B8 32/8 D128 q4 kv131072 int4",
    "quantised_decode int4-kivi-64 B8 32/8 D128 q4 kv131072 int4",
    "quantised_decode int8-token B8 32/8 D64 q1 kv131072 int8",
    "quantised_decode int4-token-64 B8 32/8 D64 q1 kv131072 int4",
    "quantised_decode int4-kivi-64 B8 32/8 D64 q1 kv131072 int4",
    "mla B8 16/1 D576 q1 kv131072 fp8-656",
    "mla B8 32/1 D576 q1 kv131072 fp8-656",
    "attention backward B1 16/4 D256 q16384 kv16384 bfloat16",
)
"""Titles of the rows of `reports/kernels-h200/` that miss a bar or that its notes call slow; those
with a bar first. A record found on some of them is one for all cases of its place."""

Timer = Callable[[Mapping[str, Callable[[], Any]]], Mapping[str, Timing]]
"""Times runs in turn: `interleaved` with its flush and clock, or a stand-in."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One choice on one case. `ratio` is its time over the present choice's, None if not timed."""

    title: str
    place: str
    choice: str
    present: bool
    ratio: float | None


def words_of(record: Any) -> str:
    """A record as the expression that makes it, without the fields that have their defaults."""
    parts = []
    for field in fields(record):
        value = getattr(record, field.name)
        if value != field.default:
            shown = words_of(value) if hasattr(value, "__dataclass_fields__") else repr(value)
            parts.append(f"{field.name}={shown}")
    return f"{type(record).__name__}({', '.join(parts)})"


def selected(wanted: Sequence[str], *, missed: bool) -> list[Case]:
    """The cases that offer choices: of OP[:ROW] each, then of `MISSED` in its order."""
    found: dict[str, Case] = {}
    for entry in wanted:
        op, _, row = entry.partition(":")
        for case in cases_of(op, quick=False):
            if row in case.title:
                found.setdefault(case.title, case)
    if missed:
        titled = {case.title: case for op in CASES for case in cases_of(op, quick=False)}
        found |= {title: titled[title] for title in MISSED}
    return [case for case in found.values() if case.choices is not None]


def try_choices(
    case: Case, choices: Choices, inputs: Any, *, timer: Timer, before: Callable[[], bool]
) -> Iterator[tuple[Tried, dict[str, object]]]:
    """Check and time the present record, then each other while `before()` holds; a row each."""
    present_run = lambda: choices.run(inputs, choices.present)  # noqa: E731
    for record in (choices.present, *choices.others):
        is_present = record == choices.present
        if not is_present and not before():
            return
        row = {**describe(case), "place": choices.place, "choice": words_of(record)}
        ratio = None
        try:
            error, allowed = case.check(inputs, choices.run(inputs, record))
            row |= {"max_error": error, "allowed_error": allowed, "status": "wrong result"}
            if error <= allowed:
                runs = {"present": present_run, "choice": lambda: choices.run(inputs, record)}  # noqa: B023
                timed = timer({"choice": present_run} if is_present else runs)
                own, other = timed["choice"], timed.get("present", timed["choice"])
                ratio = own.median_s / other.median_s
                row |= {"status": "ok", **columns_of(own)}
                row |= {"present_s": other.median_s, "ratio": ratio}
        except Exception as reason:  # what cannot be compiled or launched is a row with a reason
            row["status"] = first_line(reason)
        tried = Tried(
            title=case.title,
            place=choices.place,
            choice=words_of(record),
            present=is_present,
            ratio=ratio,
        )
        yield tried, row


def verdicts(tried: Sequence[Tried]) -> list[str]:
    """For each place, the best choices by the geometric mean of their ratios over its cases.

    Only choices timed on every case of their place are compared.
    """
    lines = []
    for place in dict.fromkeys(entry.place for entry in tried):
        here = [entry for entry in tried if entry.place == place]
        cases = {entry.title for entry in here}
        ranked = []
        for choice in dict.fromkeys(entry.choice for entry in here):
            ratios = [e.ratio for e in here if e.choice == choice and e.ratio is not None]
            if len(ratios) == len(cases):
                mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
                ranked.append((mean, max(ratios), choice))
        lines.append(f"{place}: {len(cases)} cases, present 1.000")
        for mean, worst, choice in sorted(ranked)[:3]:
            lines.append(f"  {mean:.3f} of its time (worst {worst:.3f})  {choice}")
    return lines


def walk(
    cases: Sequence[Case],
    device: torch.device,
    *,
    timer: Timer,
    budget_s: float,
    write: Callable[[dict[str, object]], None],
    out: TextIO,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Tried]:
    """Try the choices of all cases; each may take an equal share of the time that is left."""
    begun = clock()
    found: list[Tried] = []
    for index, case in enumerate(cases):
        left_s = budget_s - (clock() - begun)
        if left_s <= 0:
            print(f"the budget of {budget_s:g} s is spent before {case.title}", file=out)
            break
        end = clock() + left_s / (len(cases) - index)
        choices = None if case.choices is None else case.choices(device)
        if choices is None:
            continue
        print(case.title, file=out)
        try:
            inputs = case.make_inputs(device)
        except torch.cuda.OutOfMemoryError as reason:
            write({**describe(case), "place": choices.place, "status": first_line(reason)})
            continue
        before = lambda end=end: clock() < end  # noqa: E731
        for tried, row in try_choices(case, choices, inputs, timer=timer, before=before):
            write(row)
            found.append(tried)
            measured = row["status"]
            if tried.ratio is not None:
                rate = case.bytes / float(str(row["median_s"])) / 1e12
                measured = f"{tried.ratio:.3f}  {rate:6.3f} TB/s"
            mark = "present" if tried.present else ""
            print(f"  {measured}  {mark:<7} {tried.choice}", file=out, flush=True)
            if "CUDA error" in str(row["status"]):
                print("this process can run nothing more on the GPU", file=out)
                return found
        del inputs
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def compile_share(cases: Sequence[Case], device: torch.device, share: str) -> None:
    """Run every choice of each n-th case once, so that its binary lies in Triton's cache."""
    first, _, step = share.partition("/")
    for case in list(cases)[int(first) :: int(step)]:
        if case.choices is None:
            continue
        choices = case.choices(device)
        inputs = case.make_inputs(device)
        for record in (choices.present, *choices.others):
            try:
                choices.run(inputs, record)
                torch.cuda.synchronize(device)
            except Exception as reason:  # the walk will write it down
                print(f"{case.title}: {first_line(reason)}", file=sys.stderr)
        del inputs
        torch.cuda.empty_cache()


def compile_ahead(argv: Sequence[str], workers: int, limit_s: float) -> None:
    """Compile in processes of their own: one binary takes seconds of one core."""
    command = [sys.executable, "-m", "lcprof_kernels.bench.tune", *argv]
    begun = time.perf_counter()
    running = [
        subprocess.Popen([*command, "--share", f"{n}/{workers}"])  # noqa: S603 (this module)
        for n in range(workers)
    ]
    for process in running:
        try:
            process.wait(max(0.0, limit_s - (time.perf_counter() - begun)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lcprof_kernels.bench.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="OP[:ROW]")
    parser.add_argument("--missed", action="store_true", help="the rows that miss their bars")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds, compiling included")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, help="CSV file, one row a choice")
    parser.add_argument("--commit", default=None, help="recorded in each row")
    parser.add_argument("--share", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = {row.partition(":")[0] for row in options.rows} - set(CASES)
    if unknown or not (options.rows or options.missed):
        parser.error(f"OP must be one of {', '.join(sorted(CASES))}, or --missed be given")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; exit 2 without a CUDA GPU or without a case."""
    begun = time.perf_counter()
    options = arguments(argv)
    cases = selected(options.rows, missed=options.missed)
    if not cases:
        print("lcprof_kernels.bench.tune: no case of that name has choices", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("lcprof_kernels.bench.tune: no CUDA GPU here", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    if options.share is not None:
        compile_share(cases, device, options.share)
        return 0
    if options.workers > 1:
        asked = [*options.rows, *(["--missed"] if options.missed else [])]
        compile_ahead(asked, min(options.workers, len(cases)), options.budget / 2)
        print(f"compiled in {time.perf_counter() - begun:.0f} s", flush=True)
    properties = torch.cuda.get_device_properties(device)
    flush, nvml = Flush(device, properties.L2_cache_size), Nvml(device)
    common: dict[str, object] = {
        "gpu": properties.name,
        "torch": torch.__version__,
        "commit": options.commit if options.commit is not None else commit_here(),
    }
    file = options.out.open("w", newline="") if options.out else None
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n") if file else None
    if writer is not None:
        writer.writeheader()

    def write(row: dict[str, object]) -> None:
        if writer is not None and file is not None:
            writer.writerow({**row, **common})
            file.flush()

    try:
        tried = walk(
            cases,
            device,
            timer=lambda runs: interleaved(runs, flush=flush, nvml=nvml, limit_s=0.15, most=40),
            budget_s=options.budget - (time.perf_counter() - begun),
            write=write,
            out=sys.stdout,
        )
    finally:
        if file is not None:
            file.close()
    print("\n".join(verdicts(tried)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
