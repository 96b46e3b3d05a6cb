"""A what-if on the architecture: the model with MQA, fewer KV heads, or a latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from msgspec.structs import replace

from lcprof.domain.kv.arguments import Argument, whole
from lcprof.domain.kv.strategy import KvStrategy, Risk
from lcprof.domain.model import GroupedAttention, LatentAttention, Matrix, Mixer


class Share(KvStrategy, frozen=True, kw_only=True):
    """What the model would cost with `kv_heads` KV heads (1: MQA) or one latent of `latent` wide
    with `rope` rope elements (MLA). Such a model would have to be trained; nothing here says that
    it would answer as well. Layers whose attention is not grouped stay as they are, and so do
    layers with fewer KV heads than asked for.
    """

    kind: ClassVar[str] = "share"
    summary: ClassVar[str] = "what if the model had `kv_heads` KV heads, or a latent (MLA)"
    risk: ClassVar[Risk] = Risk(
        level=4,
        why="such a model would have to be trained first",
        source="arXiv:1911.02150; arXiv:2405.04434",
    )
    arguments: ClassVar[Mapping[str, Argument]] = {
        "kv_heads": whole("kv_heads", 1, 4096),
        "latent": whole("latent", 16, 65536),
        "rope": whole("rope", 0, 4096),
    }
    kv_heads: int = 0
    latent: int = 0
    rope: int = 64

    def undivided(self, mixer: Mixer | None) -> int:
        """The query heads of a mixer that `kv_heads` would not divide evenly; 0 where it does."""
        if not isinstance(mixer, GroupedAttention) or not 0 < self.kv_heads < mixer.kv_heads:
            return 0
        return mixer.q_heads if mixer.q_heads % self.kv_heads else 0

    def remake(self, mixer: Mixer) -> Mixer:
        inner = self.wrapped().remake(mixer)
        if not isinstance(inner, GroupedAttention):
            return inner
        if self.latent:
            return self._with_latent(inner)
        if self.kv_heads >= inner.kv_heads:
            return inner
        return self._with_kv_heads(inner)

    def _with_kv_heads(self, mixer: GroupedAttention) -> GroupedAttention:
        def cut(matrix: Matrix) -> Matrix:
            if matrix.split != "kv_heads":
                return matrix
            outputs = matrix.outputs // mixer.kv_heads * self.kv_heads
            return replace(matrix, outputs=outputs, split_count=self.kv_heads)

        return replace(
            mixer, kv_heads=self.kv_heads, matrices=tuple(cut(m) for m in mixer.matrices)
        )

    def _with_latent(self, mixer: GroupedAttention) -> Mixer:
        kept = [m for m in mixer.matrices if m.split != "kv_heads"]
        key = next((m for m in mixer.matrices if m.split == "kv_heads"), None)
        per_token = mixer.kv_heads * (mixer.k_dim + mixer.v_dim)
        if key is None or mixer.window_tokens or mixer.chunk_tokens or mixer.selection:
            return mixer
        if self.latent + self.rope >= per_token:
            return mixer
        heads = mixer.q_heads
        rope = Matrix(
            name="q_rope",
            inputs=key.inputs,
            outputs=heads * self.rope,
            split="q_heads",
            split_count=heads,
            format=key.format,
        )
        down = Matrix(
            name="kv_down", inputs=key.inputs, outputs=self.latent + self.rope, format=key.format
        )
        up = Matrix(
            name="kv_up",
            inputs=self.latent,
            outputs=heads * (mixer.k_dim + mixer.v_dim),
            split="q_heads",
            split_count=heads,
            format=key.format,
        )
        return LatentAttention(
            q_heads=heads,
            latent_dim=self.latent,
            rope_dim=self.rope,
            nope_dim=mixer.k_dim,
            v_dim=mixer.v_dim,
            matrices=(*kept, rope, down, up),
            vectors=mixer.vectors,
        )
