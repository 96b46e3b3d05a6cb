"""Calibrations of lcprof's and PyTorch's kernels from the records of `lcprof measure`.

Each variant's burst times are fitted on all of its rows, or on two thirds of its shapes with the
others held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from msgspec import Struct

from lcprof.calibrate.calls import Called, UncalledError, called, stacked
from lcprof.calibrate.fit import Samples, fit_variant
from lcprof.cost.expected.own import OWN
from lcprof.cost.expected.task import Fits, UnmeasuredError, timed
from lcprof.cost.timing.ceilings import Ceilings, ceilings_of
from lcprof.domain.calibration import Calibration, Fit, Found
from lcprof.domain.gpu import Gpu
from lcprof.domain.operations import OPERATIONS
from lcprof.errors import InputError, LcprofError
from lcprof.measure.machine import catalogued
from lcprof.measure.record import Record
from lcprof.measure.row import Provenance, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_ROWS = 6
LEAST_SHAPES = 3
"""Rows and shapes that a fit must see: fewer say nothing of any other shape."""
HELD_LEAST, HELD_MOST = 1.0 / 3.0, 0.5
"""What part of a variant's rows is held out."""
OWN_LICENCE = "measured by whoever ran the command; theirs to license"
FLOOR = "floor"


class Errors(Struct, frozen=True, kw_only=True):
    """Median and 90 % quantile of |predicted / measured - 1| over some rows."""

    rows: int
    median: float
    p90: float


class Score(Struct, frozen=True, kw_only=True):
    """How well one variant of an operation is predicted, before and after its calibration.

    `before` and `unseen` are of the same rows: those held out; without any, `before` is of all and
    `unseen` None. `before_basis` says what predicted them, `inside` which share of the rows held
    out lies in the calibration's interval.
    """

    operation: str
    stack: str
    variant: str
    seen: Errors
    unseen: Errors | None
    inside: float | None
    before: Errors | None
    before_basis: str


class Calibrated(Struct, frozen=True, kw_only=True):
    """What records were turned into: calibrations by stack, a score for each variant, and a line
    for whatever could not be fitted."""

    gpu: Gpu
    calibrations: tuple[Calibration, ...]
    scores: tuple[Score, ...]
    unfitted: tuple[str, ...]


class NothingFittedError(LcprofError):
    """Records hold nothing to calibrate from; the text says why."""


class _Member(Struct, frozen=True, kw_only=True):
    """A measured row and its call."""

    row: Row
    made: Called
    seconds: float


def gpu_of(records: Sequence[Record], given: Gpu | None = None) -> Gpu:
    """The GPU that all records were measured on; `given` says which it is where the catalog lacks
    it. Raises InputError for records of several or of one that nothing is known of, and
    NothingFittedError for those of a processor."""
    kinds = {record.provenance.device for record in records}
    if kinds == {"cpu"}:
        names = " and ".join(record.path for record in records)
        raise NothingFittedError(
            f"{names}: measured on a processor, whose reference kernels no family describes; "
            "calibrate from a run on a GPU"
        )
    first = records[0].provenance
    for record in records[1:]:
        told = record.provenance
        if told.gpu != first.gpu or told.device != first.device:
            expected = f"a run on {first.gpu}, as {records[0].path} is; one GPU at a time"
            raise InputError.one(record.path, given=told.gpu, expected=expected)
    for record in records:
        if record.provenance.mig:
            expected = "a whole GPU, whose rates its data sheet says"
            raise InputError.one(record.path, given="a run on a MIG slice", expected=expected)
    found = given or catalogued(first.gpu, first.memory_bytes)
    if found is None:
        expected = "a GPU of the catalog; --gpu NAME or --gpu FILE.yaml says which it is"
        raise InputError.one(records[0].path, given=first.gpu, expected=expected)
    return found


def calibrate(
    records: Sequence[Record], gpu: Gpu, *, before: Fits, command: str, hold_out: bool = False
) -> Calibrated:
    """Fits every variant that records of a GPU have enough rows of. `before` finds the fits that
    would predict them without these records. Raises NothingFittedError when there is none."""
    variants, unfitted = _variants(records, gpu)
    ceilings = ceilings_of(gpu)
    fits: dict[str, list[Fit]] = {}
    points: dict[str, set[str]] = {}
    scores = []
    for (stack, _, _), members in variants.items():
        held = _held_out(members) if hold_out else frozenset()
        seen = [member for member in members if member.row.key not in held]
        unseen = [member for member in members if member.row.key in held]
        short = _too_few(seen, unseen)
        if short:
            unfitted.append(short)
            continue
        first = seen[0].made
        # Our own variants may have been fitted on rows that are held out here.
        public = tuple(each for each in first.variants if each[0] not in OWN)
        like = before(first.family.name, public)
        prior = None if like is None else like.fit.parameters
        fit = fit_variant(_samples(seen, groups=_grouped(seen)), ceilings, prior)
        fits.setdefault(stack, []).append(fit)
        points.setdefault(stack, set()).update(member.row.key for member in seen)
        scores.append(_score(seen, unseen, fit, before, ceilings))
    if not fits:
        names = " and ".join(record.path for record in records)
        reasons = "; ".join(unfitted) or "no row of any operation was measured"
        raise NothingFittedError(f"{names}: nothing to calibrate from: {reasons}")
    split = "all rows; residuals are those of refits without a row's shape"
    if hold_out:
        split = "half to two thirds of the rows of each variant, by shape; the rest is held out"
    told = [record.provenance for record in records]
    made = (
        Calibration(
            gpu=gpu.name,
            stack=stack,
            source=f"{command} ({'; '.join(dict.fromkeys(map(_said, told)))})",
            licence=OWN_LICENCE,
            date=max(each.started for each in told)[:10],
            split=split,
            fits=tuple(sorted(found, key=lambda fit: (fit.family, fit.variant))),
            points=frozenset(points[stack]),
        )
        for stack, found in sorted(fits.items())
    )
    return Calibrated(
        gpu=gpu,
        calibrations=tuple(made),
        scores=tuple(sorted(scores, key=lambda score: (score.operation, score.stack))),
        unfitted=tuple(unfitted),
    )


def _said(told: Provenance) -> str:
    """Where and on what a record was measured."""
    parts = (
        told.gpu,
        f"driver {told.driver}" if told.driver else "",
        f"CUDA {told.cuda}" if told.cuda else "",
        f"torch {told.torch}" if told.torch else "",
        f"triton {told.triton}" if told.triton else "",
        f"lcprof {told.lcprof}{f' at {told.commit}' if told.commit else ''}",
        f"limit {told.power_limit_w:g} W" if told.power_limit_w is not None else "",
        told.started,
    )
    return ", ".join(part for part in parts if part)


_Variants = dict[tuple[str, str, str], list[_Member]]


def _variants(records: Iterable[Record], gpu: Gpu) -> tuple[_Variants, list[str]]:
    """Measured rows by stack, family and variant, and a line for each kind that has no call."""
    found: _Variants = {}
    uncalled: dict[str, int] = {}
    for record in records:
        for row in record.rows.values():
            seconds = row.measured.burst_s
            if row.operation not in OPERATIONS or row.status != "measured" or not seconds:
                continue
            try:
                made = called(row.operation, row.shape, row.implementation, gpu)
            except UncalledError as reason:
                line = f"{row.operation} by {row.implementation}: {reason}"
                uncalled[line] = uncalled.get(line, 0) + 1
                continue
            stack, variant = made.variant
            member = _Member(row=row, made=made, seconds=seconds)
            found.setdefault((stack, made.family.name, variant), []).append(member)
    return found, [f"{line} ({_count(rows, 'row')})" for line, rows in uncalled.items()]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _grouped(members: Sequence[_Member]) -> list[str]:
    """The shape that each row counts as: without batch and lengths where there are three or more
    of those, else without lengths, else the whole shape."""
    for level in range(3):
        names = [member.made.groups[level] for member in members]
        if len(set(names)) >= LEAST_SHAPES:
            break
    return names


def _held_out(members: Sequence[_Member]) -> frozenset[str]:
    """Keys of the rows to hold out: those of whole groups (`_grouped`), the coarsest that make at
    least a third of the rows and no more than half. Groups are taken in the order of a hash of
    their names, so that neither runs nor the order of rows decide."""
    keys = [member.row.key for member in members]
    for level in range(3):
        names = [member.made.groups[level] for member in members]
        held: set[str] = set()
        rows = 0
        for name in sorted(set(names), key=lambda name: crc32(name.encode())):
            if HELD_LEAST * len(names) <= rows:
                break
            count = names.count(name)
            if rows + count <= HELD_MOST * len(names):
                held.add(name)
                rows += count
        enough = level == 2 or len(names) - rows >= LEAST_ROWS
        if enough and rows >= HELD_LEAST * len(names):
            return frozenset(key for key, name in zip(keys, names, strict=True) if name in held)
    return frozenset()


def _too_few(seen: Sequence[_Member], unseen: Sequence[_Member]) -> str:
    """Why rows do not make a fit, "" where they do."""
    shapes = {member.row.key for member in seen}
    if len(seen) >= LEAST_ROWS and len(shapes) >= LEAST_SHAPES:
        return ""
    made = (seen or unseen)[0].made
    stack, variant = made.variant
    beside = f" beside {len(unseen)} held out" if unseen else ""
    rows = f"{_count(len(seen), 'row')} of {_count(len(shapes), 'shape')}{beside}"
    return (
        f"{made.operation}, {stack} {variant}: {rows}; a fit needs {LEAST_ROWS} of {LEAST_SHAPES}"
    )


def _samples(members: Sequence[_Member], groups: Sequence[str] | None = None) -> Samples:
    import numpy as np

    first = members[0].made
    return Samples(
        family=first.family,
        variant=first.variant[1],
        call=stacked([member.made.call for member in members]),
        measured_s=np.array([member.seconds for member in members]),
        groups=np.array(groups or [member.row.key for member in members]),
        kinds=len({member.made.groups[0] for member in members}),
    )


def _score(
    seen: Sequence[_Member],
    unseen: Sequence[_Member],
    fit: Fit,
    before: Fits,
    ceilings: Ceilings,
) -> Score:
    import numpy as np

    first = seen[0].made
    stack, variant = first.variant
    own = Found(fit=fit, variant=first.variant, measured_on="", stands_in=False)
    after, inside = None, None
    if unseen:
        sample = _samples(unseen)
        found = timed(first.task(sample.call), lambda *_: own, ceilings)
        after = _errors(found.seconds, sample.measured_s)
        below = sample.measured_s >= found.seconds - found.below_s
        inside = float(np.mean(below & (sample.measured_s <= found.seconds + found.above_s)))
    told = _samples(seen)
    fitted = first.family.seconds(told.call, ceilings, fit.parameters)
    earlier, basis = _before(unseen or seen, before, ceilings)
    operations = dict.fromkeys(member.made.operation for member in (*seen, *unseen))
    return Score(
        operation=", ".join(operations),
        stack=stack,
        variant=variant,
        seen=_errors(fitted, told.measured_s),
        unseen=after,
        inside=inside,
        before=earlier,
        before_basis=basis,
    )


def _before(
    members: Sequence[_Member], before: Fits, ceilings: Ceilings
) -> tuple[Errors | None, str]:
    """What was predicted without these records, and by what: the most alike kernel that was
    measured, else the rows' floors; None without either."""
    import numpy as np

    sample = _samples(members)
    try:
        found = timed(members[0].made.task(sample.call), before, ceilings)
    except UnmeasuredError:
        floors = [(m.row.predicted.floor_s, m.seconds) for m in members if m.row.predicted.floor_s]
        if not floors:
            return None, ""
        predicted, measured = np.array(floors, dtype=np.float64).T
        return _errors(predicted, measured), FLOOR
    basis = ", ".join(f"{each.variant[0]} on {each.measured_on}" for each in found.found)
    return _errors(found.seconds, sample.measured_s), basis


def _errors(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> Errors:
    import numpy as np

    sizes = np.abs(predicted / measured - 1.0)
    median, p90 = np.quantile(sizes, (0.5, 0.9))
    return Errors(rows=len(sizes), median=float(median), p90=float(p90))
