"""Values as a page words them."""

from __future__ import annotations

import pytest

from lcprof.report.html.figures import show


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("total_bytes_per_gpu", 85_984_000_000, "86.0 GB"),
        ("bandwidth_bytes_per_s", 4.8e12, "4.80 TB/s"),
        ("peak_flops_per_s", 989.4e12, "989 TFLOP/s"),
        ("prefill_flops", 42_900_000_000_000_000, "42.9 PFLOP"),
        ("flops_per_byte", 206.1, "206"),
        ("ttft_s", 0.0262, "26.2 ms"),
        ("seconds", 507.2, "507 s"),
        ("context_tokens", 131072, "128K"),
        ("output_tokens_per_s", 274.3, "274"),
        ("output_token_j", 15.1, "15.1 J"),
        ("output_token_j", 0.003884, "0.00388 J"),
        ("decode_w_per_gpu", 516.4, "516 W"),
        ("request_usd", 0.54, "$0.540"),
        ("request_usd", 0.00368, "$0.00368"),
        ("price_usd_per_gpu_hour", 3.5, "$3.50"),
        ("usd_per_million_output_tokens", 1234.5, "$1,230"),
        ("share", 0.9532, "95.3%"),
        ("kv_share_of_step_bytes", 0.5, "50%"),
        ("params", 8_030_261_248, "8.03 B"),
        ("ttft_distance", 64.0, "x64"),
        ("max_concurrency", 438, "438"),
        ("fits", False, "no"),
        ("ttft_s", None, "–"),
        ("limited_by", "", "–"),
        ("label", "a\u202eb\nc", "a?b\nc"),
    ],
)
def test_show(column: str, value: object, words: str) -> None:
    assert show(column, value) == words


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("seconds_predicted", 0.0262, "26.2 ms"),
        ("sustained_s_measured", 2.0, "2 s"),
        ("energy_j_predicted", 15.1, "15.1 J"),
        ("hbm_bytes_measured", 1e9, "1.00 GB"),
        ("hbm_bytes_error", 0.0312, "+3.12%"),
        ("seconds_error", -0.5, "-50%"),
        ("bias_error", 1e-17, "0%"),
        ("flops_points", 1234, "1,234"),
        ("sm_clock_hz", 1.98e9, "1.98 GHz"),
        ("temperature_c", 61.4, "61 °C"),
        ("measured_over_floor", 1.4286, "x1.43"),
    ],
)
def test_show_what_was_measured(column: str, value: object, words: str) -> None:
    assert show(column, value) == words
