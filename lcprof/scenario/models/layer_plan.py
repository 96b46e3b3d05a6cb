"""What one layer is, before its sizes are known."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

MixerKind = Literal["grouped", "latent", "compressed", "recurrent", "none"]
FfnKind = Literal["dense", "moe", "none"]


class LayerPlan(Struct, frozen=True, kw_only=True):
    """What one layer is, before its sizes are known. Zero means the model's own value.

    `wide` layers take the `global_*` sizes (Gemma 4), `other_heads` layers the window sizes
    (MiMo-V2, Step-3.5). `own_kv_weights` is False where K and V come from another layer.
    `indexed` layers pick tokens with an indexer, `selects` layers pick blocks.
    """

    mixer: MixerKind = "grouped"
    window: int | None = None
    chunk: int | None = None
    ratio: int = 0
    shares_cache: bool = False
    own_kv_weights: bool = True
    indexed: bool = False
    owns_index: bool = True
    selects: bool = False
    wide: bool = False
    other_heads: bool = False
    q_heads: int = 0
    kv_heads: int = 0
    ffn: FfnKind = "dense"
    width: int = 0
