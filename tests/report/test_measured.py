"""Pages of a run, of two runs and of a doctor; the bar of a run."""

from __future__ import annotations

import io
from typing import Any

from measuring import provenance, row

from lcprof.compare.residuals import changes, differences, residuals
from lcprof.measure.doctor import Finding
from lcprof.measure.record import Record
from lcprof.measure.row import Measured, Predicted, Row
from lcprof.measure.runner import Progress
from lcprof.report.measured import doctor_page, record_page, runs_page, shape_text
from lcprof.report.progress import measuring
from lcprof.report.screen import Screen


def shown(page: Any) -> str:
    return Screen(io.StringIO()).render(page)


def record(*rows: Row, **told: Any) -> Record:
    held = {each.key: each for each in rows}
    return Record(path="run", provenance=provenance(**told), rows=held)


def test_a_shape_is_said_in_short() -> None:
    shape = {"batch": 8, "query_tokens": 1, "context_tokens": 131072, "q_heads": 32, "kv_heads": 8,
             "head_dim": 128, "window_tokens": 0, "dtype": "bf16", "layout": "paged",
             "page_tokens": 16}  # fmt: skip
    assert shape_text(shape) == "B8 q1 kv131072 32/8 D128 bf16 paged page 16"
    assert shape_text({"batch": 1, "q_heads": 128, "format": "fp8-656"}) == "B1 128 heads fp8-656"
    assert shape_text({"kv_heads": 8, "new_tokens": 1}) == "8 heads new 1"
    assert shape_text({"rows": 4, "depth": 5, "columns": 6}) == "m4 k5 n6"
    assert shape_text({"experts": 256}) == "experts 256"


def test_a_run_is_shown_worst_first_with_its_reasons() -> None:
    told = record(
        row("a", shape={"rows": 1}, predicted=Predicted(seconds=0.9e-3, floor_s=0.5e-3)),
        row(
            "b",
            shape={"rows": 2},
            predicted=Predicted(seconds=0.5e-3, low=0.4e-3, high=2e-3, uncalibrated_s=3e-3),
            measured=Measured(
                burst_s=1e-3, burst_p20_s=0.9e-3, burst_p80_s=1.1e-3, sustained_s=2e-3,
                power_w=650.0, energy_j=1.3, throttle=("power limit",),
            ),
            note="held packed",
            empty={"hbm_bytes": "no GPM counters", "flops": "no GPM counters"},
        ),
        row("c", shape={"rows": 3}, status="not measurable", reason="h2o has no kernel",
            implementation=""),
        row("d", shape={"rows": 4}, status="does not fit", reason="needs 2 GB of 1 GB"),
        row("e", shape={"rows": 5}, status="does not fit", reason="needs 2 GB of 1 GB"),
    )  # fmt: skip
    text = shown(record_page(told, residuals(told.rows.values())))
    assert text.startswith("2 of 5 measured on cuda: NVIDIA Test\n")
    assert text.index("gemm m2") < text.index("gemm m1")
    joined = " ".join(text.split())
    assert "1 ms (900 us to 1.1 ms), sustained 2 ms, 650 W, 1.3 J" in joined
    assert "throttled: power limit, seconds error -50.0%" in joined
    assert "seconds error -10.0%, 2 x floor" in text
    assert "uncalibrated" not in text[: text.index("held packed")]
    # 10 % and 50 %; the uncalibrated one is thrice what was measured.
    verdict = "off by 30.0% in the median, nine in ten by 46.0%; 100% lay in the interval"
    beside = "without measuring here 200.0% in the median, nine in ten by 200.0%"
    assert f"Predicted times of 2 points: {verdict}; {beside}." in joined
    assert "  held packed\n" in text
    assert "gemm m3\n  planned, not measurable: h2o has no kernel\n" in text
    assert "gemm m4, torch and 1 more\n  does not fit: needs 2 GB of 1 GB\n" in text
    assert "empty, no GPM counters: hbm_bytes, flops" in text


def test_a_run_is_summed_up_before_its_rows() -> None:
    told = record(
        row("a", operation="x", predicted=Predicted(seconds=1.1e-3, low=1e-3, high=2e-3)),
        row("b", operation="y", predicted=Predicted(seconds=0.8e-3, floor_s=0.5e-3,
                                                    held_out=False)),
    )  # fmt: skip
    text = " ".join(shown(record_page(told, residuals(told.rows.values()))).split())
    # Errors of 10 % and 20 %: 15 % in the middle, 19 % nine tenths of the way.
    assert (
        "Predicted times of 2 points, 1 of them seen by the fit: off by 15.0% in the median, nine "
        "in ten by 19.0%; 100% lay in the interval." in text
    )
    assert "Measured times were 2 x the data sheet's floor in the median." in text
    assert text.index("y: 1 points, 20.0%") < text.index("x: 1 points, 10.0%")
    assert "No time was expected" in shown(record_page(record(row("a")), []))


def test_a_long_run_is_cut_where_asked() -> None:
    told = record(*(row(f"{number}", shape={"rows": number}) for number in range(1, 6)))
    text = shown(record_page(told, [], shown=2))
    assert "gemm m2" in text
    assert "gemm m3" not in text
    assert "3 more: lcprof compare shows them" in text
    assert "gemm m5" in shown(record_page(told, []))


def test_ceilings_are_shown_as_rates() -> None:
    told = record(
        row("ceiling read", operation="ceiling",
            measured=Measured(burst_s=1e-3, rate_bytes_per_s=4.6e12)),
        row("ceiling gemm bf16", operation="ceiling",
            measured=Measured(burst_s=1e-3, rate_flops_per_s=7.8e14, power_w=700.0)),
        row("ceiling idle", operation="ceiling", measured=Measured(idle_power_w=75.0)),
    )  # fmt: skip
    text = shown(record_page(told, []))
    assert "ceiling read\n  1 ms, 4.60 TB/s\n" in text
    assert "780 TFLOP/s, 700 W" in text
    assert "idle 75 W" in text


def test_text_of_a_record_is_never_markup_or_control() -> None:
    told = record(row("a", shape={"x": "\x1b[31m[bold]"}, status="failed", reason="\x07[red]"))
    text = shown(record_page(told, []))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]" in text
    assert "[red]" in text


def test_a_torn_line_is_told() -> None:
    told = Record(path="run", provenance=provenance(), rows={}, torn_bytes=17)
    assert "17 bytes are not read" in shown(record_page(told, []))


def test_two_runs_are_shown_by_point() -> None:
    first = record(row("a", measured=Measured(burst_s=2e-3, energy_j=1.0)), row("b"), driver="550")
    second = record(row("a", measured=Measured(burst_s=1e-3, energy_j=1.1)), driver="570")
    page = runs_page(
        ("old", "new"), changes(first, second), differences(first, second), (["b"], [])
    )
    text = shown(page)
    assert text.startswith("old then new\ndriver: 550 then 570\n")
    assert "a\n  burst_s: 2 ms then 1 ms, -50.0%\n  energy_j: 1 then 1.1, +10.0%\n" in text
    assert "measured in old alone: 1, as b" in text
    assert "No point was measured in both." in shown(runs_page(("a", "b"), [], [], ([], [])))


def test_a_doctor_puts_the_remedy_below() -> None:
    text = shown(
        doctor_page(
            [
                Finding(name="GPU", able=True, found="NVIDIA H200", needed=True),
                Finding(name="GPM counters", able=False, found="refused", remedy="ask for rights"),
                Finding(name="PyTorch", able=False, found="not installed", needed=True),
            ]
        )
    )
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "GPU yes NVIDIA H200",
        "GPM counters no refused",
        "ask for rights",
        "PyTorch no, needed not installed",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_the_time_left_on_a_terminal_alone() -> None:
    now = Progress(done=1, total=4, taken_s=2.0, left_s=75.0, now="decode_attention batch=1")
    terminal = Terminal()
    with measuring(terminal) as observe:
        assert observe is not None
        observe(now)
    assert "1/4" in terminal.getvalue()
    assert "75 s left" in terminal.getvalue()
    with measuring(io.StringIO()) as observe:
        assert observe is None
