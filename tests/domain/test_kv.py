"""KV specs, and what each strategy stores, reads and adds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import LLAMA_8B, deepseek_v3, grouped

from lcprof.domain.kv import STRATEGIES, KvStrategy, parse_kv
from lcprof.domain.kv.share import Share
from lcprof.domain.kv.stream import Stream, streams
from lcprof.domain.model import GroupedAttention, LatentAttention
from lcprof.errors import InputError

STREAM = streams(grouped(4096, 32, 8, 128))[0]
ELEMENTS = 8 * 256


def strategy(spec: str) -> KvStrategy:
    return parse_kv(spec, where="test")


@pytest.mark.parametrize("known", STRATEGIES, ids=lambda s: s.kind)
def test_contract(known: type[KvStrategy]) -> None:
    """Every strategy parses from its own kind, says what it is, and answers for every stream."""
    spec = {"share": "share:kv_heads=2"}.get(known.kind, known.kind)
    kv = strategy(spec)
    assert isinstance(kv, known)
    assert known.summary
    windowed = Stream(heads=4, k_elements=64, v_elements=64, cap_tokens=128)
    index = Stream(kind="index", heads=1, k_elements=0, v_elements=0, index_bytes=132.0)
    for stream in (STREAM, windowed, index):
        stored = kv.stored_tokens(stream, 100_000.0)
        assert 0 < stored <= 100_000
        assert 0 < kv.read_tokens(stream, 100_000.0) <= stored
        assert kv.stored_bytes(stream, 100_000.0) > 0
        assert kv.scan_bytes(stream, stored) >= 0
        assert kv.read_bytes(stream, 100_000.0) <= kv.stored_bytes(stream, 100_000.0)
        assert stream.cap_tokens is None or stored <= stream.cap_tokens
    assert kv.bytes_per_token(index) == 132.0


def test_window_keeps_sinks_and_the_last_tokens() -> None:
    kv = strategy("window:tokens=4096,sinks=4")
    assert kv.stored_tokens(STREAM, 1e6) == 4100
    assert kv.stored_tokens(STREAM, 100.0) == 100
    assert kv.stored_bytes(STREAM, 1e6) == 4100 * ELEMENTS * 2


def test_snapkv_keeps_what_is_decoded() -> None:
    kv = strategy("snapkv:budget=1024")
    assert kv.stored_tokens(STREAM, 131_072.0, 0) == 1024
    assert kv.stored_tokens(STREAM, 131_072.0 + 500, 500) == 1524


@pytest.mark.parametrize(
    ("spec", "kept"),
    [("h2o:budget=20%", 20_000), ("h2o:budget=0.2", 20_000), ("h2o:budget=4K", 4096)],
)
def test_h2o_budget_is_a_share_or_tokens(spec: str, kept: float) -> None:
    assert strategy(spec).stored_tokens(STREAM, 100_000.0) == kept


def test_quest_reads_pages_and_their_bounds() -> None:
    kv = strategy("quest:page=16,top=256")
    assert kv.read_tokens(STREAM, 1e5) == 4096
    # 6,250 pages x min and max of 8 x 128 keys in 16 bits, and 4,096 tokens of K and V.
    assert kv.read_bytes(STREAM, 1e5) == 6250 * 2 * 8 * 128 * 2 + 4096 * ELEMENTS * 2


def test_kivi_content_at_a_multiple_of_the_residual() -> None:
    kv = strategy("kivi:bits=4,group=32,residual=128")
    # All keys coded at 5 bits; of the values the last 128 in 16 bits.
    keys, values = 8 * 128 * 1024, 8 * 128 * (1024 - 128)
    assert kv.read_bytes(STREAM, 1024.0) == (keys + values) * 5 / 8 + 8 * 128 * 128 * 2


@given(st.integers(1, 5000), st.sampled_from([32, 128]), st.sampled_from([2, 4]))
def test_kivi_stores_the_most_it_held_on_the_way(tokens: int, residual: int, bits: int) -> None:
    kv = strategy(f"kivi:bits={bits},group=32,residual={residual}")
    highest = max(kv.read_bytes(STREAM, float(t)) for t in range(max(1, tokens - 300), tokens + 1))
    assert kv.stored_bytes(STREAM, float(tokens)) == pytest.approx(highest, rel=1e-12)


def test_a_models_own_window_caps_every_strategy() -> None:
    windowed = streams(grouped(4096, 32, 8, 128, 512))[0]
    for spec in ("bf16", "window:tokens=4096,sinks=4", "snapkv:budget=4096", "fp8"):
        assert strategy(spec).stored_tokens(windowed, 1e6) == 512


def test_share_remakes_the_projections_too() -> None:
    mixer = LLAMA_8B.groups[0].mixer
    assert mixer is not None
    one = strategy("share:kv_heads=1").remake(mixer)
    assert isinstance(one, GroupedAttention)
    assert one.kv_heads == 1
    assert [m.outputs for m in one.matrices if m.split == "kv_heads"] == [128, 128]
    latent = strategy("share:latent=512").remake(mixer)
    assert isinstance(latent, LatentAttention)
    assert streams(latent)[0].elements == 576


def test_share_divides_the_query_heads_or_says_what_it_would_not() -> None:
    mixer = LLAMA_8B.groups[0].mixer  # 32 query heads, 8 of keys and values
    found = {n: parse_kv(f"share:kv_heads={n}", where="test") for n in (1, 3, 4, 8, 16)}
    undivided = {n: kv.undivided(mixer) for n, kv in found.items() if isinstance(kv, Share)}
    assert undivided == {1: 0, 3: 32, 4: 0, 8: 0, 16: 0}


def test_share_leaves_what_it_cannot_shrink() -> None:
    mixer = deepseek_v3().groups[0].mixer
    assert mixer is not None
    assert strategy("share:kv_heads=1").remake(mixer) is mixer
    grouped_mixer = LLAMA_8B.groups[0].mixer
    assert grouped_mixer is not None
    assert strategy("share:kv_heads=16").remake(grouped_mixer) is grouped_mixer


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fp9", "did you mean fp8"),
        ("", "a KV strategy"),
        ("fp8+int8", "at most one number format"),
        ("window:tok=3", "tokens="),
        ("window:tokens", "tokens="),
        ("window:tokens=-1", "whole number"),
        ("window:tokens=1e9", "whole number"),
        ("kivi:bits=3", "one of 2, 4"),
        ("h2o:budget=150%", "share"),
        ("h2o:budget=nan%", "share"),
        ("offload:fraction=2", "share"),
        ("share", "kv_heads=N or share:latent=WIDTH"),
        ("share:kv_heads=1,latent=512", "one of them"),
        ("fp8:scale=row", "one of tensor, token-head, group"),
        ("fp8+" * 200, "at most"),
    ],
)
def test_bad_specs_say_what_is_expected(spec: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        strategy(spec)
    assert says in str(caught.value)
    assert caught.value.faults[0].where == "test"


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(spec: str) -> None:
    try:
        parsed = strategy(spec)
    except InputError:
        return
    assert parsed.stored_bytes(STREAM, 100.0) > 0


@pytest.mark.parametrize("first", range(3))
def test_the_order_of_wrapping_does_not_matter(first: int) -> None:
    parts = ["kivi:bits=4,group=32", "window:tokens=1000,sinks=4", "quest:page=16,top=20"]
    turned = strategy("+".join(parts[first:] + parts[:first]))
    plain = strategy("+".join(parts))
    assert turned.stored_bytes(STREAM, 5000.0) == plain.stored_bytes(STREAM, 5000.0)
    assert turned.read_bytes(STREAM, 5000.0) == plain.read_bytes(STREAM, 5000.0)
