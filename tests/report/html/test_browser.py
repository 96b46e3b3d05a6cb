"""Pages in headless Chromium: charts are drawn, nothing is fetched, sliders change figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
import yaml
from measuring import GPU, gpu_rows, written
from pages import ROOT, built, columns, says

from lcprof.cli import main
from lcprof.report.html.figures import show

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.skipif(chromium.found() is None, reason=chromium.HOW),
    pytest.mark.xdist_group("chromium"),
]
SCENARIOS = {
    "table": ["llama-3.1-8b-1m-one-h200.yaml"],
    "one": ["llama-3.1-8b-1m-one-h200.yaml", "--kv", "fp8"],
    "contexts": ["smoke.yaml", "--context", "1K,4K,16K", "--kv", "bf16"],
    "unmeasured": ["llama-3.1-8b-1m-one-h200.yaml", "--kv", "offload:fraction=50%"],
    "nothing fits": ["llama-3.1-8b-1m-one-h200.yaml", "--model", "llama-3.1-405b"],
}
RUNS = {"run": ["one"], "runs": ["one", "two"], "processor": ["cpu"], "empty": ["none"]}
""""plan and run" is a page of both."""
PAGES = [*SCENARIOS, *RUNS, "plan and run"]
SIZES = [(1440, False), (768, False), (390, False), (1440, True), (390, True)]
OUTSIDE = """[...document.querySelectorAll('.chart svg')].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const own = text.getBoundingClientRect();
    const seen = own.width && getComputedStyle(text).opacity !== '0';
    return seen && (own.right > box.right + 2 || own.left < box.left - 2 ||
      own.bottom > box.bottom + 3 || own.top < box.top - 3);
  }).map((text) => `${svg.closest('.chart').dataset.chart}: ${text.textContent}`);
})"""
CONTRASTS = """(() => {
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    const parts = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
    const linear = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ratio = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const names = ['--ink', '--muted', '--limit', '--good',
    ...Array.from({ length: 8 }, (_, i) => `--c${i + 1}`)];
  return Object.fromEntries(names.map((name) => [name, ratio(name, '--page')]));
})()"""


@pytest.fixture(scope="module")
def tab() -> Iterator[chromium.Tab]:
    with chromium.tab() as held:
        yield held


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    made = {}
    for name, (file, *flags) in SCENARIOS.items():
        folder = tmp_path_factory.mktemp("page")
        made[name] = built(folder, f"{ROOT}/scenarios/{file}", *flags)
    folder = tmp_path_factory.mktemp("runs")
    written(folder / "one", gpu_rows(), **GPU)
    written(folder / "two", gpu_rows(1.1), **{**GPU, "driver": "580.1"})
    written(folder / "none", gpu_rows()[-8:])
    flags = ["--device", "cpu", "--only", "gemm", "--sustained", "0.01 s"]
    smoke = f"{ROOT}/scenarios/smoke.yaml"
    assert main(["measure", smoke, *flags, "-o", str(folder / "cpu")]) == 0
    for name, runs in RUNS.items():
        places = [str(folder / run) for run in runs]
        made[name] = built(tmp_path_factory.mktemp("page"), *places)
    made["plan and run"] = built(
        tmp_path_factory.mktemp("page"), smoke, "--kv", "bf16", str(folder / "one")
    )
    return made


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_a_page_opens_whole(
    tab: chromium.Tab, pages: dict[str, Any], name: str, width: int, dark: bool
) -> None:
    page, _ = pages[name]
    tab.open(page, width=width, dark=dark)
    assert tab.complaints() == []
    assert tab.requests() == [page.resolve().as_uri()]
    marks = tab.evaluate(
        "[...document.querySelectorAll('.chart')].map((place) => "
        "place.querySelectorAll('svg path, svg line').length)"
    )
    assert len(marks) >= (0 if name == "empty" else 2)
    assert min(marks, default=5) > 4
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_contrast(tab: chromium.Tab, pages: dict[str, Any], dark: bool) -> None:
    tab.open(pages["table"][0], dark=dark)
    ratios = tab.evaluate(CONTRASTS)
    text = [ratios[name] for name in ("--ink", "--muted", "--limit", "--good")]
    assert min(text) >= 4.5
    assert min(ratios.values()) >= 3.0


def test_sliders_show_the_planned_points(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    page, record = pages["table"]
    tab.open(page)
    axes = record["tables"]["grid_steps"]["axes"]
    steps, prompts = (columns(record["tables"][name]) for name in ("grid_steps", "grid_prompts"))
    gpus = columns(record["tables"]["grid_gpus"])
    seen = set()
    for label, gpu, context, batch in ((0, 0, 2, 1), (0, 0, 4, 0), (1, 2, 3, 2), (0, 0, -1, -1)):
        at = {"label": label, "gpu": gpu, "context_tokens": context, "concurrency": batch}
        at = {name: index % len(axes[name]) for name, index in at.items()}
        point = {name: axes[name][index] for name, index in at.items()}
        for name, index in at.items():
            tab.evaluate(
                f"(() => {{ const input = document.querySelector('.what-if [data-axis={name}]');"
                f"input.value = {index}; input.dispatchEvent(new Event('input')); }})()"
            )
        text = tab.evaluate("document.querySelector('.what-if').innerText")
        lines = range(len(steps["label"]))
        (step,) = [i for i in lines if all(steps[n][i] == v for n, v in point.items())]
        total, capacity = (
            steps["total_bytes_per_gpu"][step],
            gpus["capacity_bytes_per_gpu"][at["gpu"]],
        )
        assert ("Does not fit" in text) == (total > capacity)
        figures = tab.evaluate(
            "[...document.querySelectorAll('.what-if data')].map((figure) => "
            "[figure.dataset.cell, figure.textContent])"
        )
        shown = dict(figures)
        assert says(shown[f"grid_steps.total_bytes_per_gpu.{step}"], "bytes", total)
        if total <= capacity:
            assert says(shown[f"grid_steps.tpot_s.{step}"], "tpot_s", steps["tpot_s"][step])
            (cell,) = [cell for cell in shown if cell.startswith("grid_prompts.ttft_s")]
            prompt = int(cell.rpartition(".")[2])
            assert prompts["context_tokens"][prompt] == point["context_tokens"]
            assert prompts["gpu"][prompt] == point["gpu"]
            assert says(shown[cell], "ttft_s", prompts["ttft_s"][prompt])
        seen.add(text)
    assert len(seen) == 4


def test_two_strategies_stand_side_by_side(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    page, record = pages["table"]
    tab.open(page)
    rows = columns(record["tables"]["rows"])
    other = rows["kv"].index("kivi:bits=4,group=32,residual=128")
    tab.evaluate(
        "(() => { const pick = document.querySelectorAll('.compare select')[1];"
        f"pick.value = '{other}'; pick.dispatchEvent(new Event('change')); }})()"
    )
    shown = dict(
        tab.evaluate(
            "[...document.querySelectorAll('.compare td:last-child data')].map((figure) => "
            "[figure.dataset.cell, figure.textContent])"
        )
    )
    for column in ("total_bytes_per_gpu", "tpot_s", "request_usd", "risk_source"):
        assert says(shown[f"rows.{column}.{other}"], column, rows[column][other])


def test_script_and_page_word_figures_alike(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    page, record = pages["table"]
    tab.open(page)
    asked = [
        (name, value)
        for table in ("rows", "operations", "batch", "curve", "kernels", "grid_gpus", "shares")
        for name, values in columns(record["tables"][table]).items()
        for value in values[:12]
    ]
    _, run = pages["runs"]
    asked += [
        (name, value)
        for table in ("runs", "points", "errors", "ceilings", "board", "changes")
        for name, values in columns(run["tables"][table]).items()
        for value in values[:12]
    ]
    asked += [("bias_error", value) for value in (-1e-17, 2e-5, 0.0, 12.5)]
    # Ties between two roundings, both ways.
    asked += [("energy_j", 17450.0), ("energy_j", 17550.0), ("ttft_s", 0.25), ("total_bytes", 1125)]
    asked += [("ttft_s", value) for value in (1.125, 10.25, 1025.0, 0.01025)]
    code = f"({json.dumps(asked)}).map(([name, value]) => window.lcprof.show(name, value))"
    assert tab.evaluate(code) == [show(name, value) for name, value in asked]


def test_paper_shows_runs_section_by_section(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    tab.open(pages["run"][0], media="print")
    parts = tab.evaluate("[...document.querySelectorAll('section')].map((part) => part.id)")
    assert parts == ["verdict", "measured", "hardware", "left-out", "conditions", "sources"]
    assert tab.pdf_pages() >= len(parts)


def test_every_chart_of_a_run_is_drawn(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    tab.open(pages["run"][0])
    code = "[...document.querySelectorAll('.chart')].map((place) => [place.dataset.chart, %s])"
    marks = "place.querySelectorAll('.mark-symbol path, .mark-line path').length"
    drawn = dict(tab.evaluate(code % marks))
    assert list(drawn) == [
        "parity", "errors-by-length", "errors-by-operation", "floors", "took", "counters",
        "sustained", "power-over-time", "clock-over-time",
    ]  # fmt: skip
    # 4 operations at 8 lengths and 3 matrix products; those see no context.
    assert drawn["parity"] >= drawn["took"] >= 35
    assert drawn["errors-by-length"] >= 32


def test_a_csv_holds_its_table(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    page, record = pages["plan and run"]
    tab.open(page)
    for table in ("rows", "grid_prompts", "operations", "points", "board"):
        text = tab.evaluate(f"window.lcprof.save('{table}')")
        lines = list(csv.DictReader(io.StringIO(text)))
        held = columns(record["tables"][table])
        assert list(lines[0]) == list(held)
        for name, values in held.items():
            for line, value in zip(lines, values, strict=True):
                if isinstance(value, float):
                    assert float(line[name]) == value
                elif isinstance(value, str):
                    assert line[name] == value


def test_a_tooltip_words_its_values(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    tab.open(pages["table"][0])
    tab.evaluate("document.querySelector('[data-chart=memory-bars]').scrollIntoView()")
    x, y = tab.evaluate(
        "(() => { const box = document.querySelector('[data-chart=memory-bars] .mark-rect path')"
        ".getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tab.until("!document.getElementById('tip').hidden")
    assert "GB" in tab.evaluate("document.getElementById('tip').innerText")


def test_what_a_user_wrote_runs_nothing(tab: chromium.Tab, tmp_path: Path) -> None:
    scenario = yaml.safe_load((ROOT / "scenarios" / "smoke.yaml").read_text())
    attack = (
        "<img src=x onerror='window.hit=1'></script><script>window.hit=1</script><svg onload=hit()>"
    )
    shape = scenario["model"]
    scenario["model"] = [{**shape, "name": f"{attack}{i}"} for i in range(2)]
    scenario |= {"question": attack, "note": attack, "kv": "bf16"}
    path = tmp_path / "hostile.yaml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    page, record = built(tmp_path, str(path))
    tab.open(page, width=390)
    assert tab.evaluate("window.hit === undefined")
    assert tab.complaints() == []
    assert tab.requests() == [page.resolve().as_uri()]
    assert attack in tab.evaluate("document.querySelector('h1').textContent")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert any("onerror" in label for label in record["tables"]["rows"]["columns"]["label"])


def test_paper_breaks_between_sections(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    tab.open(pages["table"][0], media="print")
    breaks = tab.evaluate(
        "[...document.querySelectorAll('section')].map((part) => "
        "[part.id, getComputedStyle(part).breakBefore])"
    )
    assert dict(breaks).pop("verdict") == "auto"
    assert {kind for name, kind in breaks if name != "verdict"} == {"page"}
    assert tab.pdf_pages() >= len(breaks)


def test_a_page_reads_without_script(tab: chromium.Tab, pages: dict[str, Any]) -> None:
    page, record = pages["table"]
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.call("Page.navigate", url=page.resolve().as_uri())
        tab.until("document.querySelectorAll('table[data-table]').length > 5")
        text = tab.evaluate("document.body.innerText")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "need JavaScript" in text
    assert record["tables"]["rows"]["columns"]["label"][3] in text
