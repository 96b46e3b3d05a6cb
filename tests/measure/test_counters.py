"""Nsight Compute: what it is asked, what it prints, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import Board as Gpm
from measuring import Clock, Device, Task, Workshop

from lcprof.measure import counted
from lcprof.measure.counters import (
    NAME,
    CountersError,
    Counts,
    NoCounter,
    NsightCompute,
    counts_of,
    tensor_metrics,
)
from lcprof.measure.row import Measured, Row
from lcprof.measure.runner import Runner, Settings
from lcprof.measure.work import prepare

HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)


def line(number: int, kernel: str, metric: str, unit: str, value: str) -> str:
    where = '"4242","python3.12","127.0.0.1"'
    shape = '"1","7","(128, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics"'
    return f'"{number}",{where},"{kernel}",{shape},"{metric}","{unit}","{value}"'


BF16 = "sm__ops_path_tensor_src_bf16_dst_fp32.sum"
# A decode kernel over 512 MiB of keys and values, and the one that adds its parts up.
PRINTED = "\n".join(
    [
        "==PROF== Connected to process 4242 (/usr/bin/python3.12)",
        '==PROF== Profiling "split_decode" - 0: 0%....50%....100% - 4 passes',
        '==PROF== Profiling "merge" - 1: 0%....50%....100% - 4 passes',
        "==PROF== Disconnected from process 4242",
        HEAD,
        line(0, "split_decode(float, int)", "dram__bytes_read.sum", "byte", "536,870,912"),
        line(0, "split_decode(float, int)", "dram__bytes_write.sum", "byte", "65,536"),
        line(0, "split_decode(float, int)", BF16, "", "4,294,967,296"),
        line(1, 'merge<"a">'.replace('"', '""'), "dram__bytes_read.sum", "byte", "65,536"),
        line(1, 'merge<"a">'.replace('"', '""'), "dram__bytes_write.sum", "byte", "8,192"),
        line(1, 'merge<"a">'.replace('"', '""'), BF16, "", "0"),
        "",
    ]
)
QUERY = """\
Device NVIDIA H200 (GH100)
--------------------------------------- --------------- --------------- ------------------------
Metric Name                             Metric Type     Metric Unit     Metric Description
--------------------------------------- --------------- --------------- ------------------------
dram__bytes_read                        Counter         byte            # of bytes read from DRAM
sm__ops_path_tensor_src_bf16_dst_fp32   Counter                         # of math ops executed
sm__ops_path_tensor_src_fp16            Counter                         # of math ops executed
sm__ops_path_tensor_src_fp16_dst_fp16   Counter                         # of math ops executed
sm__ops_path_tensor_src_fp16_dst_fp32   Counter                         # of math ops executed
sm__ops_path_tensor_src_fp8_dst_fp16    Counter                         # of math ops executed
sm__ops_path_tensor_src_fp8_dst_fp32    Counter                         # of math ops executed
"""
REFUSAL = """\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the target device 0. For instructions on enabling permissions and to get more information see https://developer.nvidia.com/ERR_NVGPUCTRPERM
==PROF== Disconnected from process 4242
==WARNING== No kernels were profiled.
"""  # noqa: E501
GEMM = Task("a", operation="gemm", implementation="torch")


def test_counts_are_added_up_over_kernels() -> None:
    found = counts_of(PRINTED)
    assert found.read_bytes == 536_870_912 + 65_536
    assert found.write_bytes == 65_536 + 8_192
    assert found.flops == 2**32
    assert counts_of(PRINTED, tensor=False).flops is None


def test_units_other_than_the_base_are_read() -> None:
    text = "\n".join(
        [
            HEAD,
            line(0, "k", "dram__bytes_read.sum", "Mbyte", "536.87"),
            line(0, "k", "dram__bytes_write.sum", "Kbyte", "1.5"),
            line(0, "k", BF16, "", "n/a"),
        ]
    )
    found = counts_of(text)
    assert (found.read_bytes, found.write_bytes) == pytest.approx((536.87e6, 1500.0))
    assert found.flops == 0.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "saw no kernel"),
        (
            "==PROF== Connected to process 4242\n==WARNING== No kernels were profiled.\n",
            "no kernel",
        ),
        (HEAD, "saw no kernel"),
        (HEAD + "\n" + line(0, "k", "dram__bytes_read.sum", "byte", "1"), "dram__bytes_write.sum"),
        (HEAD + "\n" + line(0, "k", "dram__bytes_read.sum", "byte", "n/a"), "dram__bytes_read.sum"),
        (HEAD + '\n"0","4242"', "saw no kernel"),
    ],
)
def test_what_lacks_a_kernels_bytes_is_refused(text: str, why: str) -> None:
    with pytest.raises(CountersError, match=why):
        counts_of(text)


def test_a_type_is_counted_once_whatever_forms_a_chip_has() -> None:
    base = "sm__ops_path_tensor_src_"
    available = {each.split()[0] for each in QUERY.splitlines()}
    assert tensor_metrics(available) == (
        f"{base}bf16_dst_fp32.sum",
        f"{base}fp16.sum",
        f"{base}fp8_dst_fp16.sum",
        f"{base}fp8_dst_fp32.sum",
    )
    assert tensor_metrics({"dram__bytes_read"}) == ()


class Ncu:
    """`ncu` as the module calls it: answers a query, then writes its log."""

    def __init__(self, log: str, *, code: int = 0, stderr: str = "", query: str = QUERY) -> None:
        self.log, self.code, self.stderr, self.query = log, code, stderr, query
        self.asked: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        if "--query-metrics" in command:
            return subprocess.CompletedProcess(command, 0, self.query, "")
        Path(command[list(command).index("--log-file") + 1]).write_text(self.log)
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


def test_a_call_is_run_under_ncu_by_its_shape() -> None:
    ncu = Ncu(PRINTED)
    tool = NsightCompute("/opt/ncu", ncu)
    for _ in range(2):
        assert tool.count(GEMM).flops == 2**32
    query, first, second = ncu.asked
    assert query == ["/opt/ncu", "--query-metrics"]
    assert first[0] == "/opt/ncu"
    metrics = first[first.index("--metrics") + 1].split(",")
    assert metrics[:3] == ["dram__bytes_read.sum", "dram__bytes_write.sum", BF16]
    for option, value in (("--profile-from-start", "off"), ("--clock-control", "none")):
        assert first[first.index(option) + 1] == value
    program, *rest = first[first.index(sys.executable) :]
    assert (program, rest[:2]) == (sys.executable, ["-m", "lcprof.measure.counted"])
    assert json.loads(rest[2]) == {
        "operation": "gemm", "shape": {"name": "a"}, "implementation": "torch",
    }  # fmt: skip
    assert rest == second[second.index(sys.executable) + 1 :]


def test_without_rights_ncu_is_asked_once_and_says_the_remedy() -> None:
    ncu = Ncu(REFUSAL, code=1)
    tool = NsightCompute("/opt/ncu", ncu)
    for _ in range(2):
        with pytest.raises(CountersError, match=r"ERR_NVGPUCTRPERM: let users read counters: .*=0"):
            tool.count(GEMM)
    assert len(ncu.asked) == 2
    assert "ERR_NVGPUCTRPERM" in NsightCompute("/opt/ncu", Ncu(REFUSAL, code=1)).refusal()
    assert NsightCompute("/opt/ncu", Ncu(PRINTED)).refusal() == ""


@pytest.mark.parametrize(
    ("log", "stderr", "why"),
    [
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n", "", "LibraryNotLoaded"),
        ("", "Traceback\ntorch.OutOfMemoryError: CUDA out of memory\n", "CUDA out of memory"),
        ("", "", "no word .exit status 9."),
    ],
)
def test_whatever_fails_is_one_line(log: str, stderr: str, why: str) -> None:
    tool = NsightCompute("/opt/ncu", Ncu(log, code=9, stderr=stderr))
    with pytest.raises(CountersError, match=why) as caught:
        tool.count(GEMM)
    assert "\n" not in str(caught.value)


def test_a_real_process_is_waited_for_and_one_that_is_not_there_refused(tmp_path: Path) -> None:
    script = tmp_path / "ncu"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --query-metrics ]; then echo sm__ops_path_tensor_src_fp16; exit; fi\n'
        '[ "$LC_ALL" = C ] && cat > "$3" <<"END"\n'
        f"{HEAD}\n"
        f"{line(0, 'k', 'dram__bytes_read.sum', 'byte', '4')}\n"
        f"{line(0, 'k', 'dram__bytes_write.sum', 'byte', '2')}\n"
        "END\n"
    )
    script.chmod(0o700)
    assert NsightCompute(str(script)).count(GEMM) == Counts(read_bytes=4, write_bytes=2, flops=0)
    with pytest.raises(CountersError, match="No such file"):
        NsightCompute(str(tmp_path / "none")).count(GEMM)

    def late(command: Sequence[str]) -> Any:
        raise subprocess.TimeoutExpired(command, 300)

    with pytest.raises(CountersError, match="longer than 300 s"):
        NsightCompute("/opt/ncu", late).count(GEMM)


def measured(counter: Any) -> Row:
    clock, rows = Clock(), list[Row]()
    runner = Runner(
        device=Device(clock), board=Gpm(), workshop=Workshop(clock), append=rows.append,
        settings=Settings(burst_s=0.0, sustained_s=0.05, flops_per_cycle=1e3), clock=clock,
        counter=counter,
    )  # fmt: skip
    runner.run([Task("a"), Task("wrong", error=0.9)], {})
    assert rows[1].status == "wrong"
    assert rows[1].measured.counted_by == ""
    return rows[0]


def test_a_row_has_the_counts_beside_the_shares_of_peaks() -> None:
    row = measured(NsightCompute("/opt/ncu", Ncu(PRINTED)))
    got = row.measured
    assert (got.counted_read_bytes, got.counted_write_bytes) == (536_936_448, 73_728)
    assert (got.counted_flops, got.counted_by) == (2**32, NAME)
    assert got.hbm_bytes is not None
    assert got.hbm_bytes != got.moved_bytes
    assert (got.moved_bytes, got.tensor_flops) == (537_010_176, 2**32)
    assert row.empty == {}
    shares = Measured(hbm_bytes=3.0, flops=4.0)
    assert (shares.moved_bytes, shares.tensor_flops) == (3.0, 4.0)


def test_a_row_says_why_nothing_was_counted() -> None:
    row = measured(NoCounter("no ncu here"))
    assert row.status == "measured"
    assert set(row.empty.values()) == {"no ncu here"}
    assert set(row.empty) == {"counted_read_bytes", "counted_write_bytes", "counted_flops"}
    row = measured(NsightCompute("/opt/ncu", Ncu(PRINTED, query="dram__bytes_read Counter\n")))
    assert row.measured.counted_read_bytes is not None
    assert "no counter of tensor operations" in row.empty["counted_flops"]


def test_ctrl_c_while_counting_leaves_a_row() -> None:
    class Interrupted:
        def count(self, task: object) -> Counts:
            raise KeyboardInterrupt

    clock, rows = Clock(), list[Row]()
    runner = Runner(
        device=Device(clock), board=Gpm(), workshop=Workshop(clock), append=rows.append,
        settings=Settings(burst_s=0.0, sustained_s=0.0), clock=clock, counter=Interrupted(),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        runner.run([Task("a")], {})
    assert [row.status for row in rows] == ["interrupted"]


def test_the_child_prepares_what_it_is_asked_for() -> None:
    shape = {"rows": 4, "depth": 8, "columns": 16, "format": "bf16"}
    asked = counted.Asked(operation="gemm", shape=shape, implementation="torch")
    assert prepare(asked, torch.device("cpu")).run().shape == (4, 16)


@pytest.mark.gpu
def test_ncu_counts_a_product_exactly() -> None:
    path = shutil.which("ncu")
    if path is None:
        pytest.skip("no ncu here")
    shape = {"rows": 4096, "depth": 4096, "columns": 4096, "format": "bf16"}
    asked = counted.Asked(operation="gemm", shape=shape, implementation="torch")
    found = NsightCompute(path).count(asked)
    assert found.flops == 2 * 4096**3
    # Both factors once at least, and the L2 keeps most of them.
    assert 2 * 2 * 4096**2 <= found.read_bytes < 4 * 2 * 4096**2
