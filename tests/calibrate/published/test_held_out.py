"""Committed calibrations against committed rows of groups that they never saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lcprof.calibrate.published.table import Table, samples
from lcprof.calibrate.published.tables import TABLES
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.cost.timing.families import PARAMETERS
from lcprof.domain.calibration import spread
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.transport import Calibrations

CALIBRATIONS = Calibrations(PARAMETERS)

if TYPE_CHECKING:
    from pandas import DataFrame

ROOT = Path(__file__).resolve().parents[3]
ROWS = ROOT / "tests" / "fixtures" / "held-out"
FITTED = ROOT / "benchmarks" / "data"
BARS = {
    "op_context_attention": (0.06, 0.15),
    "op_encoder_attention": (0.06, 0.15),
    "op_generation_attention": (0.06, 0.15),
    "op_context_mla": (0.08, 0.20),
    "op_generation_mla": (0.08, 0.20),
    "op_mla_module": (0.08, 0.20),
    "op_dsa_module": (0.12, 0.30),
    "op_linear_attention": (0.12, 0.30),
    "op_gemm": (0.06, 0.15),
    "op_moe": (0.10, 0.25),
    "op_nccl": (0.10, 0.25),
    "op_custom_allreduce": (0.10, 0.25),
    "op_deepep": (0.10, 0.25),
}
"""Median and 90th percentile of the absolute relative error, of large calls."""
ALL_BAR = (0.12, 0.35)


def table(name: str) -> Table:
    return next(t for t in TABLES if t.name == name)


def rows(name: str, folder: Path) -> DataFrame:
    frame = table(name).read(folder)
    assert frame is not None
    return frame


@pytest.mark.parametrize("name", BARS)
def test_held_out_rows_are_predicted_within_the_bar(name: str) -> None:
    errors, large, inside = [], [], []
    for batch, measured in samples(table(name), rows(name, ROWS)):
        gpu = load_gpu(batch.gpu, where="test")
        found = CALIBRATIONS.find(gpu, batch.stack, batch.family.name, batch.variant)
        assert found is not None
        fit, call = found.fit, measured.call
        predicted = batch.family.seconds(call, ceilings_of(gpu), fit.parameters)
        big = np.broadcast_to(batch.family.large(call), predicted.shape)
        distance = fit.distance(batch.family.features(call))
        ends = [fit.bounds(kind, spread(distance)) for kind in ("small", "large")]
        low, high = (np.where(big, ends[1][side], ends[0][side]) for side in (0, 1))
        errors.append(np.abs(predicted / measured.measured_s - 1.0))
        large.append(big)
        inside.append(
            (measured.measured_s >= predicted * low) & (measured.measured_s <= predicted * high)
        )
    every, big = np.concatenate(errors), np.concatenate(large)
    for bar, part in ((BARS[name], every[big]), (ALL_BAR, every)):
        assert len(part) >= 30
        assert np.median(part) <= bar[0]
        assert np.quantile(part, 0.9) <= bar[1]
    assert np.concatenate(inside).mean() > 0.8


@pytest.mark.parametrize("name", BARS)
def test_no_held_out_group_was_fitted(name: str) -> None:
    def groups(folder: Path) -> set[str]:
        batches = table(name).predictable(rows(name, folder), where="test").known
        return {group for batch in batches for group in batch.groups.tolist()}

    assert not groups(ROWS) & groups(FITTED)


@pytest.mark.parametrize("name", BARS)
def test_a_prediction_does_not_depend_on_what_was_measured(name: str) -> None:
    frame = rows(name, ROWS)
    other = frame.assign(**dict.fromkeys(table(name).seconds, 1.0))
    ours, theirs = (table(name).predictable(part, where="test").known for part in (frame, other))
    for mine, yours in zip(ours, theirs, strict=True):
        features = mine.family.features(mine.call)
        for key, value in yours.family.features(yours.call).items():
            assert np.array_equal(value, features[key])
