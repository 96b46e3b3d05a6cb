"""The command line: flags, formats, exit statuses, and what it says to bad input."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcprof.cli import main
from lcprof.flags import AXES

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))
LLAMA = ["plan", "--model", "llama-3.1-8b", "--gpu", "h200-sxm"]
SMALL = [*LLAMA, "--context", "128K"]
LARGE = [*LLAMA, "--context", "1M"]

# The names that `--json` promises, as users' programs read them.
PROMISED = """
    model gpu gpus kv context_tokens output_tokens concurrency weights_bytes_per_gpu params
    active_params kv_bytes_per_token kv_bytes_per_token_all_layers kv_state_bytes_per_sequence
    kv_bytes_per_gpu kv_reserved_bytes_per_gpu activation_bytes_per_gpu total_bytes_per_gpu
    capacity_bytes_per_gpu fits limited_by prefill_flops prefill_attention_flops decode_step_flops
    decode_step_read_bytes_per_gpu ttft_floor_s tpot_floor_s max_context_tokens max_concurrency
"""

Output = pytest.CaptureFixture[str]


def rows(capsys: Output, arguments: list[str]) -> list[dict[str, object]]:
    main([*arguments, "--json"])
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def errors(capsys: Output, arguments: list[str]) -> list[str]:
    """The error lines of a command that must end with status 2 and print nothing else."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), printed.err
    return lines


def test_exit_status_says_whether_a_row_fits(capsys: Output) -> None:
    assert main(SMALL) == 0
    assert main(LARGE) == 3
    assert main([*LARGE, "--kv", "bf16", "--kv", "fp8"]) == 0
    assert "1 of 2 fit" in capsys.readouterr().out


def test_json_has_the_promised_keys_in_plain_types(capsys: Output) -> None:
    (row,) = rows(capsys, [*SMALL, "--output", "1K"])
    assert set(PROMISED.split()) <= set(row)
    assert row["context_tokens"] == 131072
    # Llama-3.1-8B config.json: 32 layers, 8 KV heads of 128, 2 B: 131,072 B a token.
    assert row["kv_bytes_per_token"] == 131072
    assert row["fits"] is True
    whole = ["context_tokens", "output_tokens", "concurrency", "kv_bytes_per_token", "params"]
    for name in [*whole, "max_context_tokens", "max_concurrency"]:
        assert isinstance(row[name], int), name
    assert isinstance(row["ttft_floor_s"], float)


def test_json_says_null_when_memory_sets_no_bound(capsys: Output) -> None:
    (row,) = rows(capsys, [*SMALL, "--kv", "window:tokens=1024,sinks=4"])
    assert row["max_context_tokens"] is None


def test_csv_holds_the_same_rows(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")
    planned = rows(capsys, [*SMALL, "--kv", "bf16,fp8", "--csv", str(path)])
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["kv"] for row in table] == ["bf16", "fp8"]
    assert list(table[0]) == list(planned[0])
    assert float(table[1]["kv_bytes_per_gpu"]) == planned[1]["kv_bytes_per_gpu"]
    assert [each.name for each in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("path", ["/nonexistent/rows.csv", ".", "a\0b"])
def test_a_csv_that_cannot_be_written_is_one_line(path: str, capsys: Output) -> None:
    assert main([*SMALL, "--csv", path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --csv: given ")


def test_csv_into_a_pipe_leaves_the_pipe(tmp_path: Path) -> None:
    written = subprocess.run(
        [sys.executable, "-m", "lcprof", *SMALL, "--csv", "/dev/stderr"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert next(csv.DictReader(io.StringIO(written.stderr)))["model"] == "llama-3.1-8b"
    assert Path("/dev/stderr").exists()


def test_flags_take_several_values(capsys: Output) -> None:
    planned = rows(
        capsys, [*LLAMA, "--context", "32K,128K", "--concurrency", "[1, 2]", "--kv", "bf16"]
    )
    asked = [(row["context_tokens"], row["concurrency"]) for row in planned]
    assert asked == [(32768, 1), (32768, 2), (131072, 1), (131072, 2)]


def test_commas_inside_a_kv_spec_stay_there(capsys: Output) -> None:
    specs = ["fp8", "kivi:bits=4,group=64", "fp8+window:tokens=4096,sinks=4", "int8"]
    assert [row["kv"] for row in rows(capsys, [*SMALL, "--kv", ",".join(specs)])] == specs


def test_flags_override_the_file(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("model: llama-3.1-8b\ngpu: h100-sxm\nvideo: 1h\nkv: [bf16, fp8]\n")
    (row,) = rows(capsys, ["plan", str(path), "--gpu", "h200", "--kv", "int8", "--context", "4K"])
    assert (row["gpu"], row["kv"], row["context_tokens"]) == ("h200-sxm", "int8", 4096)
    (row,) = rows(capsys, ["plan", str(path), "--kv", "fp8", "--set", "text=3000 words"])
    assert row["context_tokens"] == 3600 * 258 + 3990


def test_set_reaches_every_key(capsys: Output) -> None:
    planned = rows(capsys, [*LLAMA, "--set", "code=30k lines", "--set", "concurrency=[2,4]"])
    assert [row["concurrency"] for row in planned] == [2, 4]
    assert planned[0]["context_tokens"] == 300_000


def test_a_model_path_in_a_flag_counts_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 512,
        "vocab_size": 1000,
        "tie_word_embeddings": False,
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    scenario = str(ROOT / "scenarios" / "smoke.yaml")
    planned = rows(capsys, ["plan", scenario, "--model", "./mine/config.json", "--kv", "bf16"])
    # 2 layers, K and V, 2 heads of 32, 2 B.
    assert planned[0]["kv_bytes_per_token"] == 2 * 2 * 2 * 32 * 2
    assert main(["catalog", "models", "./mine"]) == 0
    assert "512 B per token" in capsys.readouterr().out


def test_explain_shows_formula_values_and_source(capsys: Output) -> None:
    assert main([*SMALL, "--explain", "kv_bytes_per_token"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("kv_bytes_per_token = 131,072 B\n")
    assert "32 full layers" in page
    assert "source:" in page
    assert main([*SMALL, "--explain"]) == 0
    every = capsys.readouterr().out
    for name in ("weights_bytes_per_gpu", "ttft_floor_s", "max_context_tokens"):
        assert f"{name} = " in every
    # 32 layers, K and V, 8 heads of 128, 2 B, all on the one GPU.
    assert main([*SMALL, "--explain", "kv_token_bytes_per_gpu"]) == 0
    assert capsys.readouterr().out.startswith("kv_token_bytes_per_gpu = 131,072 B\n")
    assert not re.search(r"\de\+\d", every)


def explained(capsys: Output, column: str, gpu: str) -> str:
    asked = ["plan", "--model", "llama-3.1-8b", "--gpu", gpu, "--context", "128K"]
    assert main([*asked, "--explain", column]) == 0
    return capsys.readouterr().out


def test_explain_names_the_sources_of_the_gpu_file(capsys: Output, tmp_path: Path) -> None:
    known = "nvidia-smi memory.total, one H200 (2026-10)"
    assert f"source: {known}\n" in explained(capsys, "capacity_bytes_per_gpu", "h200-sxm")
    assert "NVIDIA H200 datasheet" in explained(capsys, "ttft_floor_s", "h200-sxm")
    bare = tmp_path / "bare.yaml"
    bare.write_text(
        "name: mine\nmemory_marketed: 141 GB\nbandwidth: {value: 4.8 TB/s, source: my notes}\n"
        "peak: {bf16: 900 TFLOP/s}\n"
    )
    capacity = explained(capsys, "capacity_bytes_per_gpu", str(bare))
    assert "source: given by the user\n" in capacity
    assert "marketed memory" in capacity
    assert "my notes" in explained(capsys, "ttft_floor_s", str(bare))


def test_explain_before_the_file_takes_it_for_the_file(capsys: Output) -> None:
    assert main(["plan", "--explain", str(ROOT / "scenarios" / "smoke.yaml")]) == 0
    assert "kv_bytes_per_token = 512 B" in capsys.readouterr().out


def test_missing_keys_say_how_to_give_them(capsys: Output) -> None:
    lines = errors(capsys, ["plan"])
    assert len(lines) == 3
    for line, flag in zip(lines, ("--model", "--gpu", "--context"), strict=True):
        assert flag in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["plan", "/"], ["a directory"]),
        (["plan", "a\0b"], ["a?b"]),
        (["plan", "--bogus"], ["--bogus"]),
        (["plan", "--json", "--explain"], ["--json", "--explain"]),
        (["plan", "--model"], ["--model", "argument"]),
        (["frobnicate"], ["frobnicate"]),
        (["catalog", "frobs"], ["frobs", "models"]),
        (["catalog", "kv", "fp9"], ["fp9", "fp8"]),
        (["catalog", "gpus", "h201"], ["h201", "h200"]),
        (["catalog", "models", "llama-9"], ["llama-9", "did you mean"]),
        ([*SMALL, "--set", "colour"], ["--set", "colour", "key=value"]),
        ([*SMALL, "--set", "=3"], ["--set", "key=value"]),
        ([*SMALL, "--set", "contxt=3"], ["contxt", "context"]),
        ([*SMALL, "--kv", "fp9"], ["--kv", "fp9", "fp8"]),
        ([*SMALL, "--kv", "window:tokens=-4"], ["window:tokens", "-4"]),
        ([*SMALL, "--concurrency", "0"], ["--concurrency", "0"]),
        ([*SMALL, "--concurrency", "1.5"], ["--concurrency", "1.5"]),
        ([*SMALL, "--gpus", "nan"], ["--gpus", "nan"]),
        ([*SMALL, "--gpus", ".nan"], ["--gpus", ".nan"]),
        ([*SMALL, "--tp", "3"], ["tp", "3"]),
        ([*SMALL, "--utilisation", "1.2"], ["--utilisation", "1.2"]),
        ([*LLAMA, "--context", "131,072"], ["131,072", "131072"]),
        ([*LLAMA, "--context", "many"], ["--context", "many"]),
        ([*LLAMA, "--context", "1e300"], ["--context", "1e+300"]),
        ([*LLAMA, "--context", ""], ["--context"]),
        ([*LLAMA, "--context", "[128K"], ["--context", "YAML"]),
        ([*LLAMA, "--context", "[!!python/name:os.system , 1]"], ["--context", "tag"]),
        ([*SMALL, "--model", "a\udcffb"], ["--model", "Unicode"]),
        ([*SMALL, "--explain", "kv_bytes"], ["--explain", "kv_bytes", "did you mean"]),
        ([*LARGE, "--explain", "tpot_s"], ["--explain", "tpot_s", "does not fit"]),
    ],
)
def test_bad_input_is_refused_in_a_line(
    arguments: list[str], words: list[str], capsys: Output
) -> None:
    lines = errors(capsys, arguments)
    for word in words:
        assert any(word in line for line in lines), lines


def test_all_faults_come_at_once(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("model: llama-3.1-9b\ngpu: h300\ncontext: -1\ncolour: red\n")
    lines = errors(capsys, ["plan", str(path), "--kv", "fp9", "--set", "x"])
    assert len(lines) == 1  # a flag that cannot be read at all comes first
    lines = errors(capsys, ["plan", str(path), "--kv", "fp9"])
    for key in ("model", "gpu", "context", "colour", "kv"):
        assert any(f"{key}:" in line for line in lines), (key, lines)


NASTY = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", ",", "=", "[", "[]", "{}", "1e999", "-0", "~", "null", "\0", "../..", "a=b"]
    ),
    st.from_regex(r"[0-9]{1,3}[KMGkm%]?(,[0-9]+)?", fullmatch=True),
    st.from_regex(r"(fp8|kivi|window|h2o)(:[a-z]+=[0-9%]{1,4})?(\+[a-z0-9]+)?", fullmatch=True),
)


@given(
    flags=st.lists(st.tuples(st.sampled_from([*AXES, "set", "explain"]), NASTY), max_size=4),
    scenario=st.one_of(st.none(), NASTY),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_command_line_ends_in_a_traceback(
    flags: list[tuple[str, str]], scenario: str | None, capsys: Output
) -> None:
    arguments = [*SMALL, *(f"--{flag}={text}" for flag, text in flags)]
    arguments += [] if scenario is None else ["--", scenario]
    status = main(arguments)
    printed = capsys.readouterr()
    assert status in (0, 2, 3)
    assert (status == 2) == bool(printed.err)
    if status == 2:
        assert all(line.startswith("error: ") for line in printed.err.splitlines())


def test_control_characters_do_not_reach_the_terminal(capsys: Output) -> None:
    lines = errors(capsys, [*SMALL, "--model", "\x1b[31mred\x1b[0m\u202e"])
    assert all(line.isprintable() for line in lines)


def test_help_names_every_flag_and_the_statuses(capsys: Output) -> None:
    assert main(["plan", "--help"]) == 0
    page = capsys.readouterr().out
    for flag in ("--model", "--kv", "--set", "--json", "--csv", "--explain", "--dcp"):
        assert flag in page
    assert "3 when none does" in page
    assert page.isascii()


def test_version_and_schema(capsys: Output) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"lcprof \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "lcprof scenario"


def test_no_command_prints_the_help(capsys: Output) -> None:
    assert main([]) == 2
    assert "catalog" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["catalog"], ["llama-3.1-8b", "h200-sxm", "kivi"]),
        (["catalog", "models"], ["llama-3.1-8b", "8.03 B"]),
        (["catalog", "gpus"], ["h200-sxm", "4.80 TB/s"]),
        (["catalog", "kv"], ["window", "StreamingLLM"]),
        (["catalog", "models", "deepseek-v3"], ["deepseek-ai/DeepSeek-V3", "70.3 kB per token"]),
        (["catalog", "gpus", "H200"], ["143771 MiB", "NVIDIA H200 datasheet"]),
        (["catalog", "kv", "kivi"], ["bits=", "2402.02750"]),
    ],
)
def test_catalog(arguments: list[str], words: list[str], capsys: Output) -> None:
    assert main(arguments) == 0
    page = capsys.readouterr().out
    for word in words:
        assert word in page
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_is_a_page_of_80_plain_columns(path: Path, capsys: Output) -> None:
    assert main(["plan", str(path)]) in (0, 3)
    page = capsys.readouterr().out
    assert "\x1b" not in page
    assert all(line == line.rstrip() for line in page.splitlines())
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_offer_keeps_its_word(path: Path, capsys: Output) -> None:
    main(["plan", str(path)])
    page = capsys.readouterr().out.partition("\nTry")[2]
    text = page.replace("\\\n", " ").replace("\n    fits", "  fits")
    offers = re.findall(r"^  (--.*?)  +(fits|does not fit), ([\d.]+ .B)", text, re.MULTILINE)
    assert ("--" in page) == bool(offers)
    for flags, verdict, _ in offers:
        (row,) = rows(capsys, ["plan", str(path), *shlex.split(flags)])
        assert row["fits"] == (verdict == "fits"), flags


def test_offers_say_which_flags_they_replace(capsys: Output) -> None:
    given = {"--model": "kimi-k2", "--gpu": "h200-sxm", "--gpus": "16", "--tp": "16",
             "--context": "128K", "--concurrency": "100"}  # fmt: skip
    assert main(["plan", *(word for pair in given.items() for word in pair)]) == 3
    page = capsys.readouterr().out.partition("\nTry ")[2]
    head, _, text = page.partition("\n")
    assert "instead of the one given" in head
    offers = re.findall(r"^  (--.*?)  +fits", text.replace("\\\n", " "), re.MULTILINE)
    assert offers
    for offer in offers:
        words = shlex.split(offer)
        changed = given | dict(zip(words[::2], words[1::2], strict=True))
        assert all(flag in head for flag in words[::2] if flag in given)
        (row,) = rows(capsys, ["plan", *(word for pair in changed.items() for word in pair)])
        assert row["fits"], offer


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_page_survives_any_encoding(encoding: str) -> None:
    written = subprocess.run(
        [sys.executable, "-m", "lcprof", "plan", "scenarios/video-one-hour.yaml"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": encoding, "PATH": ""},
    )
    page = written.stdout.decode(encoding)
    assert ("█" in page) == (encoding == "utf-8")
    assert ("##" in page) == (encoding != "utf-8")
    assert ("×" in page) == (encoding != "ascii")


def test_a_reader_that_leaves_early_hears_no_complaint() -> None:
    command = f"{sys.executable} -m lcprof catalog | head -n 1"
    written = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert written.stdout == "Models\n"
    assert written.stderr == ""


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
def test_a_lost_standard_output_is_no_traceback(redirect: str) -> None:
    command = f"{sys.executable} -m lcprof plan scenarios/smoke.yaml {redirect}"
    written = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in written.stderr
    assert written.returncode == (2 if "full" in redirect else 0)


def test_a_key_is_given_by_its_flag_or_by_set(capsys: Output) -> None:
    asked = ["plan", "--model", "llama-3.1-8b", "--gpu", "h200-sxm"]
    assert main([*asked, "--context", "64K", "--set", "context=128K"]) == 2
    said = capsys.readouterr().err
    assert "--set context: given '128K'; expected context once: by --context or by" in said
