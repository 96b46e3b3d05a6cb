"""How many query-key pairs causal attention visits, exactly, queries right-aligned to keys.

`start` tokens are cached before the `tokens` new ones. Counts add up over prefill chunks. Sums of
whole numbers below 2^53 are exact in float64.
"""

from __future__ import annotations

from lcprof.num import Num, ceil, floor, larger, smaller


def causal_pairs(start: Num, tokens: Num) -> Num:
    """Every query sees all before it and itself: q·k - q·(q-1)/2 with k = start + q."""
    return tokens * (start + tokens) - tokens * (tokens - 1) / 2


def capped_pairs(start: Num, tokens: Num, cap_tokens: Num | float) -> Num:
    """Every query sees at most `cap_tokens` (a sliding window, or window and sinks, or the best
    tokens of a selection): the sum of min(i, cap), as if every query saw what the last one does,
    less what the first ones lack."""
    seen = smaller(cap_tokens + 0.0, start + tokens)
    short = smaller(larger(seen - start, 0.0), tokens)
    pairs: Num = tokens * seen - short * (short - 1.0) / 2.0
    return pairs


def chunked_pairs(start: Num, tokens: Num, chunk_tokens: float) -> Num:
    """Every query sees its own chunk of `chunk_tokens` positions up to itself (Llama 4)."""
    return _chunked(start + tokens, chunk_tokens) - _chunked(start, chunk_tokens)


def compressed_pairs(start: Num, tokens: Num, ratio: float, cap_entries: float | None) -> Num:
    """Every query sees one entry for each `ratio` tokens before it that are complete, at most
    `cap_entries` of them: the sum of min(floor(i / ratio), cap)."""
    return _compressed(start + tokens, ratio, cap_entries) - _compressed(start, ratio, cap_entries)


def _chunked(position: Num, chunk: float) -> Num:
    whole = floor(position / chunk)
    rest = position - whole * chunk
    total: Num = whole * (chunk * (chunk + 1) / 2) + rest * (rest + 1) / 2
    return total


def _compressed(position: Num, ratio: float, cap: float | None) -> Num:
    rising = position if cap is None else smaller(position, cap * ratio + ratio - 1)
    entries = floor(rising / ratio)
    below: Num = ratio * entries * (entries - 1) / 2 + entries * (rising - entries * ratio + 1)
    if cap is None:
        return below
    return below + (position - rising) * cap


def chunk_count(tokens: Num, chunk_tokens: float) -> Num:
    """Steps that a prefill of `tokens` takes at `chunk_tokens` a step."""
    steps: Num = ceil(tokens / chunk_tokens)
    return steps


def chunk_ends(start: Num, tokens: Num, chunk_tokens: float, cap_tokens: float | None) -> Num:
    """Cached tokens that the steps of a chunked prefill read, summed: each step reads what lies
    before its end, or its chunk and the last `cap_tokens` before it."""
    steps = chunk_count(tokens, chunk_tokens)
    if cap_tokens is None:
        full = steps - 1
        total: Num = steps * start + chunk_tokens * full * (full + 1) / 2 + tokens
        return total
    reach = cap_tokens + chunk_tokens
    grown = smaller(reach, start + tokens) - smaller(start, reach)
    growing = floor(grown / chunk_tokens)
    rising = growing * start + chunk_tokens * growing * (growing + 1) / 2
    settled: Num = rising + (steps - growing) * smaller(start + tokens, reach)
    return settled
