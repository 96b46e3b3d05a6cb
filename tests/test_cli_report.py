"""`lcprof report` and `lcprof plan --html` as a user runs them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from measuring import GPU, gpu_rows, row, written

from lcprof.cli import main
from lcprof.measure.row import Measured

ROOT = Path(__file__).resolve().parent.parent
SMOKE = str(ROOT / "scenarios" / "smoke.yaml")

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command_of(page: str) -> str:
    text = Path(page).read_text(encoding="utf-8")
    start = text.index('<data data-cell="about.command.0">')
    return text[start:].partition(">")[2].partition("</data>")[0]


def test_a_page_is_named_after_its_scenario(capsys: Output) -> None:
    assert main(["report", SMOKE]) == 0
    assert capsys.readouterr().out == "smoke.html\n"
    assert Path("smoke.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_flags_change_the_page_and_its_command(capsys: Output) -> None:
    flags = ["--kv", "fp8", "--set", "note=ours", "--hypothetical"]
    assert main(["report", SMOKE, *flags, "-o", "a.html", "--date", "2026-11-26"]) == 0
    command = command_of("a.html")
    assert command == shlex.join(["lcprof", "report", SMOKE, *flags])
    assert main([*shlex.split(command)[1:], "-o", "b.html", "--date", "2026-11-26"]) == 0
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()
    assert "2026-11-26" in Path("a.html").read_text(encoding="utf-8")
    capsys.readouterr()


def test_a_plan_writes_the_same_page_beside_its_own(capsys: Output) -> None:
    assert main(["plan", SMOKE]) == 0
    plain = capsys.readouterr().out
    assert main(["plan", SMOKE, "--html", "plan.html"]) == 0
    assert capsys.readouterr().out == plain
    assert main(["report", SMOKE, "-o", "report.html"]) == 0
    pages = [Path(name).read_text(encoding="utf-8") for name in ("plan.html", "report.html")]
    commands = [command_of("plan.html"), command_of("report.html")]
    assert commands[0] == f"lcprof plan {SMOKE} --html plan.html"
    assert pages[0].replace(commands[0], "") == pages[1].replace(commands[1], "")


def test_a_page_without_a_scenario_file(capsys: Output) -> None:
    flags = "--model llama-3.1-8b --gpu h100-sxm --context 8K --kv bf16,fp8"
    assert main(["plan", *flags.split(), "--html", "p.html", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert "llama-3.1-8b on 1 x h100-sxm" in Path("p.html").read_text(encoding="utf-8")


def test_what_does_not_fit_has_a_page_and_status_3(capsys: Output) -> None:
    assert main(["report", SMOKE, "--model", "llama-3.1-405b", "-o", "p.html"]) == 3
    assert "Does not fit." in Path("p.html").read_text(encoding="utf-8")
    assert main(["report", SMOKE, "--model", "llama-3.1-405b", "--markdown"]) == 3
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report"], "SCENARIO"),
        (["report", "absent.yaml"], "absent.yaml"),
        (["report", "absent.json"], "absent.json"),
        (["report", SMOKE, "-o", "no/such/folder/page.html"], "--to"),
        (["report", SMOKE, "--record", "no/such/folder/r.json"], "--record"),
        (["report", SMOKE, "--kv", "nonsense"], "--kv"),
        (["report", SMOKE, "other.yaml"], "one scenario at most"),
        (["report", "old.json", "run"], "a RECORD.json alone"),
        (["report", ".", "--kv", "fp8"], "flags need a scenario"),
        (["report", "."], "record.jsonl"),
        (["report", "absent.jsonl"], "absent.jsonl"),
        (["report", "old.json", "--kv", "fp8"], "flags need its scenario"),
        (["plan", SMOKE, "--html", "no/such/folder/page.html"], "--html"),
    ],
)
def test_faults_take_a_line(arguments: list[str], said: str, capsys: Output) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_in_the_way_of_the_tables(capsys: Output) -> None:
    Path("page-tables").write_text("a file")
    assert main(["report", SMOKE, "-o", "page.html", "--csv"]) == 2
    assert "--csv" in capsys.readouterr().err


def test_open_shows_the_page(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    assert main(["report", SMOKE, "--open"]) == 0
    assert shown == [Path("smoke.html").resolve().as_uri()]
    capsys.readouterr()


def test_a_run_is_a_page_named_after_it(capsys: Output) -> None:
    written(Path("h200"), gpu_rows(), **GPU)
    assert main(["report", "h200", "--csv"]) == 0
    assert capsys.readouterr().out == "h200.html\n"
    assert command_of("h200.html") == "lcprof report h200"
    assert Path("h200-tables/points.csv").read_text().count("\n") == 36
    assert main(["report", "h200/record.jsonl", "-o", "same.html"]) == 0
    pages = [Path(name).read_text(encoding="utf-8") for name in ("h200.html", "same.html")]
    assert pages[0] == pages[1].replace("h200/record.jsonl", "h200")
    capsys.readouterr()


def test_without_a_measurement_the_answer_is_no(capsys: Output) -> None:
    lost = row("a", status="lost", reason="gone", measured=Measured())
    written(Path("lost"), [lost])
    assert main(["report", "lost"]) == 3
    assert main(["report", "lost", "--markdown"]) == 3
    # Of both, the plan's answer counts.
    assert main(["report", SMOKE, "lost", "-o", "both.html"]) == 0
    assert "Fits." in Path("both.html").read_text(encoding="utf-8")
    capsys.readouterr()


def test_markdown_of_a_plan_and_a_run(capsys: Output) -> None:
    written(Path("h200"), gpu_rows(), **GPU)
    assert main(["report", SMOKE, "h200", "--markdown"]) == 0
    text = capsys.readouterr().out
    assert text.index("**Fits**") < text.index("38 of 46 points measured on NVIDIA H200")
    assert not Path("smoke.html").exists()
