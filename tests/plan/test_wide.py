"""Plans of more rows than are held: the rows that are kept, and all of them as CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from lcprof.cli import main
from lcprof.flags import Asked, plan_asked
from lcprof.plan.choice import SAFE_LEVEL, rank, risk
from lcprof.plan.row import Row
from lcprof.report.export import csv_text

ROOT = Path(__file__).resolve().parent.parent.parent
SCENARIO = str(ROOT / "scenarios" / "llama-3.1-8b-1m-one-h200.yaml")
AXES = {"kv": ("bf16", "fp8", "int4:group=64", "window:tokens=4096,sinks=4"),
        "context": ("32K,128K,256K,512K,1M,2M",), "concurrency": ("1,2,3,4,8,16,32",)}  # fmt: skip
COUNT = 4 * 6 * 7

Output = pytest.CaptureFixture[str]


def asked(monkeypatch: pytest.MonkeyPatch, limit: int, axes: Any = AXES) -> Asked:
    monkeypatch.setattr("lcprof.scenario.schema.COMBINATIONS_LIMIT", limit)
    return plan_asked(SCENARIO, axes, (), wide=True)


def named(row: Row) -> tuple[str, float, float]:
    workload = row.case.workload
    return row.case.kv_spec, workload.context_tokens, workload.concurrency


def test_a_wide_plan_is_that_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asked(monkeypatch, 1000)
    wide = asked(monkeypatch, 100)
    assert (whole.wide, whole.planned) == (None, COUNT)
    assert wide.planned == COUNT
    assert wide.fitting == whole.fitting
    assert 0 < wide.fitting < COUNT
    assert named(wide.rows[0]) == named(whole.rows[0]) == ("bf16", 32768.0, 1.0)
    kept = wide.rows[1:]
    assert 38 <= len(kept) <= 40
    assert [rank(row) for row in kept] == sorted(rank(row) for row in kept)
    held = {named(row): row for row in whole.rows}
    for row in wide.rows:
        assert held[named(row)].estimate == row.estimate
    best = min(whole.rows, key=rank)
    assert rank(kept[0]) == rank(best)
    # The best of each kind is kept, though those that drop tokens rank behind all others.
    assert {row.case.kv_spec for row in kept} == {row.case.kv_spec for row in whole.rows}
    assert risk(kept[-1].case).level > SAFE_LEVEL
    # Behind these come the first of all.
    ranked = sorted(rank(row) for row in whole.rows)
    assert [rank(row) for row in kept[:30]] == ranked[:30]


def test_all_rows_stand_in_the_csv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = csv.DictReader(io.StringIO(csv_text(asked(monkeypatch, 1000).rows)))
    keys = ("kv", "context_tokens", "concurrency")
    held = {tuple(line[name] for name in keys): line for line in whole}
    monkeypatch.setattr("lcprof.scenario.schema.COMBINATIONS_LIMIT", 100)
    flags = [word for key, texts in AXES.items() for text in texts for word in (f"--{key}", text)]
    path = tmp_path / "all.csv"
    assert main(["plan", SCENARIO, *flags, "--csv", str(path)]) == 0
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    assert len(lines) == COUNT
    for line in lines:
        other = held[tuple(line[name] for name in keys)]
        assert list(line) == list(other)
        for name, text in line.items():
            if text != other[name]:
                assert float(text) == pytest.approx(float(other[name]), rel=1e-12), name
    assert main(["report", SCENARIO, *flags, "--csv", "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page-tables" / "plan.csv").read_bytes() == path.read_bytes()


def test_content_in_place_of_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"kv": ("bf16", "fp8"), "concurrency": ("1,2,3,4",)}
    settings = ("video=[30m, 1h, 2h]",)
    monkeypatch.setattr("lcprof.scenario.schema.COMBINATIONS_LIMIT", 10)
    found = plan_asked(SCENARIO, axes, settings, wide=True)
    assert found.planned == 24
    lengths = {row.case.workload.context_tokens for row in found.rows}
    assert len(lengths) == 3
    monkeypatch.setattr("lcprof.scenario.schema.COMBINATIONS_LIMIT", 100)
    whole = plan_asked(SCENARIO, axes, settings)
    assert whole.fitting == found.fitting
    assert {row.case.workload.context_tokens for row in whole.rows} == lengths


def test_what_is_shown_says_what_was_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr("lcprof.scenario.schema.COMBINATIONS_LIMIT", 100)
    flags = [word for key, texts in AXES.items() for text in texts for word in (f"--{key}", text)]
    assert main(["plan", SCENARIO, *flags]) == 0
    text = capsys.readouterr().out
    assert text.startswith("168 rows were planned, ")
    assert max(map(len, text.splitlines())) <= 80
    assert main(["plan", SCENARIO, *flags, "--markdown"]) == 0
    assert "168 rows were planned; the first 40 are shown." in capsys.readouterr().out
    assert main(["plan", SCENARIO, *flags, "--json"]) == 2
    assert "168 rows; expected at most 100 for --json" in capsys.readouterr().err.replace("'", "")


def test_a_prefix_is_held_against_the_shortest_context(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr("lcprof.scenario.schema.COMBINATIONS_LIMIT", 100)
    flags = [word for key, texts in AXES.items() for text in texts for word in (f"--{key}", text)]
    assert main(["plan", SCENARIO, *flags, "--prefix", "32K"]) == 2
    assert "prefix" in capsys.readouterr().err


def test_too_many_kinds_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr("lcprof.scenario.schema.COMBINATIONS_LIMIT", 3)
    assert main(["plan", SCENARIO, "--kv", "bf16,fp8,int8,int4", "--context", "32K,64K"]) == 2
    assert "4 combinations beside context and concurrency" in capsys.readouterr().err


def test_a_million_rows_make_a_small_page(tmp_path: Path, capsys: Output) -> None:
    contexts = ", ".join(str(4096 + 2048 * index) for index in range(500))
    batches = ", ".join(str(1 + index) for index in range(500))
    record = tmp_path / "record.json"
    page = tmp_path / "page.html"
    flags = ["--kv", "bf16,fp8,int8,int4", "--context", f"[{contexts}]"]
    flags += ["--concurrency", f"[{batches}]", "-o", str(page), "--record", str(record)]
    assert main(["report", SCENARIO, *flags]) == 0
    capsys.readouterr()
    assert len(page.read_bytes()) < 2_000_000
    tables = json.loads(record.read_text())["tables"]
    about = {name: values[0] for name, values in tables["about"]["columns"].items()}
    assert about["rows_planned"] == 1_000_000
    assert 0 < about["rows_fitting"] < 1_000_000
    assert about["rows_shown"] == 40
    notes = dict(zip(*tables["notes"]["columns"].values(), strict=True))
    assert notes["left out"].startswith("1,000,000 rows were planned; 40 are on this page")
    assert set(tables["rows"]["columns"]["kv"]) == {"bf16", "fp8", "int8", "int4"}
