"""The catalog's power constants come from the committed measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lcprof.calibrate.power import (
    FITTED,
    NOT_FITTED,
    fit,
    left_out,
    predicted_w,
    read_limited,
    read_serving,
)
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.power import power_model

DATA = Path(__file__).resolve().parents[2] / "benchmarks" / "data" / "power"


@pytest.mark.parametrize("gpu", FITTED)
def test_the_catalog_holds_what_a_refit_finds(gpu: str) -> None:
    held = power_model(load_gpu(gpu, where=gpu))
    assert held is not None
    serving = [r for r in read_serving(DATA) if r.gpu == gpu and r.model not in NOT_FITTED]
    limited = [row for row in read_limited(DATA) if row.gpu in FITTED[gpu]]
    found = fit(held, serving, limited)
    assert found.busy_w == pytest.approx(held.busy_w, rel=0.01)
    assert found.flop_j("bf16") == pytest.approx(held.flop_j("bf16"), rel=0.01)
    assert found.joules_per_hbm_byte == pytest.approx(held.joules_per_hbm_byte, rel=0.01)


def test_intervals_hold_nine_servers_in_ten() -> None:
    for gpu in FITTED:
        held = power_model(load_gpu(gpu, where=gpu))
        assert held is not None
        serving = [r for r in read_serving(DATA) if r.gpu == gpu and r.model not in NOT_FITTED]
        limited = [row for row in read_limited(DATA) if row.gpu in FITTED[gpu]]
        inside = [
            held.idle_w + held.low * (watts - held.idle_w)
            <= row.power_w
            <= held.idle_w + held.high * (watts - held.idle_w)
            for row, watts in left_out(held, serving, limited)
        ]
        assert np.mean(inside) >= 0.9


def test_a_server_by_hand() -> None:
    # Llama-3.1-405B-FP8 on eight H100s: weights of one byte, read once a step.
    rows = [r for r in read_serving(DATA) if r.model.endswith("405B-Instruct-FP8")]
    row = next(r for r in rows if r.gpu == "h100-sxm" and r.power_w < 410)
    assert row.compute == "fp8"
    # 233 tokens/s of 8 sequences: 29.2 steps/s x (404 GB + KV of some 4 GB) / 8.
    assert row.bytes_per_s == pytest.approx(29.2 * 407e9 / 8, rel=0.02)
    held = power_model(load_gpu("h100-sxm", where=""))
    assert held is not None
    assert predicted_w(held, row) == pytest.approx(row.power_w, rel=0.2)
