"""KV pages: how an engine cuts its KV memory into blocks, and how many tokens they hold.

The rules are those of vLLM's `kv_cache_utils` (V1): every layer has a kind of cache; layers of one
kind form groups of equal length, padded where they do not divide; a page holds one block of one
layer and has the same bytes in all groups, so layers with fewer bytes a token get longer blocks,
and where there are recurrent layers a block is made long enough to hold a state.
"""

from __future__ import annotations

from msgspec import Struct

from lcprof.cost.sharding import Stage, cut_share
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import Engine, EngineFlags
from lcprof.domain.kv.stream import CONV_BYTES, Stream, streams
from lcprof.domain.model import GroupedAttention, LatentAttention, Mixer, RecurrentState
from lcprof.num import ceil_div

LATENT_FP8_BYTES = 656
"""A token's latent in DeepSeek sparse attention's fp8 cache: 512 fp8 values, 4 fp32 scales and 64
bf16 rope elements (vLLM `fp8_ds_mla`)."""
MOST_PADDING = 1.5
"""Kinds whose counts are closer than this are padded to the larger one."""


class Cache(Struct, frozen=True, kw_only=True):
    """One layer's cache on a rank.

    `token_bytes` of a token that stays while it lies in the last `window_tokens` or in the same
    chunk of `chunk_tokens` (None: for ever), or a state of `state_bytes` a sequence.
    """

    token_bytes: int = 0
    window_tokens: int | None = None
    chunk_tokens: int | None = None
    state_bytes: int = 0
    latent: bool = False

    @property
    def grows(self) -> bool:
        return not self.state_bytes and self.window_tokens is None and self.chunk_tokens is None


class PageGroup(Struct, frozen=True, kw_only=True):
    """`layers` layers of one kind with a block table of their own."""

    cache: Cache
    layers: int
    block_tokens: int


class PageLayout(Struct, frozen=True, kw_only=True):
    """A rank's pages: a block takes `block_bytes` over all layers of a group."""

    groups: tuple[PageGroup, ...]
    block_bytes: int

    @property
    def block_tokens(self) -> int:
        """Tokens of the shortest block."""
        return min(
            (group.block_tokens for group in self.groups if not group.cache.state_bytes),
            default=min((group.block_tokens for group in self.groups), default=1),
        )

    def blocks(self, kv_bytes: float) -> int:
        """Whole blocks in `kv_bytes`."""
        return max(0, int(kv_bytes // self.block_bytes)) if self.block_bytes else 0

    def request_blocks(self, tokens: int, batched_tokens: int, drafted_tokens: int) -> int:
        """Blocks that one request of `tokens` tokens may hold at once, while `batched_tokens` of it
        are computed in a step."""
        total = 0
        for group in self.groups:
            cache, block = group.cache, group.block_tokens
            if cache.state_bytes:
                total += 1 + drafted_tokens
            elif cache.window_tokens is not None:
                held = min(cache.window_tokens - 1 + batched_tokens, tokens)
                total += ceil_div(held, block) + 1
            elif cache.chunk_tokens is not None:
                total += ceil_div(min(cache.chunk_tokens + batched_tokens, tokens), block)
            else:
                total += ceil_div(tokens, block)
        return total


def page_layout(
    stage: Stage, deployment: Deployment, flags: EngineFlags, engine: Engine
) -> PageLayout:
    """The pages of a pipeline stage's layers on its fullest rank."""
    counts: dict[Cache, int] = {}
    for group, count in stage.counts:
        for cache in layer_caches(group.mixer, deployment, flags):
            counts[cache] = counts.get(cache, 0) + count
    growing = [cache for cache in counts if cache.grows]
    if growing and stage.last:
        counts[growing[0]] += flags.draft_layers
    block = flags.block_tokens or int(engine.constant("block_tokens", flags.version))
    hybrid = flags.hybrid_manager and engine.constant("hybrid_manager", flags.version)
    states = any(cache.state_bytes for cache in counts)
    if not hybrid and not states:
        share = engine.constant("window_pool_share", flags.version)
        whole: dict[Cache, int] = {}
        for cache, count in counts.items():
            full = cache
            if growing and not cache.grows:
                each = int(cache.token_bytes * share)
                full = Cache(token_bytes=each, latent=cache.latent)
            whole[full] = whole.get(full, 0) + count
        counts = whole
    kinds = {(c.window_tokens, c.chunk_tokens, bool(c.state_bytes)) for c in counts}
    if len(kinds) <= 1:
        return _one_group(counts, block)
    return _many_groups(counts, _raised_block(counts, block, flags, engine))


def layer_caches(
    mixer: Mixer | None, deployment: Deployment, flags: EngineFlags
) -> tuple[Cache, ...]:
    """What a layer keeps on a rank: whole heads over tp, at least one; latents on every rank."""
    if isinstance(mixer, RecurrentState):
        share = cut_share(mixer.heads, deployment.tp)
        # The convolution's tail grows with the tokens that a draft may have to take back.
        taps = mixer.conv_elements * CONV_BYTES
        drafted = flags.drafted_tokens * taps / 3
        state = (mixer.state_elements * mixer.state_bytes + taps + drafted) * share
        return (Cache(state_bytes=int(state)),)
    latent = isinstance(mixer, LatentAttention)
    found = []
    for stream in streams(mixer):
        token = _token_bytes(stream, mixer, deployment, flags)
        chunk = mixer.chunk_tokens if isinstance(mixer, GroupedAttention) else None
        found.append(
            Cache(
                token_bytes=int(token),
                window_tokens=None if chunk else stream.cap_tokens,
                chunk_tokens=chunk,
                latent=latent,
            )
        )
    return tuple(found)


def _token_bytes(
    stream: Stream, mixer: Mixer | None, deployment: Deployment, flags: EngineFlags
) -> float:
    if stream.kind == "index":
        return stream.index_bytes
    sparse = isinstance(mixer, LatentAttention) and mixer.indexer is not None
    if sparse and flags.kv_element_bytes == 1:
        return LATENT_FP8_BYTES
    heads = stream.heads * cut_share(stream.heads, deployment.tp)
    each = (stream.k_elements + stream.v_elements) * flags.kv_element_bytes
    return heads * each / stream.tokens_per_entry


def _one_group(counts: dict[Cache, int], block: int) -> PageLayout:
    """All layers alike in what they keep: one block table, however many bytes each has."""
    groups = tuple(
        PageGroup(cache=cache, layers=count, block_tokens=block) for cache, count in counts.items()
    )
    size = sum(
        count * (cache.token_bytes * block or cache.state_bytes) for cache, count in counts.items()
    )
    return PageLayout(groups=groups[:1], block_bytes=size)


def _raised_block(counts: dict[Cache, int], block: int, flags: EngineFlags, engine: Engine) -> int:
    """The block of attention layers, raised until its page holds the largest state."""
    state = max((cache.state_bytes for cache in counts), default=0)
    attention = [cache for cache in counts if not cache.state_bytes]
    if not state or not attention:
        return block
    latent = any(cache.latent for cache in attention)
    name = "latent_align_tokens" if latent else "page_align_tokens"
    align = int(engine.constant(name, flags.version))
    widest = max(cache.token_bytes for cache in attention)
    return max(block, align * ceil_div(state, align * widest))


def _many_groups(counts: dict[Cache, int], block: int) -> PageLayout:
    """Groups of equal length: the fewest layers of a kind, or the most where that is close."""
    page = max(cache.token_bytes * block for cache in counts)
    length = min(counts.values())
    if max(counts.values()) < MOST_PADDING * length:
        length = max(counts.values())
    groups: list[PageGroup] = []
    for cache, count in counts.items():
        tokens = page // cache.token_bytes if cache.token_bytes else block
        number = ceil_div(count, length)
        groups += [PageGroup(cache=cache, layers=length, block_tokens=tokens)] * number
    return PageLayout(groups=tuple(groups), block_bytes=page * length)
