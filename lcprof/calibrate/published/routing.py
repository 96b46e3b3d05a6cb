"""How the published MoE measurements spread tokens over experts.

"balanced" is an even spread. "power_law_1.2" draws each expert's share from a power law of density
x^-alpha between 1 and 0.8 x tokens (0.01 and 2 where tokens are fewer than experts), gives out
whole tokens by largest remainder, and times the busiest of the expert-parallel ranks, as the
collector of ai-dynamo/aiconfigurator does; a published time is the mean of five draws. Here the
mean over a fixed set of draws stands for them.
"""

from __future__ import annotations

from functools import cache

from lcprof.cost.timing.moe import Routing, balanced
from lcprof.errors import InputError

DRAWS = 48
PREFIX = "power_law_"


@cache
def routing(tokens: int, top_k: int, experts: int, ranks: int, distribution: str) -> Routing:
    """The routing of a published row on the rank that it times.

    Raises InputError for a distribution of another name.
    """
    even = balanced(float(tokens), float(top_k), float(experts), float(experts // ranks))
    if distribution == "balanced":
        return even
    if not distribution.startswith(PREFIX):
        expected = f"balanced or {PREFIX}ALPHA"
        raise InputError.one("distribution", given=distribution, expected=expected)
    return (
        power_law(tokens, top_k, experts, ranks, float(distribution.removeprefix(PREFIX))) or even
    )


def power_law(tokens: int, top_k: int, experts: int, ranks: int, alpha: float) -> Routing | None:
    """The mean routing of the busiest rank over the draws; None where so few tokens are spread
    that no expert's share reaches a whole one."""
    import numpy as np

    rng = np.random.default_rng(20)
    total = tokens * top_k
    low, high = (1.0, 0.8 * tokens) if total > experts else (0.01, 2.0)
    power = 1.0 - alpha
    found = []
    for _ in range(DRAWS):
        spread = rng.random(experts) * (high**power - low**power) + low**power
        shares = spread ** (1.0 / power)
        shares = shares / shares.sum() * total
        counts = np.floor(shares)
        if not counts.any():
            continue
        left = int(total - counts.sum())
        counts[np.argsort(counts - shares)[:left]] += 1.0
        counts = np.minimum(counts, tokens)
        by_rank = counts.reshape(ranks, -1)
        busiest = by_rank[np.argmax(by_rank.sum(axis=1))]
        found.append(
            (
                busiest.sum(),
                (busiest > 0).sum(),
                np.ceil(busiest / 16).sum(),
                np.ceil(busiest / 64).sum(),
                np.ceil(busiest / 128).sum(),
                np.floor(busiest / 128 + 0.5).sum(),
            )
        )
    if not found:
        return None
    means = [float(value) for value in np.mean(found, axis=0)]
    return Routing(
        assignments=means[0],
        touched=means[1],
        tiles_16=means[2],
        tiles_64=means[3],
        tiles_128=means[4],
        filled_128=means[5],
    )
