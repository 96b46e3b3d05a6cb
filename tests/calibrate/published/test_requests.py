from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lcprof.calibrate.published.requests import COLUMNS, kind_of, request_scores, score_requests
from lcprof.errors import InputError

FIELDS = [*COLUMNS, "value", "unit"]
LLAMA = {
    "group": "some",
    "model": "Llama-3.1-8B",
    "hardware": "H100",
    "n_gpus": "1",
    "parallelism": "TP1",
    "weight_precision": "bf16",
    "kv_precision": "bf16",
    "input_len": "65536",
    "output_len": "128",
    "batch_or_concurrency": "1",
    "metric": "median_ttft",
    "value": "3570",
    "unit": "ms",
}


def table(folder: Path, *rows: dict[str, str], fields: list[str] = FIELDS) -> Path:
    path = folder / "figures.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_time_is_scored_in_seconds(tmp_path: Path) -> None:
    (one,), refused = score_requests(table(tmp_path, LLAMA))
    assert not refused
    assert (one.kind, one.device, one.line) == ("ttft_s", "h100-sxm", 2)
    assert one.measured == pytest.approx(3.57)
    assert one.inside
    assert abs(one.error) < 0.15


def test_the_figure_is_not_used_to_predict_it(tmp_path: Path) -> None:
    other = {**LLAMA, "value": "1"}
    (first,), _ = score_requests(table(tmp_path, LLAMA))
    (second,), _ = score_requests(table(tmp_path, other))
    assert first.predicted == second.predicted
    assert not second.inside


def test_what_is_no_request_or_not_planned_is_refused_with_the_reason(tmp_path: Path) -> None:
    rows = [
        {**LLAMA, "metric": "duration_150_requests"},
        {**LLAMA, "model": "Unheard-1B"},
        {**LLAMA, "input_len": "100000000"},
    ]
    scored, refused = score_requests(table(tmp_path, *rows))
    assert not scored
    assert [one.kind for one in refused] == ["", "ttft_s", "ttft_s"]
    assert refused[1].reason == "no plan of Unheard-1B"
    assert "vouched" in refused[2].reason


def test_a_stated_load_is_predicted_and_an_unstated_one_bounded_by_floors(tmp_path: Path) -> None:
    full = {
        **LLAMA,
        "metric": "output_throughput_total",
        "unit": "tokens/s (all GPUs)",
        "input_len": "2048",
        "output_len": "2048",
        "value": "10000",
    }
    rows = [{**full, "batch_or_concurrency": text} for text in ("8", "maximum load")]
    (stated, unstated), _ = score_requests(table(tmp_path, *rows))
    assert not stated.bound
    assert unstated.bound
    assert unstated.predicted > stated.predicted
    assert unstated.high > 1.2 * unstated.predicted


@pytest.mark.parametrize("value", ["", "nan", "-1", "0", "fast"])
def test_a_figure_that_is_no_positive_number_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"line 2.*positive number"):
        score_requests(table(tmp_path, {**LLAMA, "value": value}))


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, LLAMA, fields=[name for name in FIELDS if name != "metric"])
    with pytest.raises(InputError, match="no column metric"):
        score_requests(path)


def test_scores_are_by_kind_and_device(tmp_path: Path) -> None:
    found = request_scores(table(tmp_path, LLAMA, {**LLAMA, "model": "Unheard"}), "figures")
    assert [(one["table"], one["device"]) for one in found] == [
        ("figures.ttft_s", "all"),
        ("figures.ttft_s", "h100-sxm"),
    ]
    assert found[0]["declined"] == 1


def test_kinds() -> None:
    assert kind_of("decode_itl_slope") == "tpot_slope_s_per_token"
    assert kind_of("output_throughput_per_gpu") == "output_tokens_per_s_per_gpu"
    assert kind_of("duration_150_requests") == ""
