"""The only door for quantities as text, in and out.

Inside, counts are ints and quantities are floats in base SI units. Every parser takes a number or
a text and raises ValueError with a sentence on what it expects; NaN, infinities, negatives and
absurd sizes are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

COUNT_LIMIT = 2**53
"""Above this, float64 no longer tells one count from the next."""
RATE_LIMIT = 10**21
TEXT_LIMIT = 64

_NUMBER = re.compile(
    r"\s*(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*|)"
    r"(?:\.(?P<part>[0-9]+))?(?:[eE](?P<exponent>[-+]?[0-9]{1,2}))?\s*(?P<unit>.*?)\s*",
    re.ASCII,
)
_N = r"([0-9]+(?:\.[0-9]+)?)\s*"
_DURATION = re.compile(
    rf"\s*(?:{_N}(?:days?|d))?\s*(?:{_N}(?:hours?|hr|h))?\s*"
    rf"(?:{_N}(?:minutes?|min|m))?\s*(?:{_N}(?:seconds?|sec|s))?\s*",
    re.ASCII,
)
_TOKENS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_COUNTS = {"": 1, "k": 10**3, "K": 10**3, "m": 10**6, "M": 10**6, "g": 10**9, "G": 10**9}
_SI = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BYTES = {
    **{f"{prefix}B": factor for prefix, factor in _SI.items()},
    "KB": 10**3,
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGTP", 1)},
}

TOKENS_EXPECTED = "tokens, as 131072, 128K (K, M, G: powers of 1,024) or 128k (k, m, g: of 1,000)"
BYTES_EXPECTED = "bytes, as 80 GB (powers of 1,000) or 80 GiB (powers of 1,024)"
RATE_EXPECTED = "bytes per second, as 4.8 TB/s"
FLOPS_EXPECTED = "operations per second, as 989.4 TFLOP/s or 1,978.9 TOP/s"
HERTZ_EXPECTED = "a frequency, as 1980 MHz"
WATTS_EXPECTED = "a power, as 700 W"
PRICE_EXPECTED = "US dollars for a GPU for an hour, as 3.5, $3.50 or 3.5 USD"
DURATION_EXPECTED = "a duration, as 45 s, 90 min, 1h or 1h30m"
FRACTION_EXPECTED = "a share from 0 to 1, as 0.9 or 90%"


def parse_tokens(value: object) -> int:
    """A whole number of tokens. K, M and G are powers of 1,024, k, m and g powers of 1,000, as in
    vLLM's `--max-model-len`."""
    return _whole(value, _TOKENS, TOKENS_EXPECTED, word="tokens")


def parse_count(value: object, *, unit: str) -> int:
    """A whole number of things: "30k lines", "700,000 words". Multipliers are decimal. The word
    may be left out, but must not be another one."""
    expected = f"a whole number of {unit}, as 30000, 30k or 30k {unit}"
    return _whole(value, _COUNTS, expected, word=unit)


def parse_bytes(value: object) -> float:
    """Bytes: "80 GiB", "80GB", "656 B", 656."""
    return _real(value, _BYTES, BYTES_EXPECTED, limit=COUNT_LIMIT)


def parse_rate(value: object) -> float:
    """Bytes per second: "4.8 TB/s"."""
    return _real(value, {f"{unit}/s": factor for unit, factor in _BYTES.items()}, RATE_EXPECTED)


def parse_flops(value: object) -> float:
    """Operations per second: "989.4 TFLOP/s", "1,978.9 TOP/s"."""
    names = ("FLOP/s", "FLOPS", "OP/s", "OPS")
    units = {f"{prefix}{name}": factor for prefix, factor in _SI.items() for name in names}
    return _real(value, units, FLOPS_EXPECTED)


def parse_hertz(value: object) -> float:
    """Hertz: "1980 MHz"."""
    return _real(value, {f"{prefix}Hz": factor for prefix, factor in _SI.items()}, HERTZ_EXPECTED)


def parse_watts(value: object) -> float:
    """Watts: "700 W"."""
    return _real(value, {f"{prefix}W": factor for prefix, factor in _SI.items()}, WATTS_EXPECTED)


def parse_price(value: object) -> float:
    """US dollars: "$3.50", "3.5 USD", "3.5 USD/h", 3.5."""
    if isinstance(value, str):
        value = value.strip().removeprefix("$")
    return _real(value, {"USD": 1, "USD/h": 1}, PRICE_EXPECTED, limit=10**6)


def parse_duration(value: object) -> float:
    """Seconds: "1h", "90 min", "1h30m", "45 s"; a bare number counts seconds."""
    if isinstance(value, str) and len(value) <= TEXT_LIMIT:
        match = _DURATION.fullmatch(value)
        if match and any(match.groups()):
            parts = zip(match.groups(default="0"), (86400, 3600, 60, 1), strict=True)
            value = sum(float(count) * seconds for count, seconds in parts)
    return _real(value, {}, DURATION_EXPECTED, limit=COUNT_LIMIT)


def parse_fraction(value: object) -> float:
    """A share between 0 and 1: 0.9 or "90%"."""
    top, bottom = _ratio(value, {}, FRACTION_EXPECTED, percent=True)
    if top > bottom:
        raise ValueError(FRACTION_EXPECTED)
    return top / bottom


def show_tokens(tokens: float) -> str:
    """Tokens as they are typed: 131072 is "128K", 1048576 "1M", 1000000 "1,000,000"."""
    if not math.isfinite(tokens) or tokens != int(tokens):
        return f"{tokens:,.1f}"
    count = int(tokens)
    for unit in ("M", "K"):
        if count and count % _TOKENS[unit] == 0:
            return f"{count // _TOKENS[unit]}{unit}"
    return f"{count:,}"


def show_bytes(count: float) -> str:
    """Bytes with a decimal prefix and three digits: "141 GB", "70.3 kB", "656 B"."""
    return _prefixed(count, "B")


def show_count(count: float, unit: str) -> str:
    """A large count with a decimal prefix and three digits: "41.0 PFLOP"."""
    return _prefixed(count, unit)


def show_short(value: float) -> str:
    """Three digits, and never an exponent below a billion: "1,030"."""
    return f"{float(f'{value:.3g}'):,.10g}"


def show_usd(dollars: float) -> str:
    """To the cent; to three digits from $100 on and below $1: "$1,220", "$28.66", "$0.00123"."""
    if dollars >= 100:
        return f"${show_short(dollars)}"
    if dollars >= 1 or dollars <= 0:
        return f"${dollars:.2f}"
    return f"${float(f'{dollars:.3g}'):.{2 - math.floor(math.log10(dollars))}f}"


def show_params(count: float) -> str:
    """Parameters in billions, or in millions where there are fewer: "70.6 B", "1,030 B"."""
    return f"{show_short(count / 1e9)} B" if count >= 1e9 else f"{show_short(count / 1e6)} M"


def show_seconds(seconds: float) -> str:
    """A time in the unit a person would choose, at most three digits: "6.8 ms", "7.4 h"."""
    if not math.isfinite(seconds):
        return str(seconds)
    magnitude = abs(seconds)
    for limit, unit, size in (
        (1e-3, "µs", 1e-6),
        (1.0, "ms", 1e-3),
        (600.0, "s", 1.0),
        (7200.0, "min", 60.0),
        (172800.0, "h", 3600.0),
        (math.inf, "d", 86400.0),
    ):
        if float(f"{magnitude:.3g}") < limit and (magnitude or unit == "s"):
            digits = _three_digits(seconds / size)
            return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} {unit}"
    raise AssertionError("unreachable: the last limit is infinite")


def _prefixed(count: float, unit: str) -> str:
    if not math.isfinite(count):
        return f"{count} {unit}"
    prefixes = (*_SI, "E", "Z")
    rounded = float(f"{count:.3g}")
    power = 0
    while abs(rounded) >= 1000 and power < len(prefixes) - 1:
        rounded, power = rounded / 1000, power + 1
    if power == 0 and count == int(count):
        return f"{int(count)} {unit}"
    if 1e-9 < abs(rounded) < 0.1:
        return f"{rounded:.12f}".rstrip("0") + f" {unit}"
    return f"{_three_digits(rounded)} {prefixes[power]}{unit}"


def _three_digits(value: float) -> str:
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 1000:
        return f"{value:,.0f}"
    places = 0 if abs(rounded) >= 100 else 1 if abs(rounded) >= 10 else 2
    return f"{rounded:.{places}f}"


def _whole(value: object, units: Mapping[str, int], expected: str, *, word: str) -> int:
    top, bottom = _ratio(value, units, expected, word=word)
    if top % bottom or top > COUNT_LIMIT * bottom:
        raise ValueError(expected)
    return top // bottom


def _real(
    value: object, units: Mapping[str, int], expected: str, *, limit: int = RATE_LIMIT
) -> float:
    top, bottom = _ratio(value, units, expected)
    if top > limit * bottom:
        raise ValueError(expected)
    return top / bottom


def _ratio(
    value: object,
    units: Mapping[str, int],
    expected: str,
    *,
    word: str = "",
    percent: bool = False,
) -> tuple[int, int]:
    """The exact value as a ratio of ints, so that "25.6k" is 25600 and not a rounding of it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(expected)
    if isinstance(value, (int, float)):
        if not 0 <= value < math.inf:
            raise ValueError(expected)
        return value.as_integer_ratio()
    match = _NUMBER.fullmatch(value) if len(value) <= TEXT_LIMIT else None
    if match is None or not (match["whole"] or match["part"]):
        raise ValueError(expected)
    unit = match["unit"]
    if word:
        singular = word.removesuffix("s")
        unit = unit.removesuffix(word).removesuffix(singular).rstrip()
    bottom = 1
    if percent and unit == "%":
        unit, bottom = "", 100
    if unit and unit not in units:
        raise ValueError(expected)
    part = match["part"] or ""
    exponent = int(match["exponent"] or 0) - len(part)
    top = int((match["whole"].replace(",", "").replace("_", "") + part) or "0")
    top *= units.get(unit, 1) * 10 ** max(exponent, 0)
    return top, bottom * 10 ** max(-exponent, 0)
