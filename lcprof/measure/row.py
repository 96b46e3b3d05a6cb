"""The lines of a record: where a run took place, and one row for each point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from msgspec import Struct

FORMAT = 1

Status: TypeAlias = Literal[
    "measured",
    "wrong",
    "refused",
    "not measurable",
    "does not fit",
    "out of memory",
    "failed",
    "lost",
    "interrupted",
]
FINISHED: frozenset[Status] = frozenset({"measured", "wrong", "refused", "not measurable"})
"""What trying again would not change; every other row is tried again on `--resume`."""


class Provenance(Struct, frozen=True, kw_only=True, tag_field="line", tag="provenance"):
    """Where, on what and by which command a record was measured; its first line.

    Nothing that could not be found out is guessed: the field is None or "", and `unknown` has the
    reason by field name. `gpu` names the processor where `device` is "cpu"; of several `ranks` it
    is that of the first. Bandwidth and FLOPs a cycle (in bf16) are those that turned the counters'
    shares into bytes and FLOPs.
    """

    format: int
    device: Literal["cuda", "cpu"]
    gpu: str
    gpu_uuid_sha256: str | None = None
    driver: str = ""
    cuda: str = ""
    torch: str = ""
    triton: str = ""
    lcprof: str
    commit: str = ""
    python: str
    sm_clock_max_hz: float | None = None
    memory_clock_max_hz: float | None = None
    memory_bytes: float | None = None
    power_limit_w: float | None = None
    mig: bool | None = None
    ecc: bool | None = None
    bandwidth_bytes_per_s: float | None = None
    flops_per_cycle: float | None = None
    ranks: int = 1
    scenario: str
    scenario_sha256: str
    command: tuple[str, ...]
    started: str
    unknown: Mapping[str, str] = {}


class Resumption(Struct, frozen=True, kw_only=True, tag_field="line", tag="resumption"):
    """A run that went on in the same record; `dropped_bytes` is a torn last line, cut off."""

    started: str
    command: tuple[str, ...]
    dropped_bytes: int = 0


class Predicted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was expected of a point before it ran.

    `floor_s` is what physics allows at the data sheet's rates of `floor_gpu`; `seconds`, between
    `low` and `high` in nine cases of ten, is an expectation, and `basis` says where it comes from.
    `held_out`: whether its fit had not seen this point; None where nothing was fitted.
    `sustained_s` and `energy_j`, with intervals likewise, are of calls one after the other under
    the power limit. What is `uncalibrated` knows the data sheet and what was published of other
    GPUs, and nothing that was measured on this one.
    """

    flops: float | None = None
    hbm_bytes: float | None = None
    peak_bytes: float | None = None
    floor_s: float | None = None
    floor_gpu: str = ""
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    basis: str = ""
    held_out: bool | None = None
    sustained_s: float | None = None
    sustained_low_s: float | None = None
    sustained_high_s: float | None = None
    energy_j: float | None = None
    energy_low_j: float | None = None
    energy_high_j: float | None = None
    uncalibrated_s: float | None = None
    uncalibrated_sustained_s: float | None = None
    uncalibrated_energy_j: float | None = None
    uncalibrated_basis: str = ""


class Kernel(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A kernel that one call launched, `launches` times for `seconds` in all."""

    name: str
    launches: int
    seconds: float
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    registers: int | None = None
    shared_bytes: int | None = None


class Moment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The board `at_s` seconds into a sustained run; None where it does not say."""

    at_s: float
    power_w: float | None = None
    sm_clock_hz: float | None = None
    temperature_c: float | None = None


class Measured(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a point took; quantities are one call's.

    `burst_s` is the median of single calls with a cold L2, `sustained_s` the mean of calls one
    after the other; `warm` when they are so small that most of what a call reads is still in
    the L2 from the call before. Power, clocks, HBM bytes and FLOPs are the sustained run's, the
    latter by shares of peaks; `counted_` ones are of a single call with a cold L2, exact, by the
    tool that `counted_by` names.
    `energy_j` is by the board's energy counter, or by its power where `energy_basis` says so.
    `timeline` is the board during the sustained run, which began at `sustained_begun` (ISO 8601);
    records of before there were any have neither. A column that is None or empty has its reason in
    the row's `empty`.
    """

    burst_s: float | None = None
    burst_p20_s: float | None = None
    burst_p80_s: float | None = None
    rounds: int = 0
    launch: str = ""
    sustained_s: float | None = None
    sustained_calls: int = 0
    sustained_begun: str = ""
    warm: bool = False
    hbm_bytes: float | None = None
    flops: float | None = None
    dram_utilisation: float | None = None
    tensor_utilisation: float | None = None
    sm_occupancy: float | None = None
    counted_read_bytes: float | None = None
    counted_write_bytes: float | None = None
    counted_flops: float | None = None
    counted_by: str = ""
    peak_allocated_bytes: float | None = None
    peak_used_bytes: float | None = None
    energy_j: float | None = None
    energy_basis: str = ""
    power_w: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    throttle: tuple[str, ...] = ()
    temperature_c: float | None = None
    other_processes: int | None = None
    timeline: tuple[Moment, ...] = ()
    launches: int | None = None
    kernels: tuple[Kernel, ...] = ()
    rate_bytes_per_s: float | None = None
    rate_flops_per_s: float | None = None
    idle_power_w: float | None = None
    error: float | None = None
    error_allowed: float | None = None

    @property
    def moved_bytes(self) -> float | None:
        """HBM bytes of a call: those counted, else those by shares of peak."""
        if self.counted_read_bytes is None or self.counted_write_bytes is None:
            return self.hbm_bytes
        return self.counted_read_bytes + self.counted_write_bytes

    @property
    def tensor_flops(self) -> float | None:
        """FLOPs of a call's tensor cores: those counted, else those by shares of peak."""
        return self.flops if self.counted_flops is None else self.counted_flops


class Row(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="row"):
    """One operation at one shape by one implementation, which together are its key."""

    key: str
    operation: str
    shape: Mapping[str, int | float | str]
    implementation: str
    device: str
    status: Status
    reason: str = ""
    note: str = ""
    source: str = ""
    predicted: Predicted = Predicted()
    measured: Measured = Measured()
    empty: Mapping[str, str] = {}

    @property
    def finished(self) -> bool:
        """Whether going on with the record leaves this row as it is."""
        return self.status in FINISHED


Line: TypeAlias = Provenance | Resumption | Row
