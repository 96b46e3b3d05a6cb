"""A run in few figures."""

from __future__ import annotations

import csv
import io

import pytest
from measuring import row

from lcprof.compare.residuals import residuals
from lcprof.compare.summary import (
    by_metric,
    by_operation,
    empty_columns,
    errors_of,
    slowdown,
    unmeasured,
)
from lcprof.compare.table import csv_text
from lcprof.measure.row import Measured, Moment, Predicted


def test_errors_by_metric_and_operation() -> None:
    rows = [
        row(str(off), operation=op, predicted=Predicted(seconds=1e-3 * (1 + off), low=0.9e-3,
            high=1.05e-3, floor_s=0.5e-3, held_out=off > 0))
        for op, off in (("a", 0.1), ("a", -0.2), ("a", 0.4), ("b", -0.05))
    ]  # fmt: skip
    found = residuals(rows)
    times = by_metric(found)["seconds"]
    assert times.rows == 4
    # Sizes 0.05 0.1 0.2 0.4: between the middle two; and at 0.9 * 3 = 2.7 between the last two.
    assert times.median == pytest.approx(0.15)
    assert times.p90 == pytest.approx(0.2 + 0.7 * 0.2)
    # Signed -0.2 -0.05 0.1 0.4.
    assert times.bias == pytest.approx(0.025)
    assert times.inside == 1.0
    assert times.seen == 2
    assert times.worst.error == pytest.approx(0.4)
    # Measured 1 ms over a floor of 0.5 ms.
    assert by_metric(found)["floor_s"].bias == pytest.approx(-0.5)
    assert by_operation(found)["seconds", "b"].median == pytest.approx(0.05)
    assert by_operation(found)["seconds", "a"].rows == 3
    assert errors_of([]) is None


def test_without_an_interval_nothing_lies_inside() -> None:
    (found,) = residuals([row("a", predicted=Predicted(seconds=1e-3))])
    told = errors_of([found])
    assert told is not None
    assert told.inside is None


def test_sustained_over_burst_is_the_median_of_rows_with_both() -> None:
    rows = [
        row(str(i), measured=Measured(burst_s=1.0, sustained_s=sustained))
        for i, sustained in enumerate((1.1, 1.3, 1.2, None))
    ]
    assert slowdown(rows) == pytest.approx(1.2)
    assert slowdown([row("a")]) is None


def test_what_was_not_measured_is_grouped_by_reason() -> None:
    rows = [
        row("a"),
        row("b", status="refused", reason="x", measured=Measured()),
        row("c", status="failed", reason="x", measured=Measured()),
        row("d", status="refused", reason="x", measured=Measured()),
    ]
    found = unmeasured(rows)
    assert [(each.status, each.rows, each.first.key) for each in found] == [
        ("refused", 2, "b"), ("failed", 1, "c"),
    ]  # fmt: skip


def test_empty_columns_are_grouped_by_reason() -> None:
    rows = [
        row("a", empty={"flops": "no GPM", "power_w": "no board"}),
        row("b", empty={"hbm_bytes": "no GPM", "flops": "no GPM"}),
        row("c", status="failed", empty={"launches": "not asked"}),
    ]
    assert empty_columns(rows) == {"no GPM": ["flops", "hbm_bytes"], "no board": ["power_w"]}


def test_a_table_has_ratios_and_lengths_and_no_timeline() -> None:
    rows = [
        row("a", shape={"context_tokens": 4096}, predicted=Predicted(floor_s=0.5e-3, flops=8.0),
            measured=Measured(burst_s=1e-3, sustained_s=1.2e-3, flops=9.0, tensor_utilisation=0.1,
                              timeline=(Moment(at_s=0.0, power_w=1.0),))),
        row("b", shape={"rows": 4}),
    ]  # fmt: skip
    first, second = csv.DictReader(io.StringIO(csv_text(rows)))
    assert float(first["measured_over_floor"]) == pytest.approx(2.0)
    assert float(first["sustained_over_burst"]) == pytest.approx(1.2)
    assert float(first["length_tokens"]) == 4096
    # Tensor cores hardly work: what they count is padding.
    assert (first["flops_predicted"], first["flops_error"]) == ("8.0", "")
    assert second["length_tokens"] == ""
    assert "timeline" not in first
