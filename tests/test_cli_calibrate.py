"""From a record to a calibration, to the plan that uses it, and to better predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from calibrating import DECODE, decode_shapes, record, rows, standard_rows, written
from measuring import row
from msgspec.structs import replace

import lcprof.cli_measure as room
from lcprof.cli import main
from lcprof.measure.floors import join
from lcprof.measure.points import Point, chosen_operations, points_of
from lcprof.measure.row import Row
from lcprof.plan import fits
from lcprof.scenario.cases import expand
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.schema import read_scenario

PLAN = ["plan", "--model", "llama-3.1-8b", "--gpu", "h200-sxm", "--context", "64K"]

Output = pytest.CaptureFixture[str]


def forget() -> None:
    """A process reads calibrations once."""
    for each in (fits.calibrations, fits.fits_for):
        each.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder of calibrations, not there yet."""
    monkeypatch.setenv("LCPROF_CALIBRATIONS", str(tmp_path / "mine"))
    forget()
    yield tmp_path / "mine"
    forget()


@pytest.fixture
def run(tmp_path: Path) -> str:
    written(tmp_path / "run", record("run", standard_rows()))
    return str(tmp_path / "run")


def error(capsys: Output) -> str:
    """The one line on stderr."""
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    return line


def planned(capsys: Output, *flags: str) -> dict[str, Any]:
    forget()
    assert main([*PLAN, "--json", *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    return dict(found)


def test_the_next_plan_uses_a_calibration_and_says_so(
    run: str, folder: Path, capsys: Output
) -> None:
    public = planned(capsys, "--stack", "lcprof")
    assert main(["calibrate", run]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "2 kernels calibrated on h200-sxm from 60 rows" in page
    assert f"wrote {folder}/h200-sxm--lcprof.yaml" in page
    assert "lcprof plan --gpu h200-sxm --stack lcprof uses it from now on" in page
    data = yaml.safe_load((folder / "h200-sxm--lcprof.yaml").read_text())
    assert data["source"].startswith("lcprof ")
    assert "NVIDIA H200, driver 580.1" in data["source"]
    mine = planned(capsys, "--stack", "lcprof")
    assert mine["ttft_s"] != public["ttft_s"]
    assert mine["tpot_s"] != public["tpot_s"]
    # Attention is most of a prompt of 64 K tokens, and it alone was measured.
    assert (public["ttft_basis"], mine["ttft_basis"]) == ("transported", "interpolated")
    forget()
    assert main([*PLAN, "--stack", "lcprof"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "Expected on lcprof's kernels, calibrated here on 2026-11-26." in page
    assert main([*PLAN, "--stack", "lcprof", "--explain", "ttft_s"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "lcprof prompt bf16, heads of 128 on h200-sxm, calibrated here on 2026-11-26" in page
    # Other stacks do not change, nor does this stack on another GPU become the user's own.
    assert main([*PLAN, "--stack", "vllm"]) == 0
    assert "calibrated here" not in capsys.readouterr().out
    other = [each.replace("h200-sxm", "h100-sxm") for each in PLAN]
    assert main([*other, "--stack", "lcprof"]) == 0
    assert "calibrated here" not in capsys.readouterr().out
    assert main(["calibrate", run]) == 0
    assert "h200-sxm--lcprof.yaml (another one was there)" in " ".join(
        capsys.readouterr().out.split()
    )


def points(context: str) -> list[Point]:
    asked = {"model": "llama-3.1-8b", "gpu": "h200-sxm", "context": context, "concurrency": 2}
    cases = expand(read_scenario(asked, where="test"), where="test")
    only = chosen_operations(("decode_attention",))
    made = points_of(cases, impls=("triton",), only=only, device="cuda")
    return [point for point in made if point.shape["page_tokens"]]


def measured(given: list[Point]) -> list[Row]:
    """Rows as `lcprof measure` writes them, of kernels whose parameters are `DECODE`."""
    sheet = load_gpu("h200-sxm", where="test")
    predicted = join(given, room._predictions(given, sheet, 700.0))
    shapes = [dict(point.shape) for point in given]
    times = rows("decode_attention", shapes, DECODE)
    return [replace(each, predicted=predicted[each.key]) for each in times]


def test_a_calibration_brings_expected_and_measured_together(
    run: str, folder: Path, tmp_path: Path, capsys: Output
) -> None:
    given = [point for context in ("8K", "48K", "96K") for point in points(context)]

    def compared(name: str) -> list[dict[str, Any]]:
        forget()
        written(tmp_path / name, record(name, measured(given)))
        assert main(["compare", str(tmp_path / name), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return [each for each in found if each["metric"] == "seconds"]

    before = compared("before")
    assert main(["calibrate", run, "--hold-out"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "held out" in page
    assert "inside the interval" in page
    after = compared("after")
    assert len(before) == len(after) == 3
    assert all(each["basis"].startswith("transported: vllm") for each in before)
    assert min(abs(each["error"]) for each in before) > 0.05
    for each in after:
        assert each["basis"].startswith("interpolated: lcprof bf16 cache, pages of 16")
        assert each["held_out"] is True
        assert abs(each["error"]) < 0.04
        assert each["inside"] is True
    assert main(["compare", str(tmp_path / "before"), "--max-error", "4%"]) == 3
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "after"), "--max-error", "4%"]) == 0


def test_where_it_is_written(run: str, folder: Path, tmp_path: Path, capsys: Output) -> None:
    assert main(["calibrate", run, "-o", str(tmp_path / "there")]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "there" / "h200-sxm--lcprof.yaml").exists()
    assert "uses GPU--STACK.yaml of the folder in $LCPROF_CALIBRATIONS" in page
    assert main(["calibrate", run, "-o", str(tmp_path / "one.yaml")]) == 0
    assert (tmp_path / "one.yaml").exists()
    assert not folder.exists()
    capsys.readouterr()
    products = [
        {"rows": m, "depth": 4096, "columns": n, "format": "bf16"}
        for m in (1, 256, 4096)
        for n in (1024, 14336)
    ]
    steps = rows("decode_attention", decode_shapes(), DECODE)
    both = [*steps, *(row(f"{s}", operation="gemm", shape=s) for s in products)]
    written(tmp_path / "both", record("both", both))
    assert main(["calibrate", str(tmp_path / "both"), "-o", str(tmp_path / "one.yaml")]) == 2
    assert "expected a folder, for lcprof and torch have a file each" in error(capsys)
    assert main(["calibrate", run, "-o", "/dev/null/calibrations"]) == 2
    assert "-o: given '/dev/null/calibrations/h200-sxm--lcprof.yaml: Not a dir" in error(capsys)


def test_bad_input_is_one_line(run: str, tmp_path: Path, folder: Path, capsys: Output) -> None:
    assert main(["calibrate", str(tmp_path / "nowhere")]) == 2
    assert "expected the record of a run" in error(capsys)
    (tmp_path / "foreign.jsonl").write_text('{"a": 1}\n')
    assert main(["calibrate", str(tmp_path / "foreign.jsonl")]) == 2
    assert "line 1: given" in error(capsys)
    written(tmp_path / "l4", record("l4", standard_rows(), gpu="NVIDIA L4"))
    assert main(["calibrate", run, str(tmp_path / "l4")]) == 2
    assert "given 'NVIDIA L4'; expected a run on NVIDIA H200" in error(capsys)
    assert main(["calibrate", run, "--gpu", "h2oo"]) == 2
    assert "did you mean" in error(capsys)
    assert main(["calibrate"]) == 2
    assert "RUN" in error(capsys)
    written(tmp_path / "few", record("few", standard_rows()[:3]))
    assert main(["calibrate", str(tmp_path / "few")]) == 3
    assert "3 rows of 3 shapes; a fit needs 6 of 3" in error(capsys)
    assert not folder.exists()


def test_a_damaged_calibration_is_refused_by_the_plan(folder: Path, capsys: Output) -> None:
    folder.mkdir()
    (folder / "h200-sxm--lcprof.yaml").write_text("gpu: h200-sxm\nfits: none\n")
    forget()
    assert main([*PLAN, "--stack", "lcprof"]) == 2
    assert f"{folder}/h200-sxm--lcprof.yaml: fits: given" in capsys.readouterr().err


def test_without_scipy_it_says_what_to_install(
    run: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    assert main(["calibrate", run]) == 3
    assert "pip install scipy" in error(capsys)


def test_a_run_on_a_processor_has_nothing_to_calibrate(
    tmp_path: Path, folder: Path, capsys: Output
) -> None:
    run = str(tmp_path / "cpu")
    command = ["measure", "scenarios/smoke.yaml", "--device", "cpu", "--sustained", "0", "-o", run]
    assert main([*command, "--only", "gemm", "--budget", "1 s"]) == 0
    capsys.readouterr()
    assert main(["calibrate", run]) == 3
    assert "measured on a processor, whose reference kernels no family" in error(capsys)
    assert not folder.exists()
