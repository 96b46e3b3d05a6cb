"""How far predictions were from what was measured, by row and metric; and one run from another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from lcprof.measure.record import Record
from lcprof.measure.row import Row


class Metric(Struct, frozen=True, kw_only=True):
    """What is compared: its name, the prediction's field, those of its interval ("" without one)
    and of its basis, the measurement's column."""

    name: str
    predicted: str
    measured: str
    low: str = ""
    high: str = ""
    basis: str = "basis"


SECONDS = Metric(name="seconds", predicted="seconds", measured="burst_s", low="low", high="high")
SUSTAINED = Metric(
    name="sustained_s",
    predicted="sustained_s",
    measured="sustained_s",
    low="sustained_low_s",
    high="sustained_high_s",
)
ENERGY = Metric(
    name="energy_j",
    predicted="energy_j",
    measured="energy_j",
    low="energy_low_j",
    high="energy_high_j",
)
METRICS = (
    SECONDS,
    SUSTAINED,
    ENERGY,
    Metric(name="hbm_bytes", predicted="hbm_bytes", measured="moved_bytes"),
    Metric(name="flops", predicted="flops", measured="tensor_flops"),
    Metric(name="peak_bytes", predicted="peak_bytes", measured="peak_allocated_bytes"),
)
"""What is expected of a row."""
UNCALIBRATED = {
    f"uncalibrated_{suffix}": Metric(
        name=f"uncalibrated_{suffix}",
        predicted=f"uncalibrated_{suffix}",
        measured=metric.measured,
        basis="uncalibrated_basis",
    )
    for suffix, metric in (("s", SECONDS), ("sustained_s", SUSTAINED), ("energy_j", ENERGY))
}
"""What would be expected had nothing been measured on this GPU, by metric."""
IN_A_ROW = (SUSTAINED.measured, ENERGY.measured)
"""Columns of calls one after the other, which predictions take to read all from memory."""
FLOOR = "floor_s"
BESIDE = frozenset({FLOOR, *UNCALIBRATED})
"""Metrics that stand beside expectations; no limit on errors applies to them."""
LEAST_TENSOR = 0.2
"""Share of the time that tensor cores must work for their FLOPs to be compared: below it, most of
what they do is padding of small tiles."""
RUN_METRICS = ("burst_s", "sustained_s", "energy_j", "power_w", "sm_clock_hz", "hbm_bytes",
               "flops", "peak_allocated_bytes", "rate_bytes_per_s", "rate_flops_per_s")  # fmt: skip
CONDITIONS = ("gpu", "gpu_uuid_sha256", "device", "driver", "cuda", "torch", "triton", "lcprof",
              "commit", "power_limit_w", "mig", "ecc", "ranks", "scenario_sha256")  # fmt: skip


class Residual(Struct, frozen=True, kw_only=True):
    """One metric of one row: predicted / measured - 1 is its error.

    Floors ("floor_s") and what is uncalibrated ("uncalibrated_s", ...) stand beside expectations:
    no limit on errors applies to them.
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
    """Every metric that was both predicted and measured, the worst first; floors and what is
    uncalibrated after them.

    FLOPs by hardware counters are those that tensor cores did, padding included. Calls one after
    the other that find their input in the L2 are not what was predicted.
    """
    found: list[Residual] = []
    for row in rows:
        if row.status != "measured":
            continue
        told = row.predicted
        for metric in (*METRICS, *UNCALIBRATED.values()):
            found += _residual(row, metric)
        basis = f"data sheet of {told.floor_gpu}" if told.floor_gpu else "data sheet"
        floor = Metric(name=FLOOR, predicted=FLOOR, measured=SECONDS.measured)
        found += [replace(each, basis=basis, held_out=None) for each in _residual(row, floor)]
    return sorted(found, key=lambda each: (each.metric in BESIDE, -abs(each.error)))


def error_of(row: Row, metric: Metric) -> float | None:
    """predicted / measured - 1; None where one is lacking, for FLOPs where tensor cores hardly
    work, and for calls one after the other that find their input in the L2."""
    got = row.measured
    predicted, measured = getattr(row.predicted, metric.predicted), getattr(got, metric.measured)
    padded = metric.name == "flops" and (got.tensor_utilisation or 1.0) < LEAST_TENSOR
    if not predicted or not measured or padded or (got.warm and metric.measured in IN_A_ROW):
        return None
    error: float = predicted / measured - 1.0
    return error


def _residual(row: Row, metric: Metric) -> list[Residual]:
    told = row.predicted
    error = error_of(row, metric)
    predicted, measured = getattr(told, metric.predicted), getattr(row.measured, metric.measured)
    if error is None:
        return []
    low, high = (getattr(told, name) if name else None for name in (metric.low, metric.high))
    inside = None if low is None or high is None else low <= measured <= high
    return [
        Residual(
            key=row.key,
            op=row.operation,
            implementation=row.implementation,
            metric=metric.name,
            predicted=predicted,
            measured=measured,
            error=error,
            held_out=None if metric.name in BESIDE else told.held_out,
            basis=getattr(told, metric.basis),
            inside=inside,
        )
    ]


def expectations(found: Sequence[Residual]) -> list[Residual]:
    """Those that a limit on errors applies to."""
    return [each for each in found if each.metric not in BESIDE]


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
