"""Calibrations from the committed rows, and the committed rows from whole tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lcprof.calibrate.fit import Samples, fit_variant, joined
from lcprof.calibrate.published.table import SPLIT, Source, Table, fit_rows, samples
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.calibration import Calibration, Fit
from lcprof.errors import InputError
from lcprof.scenario.calibrations import (
    FOLDER,
    calibration_path,
    read_calibration,
    write_calibration,
)
from lcprof.scenario.files import read_yaml
from lcprof.scenario.gpus import load_gpu


def select(table: Table, source: Path, data: Path) -> int:
    """Writes the rows of `source` that fits may see to `data`; returns how many."""
    frame = table.read(source)
    if frame is None:
        return 0
    chosen = frame[fit_rows(table, frame)]
    path = data / f"{table.name}.csv.gz"
    # A fixed time in the header keeps the file the same from run to run.
    chosen.to_csv(path, index=False, compression={"method": "gzip", "mtime": 1})
    return len(chosen)


def refit(
    tables: Iterable[Table], data: Path, folder: Path = FOLDER, *, keep: bool = False
) -> Iterator[tuple[str, Fit]]:
    """Fits every variant that `data` has rows of and writes the calibrations. With `keep`, a
    calibration keeps the fits that `tables` do not cover. Yields each file's name and new fit."""
    tables = list(tables)
    gathered: dict[tuple[str, str], dict[tuple[str, str], list[Samples]]] = {}
    sources: dict[tuple[str, str], Source] = {}
    for table in tables:
        frame = table.read(data)
        if frame is None:
            continue
        for batch, found in samples(table, frame):
            target = (batch.gpu, batch.stack)
            sources[target] = table.source
            variants = gathered.setdefault(target, {})
            variants.setdefault((batch.family.name, batch.variant), []).append(found)
    for (gpu, stack), variants in sorted(gathered.items()):
        ceilings = ceilings_of(load_gpu(gpu, where="calibrations"))
        new = {}
        for key, parts in sorted(variants.items()):
            new[key] = fit_variant(one_of(parts), ceilings)
            yield f"{gpu}--{stack}", new[key]
        save(gpu, stack, sources[gpu, stack], new, folder, keep=keep)


def one_of(parts: list[Samples]) -> Samples:
    """Samples of one variant from several tables as one."""
    import numpy as np

    return Samples(
        family=parts[0].family,
        variant=parts[0].variant,
        call=joined([part.call for part in parts]),
        measured_s=np.concatenate([part.measured_s for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
    )


def save(
    gpu: str,
    stack: str,
    source: Source,
    new: dict[tuple[str, str], Fit],
    folder: Path,
    *,
    keep: bool,
) -> None:
    """Writes a calibration's file, with `keep` beside the fits it has."""
    path = calibration_path(gpu, stack, folder)
    with alone(folder):
        fits: dict[tuple[str, str], Fit] = {}
        old = readable(path, gpu) if keep and path.exists() else None
        if old:
            fits = {(fit.family, fit.variant): fit for fit in old.fits}
        fits |= new
        calibration = Calibration(
            gpu=gpu,
            stack=stack,
            source=source.name,
            licence=source.licence,
            date=source.date,
            split=SPLIT,
            fits=tuple(fits[key] for key in sorted(fits)),
        )
        write_calibration(calibration, path)


def readable(path: Path, gpu: str) -> Calibration | None:
    """A calibration file as far as it still fits the families: an entry whose family has other
    parameters today is dropped, since a refit must be able to follow a changed model."""
    data = read_yaml(path)
    good = []
    for entry in data["fits"]:
        try:
            read_calibration(
                {**data, "fits": [entry]}, where=str(path), gpu=gpu, families=PARAMETERS
            )
        except InputError:
            continue
        good.append(entry)
    if not good:
        return None
    whole = {**data, "fits": good}
    return read_calibration(whole, where=str(path), gpu=gpu, families=PARAMETERS)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds other refits off while a calibration file is read and written."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    lock.unlink(missing_ok=True)
