"""Runs as Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from measuring import GPU, gpu_rows, row, written

from lcprof.measure.record import Record, read_record
from lcprof.measure.row import Measured, Predicted
from lcprof.report.run_markdown import run_markdown


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return read_record(written(tmp_path / "h200", gpu_rows(), **GPU))


def test_a_run_is_told_in_the_order_of_its_page(record: Record) -> None:
    text = run_markdown([record])
    assert text.startswith(
        "## Measured on NVIDIA H200\n\n**h200**: 38 of 46 points measured on NVIDIA H200"
    )
    heads = re.findall(r"^\*\*([^*]+)\*\*$", text, re.MULTILINE)
    assert heads == ["Errors by operation", "Worst points", "Without a measurement"]
    assert "driver 570.1" in text
    assert "power limit 700 W" in text
    # 35 were predicted, 12 are shown.
    assert "23 more are not shown." in text


def test_every_table_is_whole(record: Record, tmp_path: Path) -> None:
    other = read_record(written(tmp_path / "two", gpu_rows(1.1), **GPU))
    text = run_markdown([record, other])
    assert "**Against the first run**" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_what_a_record_holds_is_escaped(tmp_path: Path) -> None:
    text = "<b>|`x`\n# y"
    rows = [row("a", operation=text, predicted=Predicted(seconds=1.0, basis=text)),
            row("b", status="failed", reason=text, measured=Measured())]  # fmt: skip
    told = run_markdown([read_record(written(tmp_path / "x", rows, gpu=text, command=(text,)))])
    assert "<b>" not in re.sub(r"(`+).*?\1", "", told)
    assert not [line for line in told.splitlines()[1:] if line.startswith("#")]


def test_a_run_of_which_nothing_was_known_lists_its_times(tmp_path: Path) -> None:
    got = Measured(burst_s=2e-3, sustained_s=3e-3)
    rows = [row("a", predicted=Predicted(), measured=got)]
    text = run_markdown([read_record(written(tmp_path / "processor", rows))])
    points = text.partition("**Points**")[2]
    assert "2 ms" in points
    assert "3 ms" in points
