from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lcprof_kernels.bench.__main__ import (
    COLUMNS,
    describe,
    main,
    run_case,
    show,
    unmeasured_first,
)
from lcprof_kernels.bench.case import CASES, Case, cases_of
from lcprof_kernels.bench.ceilings import Ceilings
from lcprof_kernels.decode import decode_attention
from lcprof_kernels.decode.cases import decode_case

REPORTS = Path(__file__).parents[2] / "reports" / "kernels-h200"
ASKED = {
    "op", "impl", "dtype", "kv_dtype", "batch", "q_heads", "kv_heads", "head_dim", "query_tokens",
    "context_tokens", "window_tokens", "page_tokens", "causal", "median_s", "p20_s", "p80_s",
    "bytes", "flops", "sm_mhz", "power_w", "max_error", "gpu", "commit",
}  # fmt: skip


@pytest.mark.parametrize("op", sorted(CASES))
@pytest.mark.parametrize("quick", [True, False])
def test_every_operation_lists_its_cases(op: str, quick: bool) -> None:
    cases = cases_of(op, quick=quick)
    titles = [case.title for case in cases]
    assert cases
    assert len(set(titles)) == len(titles)
    for case in cases:
        assert case.op == op
        assert case.bytes > 0
        # Appending multiplies no matrices.
        assert (case.flops > 0) == (op != "append")
        assert case.implementations
        assert set(describe(case)) < set(COLUMNS)


def test_columns() -> None:
    assert set(COLUMNS) >= ASKED
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_cases_without_a_timing_come_first(tmp_path: Path) -> None:
    """Of a table without KIVI: the shapes it holds come last, every KIVI shape before them."""
    table = tmp_path / "timed.csv"
    lines = (REPORTS / "quantised_decode.csv").read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if "kivi" not in line))
    cases = cases_of("quantised_decode", quick=False)
    ordered = unmeasured_first(cases, [table])
    with table.open(newline="") as file:
        timed = len(
            {tuple(row[name] for name in describe(cases[0])) for row in csv.DictReader(file)}
        )
    assert 0 < timed < len(cases)
    assert all("kivi" not in case.variant for case in ordered[-timed:])
    assert any("kivi" in case.variant for case in ordered[:-timed])
    assert sorted(case.title for case in ordered) == sorted(case.title for case in cases)
    failed = tmp_path / "failed.csv"
    failed.write_text(table.read_text().replace(",ok,", ",wrong result,"))
    assert unmeasured_first(cases, [failed]) == cases


def refuse(_: Any) -> torch.Tensor:
    raise RuntimeError("cannot\nat all")


def test_what_cannot_be_timed_is_a_row_with_a_reason() -> None:
    case = decode_case(batch=1, heads=(2, 1), head_dim=64, context_tokens=32)
    case = replace(
        case,
        implementations={
            "wrong": lambda prepared: torch.full_like(prepared.given.q, 9.0),
            "refuses": refuse,
        },
    )
    nothing: Any = None
    rows = run_case(case, torch.device("cpu"), flush=nothing, nvml=nothing, limit_s=0.1)
    assert [(row["impl"], row["status"]) for row in rows] == [
        ("wrong", "wrong result"),
        ("refuses", "RuntimeError: cannot"),
    ]
    assert rows[0]["max_error"] > rows[0]["allowed_error"]  # type: ignore[operator]
    shown = io.StringIO()
    show(case, rows, Ceilings(read_bytes_per_s=1.0, copy_bytes_per_s=1.0, gemm_flops=1.0), shown)
    assert "wrong result" in shown.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"page_tokens": 16},
        {"window_tokens": 64, "sink_tokens": 4},
        {"ragged": True},
        {"query_tokens": 4},
    ],
)
def test_decode_cases_check_true_and_false_results(changes: dict[str, Any]) -> None:
    """Each layout of a case holds the same tokens: the eager steps on it pass the check."""
    case: Case = decode_case(batch=2, heads=(4, 2), head_dim=64, context_tokens=256, **changes)
    prepared = case.make_inputs(torch.device("cpu"))
    for layout in ("given", "dense", "ring"):
        inputs = getattr(prepared, layout)
        if inputs is None:
            continue
        out, _ = decode_attention(**inputs.arguments(), impl="naive")
        error, allowed = case.check(prepared, out)
        assert error <= allowed, layout
        assert case.check(prepared, out + 0.1)[0] > allowed


def test_bytes_and_flops_by_hand() -> None:
    case = decode_case(batch=2, heads=(8, 2), head_dim=64, context_tokens=1000)
    kv = 2 * 1000 * 2 * 64 * 2 * 2  # sequences, tokens, heads, dim, K and V, two bytes
    assert case.bytes == kv + 2 * 8 * (64 * 2 * 2 + 4)
    assert case.flops == 2 * 1000 * 8 * 64 * 2 * 2  # q.k and p.v, multiply and add
    window = decode_case(
        batch=2, heads=(8, 2), head_dim=64, context_tokens=9000, window_tokens=996, sink_tokens=4
    )
    assert (window.bytes, window.flops) == (case.bytes, case.flops)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_card_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
