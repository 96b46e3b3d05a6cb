"""Where each number of a row comes from: its formula, the values that entered, its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from lcprof.cost.decode import Step
from lcprof.cost.expected.task import Timed, UnmeasuredError
from lcprof.cost.expected.whole import Clock
from lcprof.cost.memory import COLLECTIVE_BYTES, RUNTIME_BYTES, final_tokens, stage_contents
from lcprof.cost.operation import Operation
from lcprof.cost.prefill import Span
from lcprof.cost.sharding import kv_share, stages
from lcprof.cost.total import Work, decode_work, prefill_work
from lcprof.cost.weights import group_rank_bytes
from lcprof.domain.kv.stream import Stream, state_bytes, streams
from lcprof.domain.model import ModelShape
from lcprof.plan.estimate import ENDLESS, count, growth, remade
from lcprof.plan.fits import fits_for
from lcprof.plan.row import Row
from lcprof.plan.times import passes


class Term(Struct, frozen=True, kw_only=True):
    """A value that enters a formula: what it is, and how much of the result it makes (None for a
    factor or a choice rather than a summand)."""

    text: str
    value: float | None = None


class Explanation(Struct, frozen=True, kw_only=True):
    """One number: `value` in `unit`, its formula in words, the terms, and the formula's source."""

    column: str
    value: float | None
    unit: str
    formula: str
    terms: tuple[Term, ...]
    source: str


def explain(row: Row) -> list[Explanation]:
    """An explanation of every sized or timed column of a row, in the order of a plan."""
    model = remade(row.case.model, row.case.kv)
    sized = [*_cache(row, model), *_memory(row, model), *_work(row, model)]
    return [*sized, *_expected(row), *_inverse(row)]


def _entry(stream: Stream, row: Row) -> str:
    packed = "" if stream.tokens_per_entry == 1 else f" / {stream.tokens_per_entry} tokens"
    if stream.kind == "index":
        return f"index keys of {stream.index_bytes:,.10g} B a token"
    elements = f"{stream.heads} heads x ({stream.k_elements} K + {stream.v_elements} V) elements"
    return f"{elements}{packed} as {row.case.kv_spec}"


def _cache(row: Row, model: ModelShape) -> list[Explanation]:
    kv, estimate = row.case.kv, row.estimate
    growing: list[Term] = []
    everywhere: list[Term] = []
    index: list[Term] = []
    fixed: list[Term] = []
    for group, layers in zip(model.groups, model.group_counts(), strict=True):
        if state_bytes(group.mixer):
            text = f"{layers} {group.name} layers, recurrent state and convolution tail"
            fixed.append(Term(text=text, value=layers * state_bytes(group.mixer)))
        for stream in streams(group.mixer):
            rate = kv.bytes_per_token(stream)
            text = f"{layers} {group.name} layers x {_entry(stream, row)} ({rate:,.10g} B)"
            term = Term(text=text, value=layers * rate)
            if stream.kind == "index":
                index.append(term)
                continue
            if not stream.companion:
                everywhere.append(term)
            kept = growth(kv, stream)
            if kept:
                share = "" if kept == 1 else f" x {kept:.4g} of the context kept"
                growing.append(Term(text=text + share, value=layers * rate * kept))
                continue
            tokens = kv.stored_tokens(stream, ENDLESS)
            value = layers * kv.stored_bytes(stream, ENDLESS)
            fixed.append(Term(text=f"{text} x {tokens:,.0f} tokens kept", value=value))
    source = "2 x kv_heads x head_dim x bytes for grouped attention (arXiv:2305.13245); 512 + 64 "
    source += "elements a token for MLA (arXiv:2405.04434, section 2.1); the config of the model"
    return [
        Explanation(
            column="kv_bytes_per_token",
            value=estimate.kv_bytes_per_token,
            unit="B",
            formula="sum over layers whose cache grows: heads x elements x bytes, scales included",
            terms=tuple(growing),
            source=source,
        ),
        Explanation(
            column="kv_bytes_per_token_all_layers",
            value=estimate.kv_bytes_per_token_all_layers,
            unit="B",
            formula="the same over every caching layer, as an engine without window eviction pays",
            terms=tuple(everywhere),
            source=source,
        ),
        Explanation(
            column="kv_index_bytes_per_token",
            value=estimate.kv_index_bytes_per_token,
            unit="B",
            formula="sum over layers that own index keys",
            terms=tuple(index),
            source="128 fp8 elements and one fp32 scale a layer (DeepSeek-V3.2)",
        ),
        Explanation(
            column="kv_state_bytes_per_sequence",
            value=estimate.kv_state_bytes_per_sequence,
            unit="B",
            formula="recurrent states and full windows of one sequence",
            terms=tuple(fixed),
            source="state shapes of the model's config; fp32 states unless the config says less",
        ),
    ]


def _memory(row: Row, model: ModelShape) -> list[Explanation]:
    estimate, deployment, workload = row.estimate, row.case.deployment, row.case.workload
    kv = row.case.kv
    sequences = -(-workload.concurrency // deployment.dp)
    tokens = final_tokens(workload)
    contents = stage_contents(model, deployment)
    content = max(contents, key=lambda c: c.weights_bytes)
    fullest = stages(model, deployment.pp)[contents.index(content)]
    cached = [
        Term(
            text=f"{sequences:,.0f} sequences x {count} layers x "
            f"{kv.stored_tokens(stream, tokens, workload.output_tokens - 1):,.0f} tokens x "
            f"{kv.bytes_per_token(stream):,.10g} B x rank share {kv_share(stream, deployment):.4g}"
        )
        for stream, count in content.streams
    ]
    layers = " of the fullest stage" if deployment.pp > 1 else ""
    weights = [
        Term(
            text=f"{count} {group.name} layers{layers}",
            value=count * group_rank_bytes(group, deployment),
        )
        for group, count in fullest.counts
    ]
    rest = estimate.weights_bytes_per_gpu - sum(term.value or 0.0 for term in weights)
    weights.append(Term(text="vocabulary tables and last norm", value=rest))
    chunk = min(workload.context_tokens - workload.prefix_tokens, workload.chunk_tokens)
    runtime = [Term(text="CUDA context and libraries", value=RUNTIME_BYTES)]
    if deployment.gpus > 1:
        runtime.append(Term(text="collective buffers", value=COLLECTIVE_BYTES))
    held = [
        Term(text=name, value=getattr(estimate, f"{name}_bytes_per_gpu"))
        for name in (
            "weights",
            "kv_reserved",
            "kv_prefill",
            "activation",
            "logits",
            "workspace",
            "runtime",
        )
    ]
    page = Term(
        text=f"pages of {deployment.page_tokens} tokens on each of "
        f"{deployment.dcp * deployment.cp} token shards"
    )
    split = f"tp {deployment.tp}, pp {deployment.pp}, dp {deployment.dp}, ep {deployment.ep}"
    gpu = deployment.gpu
    known = gpu.usable_bytes != gpu.marketed_bytes
    memory = "memory that the driver reports" if known else "marketed memory"
    return [
        Explanation(
            column="weights_bytes_per_gpu",
            value=estimate.weights_bytes_per_gpu,
            unit="B",
            formula=f"sum of matrices in their formats, the fullest rank's share ({split})",
            terms=tuple(weights),
            source="the model's config; KV projections are copied beyond kv_heads",
        ),
        Explanation(
            column="kv_bytes_per_gpu",
            value=estimate.kv_bytes_per_gpu,
            unit="B",
            formula="sequences x (layers x stored tokens x bytes + states), the rank's share",
            terms=tuple(cached),
            source="kv_bytes_per_token; KV heads and MLA latents are copied over tensor ranks",
        ),
        Explanation(
            column="kv_reserved_bytes_per_gpu",
            value=estimate.kv_reserved_bytes_per_gpu,
            unit="B",
            formula="the same, tokens rounded up to whole pages",
            terms=(page,),
            source="PagedAttention (arXiv:2309.06180, section 4)",
        ),
        Explanation(
            column="kv_prefill_bytes_per_gpu",
            value=estimate.kv_prefill_bytes_per_gpu,
            unit="B",
            formula="what a prompt holds while it is read and drops afterwards: all layers of it "
            "when prefill is chunked, one at a time when it is not",
            terms=(),
            source="H2O and SnapKV choose what to keep after the prompt (arXiv:2404.14469)",
        ),
        Explanation(
            column="activation_bytes_per_gpu",
            value=estimate.activation_bytes_per_gpu,
            unit="B",
            formula="chunk tokens x elements alive at the widest layer x 2 B",
            terms=(
                Term(text=f"{chunk:,.0f} tokens of a chunk"),
                Term(text=f"{content.token_elements:,.10g} elements a token"),
            ),
            source="residual, its norm, and a layer's outputs before its closing projection",
        ),
        Explanation(
            column="logits_bytes_per_gpu",
            value=estimate.logits_bytes_per_gpu,
            unit="B",
            formula="sequences x vocab / tp x 4 B",
            terms=(Term(text=f"{sequences:,.0f} sequences x {model.vocab:,} / {deployment.tp}"),),
            source="engines compute fp32 logits of the last position only",
        ),
        Explanation(
            column="workspace_bytes_per_gpu",
            value=estimate.workspace_bytes_per_gpu,
            unit="B",
            formula="sequences x heads x (v_dim + 1) x 32 splits x 4 B",
            terms=(Term(text=f"{sequences:,.0f} sequences x {content.partial_bytes:,.0f} B"),),
            source="partial results of split-KV decode (Flash-Decoding)",
        ),
        Explanation(
            column="runtime_bytes_per_gpu",
            value=estimate.runtime_bytes_per_gpu,
            unit="B",
            formula="medians of published start-up logs",
            terms=tuple(runtime),
            source="vLLM 0.15-0.19 on H100, logs of llm-d-incubation/llm-d-planner#205",
        ),
        Explanation(
            column="total_bytes_per_gpu",
            value=estimate.total_bytes_per_gpu,
            unit="B",
            formula="sum of what lies on the fullest GPU",
            terms=tuple(held),
            source="the lines above",
        ),
        Explanation(
            column="capacity_bytes_per_gpu",
            value=estimate.capacity_bytes_per_gpu,
            unit="B",
            formula=f"{memory} x utilisation",
            terms=(Term(text=f"{gpu.usable_bytes:,.0f} B x {deployment.utilisation:g}"),),
            source=gpu.sources["usable_bytes"],
        ),
    ]


def _work(row: Row, model: ModelShape) -> list[Explanation]:
    estimate, deployment, workload = row.estimate, row.case.deployment, row.case.workload
    kv = row.case.kv
    span: Span[float] = Span(
        start=workload.prefix_tokens,
        tokens=workload.context_tokens - workload.prefix_tokens,
        chunk_tokens=workload.chunk_tokens,
    )
    step: Step[float] = Step(sequences=workload.concurrency, context_tokens=workload.context_tokens)
    first = prefill_work(model, deployment, kv, span)
    each = decode_work(model, deployment, kv, step)
    return [
        Explanation(
            column="prefill_flops",
            value=estimate.prefill_flops,
            unit="FLOP",
            formula="2 x matrix parameters a token, exact causal pairs of attention, last logits",
            terms=_by_name(first, lambda operation: operation.flops),
            source="q·k - q·(q-1)/2 visible pairs, 2·heads·(k + v) FLOPs each "
            "(FlashAttention-2, arXiv:2307.08691, section 4.1)",
        ),
        Explanation(
            column="decode_step_flops",
            value=estimate.decode_step_flops,
            unit="FLOP",
            formula="2 x active matrix parameters x sequences, attention over what is read",
            terms=_by_name(each, lambda operation: operation.flops),
            source="one new token for each sequence; MLA absorbed",
        ),
        Explanation(
            column="decode_step_read_bytes_per_gpu",
            value=estimate.decode_step_read_bytes_per_gpu,
            unit="B",
            formula="weights once, each sequence's cache once, activations",
            terms=_by_name(each, lambda operation: operation.rank_read_bytes)
            if deployment.pp == 1
            else (),
            source="experts touched: E·(1 - (1 - k/E)^tokens) under uniform routing",
        ),
        *(_floors(row) if row.has_times else ()),
    ]


def _floors(row: Row) -> list[Explanation]:
    estimate, gpu = row.estimate, row.case.deployment.gpu
    peaks = Term(
        text=f"{gpu.name}: {gpu.flops_per_s('bf16') / 1e12:,.6g} dense bf16 TFLOP/s, "
        f"{gpu.bandwidth_bytes_per_s / 1e12:,.4g} TB/s"
    )
    rates = dict.fromkeys(
        gpu.sources[name] for name in ("peak_flops.bf16", "bandwidth_bytes_per_s")
    )
    source = f"data-sheet peaks ({', '.join(rates)}); perfect overlap"
    floor = "largest of FLOPs / peak, HBM bytes / bandwidth, sent bytes / link, host bytes / PCIe"
    return [
        Explanation(
            column="ttft_floor_s",
            value=estimate.ttft_floor_s,
            unit="s",
            formula=floor,
            terms=(peaks,),
            source=source,
        ),
        Explanation(
            column="tpot_floor_s",
            value=estimate.tpot_floor_s,
            unit="s",
            formula=f"{floor}, summed over pipeline stages",
            terms=(peaks,),
            source="as above",
        ),
    ]


def _expected(row: Row) -> list[Explanation]:
    """The expected times by operation, and what follows from them."""
    case, columns = row.case, row.columns()
    deployment, gpu = case.deployment, case.deployment.gpu
    try:
        counts = count(case.model, deployment, case.kv, case.workload)
        made = passes(counts, deployment, Clock(gpu, fits_for(gpu)))
    except UnmeasuredError:
        return []
    found = []
    for name, each, formula in (
        ("ttft", made.alone.expected, "kernels of every chunk, one after the other"),
        ("tpot", made.step.expected, "kernels of a step, one after the other, through all stages"),
    ):
        if columns[f"{name}_s"] is not None:
            low, high = columns[f"{name}_low_s"], columns[f"{name}_high_s"]
            found.append(
                Explanation(
                    column=f"{name}_s",
                    value=columns[f"{name}_s"],
                    unit="s",
                    formula=f"{formula}, at the clock that {columns['power_limit_w'] or 0:.0f} W "
                    f"allow; nine in ten lie from {low:.4g} s to {high:.4g} s",
                    terms=tuple(map(_timed_term, each.parts)),
                    source=f"{columns[f'{name}_basis']}; calibrations of {deployment.stack} and "
                    "what is most like it (lcprof accuracy)",
                )
            )
    return [*found, *_derived(columns, made.busy.expected.seconds)]


DERIVED = (
    ("request_s", "s", "ttft_s + (output - 1) x the mean of the first and the last step", ""),
    ("output_tokens_per_s", "tokens/s", "sequences / tpot_s", "concurrency tpot_s"),
    (
        "output_tokens_per_s_per_gpu",
        "tokens/s",
        "output_tokens_per_s / gpus",
        "output_tokens_per_s gpus",
    ),
    ("prefill_j", "J", "watts x seconds x gpus / dp, all dp groups reading", "prefill"),
    (
        "output_token_j",
        "J",
        "watts x tpot_s x gpus / sequences",
        "decode_w_per_gpu tpot_s gpus concurrency",
    ),
    ("request_usd", "USD", "price x gpus x (a prefill / dp + an answer / sequences)", "prefill"),
    (
        "usd_per_million_input_tokens",
        "USD",
        "price x gpus x seconds / (dp x tokens), all dp groups reading",
        "prefill",
    ),
    (
        "usd_per_million_output_tokens",
        "USD",
        "price x gpus x tpot_s / sequences",
        "price_usd_per_gpu_hour gpus tpot_s concurrency",
    ),
)
"""Columns that follow from the expected times: unit, formula, and the columns that enter."""
OF_PREFILL = "prefill_w_per_gpu gpus dp price_usd_per_gpu_hour"


def _derived(columns: Mapping[str, Any], busy_s: float) -> list[Explanation]:
    found = []
    for name, unit, formula, entering in DERIVED:
        if columns[name] is None:
            continue
        prefill = entering == "prefill"
        names = (OF_PREFILL if prefill else entering).split()
        terms = [Term(text=f"{n} {columns[n]:,.6g}") for n in names if columns[n] is not None]
        if prefill:
            terms.append(Term(text=f"seconds of a prefill with all dp groups {busy_s:,.6g}"))
        found.append(
            Explanation(
                column=name,
                value=columns[name],
                unit=unit,
                formula=formula,
                terms=tuple(terms),
                source="the lines above; power: lcprof/catalog/power; price: scenario or catalog",
            )
        )
    return found


def _timed_term(part: Timed) -> Term:
    kernels = dict.fromkeys(
        f"{f.variant[0]} {f.variant[1]} on {f.measured_on}"
        + f", calibrated here on {f.calibrated}" * bool(f.calibrated)
        for f in part.found
    )
    beyond = f", x{part.distance:.3g} beyond what was measured" if part.distance > 1 else ""
    if not part.seconds:
        return Term(
            text=f"{part.operation} (hidden behind {part.hidden_behind or 'nothing'})", value=0.0
        )
    low, high = part.below_s / part.seconds, part.above_s / part.seconds
    text = f"{part.operation} (-{low:.0%} +{high:.0%}{beyond}; {', '.join(kernels)})"
    return Term(text=text, value=part.seconds)


def _by_name(work: Work[float], quantity: Callable[[Operation[float]], float]) -> tuple[Term, ...]:
    totals: dict[str, float] = {}
    for part in work.whole:
        name = part.operation.name
        totals[name] = totals.get(name, 0.0) + quantity(part.operation) * part.count
    return tuple(Term(text=name, value=value) for name, value in totals.items() if value)


def _inverse(row: Row) -> list[Explanation]:
    workload = row.case.workload
    method = "bisection over the memory formula above, exact to one"
    return [
        Explanation(
            column="max_context_tokens",
            value=row.max_context_tokens,
            unit="tokens",
            formula="the longest prompt whose total stays within the capacity",
            terms=(Term(text=f"at {workload.concurrency:,.0f} sequences"),),
            source=method,
        ),
        Explanation(
            column="max_concurrency",
            value=row.max_concurrency,
            unit="sequences",
            formula="the most sequences whose total stays within the capacity",
            terms=(Term(text=f"at {workload.context_tokens:,.0f} tokens each"),),
            source=method,
        ),
    ]
