"""Accounts of what is counted: FLOPs and bytes of a prefill and of a decode step, and floors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from lcprof.cost.operation import ACTIVATION_BYTES, Operation
from lcprof.cost.prefill import (
    attention_flops,
    naive_attention_flops,
    reexpansion_flops,
    score_bytes,
)
from lcprof.cost.total import Share, StageTotals, Work
from lcprof.domain.model import LayerGroup
from lcprof.plan.accounts.account import Account, Grounds, Term

PAIRS_SOURCE = (
    "q·k - q·(q-1)/2 visible pairs, 2·heads·(k + v) FLOPs each "
    "(FlashAttention-2, arXiv:2307.08691, section 4.1)"
)
FUSED_SOURCE = "a fused attention kernel, scores never in memory (arXiv:2205.14135, theorem 2)"
EXPERTS_SOURCE = "experts touched: E·(1 - (1 - k/E)^tokens) under uniform routing"
LINK_SOURCE = (
    "all-reduces send 2·(tp - 1)/tp of the hidden state, ep sends a token once to each other rank "
    "with one of its experts (DeepEP)"
)
FLOOR = "largest of FLOPs / peak, HBM bytes / bandwidth, sent bytes / link, host bytes / PCIe"


def _by_name(
    parts: Iterable[Share[float]], quantity: Callable[[Operation[float]], float]
) -> Iterable[Term]:
    totals: dict[str, float] = {}
    for part in parts:
        name = part.operation.name
        totals[name] = totals.get(name, 0.0) + quantity(part.operation) * part.count
    return (Term(text=name, value=value) for name, value in totals.items() if value)


def _flops(work: Work[float]) -> Iterable[Term]:
    return _by_name(work.whole, lambda operation: operation.flops)


def _moved(work: Work[float], quantity: str) -> Iterable[Term]:
    """A quantity of the fullest rank by operation, in the stage where it is largest."""
    totals = [float(getattr(stage, quantity)) for stage in work.stages]
    fullest = work.parts[totals.index(max(totals))]
    return _by_name(fullest, lambda operation: float(getattr(operation, f"rank_{quantity}")))


def _prefill(quantity: str) -> Callable[[Grounds], Iterable[Term]]:
    return lambda on: _moved(on.counts.prefill, quantity)


def _step(quantity: str) -> Callable[[Grounds], Iterable[Term]]:
    return lambda on: _moved(on.counts.step, quantity)


def _by_group(on: Grounds, flops: Callable[[LayerGroup], float]) -> Iterable[Term]:
    model = on.counts.model
    for group, layers in zip(model.groups, model.group_counts(), strict=True):
        value = flops(group) * layers
        if value:
            yield Term(text=f"{layers} {group.name} layers", value=value)


def _attention(on: Grounds) -> Iterable[Term]:
    sight, span = on.kv.sight(), on.counts.span
    return _by_group(on, lambda group: attention_flops(group.mixer, sight, span))


def _rectangle(on: Grounds) -> Term:
    span = on.counts.span
    keys = span.start + span.tokens
    return Term(text=f"{span.tokens:,.0f} queries x {keys:,.0f} keys")


def _naive(on: Grounds) -> Iterable[Term]:
    span = on.counts.span
    yield _rectangle(on)
    yield from _by_group(on, lambda group: naive_attention_flops(group.mixer, span))


def _scores(on: Grounds) -> Iterable[Term]:
    span = on.counts.span
    widest = max(on.counts.model.groups, key=lambda group: score_bytes(group.mixer, span))
    heads = getattr(widest.mixer, "q_heads", 0)
    return _rectangle(on), Term(text=f"{heads} query heads x {ACTIVATION_BYTES} B")


def _again(on: Grounds) -> Iterable[Term]:
    span = on.counts.span
    return _by_group(on, lambda group: reexpansion_flops(group.mixer, span))


def _peaks(on: Grounds) -> Term:
    gpu = on.gpu
    return Term(
        text=f"{gpu.name}: {gpu.flops_per_s('bf16') / 1e12:,.6g} dense bf16 TFLOP/s, "
        f"{gpu.bandwidth_bytes_per_s / 1e12:,.4g} TB/s"
    )


def _bounds(on: Grounds, stage: StageTotals[float]) -> Iterable[Term]:
    for name, seconds in stage.floors_s(on.gpu).items():
        if seconds:
            yield Term(text=f"{name} {seconds:,.6g} s")


def _prefill_floor(on: Grounds) -> Iterable[Term]:
    yield _peaks(on)
    yield from _bounds(on, max(on.counts.prefill.stages, key=lambda stage: stage.floor_s(on.gpu)))
    if on.deployment.pp > 1:
        steps, bubble = on.counts.span.steps, on.counts.span.bubble(on.deployment.pp)
        yield Term(text=f"{steps:,.0f} chunks through {on.deployment.pp} stages: x {bubble:,.6g}")


def _step_floor(on: Grounds) -> Iterable[Term]:
    yield _peaks(on)
    stages = on.counts.in_flight.stages
    if len(stages) == 1:
        yield from _bounds(on, stages[0])
        return
    for index, stage in enumerate(stages, 1):
        floors = stage.floors_s(on.gpu)
        largest = max(floors, key=lambda name: floors[name])
        yield Term(text=f"stage {index}: {largest}", value=floors[largest])


def _request_floor(on: Grounds) -> Iterable[Term]:
    steps = on.workload.output_tokens - 1.0
    yield Term(text="ttft_floor_s", value=on.columns["ttft_floor_s"])
    text = f"{steps:,.0f} further tokens x tpot_floor_s"
    yield Term(text=text, value=on.columns["tpot_floor_s"] * steps)


def _data_sheet(on: Grounds) -> str:
    named = ("peak_flops.bf16", "bandwidth_bytes_per_s")
    rates = dict.fromkeys(on.gpu.sources[name] for name in named)
    return f"data-sheet peaks ({', '.join(rates)}); perfect overlap"


FLOP = partial(Account, unit="FLOP")
BYTES = partial(Account, unit="B")
SECONDS = partial(Account, unit="s")

COUNTED: Mapping[str, Account] = {
    "prefill_flops": FLOP(
        formula="2 x matrix parameters a token, exact causal pairs of attention, last logits",
        terms=lambda on: _flops(on.counts.prefill),
        source=PAIRS_SOURCE,
    ),
    "prefill_attention_flops": FLOP(
        formula="visible pairs x FLOPs of a pair, index scores; recurrences' own FLOPs",
        terms=_attention,
        source=PAIRS_SOURCE,
    ),
    "prefill_reexpansion_flops": FLOP(
        formula="2 x kv_up parameters x tokens before each chunk, MLA layers without an indexer; "
        "not in prefill_flops",
        terms=_again,
        source="un-absorbed attention expands cached latents (arXiv:2405.04434, section 2.1) anew "
        "for every chunk",
    ),
    "naive_prefill_attention_flops": FLOP(
        formula="queries x keys, masked pairs too, x 2·heads·(k + v); recurrences as they are",
        terms=_naive,
        source="attention that fills the whole matrix of scores (arXiv:2205.14135, section 2.2)",
    ),
    "naive_score_bytes_per_layer": BYTES(
        formula="queries x keys x query heads x 2 B, of the layer where it is most",
        terms=_scores,
        source="the matrix of scores in 16 bits, written once (arXiv:2205.14135, section 2.2)",
    ),
    "prefill_read_bytes_per_gpu": BYTES(
        formula="weights once a chunk, of each chunk the cache up to its end, activations",
        terms=_prefill("read_bytes"),
        source=f"{FUSED_SOURCE}; {EXPERTS_SOURCE}",
    ),
    "prefill_link_bytes_per_gpu": BYTES(
        formula="what a rank sends for tp, dp, ep and cp",
        terms=_prefill("link_bytes"),
        source=f"{LINK_SOURCE}; cp: a ring (arXiv:2310.01889), or pass-Q (arXiv:2411.01783, "
        "section 3) where that sends less",
    ),
    "decode_step_flops": FLOP(
        formula="2 x active matrix parameters x sequences, attention over what is read",
        terms=lambda on: _flops(on.counts.step),
        source="one new token for each sequence; MLA absorbed",
    ),
    "decode_step_read_bytes_per_gpu": BYTES(
        formula="weights once, each sequence's cache once, activations",
        terms=_step("read_bytes"),
        source=EXPERTS_SOURCE,
    ),
    "decode_step_write_bytes_per_gpu": BYTES(
        formula="each sequence's new token to the cache, states, activations, logits",
        terms=_step("write_bytes"),
        source="outputs of every operation once, in 16 bits; logits in 32",
    ),
    "decode_step_link_bytes_per_gpu": BYTES(
        formula="what a rank sends for tp, dp and ep, and where tokens are sharded (dcp, cp) "
        "queries and partial outputs",
        terms=_step("link_bytes"),
        source=f"{LINK_SOURCE}; partial outputs in fp32",
    ),
    "decode_step_host_bytes_per_gpu": BYTES(
        formula="of each sequence's cache what is read of its share in host memory",
        terms=_step("host_bytes"),
        source="the `fraction` of offload",
    ),
}
FLOORS: Mapping[str, Account] = {
    "ttft_floor_s": SECONDS(
        formula=f"{FLOOR}, of the slowest stage x (chunks + pp - 1) / chunks",
        terms=_prefill_floor,
        source=lambda on: f"{_data_sheet(on)}; the bubble: GPipe (arXiv:1811.06965, section 2.3)",
    ),
    "tpot_floor_s": SECONDS(
        formula=f"{FLOOR}, summed over pipeline stages",
        terms=_step_floor,
        source=_data_sheet,
    ),
    "request_floor_s": SECONDS(
        formula="ttft_floor_s + (output - 1) x tpot_floor_s",
        terms=_request_floor,
        source="the columns named",
    ),
}
