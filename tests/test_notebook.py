"""Plans and runs from Python: sequences of rows, DataFrames, charts, what a notebook shows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from measuring import GPU, gpu_rows, row, written
from pages import Words, assert_figures

import lcprof
from lcprof.cli import main
from lcprof.errors import InputError
from lcprof.measure.row import Measured, Predicted

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "scenarios" / "smoke.yaml"
ATTACK = "<script>alert(1)</script>"


def drawn(chart: Any) -> str:
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(chart.to_json())
    return svg


def test_a_plan_is_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    plan = lcprof.plan_scenario(SMOKE, context=["4K", "8K"])
    main(["plan", str(SMOKE), "--context", "4K,8K", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert len(plan) == len(told) == 4
    assert plan[0].case.workload.context_tokens == 4096.0
    assert [row.case.kv_spec for row in plan[1:3]] == ["fp8", "bf16"]
    assert repr(plan) == "<Plan of 4 rows, 4 fit>"
    frame = plan.frame()
    assert list(frame.columns) == list(told[0])
    for index, line in enumerate(told):
        for name, value in line.items():
            held = frame[name][index]
            assert held == value or (value is None and pd.isna(held)), name


def test_a_plan_from_a_mapping_and_what_is_wrong_with_it() -> None:
    scenario = yaml.safe_load(SMOKE.read_text())
    assert len(lcprof.plan_scenario(scenario, kv="fp8")) == 1
    with pytest.raises(InputError, match="kv"):
        lcprof.plan_scenario(scenario, kv="nonsense")
    with pytest.raises(InputError, match="absent"):
        lcprof.plan_scenario("absent.yaml")


def test_a_notebook_shows_a_plan_as_text_of_the_page() -> None:
    scenario = yaml.safe_load(SMOKE.read_text())
    scenario |= {"question": ATTACK, "model": {**scenario["model"], "name": ATTACK}}
    plan = lcprof.plan_scenario(scenario, context=["4K", "8K"])
    html = plan._repr_html_()
    tags = {tag for tag, _ in Words(html).tags}
    assert tags == {"div", "p", "strong", "br", "table", "thead", "tbody", "tr", "th", "td"}
    texts = [text for text, _, _ in Words(html).found]
    assert ATTACK in texts
    assert any(text.startswith("Fits: ") for text in texts)
    assert html.count("<tr>") == 5
    assert len(html) < 10_000


def test_a_notebook_cuts_a_long_plan() -> None:
    contexts = [4096 + 64 * index for index in range(100)]
    html = lcprof.plan_scenario(SMOKE, context=contexts)._repr_html_()
    assert html.count("<tr>") == 41
    assert "The 40 of 200 rows that rank first:" in html


def test_the_charts_of_a_plan_hold_their_data() -> None:
    plan = lcprof.plan_scenario(SMOKE)
    assert {"memory-bars", "frontier", "ttft-curve", "tpot-ranked"} <= set(plan.charts)
    chart = plan.charts["memory-bars"]
    assert "var(--" not in chart.to_json()
    lines = chart.to_dict()["datasets"]["memory"]
    first = plan[0].estimate
    weights = [line["bytes"] for line in lines if line["part"] == "weights"]
    assert weights[0] == round(first.weights_bytes_per_gpu)
    for each in plan.charts.values():
        assert drawn(each).count("<path") > 4


def test_the_page_of_a_plan_is_that_of_the_command_line(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    main(["report", str(SMOKE), "-o", str(page)])
    told = page.read_text(encoding="utf-8").replace(f"lcprof report {SMOKE}", "")
    ours = lcprof.plan_scenario(SMOKE).page()
    at = [text.index('<script type="application/json" id="tables">') for text in (told, ours)]
    # All but the command, and the line that holds it.
    assert told[at[0] :] == ours[at[1] :]
    assert_figures(ours, lcprof.plan_scenario(SMOKE).record, least=500)


def test_a_run_is_its_rows(tmp_path: Path) -> None:
    folder = written(tmp_path / "h200", gpu_rows(), **GPU)
    run = lcprof.read_run(folder)
    assert repr(run) == "<Run of 46 points on NVIDIA H200, 38 measured>"
    assert run.provenance.driver == "570.1"
    frame = run.frame()
    assert len(frame) == 46
    assert frame["status"].value_counts()["measured"] == 38
    # Point 0 is expected an eighth too short.
    assert math.isclose(frame["seconds_error"][0], -0.125)
    assert set(run.charts) >= {"parity", "counters", "power-over-time"}
    for each in run.charts.values():
        assert drawn(each).count("<path") > 4
    assert "Prediction against measurement" in run.page()
    with pytest.raises(InputError, match="record"):
        lcprof.read_run(tmp_path / "absent")


def test_a_notebook_shows_a_run_as_text(tmp_path: Path) -> None:
    rows = [
        row("a", operation=ATTACK, predicted=Predicted(seconds=2e-3, basis=ATTACK)),
        row("b", status="failed", reason=ATTACK, measured=Measured()),
    ]
    html = lcprof.read_run(written(tmp_path / "x", rows, gpu=ATTACK))._repr_html_()
    assert "script" not in {tag for tag, _ in Words(html).tags}
    texts = " ".join(text for text, _, _ in Words(html).found)
    assert f"1 of 2 points were measured on {ATTACK}" in " ".join(texts.split())
    assert len(html) < 10_000
