"""How far predictions were from what was measured, by row and metric; and one run from another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from lcprof.measure.record import Record
from lcprof.measure.row import Row

METRICS = (
    ("seconds", "seconds", "burst_s"),
    ("hbm_bytes", "hbm_bytes", "hbm_bytes"),
    ("flops", "flops", "flops"),
    ("peak_bytes", "peak_bytes", "peak_allocated_bytes"),
)
"""Metric, the prediction's field, the measurement's."""
FLOOR = "floor_s"
LEAST_TENSOR = 0.2
"""Share of the time that tensor cores must work for their FLOPs to be compared: below it, most of
what they do is padding of small tiles."""
RUN_METRICS = ("burst_s", "sustained_s", "energy_j", "power_w", "sm_clock_hz", "hbm_bytes",
               "flops", "peak_allocated_bytes", "rate_bytes_per_s", "rate_flops_per_s")  # fmt: skip
CONDITIONS = ("gpu", "gpu_uuid_sha256", "device", "driver", "cuda", "torch", "triton", "lcprof",
              "commit", "power_limit_w", "mig", "ecc", "scenario_sha256")  # fmt: skip


class Residual(Struct, frozen=True, kw_only=True):
    """One metric of one row: predicted / measured - 1 is its error.

    A floor is no expectation: its metric is "floor_s", and no limit on errors applies to it.
    `inside` says whether the measurement lay in the predicted interval, None where there was none.
    """

    key: str
    op: str
    implementation: str
    metric: str
    predicted: float
    measured: float
    error: float
    held_out: bool | None = None
    basis: str = ""
    inside: bool | None = None


class Change(Struct, frozen=True, kw_only=True):
    """One metric of one point in two runs: second / first - 1."""

    key: str
    op: str
    implementation: str
    metric: str
    first: float
    second: float
    change: float


class Difference(Struct, frozen=True, kw_only=True):
    """A condition under which two runs were not the same."""

    condition: str
    first: str
    second: str


def residuals(rows: Iterable[Row]) -> list[Residual]:
    """Every metric that was both predicted and measured, the worst first, floors last.

    FLOPs by hardware counters are those that tensor cores did, padding included.
    """
    found: list[Residual] = []
    for row in rows:
        if row.status != "measured":
            continue
        told, got = row.predicted, row.measured
        for metric, field, column in METRICS:
            predicted, measured = getattr(told, field), getattr(got, column)
            if error_of(row, metric, predicted, measured) is None:
                continue
            inside = None
            if metric == "seconds" and told.low is not None and told.high is not None and measured:
                inside = told.low <= measured <= told.high
            found += _residual(row, metric, predicted, measured, told.basis, inside)
        basis = f"data sheet of {told.floor_gpu}" if told.floor_gpu else "data sheet"
        found += _residual(row, FLOOR, told.floor_s, got.burst_s, basis, None)
    return sorted(found, key=lambda each: (each.metric == FLOOR, -abs(each.error)))


def error_of(
    row: Row, metric: str, predicted: float | None, measured: float | None
) -> float | None:
    """predicted / measured - 1; None where one is lacking, and for FLOPs where tensor cores hardly
    work."""
    if not predicted or not measured:
        return None
    if metric == "flops" and (row.measured.tensor_utilisation or 1.0) < LEAST_TENSOR:
        return None
    return predicted / measured - 1.0


def _residual(
    row: Row,
    metric: str,
    predicted: float | None,
    measured: float | None,
    basis: str,
    inside: bool | None,
) -> list[Residual]:
    error = error_of(row, metric, predicted, measured)
    if error is None or not predicted or not measured:
        return []
    return [
        Residual(
            key=row.key,
            op=row.operation,
            implementation=row.implementation,
            metric=metric,
            predicted=predicted,
            measured=measured,
            error=error,
            held_out=row.predicted.held_out,
            basis=basis,
            inside=inside,
        )
    ]


def expectations(found: Sequence[Residual]) -> list[Residual]:
    """Those that a limit on errors applies to."""
    return [each for each in found if each.metric != FLOOR]


def changes(first: Record, second: Record) -> list[Change]:
    """Every metric of points that both runs measured, the largest change first."""
    found = []
    for key, old in first.rows.items():
        new = second.rows.get(key)
        if new is None or old.status != "measured" or new.status != "measured":
            continue
        for metric in RUN_METRICS:
            before, after = getattr(old.measured, metric), getattr(new.measured, metric)
            if before and after:
                found.append(
                    Change(
                        key=key,
                        op=old.operation,
                        implementation=old.implementation,
                        metric=metric,
                        first=before,
                        second=after,
                        change=after / before - 1.0,
                    )
                )
    return sorted(found, key=lambda each: -abs(each.change))


def differences(first: Record, second: Record) -> list[Difference]:
    """What was not the same where two runs took place."""
    return [
        Difference(condition=name, first=_told(before), second=_told(after))
        for name in CONDITIONS
        for before, after in [(getattr(first.provenance, name), getattr(second.provenance, name))]
        if before != after
    ]


def _told(value: object) -> str:
    return "" if value is None else str(value)


def only_in(first: Record, second: Record) -> list[str]:
    """Keys that were measured in the first run alone."""
    return [
        key
        for key, row in first.rows.items()
        if row.status == "measured"
        and (key not in second.rows or second.rows[key].status != "measured")
    ]
