"""`lcprof measure`, `compare` and `doctor`: what they print, and what they say to bad input."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from measuring import Board, provenance, row

from lcprof.cli import main
from lcprof.measure import session as room
from lcprof.measure.board import NoBoard, Stranger
from lcprof.measure.device import CpuDevice
from lcprof.measure.record import Writer, read_record
from lcprof.measure.row import Measured, Predicted

ROOT = Path(__file__).resolve().parent.parent
TINY = """\
model: {name: tiny, layers: 2, hidden: 128, q_heads: 4, kv_heads: 2, head_dim: 64,
        intermediate: 256, vocab: 512}
gpu: l4
context: 256
output: 16
concurrency: 2
kv: [bf16, h2o]
"""
KILLS = 10
QUICK = ["--device", "cpu", "--sustained", "0"]

Output = pytest.CaptureFixture[str]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def error(capsys: Output) -> str:
    """The one line on stderr."""
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_measuring_writes_a_record_and_prints_it(tiny: str, tmp_path: Path, capsys: Output) -> None:
    run = tmp_path / "run"
    command = ["measure", tiny, *QUICK, "-o", str(run), "--only", "decode_attention", "--trace",
               "--timeline"]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("2 of 3 measured on cpu: ")
    assert "decode_attention B2 q1 kv256 4/2 D64 bf16 contiguous, naive" in printed.out
    assert "planned, not measurable: h2o has no kernel" in printed.out
    assert printed.out.endswith(f"record: {run}/record.jsonl\n")
    assert printed.err == ""
    found = read_record(run)
    assert found.provenance.scenario == TINY
    assert found.provenance.command[0] == "lcprof"
    kept = sorted(path.name.partition("naive")[2] for path in (run / "traces").iterdir())
    assert kept == [".json", ".json", ".memory.csv", ".memory.csv"]
    measured = [each for each in found.rows.values() if each.status == "measured"]
    assert all(each.predicted.flops for each in measured)
    # Three kinds of products in each phase (128 to 256, 128 to 128, 256 to 128), and the logits.
    assert main(["measure", tiny, *QUICK, "-o", str(run), "--resume", "--only", "gemm"]) == 0
    assert capsys.readouterr().out.startswith("9 of 10 measured on cpu")
    assert main(["measure", tiny, *QUICK, "-o", str(run), "--resume", "--concurrency", "4"]) == 2
    assert "scenario (by its hash)" in error(capsys)


def test_the_record_lies_in_runs_by_default(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["measure", tiny, *QUICK, "--only", "append"]) == 3
    assert read_record(tmp_path / "runs" / "tiny-cpu").rows == {}


def test_a_torn_record_is_told_and_goes_on(tiny: str, tmp_path: Path, capsys: Output) -> None:
    command = ["measure", tiny, *QUICK, "-o", str(tmp_path / "run"), "--only", "decode_attention"]
    assert main(command) == 0
    with (tmp_path / "run" / "record.jsonl").open("ab") as file:
        file.write(b'{"line":"row"')
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "run")]) == 0
    assert "torn: 13 bytes" in capsys.readouterr().out
    assert main([*command, "--resume"]) == 0
    assert "a torn last line of 13 bytes was cut off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--impl", "lcpro"], "--impl: given 'lcpro'; expected an implementation; did you mean"),
        (["--only", "gem"], "--only: given 'gem'; expected an operation; did you mean gemm?"),
        (["--budget", "soon"], "--budget: given 'soon'; expected a duration"),
        (["--max-batch", "few"], "--max-batch: given 'few'; expected a whole number of sequences"),
        (["--max-batch", "1"], "--max-batch: given '1'; expected at least the least"),
        (["--max-context", "x"], "--max-context: given 'x'; expected tokens"),
        (["--max-context", "100"], "--max-context: given '100'; expected at least"),
        (["--sustained", "-1"], "--sustained: given '-1'; expected a duration"),
        (["--kv", "nonsense"], "--kv: given 'nonsense'"),
        (["-o", "/dev/null/run"], "-o: given '/dev/null/run/record.jsonl'; expected a record that"),
        (["-o", "{tiny}"], "expected a folder without a record"),
        (["--resume", "-o", "nowhere"], "--resume: given 'nowhere/record.jsonl'; expected"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    arguments: list[str], expected: str, tiny: str, capsys: Output
) -> None:
    filled = [tiny if each == "{tiny}" else each for each in arguments]
    assert main(["measure", tiny, *QUICK, *filled]) == 2
    assert expected in error(capsys)


def test_a_scenario_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: Output) -> None:
    assert main(["measure", str(tmp_path / "nothing.yaml"), *QUICK]) == 2
    assert "nothing.yaml" in error(capsys)


def test_without_a_gpu_nothing_is_measured(
    tiny: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["measure", tiny]) == 3
    assert "no GPU that PyTorch can use" in error(capsys)
    assert main(["doctor"]) == 3
    assert "no, needed" in capsys.readouterr().out
    assert main(["doctor", "--device", "cpu"]) == 0


def test_a_busy_gpu_is_one_line(tiny: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(others=[Stranger(pid=12, used_bytes=12e9)])
    monkeypatch.setattr(room, "board_of_gpu", lambda index: board)
    assert main(["measure", tiny]) == 3
    assert "another process is on the GPU (12), holding 12.0 GB: stop them" in error(capsys)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives `--device cuda` a processor for a GPU, beside the board that it is called with."""

    def given(board: Any) -> None:
        monkeypatch.setattr(room, "board_of_gpu", lambda index: board)
        monkeypatch.setattr(room, "open_device", lambda kind, index: CpuDevice())

    return given


def test_without_nvml_times_are_measured_and_the_rest_says_why(
    tiny: str, tmp_path: Path, capsys: Output, gpu: Any
) -> None:
    gpu(NoBoard("nvidia-ml-py is not installed: pip install nvidia-ml-py"))
    command = ["measure", tiny, "-o", str(tmp_path / "run"), "--only", "gemm"]
    assert main([*command, "--sustained", "0.001"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    joined = " ".join(told.out.split())
    assert "empty, nvidia-ml-py is not installed: pip install nvidia-ml-py: power_w" in joined
    measured = [row for row in read_record(tmp_path / "run").rows.values() if row.measured.burst_s]
    assert measured
    assert all(row.status == "measured" for row in measured)


def test_a_refused_profiler_costs_its_columns(
    tiny: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(CpuDevice, "profile", refused)
    command = ["measure", tiny, *QUICK, "-o", str(tmp_path / "run"), "--only", "gemm"]
    assert main([*command, "--counters"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    joined = " ".join(told.out.split())
    why = "torch.profiler: RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"
    assert f"empty, {why}: kernels, launches" in joined
    assert "Nsight Compute counts on a CUDA GPU alone: counted_read_bytes" in joined


def test_another_processs_memory_is_told_and_what_it_leaves_is_used(
    tiny: str, tmp_path: Path, capsys: Output, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(Board(others=[Stranger(pid=12, used_bytes=140e9)]))
    command = ["measure", tiny, "-o", str(tmp_path / "run"), "--only", "gemm", "--sustained", "0"]
    assert main(command) == 3
    assert "another process is on the GPU (12), holding 140 GB: stop them, or" in error(capsys)
    monkeypatch.setattr(CpuDevice, "free_bytes", lambda self: 1000.0)
    assert main([*command, "--beside-others"]) == 3
    assert "does not fit: needs" in capsys.readouterr().out


def test_points_that_do_not_fit_are_skipped_with_the_bytes(
    tiny: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuDevice, "free_bytes", lambda self: 1000.0)
    command = ["measure", tiny, *QUICK, "-o", str(tmp_path / "run"), "--only", "gemm"]
    assert main(command) == 3
    assert "does not fit: needs" in capsys.readouterr().out
    monkeypatch.undo()
    assert main([*command, "--resume"]) == 0


def test_a_full_disk_is_one_line(
    tiny: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["measure", tiny, *QUICK, "-o", str(tmp_path / "run"), "--only", "gemm"]
    written: list[int] = []

    def fsync(descriptor: int) -> None:
        written.append(descriptor)
        # The provenance, its folder, and two rows.
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert main(command) == 2
    assert "expected a record that can be written (No space left on device)" in error(capsys)
    assert len(read_record(tmp_path / "run").rows) == 2
    assert main([*command, "--resume"]) == 0


def test_a_scenario_says_what_of_it_is_measured_and_flags_win(tiny: str, tmp_path: Path) -> None:
    block = """\
measure: {only: [decode_attention], impl: torch, budget: 5m, sustained: 0, max_context: 256,
          max_batch: 2}
"""
    wide = TINY.replace("context: 256", "context: [256, 512]")
    wide = wide.replace("concurrency: 2", "concurrency: [2, 4]")
    Path(tiny).write_text(wide + block)
    run = tmp_path / "run"
    assert main(["measure", tiny, "--device", "cpu", "-o", str(run)]) == 3
    rows = list(read_record(run).rows.values())
    # Contiguous or paged by PyTorch's reference, which it does not have, and h2o.
    assert {(row.operation, row.status) for row in rows} == {("decode_attention", "not measurable")}
    assert {row.shape["context_tokens"] for row in rows} == {256}
    assert {row.shape["batch"] for row in rows} == {2}
    flags = ["--impl", "naive", "--max-context", "512", "--max-batch", "2"]
    run = tmp_path / "flags"
    assert main(["measure", tiny, "--device", "cpu", "-o", str(run), *flags]) == 0
    rows = [row for row in read_record(run).rows.values() if row.status == "measured"]
    assert {row.shape["context_tokens"] for row in rows} == {256, 512}
    assert {row.shape["batch"] for row in rows} == {2}
    assert all(row.measured.sustained_s is None for row in rows)


def test_a_plan_is_the_same_with_a_measure_block(tiny: str, capsys: Output) -> None:
    assert main(["plan", tiny, "--json"]) == 0
    without = capsys.readouterr().out
    with Path(tiny).open("a") as file:
        file.write("measure: {only: gemm, max_batch: 1, max_context: 1}\n")
    assert main(["plan", tiny, "--json"]) == 0
    assert capsys.readouterr().out == without


def test_faults_of_the_measure_block_come_all_at_once(tiny: str, capsys: Output) -> None:
    with Path(tiny).open("a") as file:
        file.write("measure: {only: gem, impl: [lcprof, 3], budget: 0, max_contxt: 1}\n")
    assert main(["measure", tiny, *QUICK]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4
    assert "measure.max_contxt: given an unknown key" in told[0]
    assert "measure.only: given 'gem'; expected a known name; did you mean gemm?" in told[1]
    assert "measure.impl: given 3; expected a known name; lcprof, torch, naive" in told[2]
    assert "measure.budget: given 0; expected a duration" in told[3]
    # A plan refuses what is wrong, and has no other use for the block.
    assert main(["plan", tiny]) == 2


def test_several_scenarios_are_one_run(tiny: str, tmp_path: Path) -> None:
    """The second has the first's points, and one more length."""
    longer = tmp_path / "longer.yaml"
    longer.write_text(TINY.replace("context: 256", "context: [256, 512]"))
    command = ["measure", *QUICK, "--only", "decode_attention"]
    assert main([*command, tiny, "-o", str(tmp_path / "one")]) == 0
    assert main([*command, tiny, str(longer), "-o", str(tmp_path / "two")]) == 0
    one, two = (read_record(tmp_path / name) for name in ("one", "two"))
    assert len(two.rows) == 2 * len(one.rows)
    assert set(one.rows) < set(two.rows)
    assert two.provenance.scenario == Path(tiny).read_text() + "---\n" + longer.read_text()


def test_nothing_to_measure_and_no_time_are_told(tiny: str, capsys: Output) -> None:
    assert main(["measure", "--device", "cpu"]) == 2
    assert "expected a scenario, flags that make one, or --ceilings" in error(capsys)
    assert main(["measure", tiny, *QUICK, "--budget", "0"]) == 2
    assert error(capsys).startswith("error: --budget: given '0'; expected a duration, as 45 s")
    assert main(["measure", tiny, *QUICK, "--max-batch", "0"]) == 2
    assert error(capsys) == "error: --max-batch: given '0'; expected at least 1"


def test_no_point_begins_after_the_budget(tiny: str, tmp_path: Path, capsys: Output) -> None:
    command = ["measure", tiny, *QUICK, "-o", str(tmp_path / "run"), "--only", "gemm"]
    assert main([*command, "--budget", "1e-9"]) == 3
    told = capsys.readouterr().err
    assert told == "stopped: the budget of 1e-09 s is spent; 7 points are left; --resume goes on\n"


def test_a_run_killed_at_ten_random_moments_loses_nothing(tiny: str, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "measure_cli_worker.py"), str(tmp_path / "run"), tiny,
         str(KILLS)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    record = tmp_path / "run" / "record.jsonl"
    before = b""
    for path in [*sorted(tmp_path.glob("after-*.jsonl")), record]:
        now = path.read_bytes()
        # What was whole when a run was killed stands there for good.
        assert now.startswith(before), path.name
        before = now[: now.rfind(b"\n") + 1]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    keys = [line["key"] for line in lines if line["line"] == "row"]
    assert len(keys) == len(set(keys))
    assert set(keys) == set(read_record(tmp_path / "whole").rows)
    assert sum(line["line"] == "resumption" for line in lines) >= KILLS // 2


def test_ctrl_c_leaves_a_row_and_one_line(tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text(TINY.replace("context: 256", "context: 8K").replace("q_heads: 4", "q_heads: 8"))
    run = tmp_path / "run"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    # A shell starts what runs in the background deaf to Ctrl-C, and so would be its children.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    started = subprocess.Popen(
        [sys.executable, "-m", "lcprof", "measure", str(slow), "--device", "cpu", "-o", str(run),
         "--sustained", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    record = run / "record.jsonl"
    until = time.monotonic() + 120
    while not (record.exists() and record.stat().st_size) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.0)
    started.send_signal(signal.SIGINT)
    out, told = started.communicate(timeout=120)
    assert started.returncode == 130, told
    assert told == f"interrupted: {run} keeps what was measured; --resume goes on\n"
    assert out == ""
    rows = list(read_record(run).rows.values())
    assert (rows[-1].status, rows[-1].reason) == ("interrupted", "Ctrl-C")


def written(run: Path, *rows: Any, **told: Any) -> str:
    writer = Writer.start(run, provenance(**told))
    for each in rows:
        writer.append(each)
    writer.close()
    return str(run)


def test_comparisons_as_json(tmp_path: Path, capsys: Output) -> None:
    told = Predicted(seconds=0.9e-3, floor_s=0.5e-3, held_out=True)
    run = written(tmp_path / "a", row("x", predicted=told), row("y"))
    assert main(["compare", run, "--json"]) == 0
    first, floor = json.loads(capsys.readouterr().out)
    names = {"op", "metric", "predicted", "measured", "error", "held_out"}
    assert names <= set(first)
    assert (first["op"], first["metric"], first["held_out"]) == ("gemm", "seconds", True)
    assert first["error"] == pytest.approx(-0.1)
    assert floor["metric"] == "floor_s"
    other = written(tmp_path / "b", row("x", measured=Measured(burst_s=2e-3)), driver="570")
    assert main(["compare", run, other, "--json"]) == 0
    (changed,) = json.loads(capsys.readouterr().out)
    assert changed["change"] == pytest.approx(1.0)
    assert main(["compare", run, other]) == 0
    assert "driver: - then 570" in capsys.readouterr().out


def test_a_limit_on_errors_is_for_expectations(tmp_path: Path, capsys: Output) -> None:
    near = Predicted(seconds=0.95e-3, floor_s=0.1e-3)
    run = written(tmp_path / "near", row("x", predicted=near))
    assert main(["compare", run, "--max-error", "10%"]) == 0
    assert main(["compare", run, "--max-error", "0.04"]) == 3
    capsys.readouterr()
    bare = written(tmp_path / "bare", row("x", predicted=Predicted(floor_s=0.1e-3)))
    assert main(["compare", bare, "--max-error", "10%"]) == 3
    assert "nothing was both predicted and measured" in capsys.readouterr().err
    slower = written(tmp_path / "slower", row("x", measured=Measured(burst_s=1.2e-3)))
    assert main(["compare", run, slower, "--max-error", "10%"]) == 3
    assert main(["compare", run, slower, "--max-error", "25%"]) == 0
    capsys.readouterr()
    assert main(["compare", run, "--max-error", "much"]) == 2
    assert "--max-error: given 'much'; expected a share" in error(capsys)


def test_a_run_as_csv(tmp_path: Path, capsys: Output) -> None:
    told = Predicted(seconds=0.9e-3, hbm_bytes=5.0, energy_j=0.5, uncalibrated_s=2e-3)
    got = Measured(burst_s=1e-3, throttle=("power limit",), power_w=650.0, energy_j=0.4)
    failed = row("y", status="failed", reason="no", measured=Measured())
    run = written(tmp_path / "a", row("x", predicted=told, measured=got), failed)
    assert main(["compare", run, "--csv", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["seconds_predicted"], first["seconds_measured"]) == ("0.0009", "0.001")
    assert float(first["seconds_error"]) == pytest.approx(-0.1)
    assert (first["hbm_bytes_predicted"], first["hbm_bytes_measured"]) == ("5.0", "")
    assert (first["energy_j_predicted"], first["energy_j_measured"]) == ("0.5", "0.4")
    assert float(first["energy_j_error"]) == pytest.approx(0.25)
    assert (first["sustained_s_predicted"], first["uncalibrated_s"]) == ("", "0.002")
    assert (first["throttle"], first["power_w"], first["shape"]) == (
        "power limit",
        "650.0",
        "rows=1",
    )
    assert (second["status"], second["reason"], second["seconds_measured"]) == ("failed", "no", "")
    assert main(["compare", run, "--csv", "/nonexistent/rows.csv"]) == 2
    assert "--csv" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere", "notes.txt"])
def test_what_is_no_record_is_one_line(name: str, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    assert main(["compare", str(tmp_path / name)]) == 2
    assert name in error(capsys)


@pytest.mark.parametrize(
    ("command", "unasked"),
    [
        (["compare", "/nowhere"], {"torch", "triton", "numpy", "lcprof_kernels", "pynvml"}),
        (["plan", "scenarios/smoke.yaml"], {"lcprof.measure", "lcprof.compare", "torch"}),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_a_command_loads_only_what_it_needs(command: list[str], unasked: set[str]) -> None:
    program = (
        f"import sys\nfrom lcprof.cli import main\nmain({command!r})\n"
        f"assert not {unasked!r} & set(sys.modules), {unasked!r} & set(sys.modules)"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    subprocess.run(
        [sys.executable, "-c", program],
        check=True, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
