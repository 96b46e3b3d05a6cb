"""Predictions beside measurements, and one run beside another."""

from __future__ import annotations

from pathlib import Path

import pytest
from measuring import provenance, row

from lcprof.compare.residuals import (
    changes,
    differences,
    expectations,
    only_in,
    residuals,
)
from lcprof.compare.summary import by_metric, uncalibrated
from lcprof.measure.record import Record
from lcprof.measure.row import Measured, Predicted, Row


def record(*rows: Row, **told: object) -> Record:
    return Record(
        path=str(Path("run")), provenance=provenance(**told), rows={each.key: each for each in rows}
    )


def test_errors_are_predicted_over_measured_the_worst_first() -> None:
    rows = [
        row("near", predicted=Predicted(seconds=1.1e-3, low=1.05e-3, high=1.2e-3, basis="fit",
                                        held_out=True)),
        row("far", predicted=Predicted(seconds=0.5e-3, low=0.4e-3, high=1.5e-3, floor_s=0.2e-3,
                                       floor_gpu="h200-sxm")),
        row("bytes", predicted=Predicted(hbm_bytes=100.0, flops=50.0, peak_bytes=10.0),
            measured=Measured(hbm_bytes=80.0, flops=40.0, peak_allocated_bytes=10.0)),
        row("not predicted"),
        row("not measured", status="failed", predicted=Predicted(seconds=9.0)),
    ]  # fmt: skip
    found = residuals(rows)
    assert [(each.key, each.metric) for each in found] == [
        ("far", "seconds"), ("bytes", "hbm_bytes"), ("bytes", "flops"), ("near", "seconds"),
        ("bytes", "peak_bytes"), ("far", "floor_s"),
    ]  # fmt: skip
    by_name = {(each.key, each.metric): each for each in found}
    assert by_name["far", "seconds"].error == pytest.approx(-0.5)
    assert by_name["far", "seconds"].inside is True
    assert by_name["far", "seconds"].held_out is None
    assert by_name["near", "seconds"].error == pytest.approx(0.1)
    assert by_name["near", "seconds"].inside is False
    assert by_name["near", "seconds"].held_out is True
    assert by_name["near", "seconds"].basis == "fit"
    assert by_name["bytes", "hbm_bytes"].error == pytest.approx(0.25)
    assert by_name["bytes", "peak_bytes"].error == 0.0
    assert by_name["far", "floor_s"].error == pytest.approx(-0.8)
    assert by_name["far", "floor_s"].basis == "data sheet of h200-sxm"


def test_flops_are_compared_where_tensor_cores_are_busy() -> None:
    told = Predicted(flops=50.0)
    idle = row("idle", predicted=told, measured=Measured(flops=400.0, tensor_utilisation=0.1))
    busy = row("busy", predicted=told, measured=Measured(flops=55.0, tensor_utilisation=0.6))
    assert [each.key for each in residuals([idle, busy])] == ["busy"]


def test_a_floor_is_no_expectation() -> None:
    found = residuals([row("a", predicted=Predicted(floor_s=1e-5))])
    assert len(found) == 1
    assert expectations(found) == []


def test_two_runs_by_metric_the_largest_change_first() -> None:
    first = record(
        row("a", measured=Measured(burst_s=2e-3, energy_j=1.0)),
        row("b", measured=Measured(burst_s=1e-3, sustained_s=4e-3)),
        row("gone"),
        row("failed", status="failed"),
    )
    second = record(
        row("a", measured=Measured(burst_s=1e-3, energy_j=1.1)),
        row("b", measured=Measured(burst_s=1.02e-3)),
        row("gone", status="out of memory"),
        row("failed"),
        row("new"),
    )
    found = changes(first, second)
    assert [(each.key, each.metric) for each in found] == [
        ("a", "burst_s"), ("a", "energy_j"), ("b", "burst_s"),
    ]  # fmt: skip
    assert [each.change for each in found] == pytest.approx([-0.5, 0.1, 0.02])
    assert (found[0].first, found[0].second) == (2e-3, 1e-3)
    assert only_in(first, second) == ["gone"]
    assert only_in(second, first) == ["failed", "new"]


def test_what_was_not_the_same_around_two_runs() -> None:
    first, second = record(driver="550", power_limit_w=700.0), record(driver="570")
    found = {each.condition: (each.first, each.second) for each in differences(first, second)}
    assert found == {"driver": ("550", "570"), "power_limit_w": ("700.0", "")}
    assert differences(first, first) == []


def test_energy_and_sustained_time_are_compared_where_calls_read_from_memory() -> None:
    told = Predicted(sustained_s=1.1e-3, sustained_low_s=1e-3, sustained_high_s=1.2e-3,
                     energy_j=0.9, energy_low_j=0.5, energy_high_j=0.95)  # fmt: skip
    got = Measured(sustained_s=1e-3, energy_j=1.0)
    warm = Measured(sustained_s=1e-3, energy_j=1.0, warm=True)
    found = residuals([row("a", predicted=told, measured=got),
                       row("warm", predicted=told, measured=warm)])  # fmt: skip
    assert [(each.key, each.metric, each.inside) for each in found] == [
        ("a", "sustained_s", True), ("a", "energy_j", False),
    ]  # fmt: skip
    assert [each.error for each in found] == pytest.approx([0.1, -0.1])


def test_what_is_uncalibrated_stands_beside_and_shows_what_measuring_is_worth() -> None:
    rows = [
        row(f"{size}", measured=Measured(burst_s=1e-3),
            predicted=Predicted(seconds=(1 + size) * 1e-3, low=0.95e-3 * (1 + size), high=2e-3,
                                held_out=True,
                                uncalibrated_s=(1 + 10 * size) * 1e-3,
                                uncalibrated_basis="on another"))
        for size in (0.01, 0.02, 0.2)
    ]  # fmt: skip
    rows.append(row("alone", measured=Measured(burst_s=1e-3, hbm_bytes=50.0),
                    predicted=Predicted(hbm_bytes=55.0, uncalibrated_s=9e-3)))  # fmt: skip
    found = residuals(rows)
    apart = [each for each in found if each.metric == "uncalibrated_s"]
    assert len(apart) == 4
    assert {each.held_out for each in apart} == {None}
    assert apart[1].basis == "on another"
    assert {each.metric for each in expectations(found)} == {"seconds", "hbm_bytes"}
    held, without = by_metric(found), uncalibrated(found)
    seconds, moved = held["seconds"], held["hbm_bytes"]
    assert (seconds.rows, moved.rows) == (3, 1)
    # Sizes of 1 %, 2 % and 20 %: the 90 % quantile lies four fifths from the second to the third.
    assert (seconds.median, seconds.p90) == pytest.approx((0.02, 0.02 + 0.8 * 0.18))
    assert seconds.inside == pytest.approx(2 / 3)
    assert set(without) == {"seconds"}
    beside = without["seconds"]
    assert (beside.rows, beside.median, beside.p90) == pytest.approx((3, 0.2, 0.2 + 0.8 * 1.8))
    assert (moved.median, moved.inside) == (pytest.approx(0.1), None)
