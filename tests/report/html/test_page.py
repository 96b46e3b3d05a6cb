"""A page without a browser: where its figures come from, what it escapes, what it leaves out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT, Words, assert_figures, built, columns

from lcprof.cli import main
from lcprof.report.html.page import html_page
from lcprof.report.html.record import write_record

SCENARIOS = (
    "llama-3.1-8b-1m-one-h200",
    "llama-3.1-70b-128k-8x-h100",
    "deepseek-v3-1m-16x-h200",
    "smoke",
)
HOSTILE = (
    "<script>alert(1)</script>",
    '<svg onload="alert(1)">',
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>&lt;b&gt; \u2028 \u202e ${1} {{2}} \"'`",
)
LIMIT_BYTES = 2_000_000


@pytest.fixture(scope="module", params=SCENARIOS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("page")
    page, record = built(folder, f"{ROOT}/scenarios/{request.param}.yaml")
    return page.read_text(encoding="utf-8"), record


def test_every_figure_stands_in_a_table(made: Any) -> None:
    assert_figures(*made, least=500)


def test_the_same_record_gives_the_same_bytes(made: Any) -> None:
    html, record = made
    assert html_page(json.loads(write_record(record))) == html


def test_a_page_is_small_and_fetches_nothing(made: Any) -> None:
    html, _ = made
    assert len(html.encode()) < LIMIT_BYTES
    addresses = [
        value
        for _, held in Words(html).tags
        for name, value in held.items()
        if name in ("src", "href", "action", "data", "poster", "srcset")
    ]
    assert addresses == ["data:,"]
    assert "connect-src" not in html.split("</head>")[0]
    assert "default-src 'none'" in html


def test_every_chart_has_words_and_a_table(made: Any) -> None:
    html, _ = made
    tags = Words(html).tags
    names = {held["id"] for _, held in tags if held.get("id")}
    charts = [held for _, held in tags if "data-chart" in held]
    assert len(charts) >= 9
    for chart in charts:
        assert chart["role"] == "img"
        assert chart["aria-labelledby"] in names
        assert chart["aria-describedby"] in names
    assert html.count("<summary>Data of this chart</summary>") == len(charts)


def test_the_rows_are_those_of_the_plan(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, record = made
    command = record["tables"]["about"]["columns"]["command"][0].split()
    main(["plan", command[2], "--json"])
    planned = json.loads(capsys.readouterr().out)
    held = columns(record["tables"]["rows"])
    assert len(held["kv"]) == len(planned)
    names = ("kv", "weights", "dcp", "concurrency", "context_tokens", "gpus")
    by_key = {tuple(row[name] for name in names): row for row in planned}
    for index in range(len(planned)):
        row = by_key[tuple(held[name][index] for name in names)]
        for name in ("total_bytes_per_gpu", "ttft_s", "ttft_high_s", "tpot_s", "request_usd"):
            value = held[name][index]
            assert (value is None) == (row[name] is None), name
            if value is not None:
                assert value == pytest.approx(row[name], rel=1e-5)


def hostile(folder: Path, text: str) -> Path:
    """A scenario whose every free text is `text`."""
    scenario = yaml.safe_load((ROOT / "scenarios" / "smoke.yaml").read_text())
    assert isinstance(scenario["model"], dict)
    scenario["question"] = scenario["note"] = text
    scenario["model"] = {**scenario["model"], "name": text[:200]}
    path = folder / "hostile.yaml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("safe")
    return built(folder, str(hostile(folder, "plain")))[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [*HOSTILE, "<b>" + "x" * 9_990])
def test_what_a_user_wrote_stays_text(text: str, safe: str, tmp_path: Path) -> None:
    html = built(tmp_path, str(hostile(tmp_path, text)))[0].read_text(encoding="utf-8")
    wanted = [tag for tag, _ in Words(safe).tags]
    assert [tag for tag, _ in Words(html).tags] == wanted
    attributes = {name for _, held in Words(html).tags for name in held}
    assert not {name for name in attributes if name.startswith("on")}
    title = next(words for words, place, _ in Words(html).found if place == ("about", "title", 0))
    assert title == "".join(c if c.isprintable() else "?" for c in text)
    assert len(html.encode()) < LIMIT_BYTES


def test_a_page_of_many_rows_says_what_was_left_out(tmp_path: Path) -> None:
    contexts = ",".join(str(4096 + 64 * index) for index in range(400))
    page, record = built(
        tmp_path, f"{ROOT}/scenarios/smoke.yaml", "--context", contexts, "--kv", "bf16,fp8"
    )
    html = page.read_text(encoding="utf-8")
    assert len(html.encode()) < LIMIT_BYTES
    about = columns(record["tables"]["about"])
    assert about["rows_planned"] == [800]
    assert about["rows_shown"] == [40]
    assert len(columns(record["tables"]["rows"])["kv"]) == 40
    assert "rows are shown, those that rank first and the best of each kind" in html


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 0, "lcprof": "0.0.9", "tables": {}}', "0.0.9"),
        ("[]", "lcprof unknown"),
        ("<html>", "malformed"),
        ('{"format": 1, "lcprof": "0.1.0", "tables": {}}', "no table about"),
        ('{"format": 1, "lcprof": "0.1.0", "tables": {"a": {"columns": {"x": {}}}}}', "array"),
        (
            '{"format": 1, "lcprof": "0.1.0", "tables": {"a": {"columns": {"x": [1], "y": []}}}}',
            "of one length",
        ),
        (
            '{"format": 1, "lcprof": "0.1.0", "tables": {"a": {"columns": {"\\"><b>": [1]}}}}',
            "small letters",
        ),
    ],
)
def test_what_is_no_record_of_this_version_is_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.json"
    old.write_text(text)
    assert main(["report", str(old), "-o", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_tables_are_written_beside_the_page(tmp_path: Path) -> None:
    shutil.copy(ROOT / "scenarios" / "smoke.yaml", tmp_path / "s.yaml")
    page = tmp_path / "page.html"
    main(["report", str(tmp_path / "s.yaml"), "-o", str(page), "--csv"])
    main(
        ["report", str(tmp_path / "s.yaml"), "--record", str(tmp_path / "r.json"), "-o", str(page)]
    )
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    written = {path.stem for path in (tmp_path / "page-tables").iterdir()}
    assert written == {*record["tables"], "plan"}
    steps = (tmp_path / "page-tables" / "grid_steps.csv").read_text().splitlines()
    held = columns(record["tables"]["grid_steps"])
    assert steps[0].split(",") == list(held)
    assert len(steps) == 1 + len(held["label"])


def test_a_label_has_room_on_a_phone(tmp_path: Path) -> None:
    _, record = built(
        tmp_path,
        f"{ROOT}/scenarios/smoke.yaml",
        *("--kv", "kivi:bits=4,group=32,residual=128", "--kv", "bf16"),
        *("--context", "1K,4K", "--concurrency", "1,2"),
    )
    labels = columns(record["tables"]["rows"])["label"]
    assert "bf16, 4K context, 2 at once" in labels
    # Written out it would be 57 letters long.
    assert "kivi:b4,g32,r128, 4K context, 2 at once" in labels
    assert max(map(len, labels)) <= 50
