"""One estimate: every output column of a plan, for one point or a grid of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost import prefill
from lcprof.cost.decode import Step
from lcprof.cost.memory import Memory, StageContent, memory, stage_contents
from lcprof.cost.sharding import kv_share
from lcprof.cost.total import (
    Work,
    decode_floor_s,
    decode_work,
    prefill_floor_s,
    prefill_work,
)
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.stream import Stream, state_bytes, streams
from lcprof.domain.model import ModelShape
from lcprof.domain.workload import Workload
from lcprof.num import Num, choose, larger

LIMITS = ("", "weights", "activations", "kv")
"""What a deployment runs out of memory for; the code is the position."""


class Estimate(Struct, Generic[Num], frozen=True, kw_only=True):
    """Every column of a plan. A field's name is its column; bytes are bytes, times seconds.

    `kv_bytes_per_token` counts the whole model before sharding: what each further token of context
    adds (windows that are full add nothing); `_all_layers` what a token costs in every layer,
    windows included, as an engine without window eviction pays; both without index keys, which
    `kv_index_bytes_per_token` counts. `kv_token_bytes_per_gpu` is the fullest GPU's share of both,
    every layer counted: what an engine prints as bytes per token. `kv_state_bytes_per_sequence`
    is recurrent states and full windows. `prefill_` figures are one request's, decode figures one
    step of all sequences at `context_tokens` (its floor: of those that share a pipeline).
    `_per_gpu` is the fullest GPU. Floors are physical (lcprof.cost.total).
    """

    params: int
    active_params: int
    weights_bytes_per_gpu: Num
    kv_bytes_per_token: float
    kv_bytes_per_token_all_layers: float
    kv_index_bytes_per_token: float
    kv_token_bytes_per_gpu: float
    kv_state_bytes_per_sequence: float
    kv_bytes_per_gpu: Num
    kv_reserved_bytes_per_gpu: Num
    kv_host_bytes_per_gpu: Num
    kv_prefill_bytes_per_gpu: Num
    activation_bytes_per_gpu: Num
    logits_bytes_per_gpu: Num
    workspace_bytes_per_gpu: Num
    runtime_bytes_per_gpu: Num
    total_bytes_per_gpu: Num
    capacity_bytes_per_gpu: float
    headroom_bytes_per_gpu: Num
    fits: Any
    limit_code: Any
    prefill_flops: Num
    prefill_attention_flops: Num
    prefill_reexpansion_flops: Num
    naive_prefill_attention_flops: Num
    naive_score_bytes_per_layer: Num
    prefill_read_bytes_per_gpu: Num
    prefill_link_bytes_per_gpu: Num
    decode_step_flops: Num
    decode_step_read_bytes_per_gpu: Num
    decode_step_write_bytes_per_gpu: Num
    decode_step_link_bytes_per_gpu: Num
    decode_step_host_bytes_per_gpu: Num
    ttft_floor_s: Num
    tpot_floor_s: Num
    request_floor_s: Num

    @property
    def limited_by(self) -> str:
        """What a point that does not fit runs out of memory for; "" when it fits."""
        return LIMITS[int(self.limit_code)]

    def columns(self) -> Mapping[str, Any]:
        """Field name to value, in order; `limited_by` in place of its code."""
        columns = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            "limited_by" if name == "limit_code" else name: (
                self.limited_by if name == "limit_code" else value
            )
            for name, value in columns.items()
        }


class TokenBytes(Struct, frozen=True, kw_only=True):
    """What a token or a sequence leaves in the cache of the whole model, before sharding."""

    growing: float
    all_layers: float
    index: float
    per_sequence: float


ENDLESS = 2.0**50
"""Tokens beyond any window or budget."""


def growth(kv: KvStrategy, stream: Stream) -> float:
    """The share of each further token that stays stored: 1 for a full cache, 0 for a full window,
    the budget's share for eviction to a share of the context."""
    half = ENDLESS / 2
    return (kv.stored_tokens(stream, ENDLESS) - kv.stored_tokens(stream, half)) / half


def rank_token_bytes(model: ModelShape, deployment: Deployment, kv: KvStrategy) -> float:
    """Bytes that one token takes on the fullest GPU in every caching layer, index keys included:
    heads copied beyond their number, layers cut over pipeline stages."""
    fullest = 0.0
    for content in stage_contents(model, deployment):
        here = 0.0
        for _, each in stage_token_bytes(content, deployment, kv):
            here += each
        fullest = max(fullest, here)
    return fullest


def stage_token_bytes(
    content: StageContent, deployment: Deployment, kv: KvStrategy
) -> list[tuple[Stream, float]]:
    """Bytes that one token takes on the fullest GPU of a stage, stream by stream over the layers
    that have it."""
    return [
        (stream, layers * kv.bytes_per_token(stream) * kv_share(stream, deployment))
        for stream, layers in content.streams
        if stream.cap_tokens is None or not stream.companion
    ]


def token_bytes(model: ModelShape, kv: KvStrategy) -> TokenBytes:
    """KV bytes of a model under a strategy, three ways, and its index keys."""
    growing, everywhere, index, fixed = 0.0, 0.0, 0.0, 0.0
    for group, count in zip(model.groups, model.group_counts(), strict=True):
        fixed += count * state_bytes(group.mixer)
        for stream in streams(group.mixer):
            rate = count * kv.bytes_per_token(stream)
            if stream.kind == "index":
                index += rate
                continue
            if not stream.companion:
                everywhere += rate
            kept = growth(kv, stream)
            growing += rate * kept
            if not kept:
                fixed += count * kv.stored_bytes(stream, ENDLESS)
    return TokenBytes(growing=growing, all_layers=everywhere, index=index, per_sequence=fixed)


class Naive(Struct, Generic[Num], frozen=True, kw_only=True):
    """What a prefill would cost without the techniques that a plan takes for granted."""

    flops: Num
    score_bytes: Num
    reexpansion_flops: Num


class Counts(Struct, Generic[Num], frozen=True, kw_only=True):
    """Everything about a workload on a layout that no particular GPU enters: bytes and FLOPs."""

    model: ModelShape
    kv: KvStrategy
    token: TokenBytes
    span: prefill.Span[Num]
    output_tokens: float
    decode: Step[Num]
    held: Memory[Num]
    prefill: Work[Num]
    prefill_flops: Num
    attention_flops: Num
    step: Work[Num]
    in_flight: Work[Num]
    step_flops: Num
    naive: Naive[Num]


def count(
    model: ModelShape, deployment: Deployment, kv: KvStrategy, workload: Workload[Num]
) -> Counts[Num]:
    """Bytes and FLOPs of a workload. A what-if strategy remakes the model first."""
    model = remade(model, kv)
    held: Memory[Num] = memory(model, deployment, kv, workload)
    span: prefill.Span[Num] = prefill.Span.of(workload)
    step: Step[Num] = Step(sequences=workload.concurrency, context_tokens=workload.context_tokens)
    first = prefill_work(model, deployment, kv, span)
    each = decode_work(model, deployment, kv, step)
    passing = each
    if deployment.pp > 1:
        passing = decode_work(model, deployment, kv, step.in_flight(deployment))
    return Counts(
        model=model,
        kv=kv,
        token=token_bytes(model, kv),
        span=span,
        output_tokens=workload.output_tokens,
        decode=step,
        held=held,
        prefill=first,
        prefill_flops=first.flops(),
        attention_flops=first.flops("attention", "recurrence"),
        step=each,
        in_flight=passing,
        step_flops=each.flops(),
        naive=_naive(model, span),
    )


def estimate(
    model: ModelShape, deployment: Deployment, kv: KvStrategy, workload: Workload[Num]
) -> Estimate[Num]:
    """The estimate of a workload on a deployment.

    `workload.context_tokens` and `.concurrency` are floats, or float64 arrays that broadcast
    against each other; the fields broadcast to their common shape.
    """
    return finish(count(model, deployment, kv, workload), deployment)


def finish(counts: Counts[Num], deployment: Deployment) -> Estimate[Num]:
    """The estimate that counts give on the deployment's GPU. `deployment` must be laid out as the
    one that was counted; only its GPU and utilisation may differ."""
    held, token = counts.held, counts.token
    capacity = capacity_bytes(deployment)
    ttft_floor_s = prefill_floor_s(counts.prefill, deployment.gpu, counts.span)
    tpot_floor_s = decode_floor_s(counts.in_flight, deployment.gpu)
    return Estimate(
        params=counts.model.params,
        active_params=counts.model.active_params,
        weights_bytes_per_gpu=held.weights_bytes,
        kv_bytes_per_token=token.growing,
        kv_bytes_per_token_all_layers=token.all_layers,
        kv_index_bytes_per_token=token.index,
        kv_token_bytes_per_gpu=rank_token_bytes(counts.model, deployment, counts.kv),
        kv_state_bytes_per_sequence=token.per_sequence,
        kv_bytes_per_gpu=held.kv_bytes,
        kv_reserved_bytes_per_gpu=held.kv_reserved_bytes,
        kv_host_bytes_per_gpu=held.kv_host_bytes,
        kv_prefill_bytes_per_gpu=held.kv_prefill_bytes,
        activation_bytes_per_gpu=held.activation_bytes,
        logits_bytes_per_gpu=held.logits_bytes,
        workspace_bytes_per_gpu=held.workspace_bytes,
        runtime_bytes_per_gpu=held.runtime_bytes,
        total_bytes_per_gpu=held.total_bytes,
        capacity_bytes_per_gpu=capacity,
        headroom_bytes_per_gpu=capacity - held.total_bytes,
        fits=held.total_bytes <= capacity,
        limit_code=_limit_code(held, capacity),
        prefill_flops=counts.prefill_flops,
        prefill_attention_flops=counts.attention_flops,
        prefill_reexpansion_flops=counts.naive.reexpansion_flops,
        naive_prefill_attention_flops=counts.naive.flops,
        naive_score_bytes_per_layer=counts.naive.score_bytes,
        prefill_read_bytes_per_gpu=counts.prefill.fullest("read_bytes"),
        prefill_link_bytes_per_gpu=counts.prefill.fullest("link_bytes"),
        decode_step_flops=counts.step_flops,
        decode_step_read_bytes_per_gpu=counts.step.fullest("read_bytes"),
        decode_step_write_bytes_per_gpu=counts.step.fullest("write_bytes"),
        decode_step_link_bytes_per_gpu=counts.step.fullest("link_bytes"),
        decode_step_host_bytes_per_gpu=counts.step.fullest("host_bytes"),
        ttft_floor_s=ttft_floor_s,
        tpot_floor_s=tpot_floor_s,
        request_floor_s=ttft_floor_s + tpot_floor_s * (counts.output_tokens - 1.0),
    )


def _naive(model: ModelShape, span: prefill.Span[Num]) -> Naive[Num]:
    flops, scores, again = span.tokens * 0.0, span.tokens * 0.0, span.tokens * 0.0
    for group, layers in zip(model.groups, model.group_counts(), strict=True):
        flops = flops + prefill.naive_attention_flops(group.mixer, span) * layers
        scores = larger(scores, prefill.score_bytes(group.mixer, span))
        again = again + prefill.reexpansion_flops(group.mixer, span) * layers
    return Naive(flops=flops, score_bytes=scores, reexpansion_flops=again)


def remade(model: ModelShape, kv: KvStrategy) -> ModelShape:
    """The model with its mixers as a what-if strategy would have them."""
    groups = tuple(
        group if group.mixer is None else replace(group, mixer=kv.remake(group.mixer))
        for group in model.groups
    )
    return model if groups == model.groups else replace(model, groups=groups)


def capacity_bytes(deployment: Deployment) -> float:
    """What the engine may fill of a GPU: the driver's figure times the utilisation limit."""
    return deployment.gpu.usable_bytes * deployment.utilisation


def _limit_code(held: Memory[Num], capacity: float) -> Any:
    """The first thing that does not fit when weights and runtime go in first, then activations
    with logits and workspace, then KV."""
    fixed = held.weights_bytes + held.runtime_bytes
    last = choose(held.total_bytes > capacity, 3.0, 0.0)
    return choose(fixed > capacity, 1.0, choose(held.working_bytes > capacity, 2.0, last))
