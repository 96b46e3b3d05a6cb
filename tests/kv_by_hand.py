"""Cache bytes of a shape by the textbook formulas, apart from lcprof's own arithmetic.

Growing bytes per token, bytes per token when no layer evicts, and fixed bytes per sequence (full
windows, recurrent and convolution states), for a bf16 cache. Index keys are not counted.
"""

from __future__ import annotations

from lcprof.domain.model import (
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    ModelShape,
    RecurrentState,
)


def kv_by_hand(shape: ModelShape) -> tuple[float, float, int]:
    growing, every, fixed = 0.0, 0.0, 0
    for index in shape.order:
        mixer = shape.groups[index].mixer
        if isinstance(mixer, GroupedAttention):
            if mixer.shares_cache:
                continue
            token = 2 * mixer.kv_heads * (mixer.k_dim + mixer.v_dim)
            every += token
            if span := mixer.window_tokens or mixer.chunk_tokens:
                fixed += span * token
            else:
                growing += token
        elif isinstance(mixer, LatentAttention):
            growing += 2 * (mixer.latent_dim + mixer.rope_dim)
            every += 2 * (mixer.latent_dim + mixer.rope_dim)
        elif isinstance(mixer, CompressedAttention):
            fixed += 2 * mixer.vector_dim * mixer.window_tokens
            if mixer.ratio:
                growing += 2 * mixer.vector_dim / mixer.ratio
                every += 2 * mixer.vector_dim / mixer.ratio
        elif isinstance(mixer, RecurrentState):
            fixed += mixer.state_bytes * mixer.state_elements + 2 * mixer.conv_elements
    return growing, every, fixed
