"""`lcprof plan --engine` and `lcprof accuracy`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lcprof.cli import main
from lcprof.domain.engine import ENGINES
from lcprof.errors import InputError
from lcprof.scenario.accuracy import FIELDS, PATH, load_accuracy, on_gpu, pooled

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))
LLAMA = ["plan", "--model", "llama-3.1-8b", "--gpu", "h200-sxm"]
SMALL = [*LLAMA, "--context", "32K", "--output", "1K"]

Output = pytest.CaptureFixture[str]


def page(capsys: Output, arguments: list[str]) -> str:
    assert main(arguments) in (0, 3)
    return capsys.readouterr().out


def rows(capsys: Output, arguments: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(page(capsys, [*arguments, "--json"]))
    return found


def engine(capsys: Output, arguments: list[str], name: str) -> dict[str, Any]:
    (row,) = rows(capsys, [*arguments, "--engine", name])
    found: dict[str, Any] = row["engine"]
    return found


# -- plan --engine ----------------------------------------------------------------------------


def test_the_page_comes_first_and_the_command_can_be_pasted(capsys: Output) -> None:
    plain = page(capsys, SMALL)
    answered = page(capsys, [*SMALL, "--engine", "vllm"])
    assert answered.startswith(plain)
    added = answered[len(plain) :]
    command = added[added.index("Launch\n") + len("Launch\n") :]
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    assert words == engine(capsys, SMALL, "vllm")["arguments"]
    for text in ("ideal", "reserved", "starts", "yes", "KV tokens that fit", "33,792 tokens"):
        assert text in added


def test_a_long_value_is_never_cut(capsys: Output) -> None:
    added = page(capsys, [*LLAMA, "--context", "1M", "--engine", "vllm"])
    command = added[added.index("Launch\n") + len("Launch\n") :]
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    override = json.loads(words[words.index("--hf-overrides") + 1])
    assert override["rope_parameters"]["rope_type"] == "llama3"


def test_of_several_rows_the_one_of_the_offers_is_launched(capsys: Output) -> None:
    # bf16 was asked for first and does not fit, so the page is about it.
    added = page(capsys, [*LLAMA, "--context", "1M", "--kv", "bf16,fp8", "--engine", "vllm"])
    assert "vLLM, for kv bf16" in added
    assert added.count("vllm serve") == 1
    assert "no: one request of 1,048,577 tokens" in added


def test_json_has_an_engine_object_only_when_asked(capsys: Output) -> None:
    asked = [*SMALL, "--kv", "bf16,fp8"]
    plain = rows(capsys, [*asked, "--stack", "sglang"])
    answered = rows(capsys, [*asked, "--engine", "sglang"])
    assert all("engine" not in row for row in plain)
    assert [{k: v for k, v in row.items() if k != "engine"} for row in answered] == plain
    assert [row["engine"]["name"] for row in answered] == ["sglang"] * 2


def test_csv_keeps_its_columns(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "rows.csv"
    page(capsys, [*SMALL, "--csv", str(path), "--engine", "vllm"])
    assert "engine" not in next(csv.reader(io.StringIO(path.read_text())))


@pytest.mark.parametrize("name", ENGINES)
def test_fewer_bytes_a_token_hold_more_tokens(name: str, capsys: Output) -> None:
    plain = engine(capsys, SMALL, name)["reserved"]
    half = engine(capsys, [*SMALL, "--kv", "fp8"], name)["reserved"]
    assert half["kv_tokens"] == pytest.approx(2 * plain["kv_tokens"], rel=0.01)
    # Llama-3.1-8B config.json: 131,072 B a token in 16 bits.
    assert plain["kv_tokens"] == pytest.approx(plain["kv_bytes"] / 131072, rel=0.01)


@pytest.mark.parametrize("name", ENGINES)
def test_what_no_flag_expresses_is_not_reserved(name: str, capsys: Output) -> None:
    plain = engine(capsys, SMALL, name)
    coded = engine(capsys, [*SMALL, "--kv", "int4"], name)
    assert not plain["missing"]
    assert [gap["part"] for gap in coded["missing"]] == ["int4 cache"]
    assert coded["reserved"] == plain["reserved"]
    assert "not in what is reserved" in page(capsys, [*SMALL, "--kv", "int4", "--engine", name])
    served = engine(capsys, [*SMALL, "--weights", "nvfp4"], name)
    assert served["reserved"]["weights_bytes"] == plain["reserved"]["weights_bytes"]


def test_memory_shares_of_the_launch_line_are_those_of_the_reservation(capsys: Output) -> None:
    found = engine(capsys, SMALL, "trtllm")
    held = found["reserved"]
    cache = yaml.safe_load(str(found["config"]))["kv_cache_config"]
    used = ("weights", "activation", "non_torch", "graph")
    left = held["visible_bytes"] - sum(held[f"{part}_bytes"] for part in used)
    assert held["kv_bytes"] == pytest.approx(left * cache["free_gpu_memory_fraction"], rel=1e-6)
    shared = engine(capsys, SMALL, "sglang")
    arguments = list(shared["arguments"])
    share = float(arguments[arguments.index("--mem-fraction-static") + 1])
    held = shared["reserved"]
    free = held["visible_bytes"] - held["non_torch_bytes"]
    assert held["kv_bytes"] == pytest.approx(free * share - held["weights_bytes"], rel=1e-6)
    # The whole stays within the plan's 0.9 of the card, whatever the engine calls its share.
    for name in ENGINES:
        held = engine(capsys, SMALL, name)["reserved"]
        whole = sum(held[f"{part}_bytes"] for part in (*used, "kv"))
        assert whole <= 0.9 * held["visible_bytes"] * (1 + 1e-9), name


def test_sglang_without_dcp_holds_fewer_tokens_than_vllm_with_it(capsys: Output) -> None:
    layout = ["--model", "deepseek-v3", "--gpu", "h200-sxm", "--gpus", "8", "--dcp", "8"]
    asked = ["plan", *layout, "--context", "128K"]
    shared, copied = (engine(capsys, asked, name) for name in ("vllm", "sglang"))
    assert [gap["part"] for gap in copied["missing"]] == ["dcp 8"]
    assert shared["reserved"]["kv_tokens"] > 5 * copied["reserved"]["kv_tokens"]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_has_an_answer(scenario: Path, name: str, capsys: Output) -> None:
    text = page(capsys, ["plan", str(scenario), "--engine", name])
    assert "\nLaunch\n" in text
    assert ("too few to check" in text) == (name != "vllm")
    # The table and what follows, up to what is pasted, keep to the page.
    head = text[: text.index("\nLaunch\n")]
    assert max(map(len, head.splitlines())) <= 80


def test_an_unknown_engine_is_refused_with_the_known_ones(capsys: Output) -> None:
    assert main([*SMALL, "--engine", "vlm"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: --engine: given 'vlm'; expected one of vllm, sglang, trtllm\n"


def test_engine_and_explain_exclude_each_other(capsys: Output) -> None:
    assert main([*SMALL, "--engine", "vllm", "--explain", "kv_bytes_per_token"]) == 2
    assert "cannot be given together" in capsys.readouterr().err


# -- accuracy ---------------------------------------------------------------------------------


def test_the_summary_is_whole(capsys: Output) -> None:
    scores = load_accuracy()
    tables = {score.table for score in pooled(scores)}
    committed = {path.name.partition(".")[0] for path in (ROOT / "benchmarks/data").glob("*.gz")}
    requests = {"published_figures", "anchors"}
    assert {table.partition(".")[0] for table in tables} == committed | requests
    for table in tables:
        parts = [s for s in scores if s.table == table and s.subset == "all"]
        (whole,) = [s for s in parts if s.device == "all"]
        assert whole.rows == sum(s.rows for s in parts) - whole.rows
    text = page(capsys, ["accuracy"])
    assert max(map(len, text.splitlines())) <= 80
    names = (re.sub(r"^(engine_startup_memory|published_figures)\.", "", t) for t in tables)
    assert all(f"  {name} " in text for name in names)
    said = " ".join(text.split())
    assert "parameters were fitted without these groups" in said
    assert "the models' form was designed with them in view" in said


def test_one_gpu_is_shown_by_framework(capsys: Output) -> None:
    text = page(capsys, ["accuracy", "--gpu", "H200"])
    heads = [line for line in text.splitlines() if line.startswith("Times of operations, ")]
    assert "Times of operations, h200-sxm, vllm" in heads
    assert all("h200-sxm" in head for head in heads)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("gpu", "said"), [("h20x", "did you mean"), ("mi300x", "h200-sxm")])
def test_a_gpu_without_measurements_is_refused(gpu: str, said: str, capsys: Output) -> None:
    assert main(["accuracy", "--gpu", gpu]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: --gpu: given ")
    assert said in line
    assert "unnamed" not in line


def test_a_damaged_summary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.csv"
    for text in ("table,device\nop_gemm,all\n", PATH.read_text().replace(",483,", ",many,", 1)):
        path.write_text(text)
        with pytest.raises(InputError, match="a CSV of table, device"):
            load_accuracy(path)
    with pytest.raises(InputError):
        load_accuracy(tmp_path / "none.csv")


def test_the_script_writes_what_the_command_reads(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    fixtures = ROOT / "tests" / "fixtures"
    (folder / "engine_startup_memory.csv").symlink_to(fixtures / "engine_startup.csv")
    (row,) = (fixtures / "held-out").glob("op_context_attention.csv*")
    (folder / row.name).symlink_to(row)
    path = tmp_path / "accuracy.csv"
    command = [sys.executable, "benchmarks/score_external.py", str(folder)]
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": places}
    refused = subprocess.run(
        [*command, "--summary", str(path)], cwd=ROOT, env=environ, capture_output=True, check=False
    )
    assert refused.returncode == 2
    assert not path.exists()
    ran = subprocess.run(
        [*command, "--held-out", "--json", "--summary", str(path)],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    scores = load_accuracy(path)
    objects = json.loads(ran.stdout)
    assert [[o[name] for name in FIELDS] for o in objects] == [
        [getattr(score, name) for name in FIELDS] for score in scores
    ]
    tables = {score.table for score in scores}
    assert {"op_context_attention", "engine_startup_memory.kv_tokens"} <= tables
    assert on_gpu(scores, "h200", where="test")
