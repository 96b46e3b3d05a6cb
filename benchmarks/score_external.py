"""Scores the committed calibrations against published measurements, table by table.

    python benchmarks/score_external.py DIR [--held-out] [--json] [--table NAME] [--worst N]
                                            [--summary FILE]

DIR holds tables such as op_gemm.csv. Each row is predicted from its shape columns alone; its
measured columns are only compared with. `--held-out` leaves out the groups whose rows are in
benchmarks/data, which are those that the calibrations were fitted on, and the models that constants
of engines were. Figures of whole requests (published_figures.csv, and benchmarks/data/anchors.csv)
entered no fit. `--summary` writes these scores as CSV; `lcprof accuracy` shows the committed one,
lcprof/catalog/accuracy.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lcprof.calibrate.published.requests import request_scores, score_requests
from lcprof.calibrate.published.startup import fitted_groups, score_startup
from lcprof.calibrate.published.table import Batch, Table
from lcprof.calibrate.published.tables import TABLES
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.calibration import Found, spread
from lcprof.domain.gpu import Gpu
from lcprof.errors import LcprofError
from lcprof.plan.fits import finder
from lcprof.scenario.accuracy import FIELDS, Accuracy, write_accuracy
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.transport import Calibrations

DATA = Path(__file__).resolve().parent / "data"
CALIBRATIONS = Calibrations(PARAMETERS)
STARTUP = "engine_startup_memory"
FIGURES = "published_figures"
ANCHORS = "anchors"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Errors of one subset ("large" or "all") of a table's rows on one device and stack, or over
    all ("all"). `bias` is the median of predicted / measured - 1; `interval_width` the median of
    high / low of the predicted intervals, `transported` how many rows another GPU's or variant's
    fit predicted."""

    table: str
    device: str
    framework: str
    subset: str
    rows: int
    declined: int
    median: float | None
    p90: float | None
    bias: float | None
    interval_coverage: float | None
    interval_width: float | None
    transported: int


def predicted_rows(table: Table, frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions beside measurements, and the declined rows with their reasons."""
    batches = table.predictable(frame, where=table.name)
    found, declined = [], []
    for reason, rows in batches.declined.items():
        declined.append(refused(frame, rows, reason))
    for batch in batches.known:
        gpu = load_gpu(batch.gpu, where=table.name)
        used = fit_of(batch, gpu)
        measured = table.measured_s(frame, batch)
        unmeasured = ~(np.isfinite(measured) & (measured > 0))
        if used is None:
            reason = f"no calibration of {batch.family.name}, {batch.variant}"
            part = refused(frame, batch.rows, reason)
            declined.append(part.assign(device=batch.gpu, framework=batch.stack))
            continue
        fit, ceilings = used.fit, ceilings_of(gpu)
        predicted = batch.family.seconds(batch.call, ceilings, fit.parameters)
        large = np.broadcast_to(batch.family.large(batch.call), predicted.shape)
        distance = np.broadcast_to(fit.distance(batch.family.features(batch.call)), large.shape)
        ends = {kind: fit.bounds(kind, spread(distance)) for kind in ("large", "small")}
        low, high = (np.where(large, ends["large"][i], ends["small"][i]) for i in (0, 1))
        rows = pd.DataFrame(
            {
                "row": batch.rows,
                "device": batch.gpu,
                "framework": batch.stack,
                "variant": f"{batch.family.name} {batch.variant}",
                "large": batch.large,
                "group": batch.groups,
                "column": batch.column,
                "predicted_s": predicted,
                "measured_s": measured,
                "error": predicted / measured - 1.0,
                "inside": (measured >= predicted * low) & (measured <= predicted * high),
                "width": high / low,
                "distance": distance,
                "transported": used.stands_in,
            }
        )
        if unmeasured.any():
            declined.append(refused(frame, batch.rows[unmeasured], "no measured time in the row"))
        found.append(rows[~unmeasured])
    columns = ["row", "device", "framework", "reason"]
    none = pd.DataFrame({name: pd.Series(dtype="object") for name in columns})
    return (
        pd.concat(found, ignore_index=True) if found else pd.DataFrame(),
        pd.concat(declined, ignore_index=True) if declined else none,
    )


def fit_of(batch: Batch, gpu: Gpu) -> Found | None:
    """The fit that predicts a batch, found as a plan finds it."""
    mine = (batch.stack, batch.variant)
    stand_ins = ((batch.stack, name) for name in batch.stand_ins)
    return finder(CALIBRATIONS, gpu)(batch.family.name, (mine, *batch.elsewhere, *stand_ins))


def refused(frame: pd.DataFrame, rows: np.ndarray, reason: str) -> pd.DataFrame:
    """Rows that nothing predicts."""
    device = frame["device"].iloc[rows].to_numpy() if "device" in frame else "all"
    framework = frame["framework"].iloc[rows].to_numpy() if "framework" in frame else "all"
    data = {"row": rows, "device": device, "framework": framework, "reason": reason}
    return pd.DataFrame(data)


def scores(table: str, rows: pd.DataFrame, declined: pd.DataFrame) -> list[Score]:
    """One score per device and framework and one over all, for each subset."""
    if rows.empty:
        return [score(table, "all", "all", "all", rows, len(declined))]
    found = []
    for subset in ("large", "all"):
        part = rows[rows["large"]] if subset == "large" else rows
        found.append(score(table, "all", "all", subset, part, len(declined)))
        for (device, framework), group in part.groupby(["device", "framework"]):
            same = (declined["device"] == device) & (declined["framework"] == framework)
            found.append(score(table, device, framework, subset, group, int(same.sum())))
    return found


def score(
    table: str, device: str, framework: str, subset: str, rows: pd.DataFrame, declined: int
) -> Score:
    def figure(value: float) -> float:
        return float(f"{value:.4g}")

    errors = rows["error"].to_numpy() if len(rows) else np.array([])
    some = len(errors) > 0
    return Score(
        table=table,
        device=device,
        framework=framework,
        subset=subset,
        rows=len(errors),
        declined=declined,
        median=figure(np.median(np.abs(errors))) if some else None,
        p90=figure(np.quantile(np.abs(errors), 0.9)) if some else None,
        bias=figure(np.median(errors)) if some else None,
        interval_coverage=figure(rows["inside"].mean()) if some else None,
        interval_width=figure(rows["width"].median()) if some else None,
        transported=int(rows["transported"].sum()) if some else 0,
    )


def without_fitted(table: Table, frame: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose group no calibration saw."""
    seen = table.read(DATA)
    if seen is None or rows.empty:
        return rows
    batches = table.predictable(seen, where=table.name).known
    fitted = {name for batch in batches for name in batch.groups.tolist()}
    return rows[~rows["group"].isin(fitted)]


def startup_scores(folder: Path, *, held_out: bool) -> list[Score]:
    """Scores of what engines printed at start-up, where `folder` has that table."""
    path = folder / f"{STARTUP}.csv"
    if not path.exists():
        return []
    without = fitted_groups() if held_out else frozenset()
    scored = score_startup(path, without=without)
    return [Score(**one, interval_width=None, transported=0) for one in scored]


def request_figures(folder: Path) -> list[Score]:
    """Scores of published times of whole requests, and of the anchors that travel with the data."""
    found: list[Score] = []
    for path in figure_tables(folder):
        scored = request_scores(path, path.stem)
        found += [Score(**one, interval_width=None, transported=0) for one in scored]
    return found


def figure_tables(folder: Path) -> list[Path]:
    """The tables of whole requests: the folder's, and beside it that of the anchors."""
    given = folder / f"{FIGURES}.csv"
    return [given, DATA / f"{ANCHORS}.csv"] if given.exists() else []


def show_figures(folder: Path) -> None:
    """Every figure beside its prediction, and what is declined."""
    for path in figure_tables(folder):
        scored, refused = score_requests(path)
        for reason, count in Counter(one.reason for one in refused).most_common():
            print(f"    declined {count}: {reason}")
        for one in scored:
            place = f"{path.name}:{one.line} {one.device} {one.kind}"
            print(
                f"    {100 * one.error:+6.1f} % predicted {one.predicted:.4g} "
                f"({one.low:.4g} to {one.high:.4g}) measured {one.measured:.4g}: {place}"
            )


def summarise(found: list[Score], path: Path) -> None:
    """Writes what `lcprof accuracy` reads."""
    write_accuracy([Accuracy(**{name: getattr(s, name) for name in FIELDS}) for s in found], path)


def show(found: list[Score]) -> None:
    for s in found:
        where = f"{s.table} {s.device} {s.framework} {s.subset}"
        if s.median is None or s.p90 is None or s.bias is None or s.interval_coverage is None:
            print(f"{where:72} rows {s.rows:5} declined {s.declined}")
            continue
        print(
            f"{where:72} rows {s.rows:5} declined {s.declined:4} "
            f"median {100 * s.median:5.1f} % p90 {100 * s.p90:5.1f} % bias {100 * s.bias:+5.1f} % "
            f"inside {100 * s.interval_coverage:4.0f} %"
            + (f" width x{s.interval_width:.2f}" if s.interval_width is not None else "")
            + (f" transported {s.transported}" if s.transported else "")
        )


def show_worst(frame: pd.DataFrame, rows: pd.DataFrame, table: Table, count: int) -> None:
    if rows.empty or not count:
        return
    hidden = {*table.seconds, *table.withheld, "source_path", "system", "source"}
    distance = np.log1p(rows["error"]).abs()
    for place in distance.sort_values(ascending=False).index[:count]:
        row = rows.loc[place]
        shape = frame.drop(columns=list(hidden), errors="ignore").iloc[int(row["row"])].dropna()
        text = " ".join(f"{name}={value}" for name, value in shape.items())
        print(
            f"    {100 * row['error']:+6.0f} % predicted {1e3 * row['predicted_s']:.4g} ms "
            f"measured {1e3 * row['measured_s']:.4g} ms: {text}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="append")
    parser.add_argument("--worst", type=int, default=3)
    parser.add_argument("--summary", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"{arguments.folder}: no such folder", file=sys.stderr)
        return 2
    if arguments.summary and (arguments.table or not arguments.held_out):
        print("--summary: needs --held-out, and all tables", file=sys.stderr)
        return 2
    known = {table.name for table in TABLES} | {STARTUP, FIGURES}
    if unknown := set(arguments.table or []) - known:
        print(f"{unknown.pop()}: not one of {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    objects: list[Score] = []
    try:
        for table in TABLES:
            if arguments.table and table.name not in arguments.table:
                continue
            frame = table.read(arguments.folder)
            if frame is None:
                continue
            rows, declined = predicted_rows(table, frame)
            if arguments.held_out:
                rows = without_fitted(table, frame, rows)
            found = scores(table.name, rows, declined)
            objects += found
            if not arguments.json:
                show(found)
                for reason, part in declined.groupby("reason"):
                    print(f"    declined {len(part)}: {reason}")
                show_worst(frame, rows, table, arguments.worst)
        if not arguments.table or STARTUP in arguments.table:
            found = startup_scores(arguments.folder, held_out=arguments.held_out)
            objects += found
            if not arguments.json:
                show(found)
        if not arguments.table or FIGURES in arguments.table:
            found = request_figures(arguments.folder)
            objects += found
            if not arguments.json:
                show(found)
                show_figures(arguments.folder)
    except LcprofError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.summary:
        summarise(objects, arguments.summary)
    if arguments.json:
        print(json.dumps([asdict(s) for s in objects], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
