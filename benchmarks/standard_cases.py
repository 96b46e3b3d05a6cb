"""Prints three standard cases as lcprof plans them, beside what other planners say of them.

    python benchmarks/standard_cases.py

A: Llama-3.1-70B in bf16, one request of 131,072 tokens, 8 x H100 (tp 8). B: Llama-3.1-8B, the same
on one H100. C: B with 1,000,000 tokens, which one H100 cannot hold: lcprof prints no time. The
other planners' figures (benchmarks/data/peers.csv) are from runs of those tools in November 2026.
"""

from __future__ import annotations

import csv
from pathlib import Path

import lcprof
from lcprof.plan.row import Row
from lcprof.units import show_seconds

PEERS = Path(__file__).resolve().parent / "data" / "peers.csv"
CASES = {
    "A": {"model": "llama-3.1-70b", "gpus": 8, "context": 131_072},
    "B": {"model": "llama-3.1-8b", "gpus": 1, "context": 131_072},
    "C": {"model": "llama-3.1-8b", "gpus": 1, "context": 1_000_000},
}


def ours(name: str) -> Row:
    (row,) = lcprof.plan_scenario({"gpu": "h100-sxm", **CASES[name]})
    return row


def timed(row: Row, name: str) -> str:
    found = row.columns()
    if found[f"{name}_s"] is None:
        return "-"
    low, middle, high = (show_seconds(found[f"{name}{end}_s"]) for end in ("_low", "", "_high"))
    return f"{middle} ({low} to {high})"


def main() -> None:
    with PEERS.open(encoding="utf-8", newline="") as file:
        peers = list(csv.DictReader(file))
    for name, case in CASES.items():
        print(f"{name}: {case['model']}, {case['gpus']} x H100, {case['context']:,} tokens")
        row = ours(name)
        found = row.columns()
        print(f"  {'lcprof':42} TTFT {timed(row, 'ttft'):27} TPOT {timed(row, 'tpot')}")
        held = row.estimate.total_bytes_per_gpu / 2**30
        if row.has_times:
            said = f"TTFT {found['ttft_basis']} x{found['ttft_distance']:.3g}, TPOT "
            said += f"{found['tpot_basis']}"
        else:
            said = f"does not fit: {held:.0f} GiB (exit status 3)"
        print(f"  {'':42} {said}; {held:.1f} GiB per GPU")
        for peer in peers:
            if peer["case"] == name:
                ttft = show_seconds(float(peer["ttft_s"])) if peer["ttft_s"] else "-"
                tpot = show_seconds(float(peer["tpot_ms"]) / 1e3) if peer["tpot_ms"] else "-"
                print(f"  {peer['tool']:42} TTFT {ttft:27} TPOT {tpot:9} {peer['note']}".rstrip())


if __name__ == "__main__":
    main()
