from __future__ import annotations

from typing import Any

import pytest

import lcprof
from lcprof.plan.crossover import attention_crossover_tokens, kv_crossover_tokens


def case(model: str = "llama-3.1-8b", **keys: Any) -> Any:
    (row,) = lcprof.plan_scenario({"model": model, "gpu": "h100-sxm", "context": "8K", **keys})
    return row.case


def test_attention_outweighs_the_rest_beyond_parameters_over_layers_times_width() -> None:
    # 2·N·T FLOPs against 2·L·H·T^2: they meet at T = N / (L·H), of the parameters that multiply
    # every token: 7,504,658,432 without the table and the output head.
    expected = (8_030_261_248 - 2 * 128_256 * 4096) / (32 * 4096)
    assert attention_crossover_tokens(case()) == pytest.approx(expected, rel=1e-3)


def test_kv_outweighs_weights_beyond_their_bytes() -> None:
    # A step reads 16.06 GB less the embedding table of 1.05 GB, and 131,072 B a cached token.
    expected = (16_060_522_496 - 128_256 * 4096 * 2) / 131_072
    assert kv_crossover_tokens(case()) == pytest.approx(expected, rel=2e-3)
    eight = kv_crossover_tokens(case(concurrency=8))
    assert eight == pytest.approx(expected / 8, rel=5e-3)
    assert kv_crossover_tokens(case(kv="fp8")) == pytest.approx(2 * expected, rel=5e-3)


def test_a_window_never_outweighs() -> None:
    windowed = case(kv="window:tokens=4096,sinks=4")
    assert attention_crossover_tokens(windowed) is None
    assert kv_crossover_tokens(windowed) is None


def test_a_strategy_that_remakes_the_model_counts_as_remade() -> None:
    assert kv_crossover_tokens(case(kv="share:kv_heads=1")) > 6 * kv_crossover_tokens(case())
