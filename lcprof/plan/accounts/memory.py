"""Accounts of what is stored: parameters, a token's cache, and what fills the fullest GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lcprof.cost.memory import (
    COLLECTIVE_BYTES,
    DECODE_SPLITS,
    RUNTIME_BYTES,
    final_tokens,
    late_bytes,
    page_tokens,
    step_tokens,
    stream_bytes,
)
from lcprof.cost.sharding import kv_share, rank_sequences
from lcprof.cost.weights import group_rank_bytes
from lcprof.domain.kv.stream import Stream, state_bytes, streams
from lcprof.plan.accounts.account import Account, Grounds, Term
from lcprof.plan.estimate import ENDLESS, growth, stage_token_bytes

CONTENTS = ("weights", "kv_reserved", "kv_prefill", "activation", "logits", "workspace", "runtime")
"""What adds up to a GPU's total."""
CACHE_SOURCE = (
    "2 x kv_heads x head_dim x bytes for grouped attention (arXiv:2305.13245); 512 + 64 elements a "
    "token for MLA (arXiv:2405.04434, section 2.1); the config of the model"
)


def _tables(on: Grounds) -> Term:
    model = on.counts.model
    copies = 1 if model.tied_embeddings else 2
    text = f"{copies} x {model.vocab:,} x {model.hidden:,} in vocabulary tables"
    return Term(text=text, value=float(copies * model.vocab * model.hidden))


def _params(on: Grounds, column: str, of: str) -> Iterable[Term]:
    tables = _tables(on)
    rest = on.columns[column] - (tables.value or 0.0)
    return tables, Term(text=f"{on.counts.model.layers} layers{of}, and norms", value=rest)


def _experts(on: Grounds) -> str:
    ffns = [group.ffn for group in on.counts.model.groups if group.ffn is not None]
    routed = {f"{ffn.experts_per_token} of {ffn.experts}" for ffn in ffns if ffn.experts}
    return f" with {' or '.join(sorted(routed))} routed experts" if routed else ""


def _entry(stream: Stream, on: Grounds) -> str:
    packed = "" if stream.tokens_per_entry == 1 else f" / {stream.tokens_per_entry} tokens"
    if stream.kind == "index":
        return f"index keys of {stream.index_bytes:,.10g} B a token"
    elements = f"{stream.heads} heads x ({stream.k_elements} K + {stream.v_elements} V) elements"
    return f"{elements}{packed} as {on.case.kv_spec}"


def _cached(on: Grounds) -> Iterable[tuple[Stream, int, str]]:
    """The model's streams, in how many layers each lies, and its text."""
    model = on.counts.model
    for group, layers in zip(model.groups, model.group_counts(), strict=True):
        for stream in streams(group.mixer):
            rate = f"({on.kv.bytes_per_token(stream):,.10g} B)"
            yield stream, layers, f"{layers} {group.name} layers x {_entry(stream, on)} {rate}"


def _growing(on: Grounds) -> Iterable[Term]:
    for stream, layers, text in _cached(on):
        kept = growth(on.kv, stream)
        if stream.kind == "kv" and kept:
            share = "" if kept == 1 else f" x {kept:.4g} of the context kept"
            value = layers * on.kv.bytes_per_token(stream) * kept
            yield Term(text=text + share, value=value)


def _every_layer(on: Grounds) -> Iterable[Term]:
    for stream, layers, text in _cached(on):
        if stream.kind == "kv" and not stream.companion:
            yield Term(text=text, value=layers * on.kv.bytes_per_token(stream))


def _index(on: Grounds) -> Iterable[Term]:
    for stream, layers, text in _cached(on):
        if stream.kind == "index":
            yield Term(text=text, value=layers * on.kv.bytes_per_token(stream))


def _rank_token(on: Grounds) -> Iterable[Term]:
    shares = [stage_token_bytes(held.content, on.deployment, on.kv) for held in on.held]
    for stream, value in max(shares, key=lambda each: sum(share for _, share in each)):
        share = f"rank share {kv_share(stream, on.deployment):.4g}"
        yield Term(text=f"{_entry(stream, on)}, {share}", value=value)


def _fixed(on: Grounds) -> Iterable[Term]:
    model = on.counts.model
    for group, layers in zip(model.groups, model.group_counts(), strict=True):
        if state_bytes(group.mixer):
            text = f"{layers} {group.name} layers, recurrent state and convolution tail"
            yield Term(text=text, value=layers * state_bytes(group.mixer))
    for stream, layers, text in _cached(on):
        if stream.kind == "kv" and not growth(on.kv, stream):
            tokens = on.kv.stored_tokens(stream, ENDLESS)
            value = layers * on.kv.stored_bytes(stream, ENDLESS)
            yield Term(text=f"{text} x {tokens:,.0f} tokens kept", value=value)


def _weights(on: Grounds) -> Iterable[Term]:
    held = on.fullest("weights_bytes")
    where = " of the fullest stage" if on.deployment.pp > 1 else ""
    rest = held.memory.weights_bytes
    for group, layers in held.stage.counts:
        value = layers * group_rank_bytes(group, on.deployment)
        rest -= value
        yield Term(text=f"{layers} {group.name} layers{where}", value=value)
    if held.stage.first or held.stage.last:
        yield Term(text="vocabulary tables and last norm", value=rest)


def _sequences(on: Grounds) -> float:
    return rank_sequences(on.workload.concurrency, on.deployment)


def _stored(on: Grounds, figure: str, share: float) -> Iterable[Term]:
    """What the sequences' caches take in the stage where `figure` is largest, stream by stream:
    whole pages but for `kv_bytes`, and `share` of it."""
    sequences, pages = _sequences(on), figure != "kv_bytes"
    tokens, decoded = final_tokens(on.workload), on.workload.output_tokens - 1.0
    for stream, layers in on.fullest(figure).content.streams:
        value = stream_bytes(stream, on.deployment, on.kv, on.workload)[pages] * layers * share
        stored = on.kv.stored_tokens(stream, tokens, decoded)
        text = f"{sequences:,.0f} sequences x {layers} layers x {stored:,.0f} tokens of "
        text += f"{_entry(stream, on)}, rank share {kv_share(stream, on.deployment):.4g}"
        if on.workload.prefix_tokens and stored >= tokens:
            text += ", the shared prefix once"
        yield Term(text=text if share == 1 else f"{text}, {share:.4g} of it", value=value)


def _states(on: Grounds, figure: str) -> Iterable[Term]:
    state = on.fullest(figure).content.state_bytes
    if state:
        sequences = _sequences(on)
        text = f"{sequences:,.0f} sequences x {state:,.0f} B of recurrent states"
        yield Term(text=text, value=sequences * state)


def _kv(on: Grounds) -> Iterable[Term]:
    yield from _stored(on, "kv_bytes", 1.0 - on.kv.host_fraction())
    yield from _states(on, "kv_bytes")


def _reserved(on: Grounds) -> Iterable[Term]:
    yield Term(text=f"pages of {page_tokens(on.deployment):,.0f} tokens over all token shards")
    yield from _stored(on, "kv_reserved_bytes", 1.0 - on.kv.host_fraction())
    yield from _states(on, "kv_reserved_bytes")


def _away(on: Grounds) -> Iterable[Term]:
    if on.kv.host_fraction():
        yield from _stored(on, "kv_host_bytes", on.kv.host_fraction())


def _late(on: Grounds) -> Iterable[Term]:
    here = 1.0 - on.kv.host_fraction()
    for stream, layers in on.fullest("kv_prefill_bytes").content.streams:
        tokens = on.kv.late_tokens(stream, on.workload.context_tokens)
        late = late_bytes(stream, layers, on.deployment, on.kv, on.workload)
        if tokens is not None and late is not None:
            text = f"{layers} layers x {tokens:,.0f} tokens of {_entry(stream, on)}"
            yield Term(text=text, value=late * here)


def _reading(on: Grounds) -> str:
    chunked = "in all layers, as prefill is chunked"
    if on.workload.new_tokens <= on.workload.chunk_tokens:
        chunked = "in one layer at a time, as prefill is not chunked"
    return f"what a prompt holds while it is read and drops afterwards, {chunked}"


def _activation(on: Grounds) -> Iterable[Term]:
    content = on.fullest("activation_bytes").content
    yield Term(text=f"{step_tokens(on.deployment, on.workload):,.10g} tokens of a step on a rank")
    yield Term(text=f"{content.token_elements:,.10g} elements a token")


def _logits(on: Grounds) -> Iterable[Term]:
    split = f"{on.counts.model.vocab:,} / {on.deployment.tp}"
    yield Term(text=f"{_sequences(on):,.0f} sequences x {split}")


def _workspace(on: Grounds) -> Iterable[Term]:
    partial = on.fullest("workspace_bytes").content.partial_bytes
    yield Term(text=f"{_sequences(on):,.0f} sequences x {partial:,.0f} B")


def _runtime(on: Grounds) -> Iterable[Term]:
    yield Term(text="CUDA context and libraries", value=RUNTIME_BYTES)
    if on.deployment.gpus > 1:
        yield Term(text="collective buffers", value=COLLECTIVE_BYTES)


def _total(on: Grounds) -> Iterable[Term]:
    fullest = on.fullest("total_bytes").memory
    for name in CONTENTS:
        yield Term(text=name, value=getattr(fullest, f"{name}_bytes"))


def _headroom(on: Grounds) -> Iterable[Term]:
    yield Term(text="capacity_bytes_per_gpu", value=on.columns["capacity_bytes_per_gpu"])
    yield Term(text="less total_bytes_per_gpu", value=-on.columns["total_bytes_per_gpu"])


def _capacity(on: Grounds) -> str:
    known = on.gpu.usable_bytes != on.gpu.marketed_bytes
    return f"{'memory that the driver reports' if known else 'marketed memory'} x utilisation"


def _usable(on: Grounds) -> Iterable[Term]:
    yield Term(text=f"{on.gpu.usable_bytes:,.0f} B x {on.deployment.utilisation:g}")


def _split(on: Grounds) -> str:
    there = on.deployment
    split = f"tp {there.tp}, pp {there.pp}, dp {there.dp}, ep {there.ep}"
    return f"sum of matrices in their formats, the fullest rank's share ({split})"


SIZED: Mapping[str, Account] = {
    "params": Account(
        unit="parameters",
        formula="matrices and vectors of the text model, without MTP layers; tied tables once",
        terms=lambda on: _params(on, "params", ""),
        source="shapes of the model's config",
    ),
    "active_params": Account(
        unit="parameters",
        formula="as params, of routed experts those that one token runs; tables included",
        terms=lambda on: _params(on, "active_params", _experts(on)),
        source="shapes of the model's config, counted as vendors do",
    ),
    "weights_bytes_per_gpu": Account(
        unit="B",
        formula=_split,
        terms=_weights,
        source="the model's config; KV projections are copied beyond kv_heads",
    ),
    "kv_bytes_per_token": Account(
        unit="B",
        formula="sum over layers whose cache grows: heads x elements x bytes, scales included",
        terms=_growing,
        source=CACHE_SOURCE,
    ),
    "kv_bytes_per_token_all_layers": Account(
        unit="B",
        formula="sum over every caching layer, as an engine without window eviction pays",
        terms=_every_layer,
        source=CACHE_SOURCE,
    ),
    "kv_index_bytes_per_token": Account(
        unit="B",
        formula="sum over layers that own index keys",
        terms=_index,
        source="the config's index heads: fp8 keys with an fp32 scale (DeepSeek-V3.2), for block "
        "selection bf16 (MiniMax-M3 states no dtype)",
    ),
    "kv_token_bytes_per_gpu": Account(
        unit="B",
        formula="every caching layer of the fullest stage, index keys included, x the rank's share",
        terms=_rank_token,
        source="KV heads and MLA latents are copied over tensor ranks, unless dcp or cp shards "
        "their tokens",
    ),
    "kv_state_bytes_per_sequence": Account(
        unit="B",
        formula="recurrent states and full windows of one sequence",
        terms=_fixed,
        source="state shapes of the model's config; fp32 states unless the config says less",
    ),
    "kv_bytes_per_gpu": Account(
        unit="B",
        formula="sequences x (layers x stored tokens x bytes + states), the rank's share",
        terms=_kv,
        source="kv_bytes_per_token; KV heads and MLA latents are copied over tensor ranks",
    ),
    "kv_reserved_bytes_per_gpu": Account(
        unit="B",
        formula="as kv_bytes_per_gpu, tokens rounded up to whole pages",
        terms=_reserved,
        source="PagedAttention (arXiv:2309.06180, section 4)",
    ),
    "kv_host_bytes_per_gpu": Account(
        unit="B",
        formula="whole pages x the share that the strategy keeps in host memory",
        terms=_away,
        source="the `fraction` of offload",
    ),
    "kv_prefill_bytes_per_gpu": Account(
        unit="B",
        formula=_reading,
        terms=_late,
        source="H2O and SnapKV choose what to keep after the prompt (arXiv:2404.14469)",
    ),
    "activation_bytes_per_gpu": Account(
        unit="B",
        formula="tokens of a step (a chunk / cp, or one of each sequence) x elements alive at the "
        "widest layer x 2 B",
        terms=_activation,
        source="residual, its norm, and a layer's outputs before its closing projection",
    ),
    "logits_bytes_per_gpu": Account(
        unit="B",
        formula="sequences x vocab / tp x 4 B",
        terms=_logits,
        source="engines compute fp32 logits of the last position only",
    ),
    "workspace_bytes_per_gpu": Account(
        unit="B",
        formula=f"sequences x heads x (v_dim + 1) x {DECODE_SPLITS} splits x 4 B",
        terms=_workspace,
        source="partial results of split-KV decode (Flash-Decoding)",
    ),
    "runtime_bytes_per_gpu": Account(
        unit="B",
        formula="medians of published start-up logs",
        terms=_runtime,
        source="vLLM 0.15-0.19 on H100, logs of llm-d-incubation/llm-d-planner#205",
    ),
    "total_bytes_per_gpu": Account(
        unit="B",
        formula="sum of what lies on the fullest GPU",
        terms=_total,
        source="the columns of these names; where pp > 1, their parts on one stage",
    ),
    "capacity_bytes_per_gpu": Account(
        unit="B",
        formula=_capacity,
        terms=_usable,
        source=lambda on: on.gpu.sources["usable_bytes"],
    ),
    "headroom_bytes_per_gpu": Account(
        unit="B",
        formula="capacity less total; below zero where it does not fit",
        terms=_headroom,
        source="the columns named",
    ),
}
