"""Text in, quantity out, and back."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcprof import units

PARSERS = [
    units.parse_tokens,
    lambda value: units.parse_count(value, unit="lines"),
    units.parse_bytes,
    units.parse_rate,
    units.parse_flops,
    units.parse_hertz,
    units.parse_watts,
    units.parse_price,
    units.parse_duration,
    units.parse_fraction,
]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # vLLM's human_readable_int: upper case binary, lower case decimal.
        ("1k", 1_000),
        ("1K", 1_024),
        ("25.6k", 25_600),
        ("1M", 1_048_576),
        ("1m", 1_000_000),
        ("2g", 2_000_000_000),
        ("1G", 2**30),
        ("128K", 131_072),
        ("10M", 10_485_760),
        ("1.5K", 1_536),
        ("1_000_000", 1_000_000),
        ("1,000,000", 1_000_000),
        ("131072 tokens", 131_072),
        ("128K tokens", 131_072),
        ("1 token", 1),
        ("1e6", 1_000_000),
        (131_072, 131_072),
        (1e6, 1_000_000),
    ],
)
def test_tokens(text: object, tokens: int) -> None:
    assert units.parse_tokens(text) == tokens


@pytest.mark.parametrize(
    "text",
    ["", "K", "-1", "1.5", 1.5, "0.3K", "1 000", "1000,000", "1_", "10 MB", "128Kb", "nan", "٣",
     "1" * 17, "9" * 5000, True, None, [1], math.nan, math.inf, -1, 2**53 + 1],
)  # fmt: skip
def test_what_is_not_a_number_of_tokens(text: object) -> None:
    with pytest.raises(ValueError, match="tokens, as 131072"):
        units.parse_tokens(text)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_bytes, "80 GiB", 80 * 2**30),
        (units.parse_bytes, "80GB", 80e9),
        (units.parse_bytes, "656 B", 656),
        (units.parse_bytes, "143771 MiB", 150_754_820_096),
        (units.parse_bytes, "70.272 kB", 70_272),
        (units.parse_rate, "4.8 TB/s", 4.8e12),
        (units.parse_rate, "864GB/s", 864e9),
        (units.parse_flops, "989.4 TFLOP/s", 989.4e12),
        (units.parse_flops, "1,978.9 TOP/s", 1978.9e12),
        (units.parse_flops, "15 PFLOPS", 15e15),
        (units.parse_hertz, "1980 MHz", 1.98e9),
        (units.parse_watts, "700 W", 700),
        (units.parse_price, "$3.50", 3.5),
        (units.parse_price, "2.25 USD/h", 2.25),
        (units.parse_duration, "45 s", 45),
        (units.parse_duration, "90 min", 5400),
        (units.parse_duration, "1h", 3600),
        (units.parse_duration, "1h30m", 5400),
        (units.parse_duration, "1 h 30 min 5 s", 5405),
        (units.parse_duration, "1.5 hours", 5400),
        (units.parse_duration, 90, 90),
        (units.parse_fraction, "90%", 0.9),
        (units.parse_fraction, 0.9, 0.9),
        (units.parse_fraction, "0.25", 0.25),
        (units.parse_fraction, "12.5 %", 0.125),
    ],
)
def test_quantities(parse: object, text: object, value: float) -> None:
    assert callable(parse)
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_bytes, "80G"),
        (units.parse_bytes, "80 Gb"),
        (units.parse_bytes, "80 GB/s"),
        (units.parse_rate, "4.8 TB"),
        (units.parse_flops, "989 T"),
        (units.parse_hertz, "1980 W"),
        (units.parse_duration, "1h30"),
        (units.parse_duration, "30m1h"),
        (units.parse_duration, "h"),
        (units.parse_duration, "an hour"),
        (units.parse_fraction, "101%"),
        (units.parse_fraction, 90),
        (units.parse_fraction, "90"),
    ],
)
def test_wrong_units_are_refused(parse: object, text: object) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=r", as |from 0 to 1"):
        parse(text)


def test_counts_have_decimal_multipliers_and_their_own_word() -> None:
    assert units.parse_count("30k lines", unit="lines") == 30_000
    assert units.parse_count("30K", unit="lines") == 30_000
    assert units.parse_count("700,000 words", unit="words") == 700_000
    assert units.parse_count("1 line", unit="lines") == 1
    with pytest.raises(ValueError, match="a whole number of lines"):
        units.parse_count("30k words", unit="lines")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, -1, True, None, [], {}, "x", "-5", ""])
def test_no_parser_takes_what_is_not_a_quantity(value: object) -> None:
    for parse in PARSERS:
        with pytest.raises(ValueError, match=r"\w+"):
            parse(value)


@given(st.one_of(st.text(max_size=80), st.integers(), st.floats(), st.none()))
def test_parsers_only_ever_raise_value_errors(value: object) -> None:
    for parse in PARSERS:
        with suppress(ValueError):
            assert 0 <= parse(value) <= 1e21


@given(st.integers(min_value=0, max_value=2**53))
def test_shown_tokens_read_back(tokens: int) -> None:
    assert units.parse_tokens(units.show_tokens(tokens)) == tokens


@given(st.integers(min_value=0, max_value=2**23), st.sampled_from("KM"))
def test_round_tokens_are_shown_as_they_are_typed(count: int, unit: str) -> None:
    text = units.show_tokens(units.parse_tokens(f"{count}{unit}"))
    assert len(text) <= len(f"{count}{unit}")
    assert units.parse_tokens(text) == units.parse_tokens(f"{count}{unit}")


@given(st.floats(min_value=0, max_value=9e15))
def test_shown_bytes_read_back_to_three_digits(count: float) -> None:
    back = units.parse_bytes(units.show_bytes(count))
    assert math.isclose(back, count, rel_tol=0.005, abs_tol=0.01)


@given(st.floats(min_value=0, max_value=2**50))
def test_shown_seconds_read_back_to_three_digits(seconds: float) -> None:
    text = units.show_seconds(seconds)
    if text.endswith(("ms", "µs")):
        scale = 1e-3 if text.endswith("ms") else 1e-6
        back = float(text.split()[0]) * scale
    else:
        back = units.parse_duration(text.replace(",", ""))
    assert math.isclose(back, seconds, rel_tol=0.006, abs_tol=1e-8)


def test_shown() -> None:
    assert [units.show_tokens(n) for n in (0, 1, 1_000, 1_024, 131_072, 1_000_000, 1_048_576)] == [
        "0", "1", "1,000", "1K", "128K", "1,000,000", "1M",
    ]  # fmt: skip
    assert units.show_tokens(1.5) == "1.5"
    assert units.show_tokens(math.inf) == "inf"
    assert [units.show_seconds(s) for s in (0, 6.8e-3, 0.0436, 5.1, 279, 26_640, 172_800)] == [
        "0 s", "6.8 ms", "43.6 ms", "5.1 s", "279 s", "7.4 h", "2 d",
    ]  # fmt: skip
    assert units.show_seconds(0.9999) == "1 s"
    assert units.show_seconds(math.inf) == "inf"
    assert units.show_count(4.1e16, "FLOP") == "41.0 PFLOP"
    assert units.show_count(math.inf, "FLOP") == "inf FLOP"
    assert [units.show_count(x, "J") for x in (0.5, 0.00388, 0)] == ["0.50 J", "0.00388 J", "0 J"]
    assert units.show_bytes(656) == "656 B"
    assert units.show_bytes(70_272) == "70.3 kB"
    assert units.show_bytes(999.6e9) == "1.00 TB"
    assert [units.show_short(x) for x in (0.078249, 28.66, 1027.4, 1e6)] == [
        "0.0782", "28.7", "1,030", "1,000,000",
    ]  # fmt: skip
    assert [units.show_params(x) for x in (70.554e9, 1.027e12, 494e6)] == [
        "70.6 B", "1,030 B", "494 M",
    ]  # fmt: skip
    assert [units.show_usd(x) for x in (0, 0.0012345, 0.782, 28.66, 1220.55)] == [
        "$0.00", "$0.00123", "$0.782", "$28.66", "$1,220",
    ]  # fmt: skip
