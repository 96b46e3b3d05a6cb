"""Pairs of a query and a key: how many causal attention visits, exactly, queries right-aligned to
keys, and the FLOPs of one.

`start` tokens are cached before the `tokens` new ones. Counts add up over prefill chunks. Sums of
whole numbers below 2^53 are exact in float64.
"""

from __future__ import annotations

from lcprof.domain.model import CompressedAttention, GroupedAttention, LatentAttention, Mixer
from lcprof.num import Num, ceil, floor, larger, smaller


def pair_flops(mixer: Mixer | None, *, absorbed: bool = False) -> float:
    """FLOPs of a query and a key that it sees, all query heads of a layer: 2·heads·(k + v), the
    4·heads·head_dim of FlashAttention-2 (arXiv:2307.08691, section 4.1) for unequal K and V.

    MLA in its own heads (192 + 128 elements in DeepSeek-V3), or `absorbed` into its latents
    (576 + 512; arXiv:2405.04434, section 2.1). Softmax is not counted; 0 without attention.
    """
    if isinstance(mixer, GroupedAttention):
        return 2.0 * mixer.q_heads * (mixer.k_dim + mixer.v_dim)
    if isinstance(mixer, LatentAttention):
        if absorbed:
            return 2.0 * mixer.q_heads * (2 * mixer.latent_dim + mixer.rope_dim)
        return 2.0 * mixer.q_heads * (mixer.nope_dim + mixer.rope_dim + mixer.v_dim)
    if isinstance(mixer, CompressedAttention):
        return 4.0 * mixer.q_heads * mixer.vector_dim
    return 0.0


def index_pair_flops(mixer: Mixer | None) -> float:
    """FLOPs of scoring a query against an index key, 2·heads·key_dim of the indexer's own heads; 0
    for a layer that scores none."""
    if isinstance(mixer, GroupedAttention):
        selection = mixer.selection
        return 0.0 if selection is None else 2.0 * selection.heads * selection.key_dim
    if isinstance(mixer, LatentAttention | CompressedAttention):
        indexer = mixer.indexer
        if indexer is not None and indexer.owns_keys:
            return 2.0 * indexer.heads * indexer.key_dim
    return 0.0


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
