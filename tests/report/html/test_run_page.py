"""The page of a run without a browser: its figures, what it leaves out, what it escapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from measuring import GPU, gpu_row, gpu_rows, row, written
from pages import ROOT, Words, assert_figures, built, columns

from lcprof.cli import main
from lcprof.measure.row import Measured, Predicted
from lcprof.report.html.page import html_page
from lcprof.report.html.record import write_record

SMOKE = f"{ROOT}/scenarios/smoke.yaml"
LIMIT_BYTES = 2_000_000
HOSTILE = ("<script>alert(1)</script>", "</script><svg onload=alert(1)>", "<!--" + "x" * 9_990)


@pytest.fixture(scope="module", params=["one", "several", "both", "nothing measured"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("page")
    one = str(written(folder / "one", gpu_rows(), **GPU))
    two = str(written(folder / "two", gpu_rows(1.1), **{**GPU, "driver": "580.1"}))
    none = str(written(folder / "none", gpu_rows()[-8:]))
    sources = {
        "one": [one],
        "several": [one, two],
        "both": [SMOKE, one],
        "nothing measured": [none],
    }
    page, record = built(folder, *sources[request.param])
    return page.read_text(encoding="utf-8"), record


def test_every_figure_stands_in_a_table(made: Any) -> None:
    assert_figures(*made, least=20)


def test_the_same_record_gives_the_same_bytes(made: Any) -> None:
    html, record = made
    assert html_page(json.loads(write_record(record))) == html


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("one")
    page, record = built(folder, str(written(folder / "h200", gpu_rows(), **GPU)))
    return page.read_text(encoding="utf-8"), record


def test_a_run_is_summed_up(one: Any) -> None:
    _, record = one
    (run,) = ({k: v[0] for k, v in columns(record["tables"]["runs"]).items()},)
    # 4 operations at 8 lengths, 3 products and 3 ceilings; 8 points were not measured.
    assert (run["run"], run["gpu"]) == ("h200", "NVIDIA H200")
    assert (run["points"], run["measured"], run["seconds_points"]) == (46, 38, 35)
    # Point i is expected (i * 7 % 11 - 5) / 40 wrongly, i = 0..34.
    errors = sorted(abs(i * 7 % 11 - 5) / 40 for i in range(35))
    assert run["seconds_median_error_share"] == pytest.approx(errors[17])
    # The 90 % quantile of 35 values lies at 0.9 * 34 = 30.6.
    assert run["seconds_high_error_share"] == pytest.approx(
        errors[30] + 0.6 * (errors[31] - errors[30])
    )
    assert run["worst_error"] == pytest.approx(-0.125)
    assert run["worst_point"] == "prefill attention over 4K tokens"
    # 1 % more bytes were counted than predicted.
    assert run["hbm_bytes_median_error_share"] == pytest.approx(1 - 1 / 1.01, rel=1e-5)
    # FLOPs count where tensor cores work: 8 prefills and 3 products.
    assert run["flops_points"] == 11
    # Every fifth point was seen by its fit: 0, 5, ... 30.
    assert run["seen_points"] == 7
    # Floors are 0.7 of what was measured.
    assert run["measured_over_floor"] == pytest.approx(1 / 0.7, rel=1e-5)


def test_points_stand_worst_first_with_lengths_and_ratios(one: Any) -> None:
    points = columns(one[1]["tables"]["points"])
    sizes = [abs(error) for error in points["seconds_error"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 35
    assert set(points["operation"]) == {
        "prefill attention", "decode attention", "quantised decode", "MLA decode",
        "matrix product",
    }  # fmt: skip
    where = points["operation"].index("matrix product")
    assert points["length_tokens"][where] is None
    assert points["sustained_over_burst"][where] == pytest.approx(1.15)
    assert "key" not in points
    assert "timeline" not in points


def test_what_was_not_measured_stands_with_its_reason(one: Any) -> None:
    html, record = one
    held = columns(record["tables"]["unmeasured"])
    assert held["status"] == [
        "wrong", "refused", "planned, not measurable", "does not fit", "out of memory", "failed",
        "lost", "interrupted",
    ]  # fmt: skip
    assert "h2o has no kernel: it can be planned, not measured" in held["reason"]
    assert held["points"] == [1] * 8
    assert "needs 160 GB of 140 GB" in html


def test_the_board_is_shown_over_time(one: Any) -> None:
    board = columns(one[1]["tables"]["board"])
    # 35 points of 10 moments; the second one began 8 s after the run, read each 0.1 s.
    assert len(board["moment_s"]) == 350
    assert board["moment_s"][10:12] == [8, 8.1]
    assert board["power_w"][10:12] == [690, 670]


def test_a_record_of_before_has_no_moments(tmp_path: Path) -> None:
    old = row("a", measured=Measured(burst_s=1e-3, sustained_s=2e-3, power_w=500.0))
    page, record = built(tmp_path, str(written(tmp_path / "old", [old])))
    assert columns(record["tables"]["board"])["moment_s"] == []
    assert "power-over-time" not in page.read_text(encoding="utf-8")


def test_several_runs_say_which_row_is_whose(tmp_path: Path) -> None:
    first = written(tmp_path / "a" / "run", gpu_rows(), **GPU)
    second = written(tmp_path / "b" / "run", gpu_rows(1.1), **{**GPU, "driver": "580.1"})
    page, record = built(tmp_path, str(first), str(second))
    tables = record["tables"]
    assert columns(tables["runs"])["run"] == ["run", "run (2)"]
    assert set(columns(tables["points"])["run"]) == {"run", "run (2)"}
    assert columns(tables["apart"])["condition"] == ["driver"]
    assert columns(tables["apart"])["here"] == ["580.1"]
    changes = columns(tables["changes"])
    assert max(changes["change"]) == pytest.approx(0.1, rel=1e-4)
    assert len(changes["change"]) == 40
    assert "decode attention, run (2)" in columns(tables["points"])["lane"]
    assert '<th scope="col" class="text">run</th>' in page.read_text(encoding="utf-8")


def test_a_long_run_is_cut_and_says_so(tmp_path: Path) -> None:
    shape = {"batch": 1, "context_tokens": 4096, "q_heads": 128, "dtype": "bf16"}
    rows = [gpu_row("mla_decode", {**shape, "batch": i}, 1e-3, i) for i in range(1, 2001)]
    page, record = built(tmp_path, str(written(tmp_path / "long", rows, **GPU)))
    html = page.read_text(encoding="utf-8")
    assert len(html.encode()) < LIMIT_BYTES
    runs = columns(record["tables"]["runs"])
    assert (runs["measured"], runs["shown"], runs["seconds_points"]) == ([2000], [300], [2000])
    assert len(columns(record["tables"]["points"])["point"]) == 300
    assert len(columns(record["tables"]["board"])["moment_s"]) <= 600
    assert "those that are worst predicted" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_record_holds_stays_text(text: str, tmp_path: Path) -> None:
    def tags(word: str) -> list[str]:
        rows = [
            row("a", operation=word, implementation=word, shape={"batch": 1, "dtype": word},
                predicted=Predicted(seconds=2e-3, basis=word), note=word, source=word,
                measured=Measured(burst_s=1e-3, sustained_s=1e-3, throttle=(word,)),
                empty={"flops": word}),
            row("b", status="failed", reason=word, measured=Measured()),
        ]  # fmt: skip
        told = {"gpu": word, "driver": word, "scenario": word, "command": (word,), "commit": word}
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        page, _ = built(tmp_path, str(written(folder, rows, **told)))
        html = page.read_text(encoding="utf-8")
        assert len(html.encode()) < LIMIT_BYTES
        return [tag for tag, _ in Words(html).tags]

    assert tags(text) == tags("plain")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"line":"provenance","format":0}\n', "line 1"),
        (b"no record\n", "line 1"),
        (b"", "no whole line"),
    ],
)
def test_what_is_no_run_is_refused(
    line: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "record.jsonl").write_bytes(line)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_run_of_another_version_is_refused_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "old", gpu_rows()[:1], **{**GPU, "format": 7})
    assert main(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 2
    assert "format 7; this lcprof reads format 1" in capsys.readouterr().err


def test_a_record_without_what_a_page_needs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cut.json"
    told = {"about": {"columns": {"title": ["x"]}}, "runs": {"columns": {"run": ["x"]}}}
    path.write_text(json.dumps({"format": 1, "lcprof": "0.1.0", "tables": told}))
    assert main(["report", str(path), "-o", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert "cut.json" in error
    assert error.count("\n") == 1


def test_a_torn_line_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "torn", gpu_rows()[:3], **GPU)
    with (folder / "record.jsonl").open("ab") as file:
        file.write(b'{"line":"row","ke')
    page, record = built(tmp_path, str(folder))
    assert columns(record["tables"]["runs"])["torn_bytes"] == [17]
    html = page.read_text(encoding="utf-8")
    assert "is torn:" in html
    assert_figures(html, record, least=20)
