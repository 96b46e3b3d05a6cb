from __future__ import annotations

import pytest

from lcprof.calibrate.published.routing import routing
from lcprof.cost.timing.moe import balanced
from lcprof.errors import InputError


def test_an_even_spread_is_the_cost_models_own() -> None:
    assert routing(512, 8, 128, 8, "balanced") == balanced(512.0, 8.0, 128.0, 16.0)


def test_so_few_tokens_that_no_share_is_whole_spread_evenly() -> None:
    assert routing(1, 8, 128, 8, "power_law_1.2") == balanced(1.0, 8.0, 128.0, 16.0)


@pytest.mark.parametrize("tokens", [8, 32, 512, 8192])
def test_a_skewed_spread_keeps_all_tokens_and_leaves_experts_idle(tokens: int) -> None:
    skewed = routing(tokens, 8, 128, 1, "power_law_1.2")
    even = routing(tokens, 8, 128, 1, "balanced")
    # A few draws give one expert more than every token; what is past that is lost.
    assert 0.9 * tokens * 8 <= skewed.assignments <= tokens * 8
    assert skewed.touched <= even.touched
    assert skewed.touched <= skewed.tiles_128 <= skewed.tiles_64 <= skewed.tiles_16


def test_the_busiest_rank_is_timed() -> None:
    assert routing(2048, 8, 128, 8, "power_law_1.2").assignments > 1.5 * 2048
    assert routing(2048, 8, 128, 8, "balanced").assignments == 2048.0


def test_a_distribution_of_another_name_is_refused() -> None:
    with pytest.raises(InputError, match="balanced or power_law_ALPHA"):
        routing(8, 8, 128, 1, "zipf")
