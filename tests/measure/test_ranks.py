"""Several ranks measure together over gloo: what they measure, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lcprof.errors import InputError
from lcprof.measure.ranks import Alone, place_of
from lcprof.measure.record import read_record
from lcprof.measure.row import Row

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = """\
model: {{name: tiny, layers: 2, hidden: 128, q_heads: 8, kv_heads: {kv_heads}, head_dim: 32,
        intermediate: 256, vocab: 512}}
gpu: l4
context: {context}
output: 16
concurrency: 2
chunk: 64
"""
WITHOUT = ["--sustained", "0"]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": paths}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """What each run said, by its name, and where their records lie."""
    base = tmp_path_factory.mktemp("ranks")

    def scenario(name: str, keys: str, *, kv_heads: int = 2, context: int = 256) -> str:
        path = base / f"{name}.yaml"
        path.write_text(TINY.format(kv_heads=kv_heads, context=context) + keys)
        return str(path)

    tensor = scenario("tensor", "tp: 2\npp: 2\n")
    wide = scenario("wide", "tp: 4\ndcp: 4\n", kv_heads=1, context=250)
    context = scenario("context", "cp: 4\n", context=250)
    asked: dict[str, dict[str, Any]] = {
        "pair": {"ranks": 2, "arguments": [tensor, "--ceilings", "--sustained", "0.01"]},
        "four": {"ranks": 4, "arguments": [tensor, wide, context, *WITHOUT],
                 "fault": "profiler"},
        "many": {"ranks": 4, "arguments": [tensor, *WITHOUT]},
        "none": {"ranks": 2, "arguments": [scenario("none", ""), *WITHOUT]},
        "bad": {"ranks": 2, "arguments": [tensor, *WITHOUT, "--only", "al_reduce"]},
        "full": {"ranks": 2, "arguments": [tensor, *WITHOUT], "fault": "full"},
        "prepare": {"ranks": 2, "arguments": [tensor, *WITHOUT], "fault": "prepare"},
        "call": {"ranks": 2, "arguments": [tensor, *WITHOUT], "fault": "call"},
        "open": {"ranks": 2, "arguments": [tensor, *WITHOUT], "fault": "open"},
        "disk": {"ranks": 2, "arguments": [tensor, *WITHOUT], "fault": "disk"},
        "budget": {"ranks": 2, "arguments": [tensor, *WITHOUT, "--budget", "1e-9"]},
        "interrupt": {"ranks": 2, "arguments": [tensor, "--sustained", "60"],
                      "interrupt": str(base / "interrupt")},
    }  # fmt: skip
    for name, run in asked.items():
        run["arguments"] += ["-o", str(base / name)]
    asked["again"] = {"ranks": 2, "arguments": [tensor, *WITHOUT, "-o", str(base / "pair")]}
    asked["resume"] = {"ranks": 2, "arguments": [tensor, *WITHOUT, "--resume", "-o",
                                                 str(base / "call")]}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests" / "measure_ranks_worker.py")],
        input=json.dumps(list(asked.values())), capture_output=True, text=True, check=False,
        timeout=300, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return base, dict(zip(asked, json.loads(done.stdout), strict=True))


Told = tuple[Path, dict[str, dict[str, Any]]]


def rows(told: Told, name: str) -> Mapping[str, Row]:
    return read_record(told[0] / name).rows


def line(run: Mapping[str, Any]) -> str:
    """The one line that the first rank says; the others are silent."""
    others = [text for name, text in run.items() if name[:3] in ("out", "err") and text]
    assert others == [run["err-0"]], others
    (said,) = run["err-0"].splitlines()
    return str(said)


def test_two_ranks_measure_collectives_and_links(told: Told) -> None:
    base, runs = told
    run = runs["pair"]
    assert run["codes"] == [0, 0], run
    assert run["out-1"] == run["err-1"] == ""
    assert read_record(base / "pair").provenance.ranks == 2
    found = rows(told, "pair")
    # tp 2 of a hidden state of 128 in bf16: the chunk of 64 tokens, and one of 2 sequences for each
    # of 2 stages.
    for tokens in (64, 1):
        for name in ("all_reduce", "reduce_scatter", "all_gather"):
            row = found[f"{name} ranks=2 buffer_bytes={tokens * 256} by gloo"]
            got = row.measured
            assert row.status == "measured"
            assert (got.error, got.error_allowed) == (0.0, 0.0)
            assert got.burst_s is not None
            assert got.sustained_s is not None
            # An all-reduce sends all of it over each link, the others half.
            crossing = tokens * 256 * (1.0 if name == "all_reduce" else 0.5)
            assert got.rate_bytes_per_s == pytest.approx(crossing / got.burst_s)
    # A rank hands its half of the state over to the next stage.
    assert found["send_recv ranks=2 buffer_bytes=8192 by gloo"].status == "measured"
    names = {key.removeprefix("ceiling ") for key in found if key.startswith("ceiling ")}
    assert {"read", "copy", "link 0 to 1", "all_reduce of 2", "all_to_all of 2"} <= names
    assert all(found[f"ceiling {name}"].measured.rate_bytes_per_s for name in names
               if " of 2" in name or "link" in name)  # fmt: skip


def test_four_ranks_measure_contexts_cut_over_them_and_smaller_groups(told: Told) -> None:
    assert told[1]["four"]["codes"] == [0, 0, 0, 0], told[1]["four"]
    found = rows(told, "four")
    assert {row.status for row in found.values()} == {"measured"}, {
        row.key: row.reason for row in found.values()
    }
    operations = [row.operation for row in found.values()]
    # Two layers of a kind are one point; 250 tokens make 256 for zigzags, 252 without.
    prompts = [row for row in found.values() if row.operation == "context_prefill"]
    assert {row.shape["exchange"] for row in prompts} == {"ring", "all_gather"}
    assert {(row.shape["ranks"], row.shape["context_tokens"]) for row in prompts} == {(4, 256)}
    (step,) = (row for row in found.values() if row.operation == "context_decode")
    # Four ranks of two sequences: each has one of its own, two of them nothing to do.
    assert (step.shape["batch"], step.shape["context_tokens"]) == (4, 252)
    assert {row.shape["ranks"] for row in found.values()} == {2, 4}
    assert operations.count("send_recv") == 2
    for row in (*prompts, step):
        assert row.measured.error is not None
        assert row.measured.error_allowed is not None
        assert row.measured.error <= row.measured.error_allowed
    # Each rank has a fourth of the causal pairs of 256 tokens, 8 heads of 32, two products.
    assert prompts[0].predicted.flops == 4 * 32 * 8 * (256 * 257 / 2) / 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("many", "torchrun: given '4 ranks'; expected --nproc-per-node=2, the scenario's largest"),
        ("none", "torchrun: given '2 ranks'; expected a scenario with tp, cp, dcp, dp, ep or pp"),
        ("bad", "--only: given 'al_reduce'; expected an operation; did you mean all_reduce"),
        ("again", "expected a folder without a record, or --resume"),
        ("open", "rank 1: no GPU 1"),
    ],
)
def test_what_cannot_begin_is_one_line_and_ends_all(told: Told, name: str, words: str) -> None:
    run = told[1][name]
    assert words in line(run)
    assert run["codes"] == [3 if name == "open" else 2] * len(run["codes"])
    assert "record keeps" not in line(run)


def test_a_point_that_one_rank_has_no_room_for_is_skipped_by_all(told: Told) -> None:
    assert told[1]["full"]["codes"] == [3, 3]
    found = rows(told, "full")
    assert {row.status for row in found.values()} == {"does not fit"}
    assert all("of 10 B that are free" in row.reason for row in found.values())


def test_a_point_that_fails_on_one_rank_is_a_row_and_the_others_go_on(told: Told) -> None:
    assert told[1]["prepare"]["codes"] == [0, 0]
    by_status = {row.operation: row for row in rows(told, "prepare").values()}
    assert by_status["all_gather"].status == "out of memory"
    assert by_status["all_gather"].reason == "rank 1: MemoryError: "
    assert by_status["send_recv"].status == "measured"


def test_a_rank_that_fails_in_a_call_ends_all_with_a_row_and_a_line(told: Told) -> None:
    run = told[1]["call"]
    key = "all_reduce ranks=2 buffer_bytes=16384 by gloo"
    assert line(run) == (
        f"error: rank 1: {key}: RuntimeError: link down: the record keeps what was measured; "
        "--resume goes on"
    )
    assert run["codes"] == [3, 3]
    assert run["seconds"] < 20
    resumed = told[1]["resume"]
    assert resumed["codes"] == [0, 0], resumed
    lines = [json.loads(each) for each in
             (told[0] / "call" / "record.jsonl").read_text().splitlines()]  # fmt: skip
    first = next(each for each in lines if each["line"] == "row")
    assert (first["key"], first["status"]) == (key, "failed")
    assert first["reason"] == f"rank 1: {key}: RuntimeError: link down"
    assert rows(told, "call")[key].status == "measured"


def test_a_full_disk_ends_all_ranks(told: Told) -> None:
    run = told[1]["disk"]
    assert "a record that can be written (No space left on device)" in line(run)
    assert run["codes"] == [2, 2]
    assert len(rows(told, "disk")) == 1


def test_only_the_first_rank_profiles(told: Told) -> None:
    assert all(row.measured.kernels for row in rows(told, "four").values())


def test_ranks_stop_at_the_budget_together(told: Told) -> None:
    run = told[1]["budget"]
    assert run["codes"] == [3, 3]
    assert "the budget of 1e-09 s is spent; 8 points are left" in run["err-0"]


def test_ctrl_c_on_one_rank_ends_all(told: Told) -> None:
    run = told[1]["interrupt"]
    assert run["codes"] == [130, 130]
    assert line(run) == "interrupted: the record keeps what was measured; --resume goes on"
    (row,) = rows(told, "interrupt").values()
    assert (row.status, row.reason) == ("interrupted", "Ctrl-C")


def test_torchrun_starts_them(tmp_path: Path) -> None:
    scenario = tmp_path / "tiny.yaml"
    scenario.write_text(TINY.format(kv_heads=2, context=256) + "tp: 2\n")
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "lcprof",
         "measure", str(scenario), "--device", "cpu", "-o", str(run), "--only", "all_reduce",
         *WITHOUT],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("2 of 2 measured on cpu")
    assert {row.status for row in read_record(run).rows.values()} == {"measured"}


def test_a_process_alone_agrees_with_itself() -> None:
    alone = Alone()
    assert (alone.all(3), alone.first("a"), alone.group(1)) == ([3], "a", None)
    assert place_of({}) is None
    assert place_of({"WORLD_SIZE": "1", "RANK": "0"}) is None


def test_what_a_launcher_says_is_checked() -> None:
    told = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}
    place = place_of(told)
    assert place is not None
    assert (place.rank, place.local_rank, place.size, place.host) == (3, 1, 4, "127.0.0.1")
    with pytest.raises(InputError, match=r"\$RANK: given 'x'; expected a whole number"):
        place_of(told | {"RANK": "x"})
    with pytest.raises(InputError, match=r"\$MASTER_PORT: given 'nothing'"):
        place_of({name: value for name, value in told.items() if name != "MASTER_PORT"})
