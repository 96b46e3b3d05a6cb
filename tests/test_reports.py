"""Committed results say what their commands print."""

from __future__ import annotations

import importlib.metadata
import re
import struct
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from measuring import GPU, gpu_rows, written

from lcprof.report.html.page import html_page
from lcprof.report.html.record import read_record

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted((ROOT / "reports").glob("*/record.json"))
DRAWN_BY = ("altair", "vl-convert-python")


def test_kernel_bars_are_those_of_the_timings() -> None:
    folder = ROOT / "reports" / "kernels-h200"
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kernel_bars.py"), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.count("\n") > 15
    assert ran.stdout in (folder / "README.md").read_text(encoding="utf-8")


def drawn_as_constrained() -> bool:
    """Whether what draws pages is of the versions that the committed ones were built with."""
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    return all(importlib.metadata.version(name) == pinned[name] for name in DRAWN_BY)


@pytest.mark.skipif(not drawn_as_constrained(), reason="pip install -c constraints.txt -e .")
@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.parent.name)
def test_pages_are_those_of_their_records(record: Path) -> None:
    page = record.with_name("page.html").read_bytes()
    assert html_page(read_record(record)).encode() == page, "run scripts/rebuild-reports"
    assert len(page) < 2_000_000


def test_the_record_of_a_run_becomes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = SourceFileLoader("rebuild", str(ROOT / "scripts" / "rebuild-reports"))
    script = module_from_spec(spec_from_loader("rebuild", loader))
    loader.exec_module(script)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "REPORTS", {})
    monkeypatch.setattr(sys, "argv", ["rebuild-reports"])
    folder = written(tmp_path / "reports" / "h200-kernels", gpu_rows(), **GPU)
    assert script.main() == 1
    assert capsys.readouterr().out == "reports/h200-kernels/page.html changed\n"
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "lcprof report reports/h200-kernels" in page
    assert script.main() == 0


def test_every_page_is_pictured() -> None:
    text = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    assert len(RECORDS) >= 3
    for record in RECORDS:
        picture = record.with_name("page.png").read_bytes()
        assert struct.unpack(">I", picture[16:20])[0] >= 1000
        assert len(picture) < 300_000
        assert f"]({record.parent.name}/page.png)" in text
        assert f"]({record.parent.name}/page.html)" in text
