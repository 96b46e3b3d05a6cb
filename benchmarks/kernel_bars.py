"""What the committed kernel timings say against the bars they are held to.

    python benchmarks/kernel_bars.py reports/kernels-h200

Reads the CSVs that `python -m lcprof_kernels.bench --op OP --out OP.csv` wrote and prints, for each
bar, how many shapes it covers, the worst of them and the median. Of a shape that was timed again,
in OP-2.csv or any later name that begins with OP, the last timing counts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

SHAPE = [
    *("variant", "dtype", "kv_dtype", "batch", "q_heads", "kv_heads", "head_dim"),
    *("query_tokens", "context_tokens", "window_tokens", "page_tokens"),
]
LIBRARIES = ["cudnn", "flash"]
FLASHINFER_MLA_FLOPS = {(8, 131072): 532e12, (64, 8192): 574e12, (64, 32768): 511e12}
FLASHINFER_MLA_FLOPS[128, 8192] = 521e12
"""FlashInfer 0.6.11 (fa3) on an H200, 128 heads, by batch and context."""
READ_BYTES_PER_S = 4.59e12
COPY_BYTES_PER_S = 4.28e12
"""The nominal ceilings that the bars name; each run's own are in its rows."""

Bar = tuple[str, float, pd.Series]


def times(folder: Path, op: str) -> pd.DataFrame:
    """One row a shape, one column of median seconds an implementation."""
    files = sorted(folder.glob(f"{op}*.csv"), key=lambda path: path.stem)
    rows = pd.concat([pd.read_csv(path) for path in files], ignore_index=True)
    rows = rows[rows.status == "ok"].drop_duplicates([*SHAPE, "impl"], keep="last")
    empty = rows[SHAPE].isna()
    rows[SHAPE] = rows[SHAPE].astype(object).mask(empty, "")
    wide = rows.pivot_table(index=SHAPE, columns="impl", values="median_s")
    first = rows.groupby(SHAPE)[["bytes", "flops", "read_ceiling_bytes_per_s"]].first()
    return wide.join(first).reset_index()


def decode(folder: Path) -> Iterator[Bar]:
    table = times(folder, "decode")
    fastest = table[LIBRARIES].min(axis=1)
    plain = table.page_tokens.eq("") & table.window_tokens.eq("") & table.query_tokens.eq(1)
    plain &= table.variant.eq("") & fastest.notna()
    ratio = fastest / table.triton
    large = plain & (table.bytes >= 256e6)
    yield "decode, KV >= 256 MB: of the faster of cuDNN and flash", 0.97, ratio[large]
    huge = plain & (table.bytes > 2e9)
    achieved = table.bytes / table.triton / table.read_ceiling_bytes_per_s
    yield "decode, KV > 2 GB: of the run's read ceiling", 0.95, achieved[huge]
    yield "decode, smaller KV: of the faster library", 0.95, ratio[plain & ~large]
    paged = table["triton-contiguous"] / table.triton
    for page in (16, 64):
        yield f"decode, pages of {page}: of contiguous", 0.95, paged[table.page_tokens.eq(page)]
    dense = table["triton-dense"]
    yield "window 4096 + 4 sinks: of dense over 4,100", 0.95, (dense / table.triton).dropna()
    ring = (dense / table["triton-ring"]).dropna()
    yield "the same on a ring buffer", 0.95, ring


def compressed(folder: Path) -> Iterator[Bar]:
    table = times(folder, "quantised_decode")
    ratio = table["cudnn-bf16"] / table.triton
    bf16_bytes = table.batch * table.kv_heads * table.context_tokens * table.head_dim * 4
    large = (bf16_bytes >= 1e9) & ratio.notna() & table.query_tokens.eq(1) & table.head_dim.eq(128)
    for name, bar in (("fp8", 1.75), ("int8", 1.75), ("int4", 3.0)):
        for paged in (False, True):
            rows = large & table.variant.str.startswith(name) & (table.page_tokens.ne("") == paged)
            where = "paged" if paged else "contiguous"
            yield f"{name} decode, D128, {where}: times the fastest bf16", bar, ratio[rows]
    append = times(folder, "append")
    prefill = append.variant.str.endswith("prefill")
    achieved = append.bytes / append.triton / COPY_BYTES_PER_S
    kivi = append.variant.str.contains("kivi")
    yield "append 128K, all but KIVI: of 4.28 TB/s", 0.8, achieved[prefill & ~kivi]
    yield "append 128K, KIVI: of 4.28 TB/s", 0.8, achieved[prefill & kivi]


def latent(folder: Path) -> Iterator[Bar]:
    table = times(folder, "mla")
    bf16 = table.kv_dtype.eq(table["dtype"]) & table.query_tokens.eq(1) & table.page_tokens.eq("")
    heads = table.q_heads
    named = table[bf16 & heads.eq(128)].set_index(["batch", "context_tokens"])
    named = named[named.index.isin(list(FLASHINFER_MLA_FLOPS))]
    theirs = pd.Series(FLASHINFER_MLA_FLOPS)
    ratio = (named.flops / named.triton) / theirs.reindex(named.index)
    yield "MLA 128 heads: of FlashInfer's published rate", 0.7, ratio
    for count in (16, 32):
        rows = bf16 & heads.eq(count) & (table.batch >= 8)
        rate = table.bytes / table.triton / READ_BYTES_PER_S
        yield f"MLA {count} heads: of 4.59 TB/s", 0.8, rate[rows]


def attention(folder: Path) -> Iterator[Bar]:
    table = times(folder, "attention")
    shape = table.q_heads.eq(32) & table.head_dim.eq(128) & table.kv_dtype.ne("fp8")
    forward = table.variant.eq("") & shape & table.query_tokens.eq(table.context_tokens)
    dense = forward & table.window_tokens.eq("") & (table.context_tokens >= 16384)
    dense &= table.flash.notna()
    yield "forward D128, 16K and longer: times flash", 1.25, (table.flash / table.triton)[dense]
    yield "forward D128, 16K and longer: of cuDNN", 0.72, (table.cudnn / table.triton)[dense]
    backward = table.variant.eq("backward") & shape & table.context_tokens.eq(16384)
    backward &= table.window_tokens.eq("") & table.flash.notna()
    yield "backward D128, 16K: times flash", 1.1, (table.flash / table.triton)[backward]
    rate = table.flops / table.triton
    window = forward & table.window_tokens.eq(4096) & table.context_tokens.eq(32768)
    plain = forward & table.window_tokens.eq("") & table.context_tokens.eq(32768)
    if plain.any():
        yield "forward, window 4096, 32K: of dense", 0.85, rate[window] / rate[plain].iloc[0]


def main() -> None:
    folder = Path(sys.argv[1])
    print(f"{'bar':<62} {'at least':>8} {'shapes':>6} {'worst':>6} {'median':>6}")
    for part in (decode, compressed, latent, attention):
        for name, bar, values in part(folder):
            if values.empty:
                print(f"{name:<62} {bar:>8} {'none':>6}")
                continue
            verdict = "" if values.min() >= bar else "  missed"
            line = f"{name:<62} {bar:>8} {len(values):>6} {values.min():>6.3f}"
            print(f"{line} {values.median():>6.3f}{verdict}")


if __name__ == "__main__":
    main()
