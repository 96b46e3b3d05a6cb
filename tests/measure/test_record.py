"""Records: written row by row, read back, resumed, and refused with line and reason."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from measure_worker import POINTS
from measuring import provenance, row

from lcprof.errors import InputError
from lcprof.measure.record import Writer, read_record
from lcprof.measure.row import Kernel, Measured, Predicted

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER = ROOT / "tests" / "measure_worker.py"
KILLS = 10


def written(run: Path, *keys: str) -> Path:
    writer = Writer.start(run, provenance())
    for key in keys:
        writer.append(row(key))
    writer.close()
    return run / "record.jsonl"


def refused(run: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_record(run)
    (fault,) = caught.value.faults
    return str(fault)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    told = row(
        "a",
        shape={"rows": 4, "format": "bf16"},
        predicted=Predicted(seconds=1e-3, low=5e-4, high=2e-3, basis="calibrated", held_out=True),
        measured=Measured(
            burst_s=1.5e-3,
            throttle=("power limit",),
            kernels=(Kernel(name="k", launches=1, seconds=1e-3, grid=(1, 2, 3), registers=64),),
        ),
        empty={"hbm_bytes": "no counters"},
    )
    writer = Writer.start(tmp_path / "run", provenance(ecc=True))
    writer.append(told)
    read = read_record(tmp_path / "run")  # while it is open
    writer.close()
    assert read.rows == {"a": told}
    assert read.provenance == provenance(ecc=True)
    assert read_record(tmp_path / "run" / "record.jsonl").rows == read.rows


def test_each_line_is_plain_json(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path, "a", "b").read_text().splitlines()]
    assert [line["line"] for line in lines] == ["provenance", "row", "row"]
    assert lines[1]["measured"] == {"burst_s": 1e-3}


def test_a_record_of_earlier_days_is_read(tmp_path: Path) -> None:
    """As the first lcprof that measured wrote it: no ranks, no energy expected, nothing counted."""
    told = json.loads(msgspec.json.encode(provenance()))
    del told["ranks"]
    line = {
        "line": "row", "key": "a", "operation": "gemm", "shape": {"rows": 1}, "device": "cuda",
        "implementation": "torch", "status": "measured",
        "predicted": {"seconds": 1e-3, "low": 5e-4, "high": 2e-3, "basis": "fit"},
        "measured": {"burst_s": 1e-3, "energy_j": 0.5, "hbm_bytes": 3.0},
    }  # fmt: skip
    (tmp_path / "record.jsonl").write_text(f"{json.dumps(told)}\n{json.dumps(line)}\n")
    read = read_record(tmp_path)
    assert read.provenance.ranks == 1
    got, expected = read.rows["a"].measured, read.rows["a"].predicted
    assert (got.moved_bytes, got.counted_by, expected.energy_j) == (3.0, "", None)
    writer, _ = Writer.resume(tmp_path, provenance())
    writer.close()


def test_the_last_row_of_a_key_counts_and_says_whether_it_is_finished(tmp_path: Path) -> None:
    writer = Writer.start(tmp_path, provenance())
    for status in ("out of memory", "measured"):
        writer.append(row("a", status=status))
    for status in ("interrupted", "does not fit", "failed", "lost"):
        writer.append(row(status, status=status))
    for status in ("wrong", "refused", "not measurable"):
        writer.append(row(status, status=status))
    writer.close()
    found = read_record(tmp_path)
    assert list(found.rows)[:2] == ["a", "interrupted"]
    assert found.finished == {"a", "wrong", "refused", "not measurable"}


def test_a_record_torn_anywhere_in_its_last_line_resumes(tmp_path: Path) -> None:
    path = written(tmp_path, "a", "b")
    whole = path.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for end in range(begin, len(whole) + 1):
        path.write_bytes(whole[:end])
        read = read_record(tmp_path)
        # All but the newline is a whole row; less is none.
        kept = {"a", "b"} if end >= len(whole) - 1 else {"a"}
        assert set(read.rows) == kept
        assert read.torn_bytes == (0 if "b" in kept else end - begin)
        writer, found = Writer.resume(tmp_path, provenance())
        assert found is not None
        assert found.finished == kept
        writer.append(row("c"))
        writer.close()
        again = read_record(tmp_path)
        assert set(again.rows) == kept | {"c"}
        assert again.torn_bytes == 0
        assert [each.dropped_bytes for each in again.resumptions] == [read.torn_bytes]


def test_a_record_without_a_whole_first_line_starts_anew(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for end in (0, 1, 9, 40, len(whole) - 2):
        path.write_bytes(whole[:end])
        assert "no whole line" in refused(tmp_path)
        writer, found = Writer.resume(tmp_path, provenance())
        writer.close()
        assert found is None
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("not json\n", 1, "malformed"),
        ("not json", 1, "malformed"),
        ('{"a": 1}\n', 1, "line"),
        ("[1, 2]\n", 1, "object"),
        ("\x00\x01\n", 1, "malformed"),
        ("{provenance}{provenance}", 2, "first line"),
        ("{row}", 1, "first line"),
        ("{provenance}{row}garbage\n{row}", 3, "malformed"),
        ("{provenance}{row}\n{row}", 3, "truncated"),
        ('{provenance}{"line":"row","key":3}\n', 2, "str"),
        ('{provenance}{"line":"row","key":"a"}\n', 2, "missing"),
        ("{provenance}{row}half a ro", 3, "malformed"),
        ("{later}", 1, "format 2"),
        (
            '{"line":"provenance","format":9,"place":"elsewhere"}\n',
            1,
            "format 9; this lcprof reads",
        ),
    ],
)
def test_damaged_and_foreign_records_are_refused(
    tmp_path: Path, text: str, line: int, reason: str
) -> None:
    path = tmp_path / "record.jsonl"
    parts = {
        "provenance": provenance(),
        "row": row("a"),
        "later": provenance(format=2),
    }
    for name, part in parts.items():
        text = text.replace("{" + name + "}", msgspec.json.encode(part).decode() + "\n")
    path.write_text(text)
    told = refused(tmp_path)
    assert told.startswith(f"{path}: line {line}: given ")
    assert reason in told
    assert "\n" not in told
    with pytest.raises(InputError):
        Writer.resume(tmp_path, provenance())
    assert path.read_text() == text


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello\n")
    assert "line 1" in refused(tmp_path / "notes.txt")
    (tmp_path / "endless").write_bytes(b"x" * (17 << 20))
    assert "line 1" in refused(tmp_path / "endless")


def test_an_old_record_is_not_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path, "a")
    before = path.read_bytes()
    with pytest.raises(InputError, match="--resume"):
        Writer.start(tmp_path, provenance())
    assert path.read_bytes() == before


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --resume"):
        Writer.resume(tmp_path / "nowhere", provenance())


def test_another_gpu_or_scenario_is_not_resumed(tmp_path: Path) -> None:
    path = written(tmp_path, "a")
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        Writer.resume(tmp_path, provenance(gpu="NVIDIA Other", scenario_sha256="11"))
    assert [fault.key for fault in caught.value.faults] == ["GPU", "scenario (by its hash)"]
    assert path.read_bytes() == before


def test_two_runs_do_not_write_one_record(tmp_path: Path) -> None:
    writer = Writer.start(tmp_path, provenance())
    with pytest.raises(InputError, match="no other lcprof measure"):
        Writer.resume(tmp_path, provenance())
    writer.append(row("a"))
    writer.close()


@pytest.mark.parametrize("where", ["/dev/null/run", "/proc/run", "a\0b"])
def test_a_place_that_cannot_be_written_is_one_line(where: str) -> None:
    with pytest.raises(InputError) as caught:
        Writer.start(Path(where), provenance())
    (fault,) = caught.value.faults
    assert fault.where == "-o"


def worker(run: Path, log: Path, how: str, limit: int = 0) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(run), str(log), how, str(limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    # A limit on the file's size stops a write half-way, as a full disk does.
    limit = 5000
    ran = worker(tmp_path, tmp_path / "log", "start", limit)
    _, told = ran.communicate(timeout=120)
    assert ran.returncode == 2, told
    assert told.startswith("-o: given ")
    assert "a record that can be written (File too large)" in told
    assert told.count("\n") == 1
    path = tmp_path / "record.jsonl"
    assert path.stat().st_size <= limit
    found = read_record(tmp_path)
    assert found.torn_bytes == 0
    assert 1 < len(found.rows) < POINTS


def test_killed_at_ten_random_moments_nothing_is_lost_or_measured_twice(tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "record.jsonl"
    draw = random.Random()
    begun = 0
    for _ in range(KILLS):
        ran = worker(tmp_path, log, "resume" if path.exists() else "start")
        assert ran.stdout is not None
        assert ran.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.0, 0.06))
        ran.send_signal(signal.SIGKILL)
        ran.communicate()
        assert ran.returncode == -signal.SIGKILL
        logged = log.read_text().splitlines() if log.exists() else []
        done = read_record(tmp_path).finished if path.exists() and path.stat().st_size else set()
        # Whatever was begun is in the record, but for the point that was under way.
        assert len(set(logged) - set(done)) <= 1
        # What was in the record is not begun again.
        again = Counter(logged)
        assert sum(count - 1 for count in again.values()) <= begun + 1
        begun = sum(count - 1 for count in again.values())
    ran = worker(tmp_path, log, "resume" if path.exists() else "start")
    _, told = ran.communicate(timeout=120)
    assert ran.returncode == 0, told
    found = read_record(tmp_path)
    assert set(found.rows) == {f"point {number}" for number in range(POINTS)}
    assert found.torn_bytes == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = Counter(line["key"] for line in lines if line["line"] == "row")
    assert set(keys.values()) == {1}
    assert sum(line["line"] == "resumption" for line in lines) >= 1
