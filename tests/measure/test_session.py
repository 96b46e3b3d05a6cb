"""A run from opening the processor to the last row, with the real reference kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import Board, Clock
from msgspec.structs import replace

from lcprof.errors import InputError
from lcprof.measure import session as room
from lcprof.measure.board import Facts, ImpossibleError, NoBoard, Stranger
from lcprof.measure.ceilings import CeilingWorkshop, ceilings_of, idle_row
from lcprof.measure.floors import floors
from lcprof.measure.points import Point, chosen_operations, implementations, points_of
from lcprof.measure.record import read_record
from lcprof.measure.runner import Settings
from lcprof.measure.session import Wish, busy, open_session, run_session
from lcprof.scenario.cases import expand
from lcprof.scenario.schema import read_scenario

QUICK = Settings(burst_s=0.0, least_rounds=2, sustained_s=0.001, profile=False)
SCENARIO = {
    "model": {"name": "tiny", "layers": 2, "hidden": 128, "q_heads": 4, "kv_heads": 2,
              "head_dim": 64, "intermediate": 256, "vocab": 512},
    "gpu": "l4", "context": 256, "output": 16, "concurrency": 2, "chunk": 64,
    "kv": ["bf16", "fp8", "h2o"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def points() -> list[Point]:
    cases = expand(read_scenario(SCENARIO, where="test"), where="test")
    return points_of(cases, impls=implementations((), "cpu"), only=chosen_operations(()),
                     device="cpu")  # fmt: skip


def wish(run: Path, **changes: Any) -> Wish:
    asked = points()
    told: dict[str, Any] = {
        "run": run, "points": asked, "predictions": floors(asked, None), "scenario": "tiny\n",
        "command": ("lcprof", "measure"),
    }  # fmt: skip
    return Wish(**told | changes)


def test_a_processor_really_measures_the_references(tmp_path: Path) -> None:
    result = run_session(open_session("cpu"), wish(tmp_path), replace(QUICK, profile=True))
    found = read_record(tmp_path)
    assert found.provenance.device == "cpu"
    assert found.provenance.scenario == "tiny\n"
    statuses = {row.status for row in found.rows.values()}
    assert statuses == {"measured", "not measurable"}
    assert sum(result.outcome.statuses.values()) == len(found.rows) == len(points())
    for row in found.rows.values():
        assert row.device == "cpu"
        if row.status != "measured":
            assert "h2o" in row.reason
            continue
        assert row.measured.burst_s is not None
        assert row.measured.burst_s > 0
        assert row.measured.launch == "cpu"
        assert row.measured.kernels
        assert row.measured.error is not None
        assert row.predicted.flops is not None
        assert row.predicted.floor_s is None
        assert "processor" in row.empty["power_w"]
        assert "PyTorch" in row.empty["peak_allocated_bytes"]
    assert {row.operation for row in found.rows.values() if row.status == "measured"} == {
        "prefill_attention", "decode_attention", "quantised_decode", "append", "gemm",
    }  # fmt: skip


def test_going_on_measures_the_rest_and_nothing_twice(tmp_path: Path) -> None:
    some = points()[:2]
    run_session(open_session("cpu"), wish(tmp_path, points=some), QUICK)
    first = read_record(tmp_path)
    with pytest.raises(InputError, match="--resume"):
        run_session(open_session("cpu"), wish(tmp_path), QUICK)
    path = tmp_path / "record.jsonl"
    with path.open("ab") as file:
        file.write(b'{"line":"row","key":"half')
    result = run_session(open_session("cpu"), wish(tmp_path, resume=True), QUICK)
    assert result.dropped_bytes == len('{"line":"row","key":"half')
    found = read_record(tmp_path)
    assert {key: found.rows[key] for key in first.rows} == first.rows
    assert len(found.rows) == len(points())
    again = run_session(open_session("cpu"), wish(tmp_path, resume=True), QUICK)
    assert again.outcome.statuses == {}


def test_ceilings_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "IDLE_S", 0.0)
    monkeypatch.setattr("lcprof.measure.ceilings.CPU_BYTES", 1 << 20)
    monkeypatch.setattr("lcprof.measure.ceilings.CPU_SIDE", 64)
    run_session(open_session("cpu"), wish(tmp_path, points=points()[:1], ceilings=True), QUICK)
    rows = list(read_record(tmp_path).rows.values())
    assert [row.key for row in rows[:-1]] == [
        "ceiling idle", "ceiling read", "ceiling write", "ceiling copy", "ceiling gemm bf16",
        "ceiling gemm fp32", "ceiling launch",
    ]  # fmt: skip
    assert (rows[0].status, rows[0].reason) == (
        "not measurable", "a processor has no board that NVML reads",
    )  # fmt: skip
    for row in rows[1:-1]:
        assert row.status == "measured", row.reason
        got = row.measured
        assert got.burst_s is not None
        moved = {"ceiling read": 1, "ceiling write": 1, "ceiling copy": 2}.get(row.key)
        if moved:
            assert got.rate_bytes_per_s == pytest.approx(moved * 2**20 / got.burst_s)
        if "gemm" in row.key:
            assert got.rate_flops_per_s == pytest.approx(2 * 64**3 / got.burst_s)
            assert got.rate_bytes_per_s is None


def test_a_gpu_has_more_ceilings() -> None:
    kinds = [each.kind for each in ceilings_of("cuda")]
    assert kinds == ["read", "write", "copy", "gemm bf16", "gemm fp16", "gemm tf32", "gemm fp8",
                     "host to device", "device to host", "launch"]  # fmt: skip
    workshop = CeilingWorkshop(place=torch.device("cpu"))
    for each in ceilings_of("cuda"):
        assert workshop.needed_bytes(each) > 0
        assert set(workshop.rates(each, 1.0)) <= {"rate_bytes_per_s", "rate_flops_per_s"}


def test_a_board_at_rest() -> None:
    clock = Clock()
    row = idle_row(Board(), "cuda", seconds=2.0, clock=clock, sleep=lambda seconds: None)
    assert (row.status, row.measured.idle_power_w) == ("measured", 500.0)
    assert row.measured.energy_j is None
    told = NoBoard("NVML: Not Found")
    row = idle_row(told, "cuda", seconds=0.0, clock=clock, sleep=lambda seconds: None)
    assert (row.status, row.reason) == ("not measurable", "NVML: Not Found")


def test_a_busy_board_is_refused_unless_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(others=[Stranger(pid=12, used_bytes=12e9), Stranger(pid=13)])
    assert busy(board) == "2 other processes are on the GPU (12, 13), holding 12.0 GB"
    assert busy(Board(others=[Stranger(pid=12)])).startswith("another process is on the GPU (12)")
    assert busy(Board()) == ""
    monkeypatch.setattr(room, "board_of_gpu", lambda index: board)
    monkeypatch.setattr(room, "open_device", lambda kind, index: None)
    with pytest.raises(ImpossibleError, match="--beside-others"):
        open_session("cuda")
    assert open_session("cuda", beside_others=True).facts == board.facts()


def test_without_triton_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_spec", lambda name: None if name == "triton" else object())
    with pytest.raises(ImpossibleError, match="pip install triton"):
        open_session("cpu")


def test_a_processor_has_no_board() -> None:
    session = open_session("cpu")
    assert isinstance(session.board, NoBoard)
    assert session.facts == Facts()
    assert "threads" in session.name


@pytest.mark.gpu
def test_a_gpu_measures_every_strategy_and_says_why_where_it_does_not(tmp_path: Path) -> None:
    asked = {
        "model": ["llama-3.1-8b", "deepseek-v3"], "gpu": "h200-sxm", "gpus": 8, "context": "8K",
        "output": 16, "concurrency": 4, "chunk": 2048,
        "kv": ["bf16", "fp8", "fp8:scale=token-head", "int8", "int4:group=64", "kivi:group=64",
               "window:tokens=1024,sinks=4", "quest:page=16,top=64", "h2o"],
    }  # fmt: skip
    cases = expand(read_scenario(asked, where="test"), where="test")
    made = points_of(cases, impls=("triton",), only=chosen_operations(()), device="cuda")
    session = open_session("cuda", beside_others=True)
    run_session(
        session,
        wish(tmp_path, points=made, predictions=floors(made, None), ceilings=True),
        Settings(burst_s=0.05, sustained_s=0.3, flops_per_cycle=540672.0),
    )
    for row in read_record(tmp_path).rows.values():
        assert row.status in ("measured", "not measurable"), (row.key, row.status, row.reason)
        if row.status != "measured" or row.key == "ceiling idle":
            continue
        got = row.measured
        assert got.burst_s is not None, row.key
        assert got.sustained_s is not None, row.key
        assert got.peak_allocated_bytes is not None, row.key
        if "kernels" not in row.empty:
            assert got.launches, row.key
        for column in ("power_w", "energy_j", "sm_clock_hz", "peak_used_bytes", "hbm_bytes"):
            assert getattr(got, column) is not None or row.empty[column], (row.key, column)
        if row.predicted.peak_bytes:
            assert got.peak_allocated_bytes == pytest.approx(row.predicted.peak_bytes, rel=0.2)
