"""A plan as Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcprof.cli import main
from lcprof.report.markdown import code, escaped

SCENARIO = str(Path(__file__).resolve().parents[2] / "scenarios" / "llama-3.1-8b-1m-one-h200.yaml")

Output = pytest.CaptureFixture[str]


def test_both_commands_print_the_same(capsys: Output) -> None:
    assert main(["plan", SCENARIO, "--markdown"]) == 0
    planned = capsys.readouterr().out
    assert main(["report", SCENARIO, "--markdown"]) == 0
    assert capsys.readouterr().out == planned
    assert planned.startswith("## Which KV strategy")


def test_the_order_is_that_of_the_page(capsys: Output) -> None:
    main(["plan", SCENARIO, "--markdown"])
    text = capsys.readouterr().out
    heads = ["**Fits**: `fp8`", "| TTFT, one request |", "| strategy | risk |", "**Limits**"]
    places = [text.index(head) for head in heads]
    assert places == sorted(places)
    tables = [line for line in text.splitlines() if line.startswith("| fp8 |")]
    assert tables == [line for line in tables if line.count("|") == 11]
    assert "| bf16 | none | no | 155 GB |" in text


def test_what_does_not_fit_has_no_times_but_offers(capsys: Output) -> None:
    assert main(["plan", SCENARIO, "--kv", "bf16", "--markdown"]) == 3
    text = capsys.readouterr().out
    assert "**Does not fit**" in text
    assert "TTFT" not in text
    assert "- `--kv fp8`: 8-bit KV, 86.0 GB" in text


@pytest.mark.parametrize("flag", ["--json", "--explain", "--engine=vllm"])
def test_markdown_stands_alone(flag: str, capsys: Output) -> None:
    assert main(["plan", SCENARIO, "--markdown", flag]) == 2
    assert "--markdown" in capsys.readouterr().err


def test_text_stays_text() -> None:
    assert escaped("<b>a|b</b> *c*\n# d_e & @f") == (
        "&lt;b&gt;a\\|b&lt;/b&gt; \\*c\\* # d\\_e &amp; \\@f"
    )
    assert code("a`b``c") == "``` a`b``c ```"
