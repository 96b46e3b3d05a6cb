from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
import torch

from lcprof_kernels import caches
from lcprof_kernels.append.cases import append_case
from lcprof_kernels.bench.case import CASES, Case, Choices, cases_of
from lcprof_kernels.bench.timing import Timing
from lcprof_kernels.bench.tune import (
    COLUMNS,
    MISSED,
    Tried,
    arguments,
    main,
    selected,
    verdicts,
    walk,
    words_of,
)
from lcprof_kernels.mla.cases import mla_case
from lcprof_kernels.quantised_decode.cases import decode_case

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A stand-in for a launch record."""

    block: int
    stages: int = 2
    inner: Record | None = None


def timing(seconds: float) -> Timing:
    return Timing(
        median_s=seconds,
        p20_s=seconds,
        p80_s=seconds,
        rounds=1,
        launch="eager",
        sm_mhz=None,
        power_w=None,
    )


def timed_by_result(runs: Mapping[str, Callable[[], Any]]) -> dict[str, Timing]:
    """A timer that believes what a run returns."""
    return {name: timing(float(run())) for name, run in runs.items()}


def case_of(seconds: Mapping[int, float], title: str = "shape") -> Case:
    """A case whose runs return the seconds of their block; block 0 gives a wrong result."""
    case = decode_case(caches.int8_per_token(), batch=1, context_tokens=64)

    def run(_: object, record: Record) -> float:
        if record.block not in seconds:
            raise RuntimeError("does not fit")
        return seconds[record.block]

    blocks = list(seconds)
    return replace(
        case,
        variant=title,
        make_inputs=lambda _: None,
        check=lambda _, result: (float(result > 99), 0.5),
        choices=lambda _: Choices(
            place="table[0]",
            present=Record(block=blocks[0]),
            others=tuple(Record(block=block) for block in blocks[1:]),
            run=run,
        ),
    )


def walked(
    cases: list[Case], *, budget_s: float = 1e9, clock: Callable[[], float] = lambda: 0.0
) -> tuple[list[Tried], list[dict[str, object]], str]:
    rows: list[dict[str, object]] = []
    out = io.StringIO()
    tried = walk(
        cases,
        CPU,
        timer=timed_by_result,
        budget_s=budget_s,
        write=rows.append,
        out=out,
        clock=clock,
    )
    return tried, rows, out.getvalue()


def test_each_choice_is_a_row_beside_the_present_one() -> None:
    tried, rows, shown = walked([case_of({64: 4.0, 32: 2.0, 16: 5.0})])
    assert [(row["choice"], row["present_s"], row["ratio"]) for row in rows] == [
        ("Record(block=64)", 4.0, 1.0),
        ("Record(block=32)", 4.0, 0.5),
        ("Record(block=16)", 4.0, 1.25),
    ]
    assert all(set(row) <= set(COLUMNS) for row in rows)
    assert [entry.present for entry in tried] == [True, False, False]
    assert "0.500" in shown


def test_a_wrong_result_is_never_timed() -> None:
    tried, rows, _ = walked([case_of({64: 4.0, 32: 100.0})])
    assert rows[1]["status"] == "wrong result"
    assert "median_s" not in rows[1]
    assert tried[1].ratio is None


def test_a_choice_that_cannot_run_is_a_row_with_a_reason() -> None:
    case = case_of({64: 4.0})
    assert case.choices is not None
    choices = replace(case.choices(CPU), others=(Record(block=7),))
    _, rows, _ = walked([replace(case, choices=lambda _: choices)])
    assert rows[1]["status"] == "RuntimeError: does not fit"


def test_nothing_is_tried_after_an_error_that_ends_the_context() -> None:
    case = case_of({64: 4.0, 32: 2.0})

    def broken(_: object, record: Record) -> float:
        if record.block == 32:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 4.0

    assert case.choices is not None
    choices = replace(case.choices(CPU), run=broken)
    tried, _, shown = walked([replace(case, choices=lambda _: choices), case_of({64: 1.0})])
    assert [entry.ratio for entry in tried] == [1.0, None]
    assert "can run nothing more" in shown


def ticking(step: float) -> Callable[[], float]:
    ticks: Iterator[int] = count()
    return lambda: next(ticks) * step


def test_the_budget_is_shared_and_the_present_choice_always_timed() -> None:
    """Clock readings: 1 begun, 2 a case, 1 a choice: a share of about 10 lets some 8 be tried."""
    many = dict.fromkeys(range(1, 31), 1.0)
    cases = [case_of(many, "one"), case_of(many, "two")]
    tried, rows, shown = walked(cases, budget_s=20.0, clock=ticking(1.0))
    per_case = [sum(entry.title == case.title for entry in tried) for case in cases]
    assert all(5 <= number <= 12 for number in per_case), per_case
    assert len(rows) == len(tried)
    tried, rows, shown = walked(cases, budget_s=-1.0)
    assert tried == rows == []
    assert "is spent" in shown


def test_verdicts_compare_what_ran_on_every_case_of_a_place() -> None:
    """Geometric means by hand: sqrt(0.5 * 0.98) = 0.7, sqrt(0.81 * 1) = 0.9."""

    def entry(title: str, choice: str, ratio: float | None) -> Tried:
        return Tried(title=title, place="table[0]", choice=choice, present=False, ratio=ratio)

    lines = verdicts(
        [
            entry("one", "A()", 0.5),
            entry("one", "B()", 0.81),
            entry("one", "C()", 0.1),
            entry("two", "A()", 0.98),
            entry("two", "B()", 1.0),
            entry("two", "C()", None),
        ]
    )
    assert lines == [
        "table[0]: 2 cases, present 1.000",
        "  0.700 of its time (worst 0.980)  A()",
        "  0.900 of its time (worst 1.000)  B()",
    ]


def test_a_record_is_shown_as_it_is_written() -> None:
    record = Record(block=64, stages=3, inner=Record(block=1))
    shown = words_of(record)
    assert shown == "Record(block=64, stages=3, inner=Record(block=1))"
    assert eval(shown, {"Record": Record}) == record  # noqa: S307


def test_rows_are_picked_by_operation_and_title() -> None:
    picked = selected(["append:kivi-64 prefill", "mla:B64 32/1"], missed=False)
    assert {case.op for case in picked} == {"append", "mla"}
    assert all("kivi-64 prefill" in case.title or "B64 32/1" in case.title for case in picked)
    assert [case.title for case in selected([], missed=True)] == list(MISSED)


@pytest.mark.parametrize("op", sorted(CASES))
def test_every_place_has_one_present_record_and_others_that_differ(op: str) -> None:
    present: dict[str, object] = {}
    for case in cases_of(op, quick=False):
        choices = None if case.choices is None else case.choices(CPU)
        if choices is None:
            continue
        assert present.setdefault(choices.place, choices.present) == choices.present
        assert choices.present not in choices.others
        assert len(set(choices.others)) == len(choices.others)


SMALL = [
    decode_case(caches.fp8_per_token(), batch=1, context_tokens=64, page_tokens=64),
    decode_case(caches.int4_per_token(64), batch=1, context_tokens=64, heads=(4, 2), head_dim=64),
    decode_case(caches.int4_kivi(64, 64), batch=1, context_tokens=128, heads=(2, 1)),
    append_case(caches.int4_kivi(64, 64), batch=1, new_tokens=70),
    append_case(caches.int4_per_token(64), batch=1, new_tokens=40, page=True),
    mla_case(batch=1, q_heads=16, context_tokens=64),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.title)
def test_real_choices_run_and_pass_their_checks(case: Case) -> None:
    """In the interpreter, each of the first choices on a shape of a few tokens."""
    assert case.choices is not None
    choices = case.choices(CPU)
    few = replace(choices, others=choices.others[:2])
    times = iter(range(1, 100))

    def timer(runs: Mapping[str, Callable[[], Any]]) -> dict[str, Timing]:
        return {name: timing(float(next(times))) for name in runs}

    rows: list[dict[str, object]] = []
    walk(
        [replace(case, choices=lambda _: few)],
        CPU,
        timer=timer,
        budget_s=1e9,
        write=rows.append,
        out=io.StringIO(),
        clock=lambda: 0.0,
    )
    assert [row["status"] for row in rows] == ["ok"] * (1 + len(few.others))


def test_the_command_line_names_what_it_can_tune(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(["nothing:at all"])
    assert "OP must be one of append" in capsys.readouterr().err
    assert main(["append:no such row"]) == 2
    assert "no case of that name" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_card_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--missed"]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
