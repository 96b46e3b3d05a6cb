"""Published times of whole requests and throughputs of servers, beside what a plan expects.

A row says which model ran where, on what prompt, and one figure. It is planned from its other
columns alone. No constant of any calibration comes from these rows. Rates of single attention
kernels and of ring attention, which the same table holds, are predicted by the same operations.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.expected.task import Task, timed
from lcprof.cost.expected.whole import Clock, prefill_expected
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.cost.timing.prefill_attention import PREFILL_ATTENTION, PrefillAttentionCall
from lcprof.domain.deployment import NODE_GPUS
from lcprof.errors import InputError
from lcprof.plan.estimate import count
from lcprof.plan.fits import fits_for
from lcprof.plan.row import Row, plan_cases
from lcprof.scenario.cases import expand
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.models import model_names
from lcprof.scenario.schema import read_scenario

COLUMNS = (
    *("group", "model", "hardware", "n_gpus", "parallelism", "weight_precision", "kv_precision"),
    *("input_len", "output_len", "batch_or_concurrency", "metric"),
)
MODELS = {"Mistral-7B": "mistral-7b-v0.3", "DeepSeek-V3/R1": "deepseek-v3"}
"""Published names that are not the catalog's."""
GPUS = {
    "H100": "h100-sxm",
    "H100 80GB SXM5": "h100-sxm",
    "H200": "h200-sxm",
    "B200": "b200",
    "A100": "a100-80gb-sxm",
    "A100-SXM4-80GB": "a100-80gb-sxm",
    "A100 80GB SXM4": "a100-80gb-sxm",
}
GROUP_POWER_W = {"CP": 500.0}
"""Power limits that a source states (its GPUs' clocks hold 800 of 989 TFLOP/s): by the first part
of the group's name."""
SLOPE_TOKENS = (16384, 131072)
"""The contexts between which a published slope of step time over context was fitted."""
CONTEXT_PARALLEL = re.compile(r"context parallel", re.IGNORECASE)
MOST_SEQUENCES = 4096.0
CHUNK_TOKENS = 8192


class Scored(Struct, frozen=True, kw_only=True):
    """One figure beside its prediction. `kind` is "ttft_s", "tpot_s" and so on; `bound` marks
    throughputs under a load that is not stated: their `high` is what floors allow."""

    line: int
    device: str
    kind: str
    predicted: float
    low: float
    high: float
    measured: float
    bound: bool = False

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1.0

    @property
    def inside(self) -> bool:
        return (self.bound or self.low <= self.measured) and self.measured <= self.high


class Refused(Struct, frozen=True, kw_only=True):
    """A row that is not predicted, and why; `kind` as of `Scored`, "" for what is no request's."""

    line: int
    device: str
    kind: str
    reason: str


def score_requests(path: Path) -> tuple[list[Scored], list[Refused]]:
    """Every row of a table, scored or refused. Raises InputError for a file without the columns,
    or a figure that is no positive number."""
    scored: list[Scored] = []
    refused: list[Refused] = []
    for line, row in enumerate(_rows(path), start=2):
        device = GPUS.get(row["hardware"], row["hardware"])
        found = _predict(row)
        if isinstance(found, str):
            kind = kind_of(row["metric"])
            refused.append(Refused(line=line, device=device, kind=kind, reason=found))
            continue
        kind, predicted, low, high, bound = found
        measured = _positive(row["value"], path, line) * UNITS[row["unit"]]
        scored.append(
            Scored(
                line=line,
                device=device,
                kind=kind,
                predicted=predicted,
                low=low,
                high=high,
                measured=measured,
                bound=bound,
            )
        )
    return scored, refused


UNITS = {
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "ms per context token": 1e-3,
    "tokens/s": 1.0,
    "tokens/s (all GPUs)": 1.0,
    "tokens/s per GPU": 1.0,
    "TFLOP/s": 1e12,
    "iterations/s": 1.0,
}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [n for n in (*COLUMNS, "value", "unit") if n not in (reader.fieldnames or [])]
        if missing:
            raise InputError.one(str(path), given=f"no column {missing[0]}", expected="it")
        return list(reader)


def _positive(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        where = f"{path}, line {line}"
        raise InputError.one(where, "value", given=text, expected="a positive number")
    return value


def kind_of(metric: str) -> str:
    """The kind of a published metric; "" for what no plan predicts."""
    for begin, kind in (
        ("prefill_ttft", "ttft_s"),
        ("median_ttft", "ttft_s"),
        ("median_itl", "tpot_s"),
        ("decode_itl_slope", "tpot_slope_s_per_token"),
        ("decode_itl_intercept", "tpot_intercept_s"),
        ("output_throughput_per_gpu", "output_tokens_per_s_per_gpu"),
        ("output_throughput", "output_tokens_per_s"),
        ("attention_", "attention_flops_per_s"),
        ("ring_attention_", "ring_attention_per_s"),
    ):
        if metric.startswith(begin):
            return kind
    return ""


Prediction = tuple[str, float, float, float, bool]


def _predict(row: Mapping[str, str]) -> Prediction | str:
    """What is expected of a row, from all but its figure; why nothing is, as text."""
    shape = {name: row[name] for name in COLUMNS}
    metric = shape["metric"]
    if not kind_of(metric):
        return "no time or rate of requests"
    if shape["hardware"] not in GPUS:
        return f"no calibration of {shape['hardware']}"
    if metric.startswith("attention_"):
        return _attention(shape, metric)
    if metric.startswith("ring_attention_"):
        return _ring(shape, metric)
    if _model(shape["model"]) is None:
        return f"no plan of {shape['model']}"
    if metric.startswith("decode_itl"):
        return _slope(shape, metric)
    if metric in {"prefill_ttft", "median_ttft"}:
        return _time(shape, "ttft", float(shape["input_len"]))
    if metric == "median_itl":
        # A step in the middle of the answer.
        return _time(shape, "tpot", float(shape["input_len"]) + float(shape["output_len"]) / 2)
    return _throughput(shape, per_gpu=metric.endswith("per_gpu"))


def _time(shape: Mapping[str, str], name: str, context: float) -> Prediction | str:
    row = _planned(shape, context=int(context))
    found = row.columns()
    if found[f"{name}_s"] is None:
        return row.no_times or "not vouched for"
    low, high = found[f"{name}_low_s"], found[f"{name}_high_s"]
    return f"{name}_s", found[f"{name}_s"], low, high, False


def _slope(shape: Mapping[str, str], metric: str) -> Prediction | str:
    """The line through the steps at both ends of the published fit."""
    ends = [_planned(shape, context=tokens).columns() for tokens in SLOPE_TOKENS]
    if any(end["tpot_s"] is None for end in ends):
        return "not vouched for"
    span = SLOPE_TOKENS[1] - SLOPE_TOKENS[0]

    def line(name: str) -> tuple[float, float]:
        slope = (ends[1][name] - ends[0][name]) / span
        return slope, ends[0][name] - slope * SLOPE_TOKENS[0]

    which, kind = 0, "tpot_slope_s_per_token"
    if not metric.endswith("slope"):
        which, kind = 1, "tpot_intercept_s"
    # The slope is attention's, which is most of the step at the far end.
    end = ends[1 - which]
    value = line("tpot_s")[which]
    low, high = (value * end[f"tpot_{name}_s"] / end["tpot_s"] for name in ("low", "high"))
    return kind, value, low, high, False


def _throughput(shape: Mapping[str, str], *, per_gpu: bool) -> Prediction | str:
    """Tokens/s of a server kept full: each request takes its prefill, and its share of the steps of
    as many sequences as memory holds. Where the load is not stated, what floors allow bounds it."""
    output = float(shape["output_len"] or 0)
    if not output or not shape["input_len"]:
        return "lengths not stated"
    context = float(shape["input_len"])
    given = re.fullmatch(r"\d+", shape["batch_or_concurrency"])
    most = _planned(shape, context=int(context + output)).max_concurrency or MOST_SEQUENCES
    count = min(float(given[0]) if given else MOST_SEQUENCES, most)
    if count < 1:
        return "does not fit"
    found = _planned(shape, context=int(context + output / 2), concurrency=int(count)).columns()
    first = _planned(shape, context=int(context)).columns()
    if found["tpot_s"] is None or first["ttft_s"] is None:
        return "not vouched for"
    short = min(1.0, context / CHUNK_TOKENS)
    packed = _planned(shape, context=max(int(context), CHUNK_TOKENS)).columns()
    scale = (found["gpus"] if per_gpu else 1.0) / output

    def rate(end: str) -> float:
        # Prompts shorter than a chunk share one.
        first_s = min(first[f"ttft{end}"], packed[f"ttft{end}"] * short)
        return float(1.0 / (first_s + output * found[f"tpot{end}"] / count) / scale)

    kind = "output_tokens_per_s_per_gpu" if per_gpu else "output_tokens_per_s"
    high = rate("_low_s") if given else rate("_floor_s")
    return kind, rate("_s"), rate("_high_s"), high, not given


HEAD_DIM = re.compile(r"attention_fwd_head_dim_(\d+)_(causal|noncausal)")
CHART_TOKENS, CHART_WIDTH = 16384.0, 2048.0
"""FlashAttention's charts: batch x length, and heads x head dimension."""


def _attention(shape: Mapping[str, str], metric: str) -> Prediction | str:
    """FLOP/s of FlashAttention 3, as its repository's charts count them."""
    found = HEAD_DIM.fullmatch(metric)
    if found is None:
        return "no backward pass is modelled"
    if not shape["group"].startswith("FA3-FA3"):
        return "that kernel on that GPU is in no calibration"
    head_dim, causal, length = float(found[1]), found[2] == "causal", float(shape["input_len"])
    heads = CHART_WIDTH / head_dim
    call = PrefillAttentionCall(
        batch=CHART_TOKENS / length,
        q_heads=heads,
        kv_heads=heads,
        qk_dim=head_dim,
        v_dim=head_dim,
        query_tokens=length,
        prefix_tokens=0.0,
        window_tokens=0.0,
        causal=float(causal),
        compute="bf16",
        kernel="fa3",
        kv_bytes_per_element=2.0,
    )
    name = "vllm_flash_attn_fa3 bf16, bf16 cache" if causal else ENCODER
    task = Task(
        operation="attention", family=PREFILL_ATTENTION, variants=(("vllm", name),), call=call
    )
    gpu = load_gpu(GPUS[shape["hardware"]], where="table")
    one = timed(task, fits_for(gpu), ceilings_of(gpu))
    square = CHART_TOKENS * length * CHART_WIDTH * 4.0
    flops = square / 2.0 if causal else square
    ends = (one.seconds, one.seconds + one.above_s, one.seconds - one.below_s)
    middle, low, high = (flops / seconds for seconds in ends)
    return "attention_flops_per_s", middle, low, high, False


ENCODER = "vllm_vit_flash_attn_fa3 bf16, encoder"


def _ring(shape: Mapping[str, str], metric: str) -> Prediction | str:
    """Layers of balanced ring attention a second: a context-parallel prefill of Llama-3.1-8B."""
    if metric != "ring_attention_fwd_zigzag_ring":
        return "only balanced ring attention, forward and of one sequence, is modelled"
    scenario = {
        **shape,
        "model": "Llama-3.1-8B",
        "parallelism": "context parallel of one node",
        "batch_or_concurrency": "1",
    }
    row = _planned(scenario, context=int(float(shape["input_len"])))
    case = row.case
    counts = count(case.model, case.deployment, case.kv, case.workload)
    gpu = case.deployment.gpu
    clock = Clock(gpu, fits_for(gpu))
    first = prefill_expected(counts.model, case.deployment, counts.kv, counts.span, clock)
    layers = float(case.model.layers)
    ring = [p for p in first.parts if p.operation == "attention" or p.hidden_behind]
    seconds = sum(p.seconds for p in ring)
    low, high = seconds - sum(p.below_s for p in ring), seconds + sum(p.above_s for p in ring)
    return "ring_attention_per_s", layers / seconds, layers / high, layers / low, False


def _model(name: str) -> str | None:
    """The catalog's name of a published model; None where it has none."""
    known = MODELS.get(name) or name.lower()
    return known if known in model_names() else None


def _planned(shape: Mapping[str, str], *, context: int, concurrency: int = 0) -> Row:
    """The plan of a row at a context."""
    gpus = int(float(shape["n_gpus"] or 1))
    batch = shape["batch_or_concurrency"]
    sequences = concurrency or (int(batch) if re.fullmatch(r"\d+", batch) else 1)
    narrow = re.search("fp8|fp4", shape["kv_precision"] or shape["weight_precision"])
    scenario: dict[str, Any] = {
        "model": _model(shape["model"]),
        "gpu": GPUS[shape["hardware"]],
        "gpus": gpus,
        "context": context,
        "concurrency": sequences,
        "kv": "fp8" if narrow else "bf16",
    }
    if shape["weight_precision"] in {"fp8", "nvfp4"}:
        scenario["weights"] = shape["weight_precision"]
    if CONTEXT_PARALLEL.search(shape["parallelism"]):
        # Within a node all GPUs share the prompt; beyond, each node is one rank of the ring.
        tp = NODE_GPUS if gpus > NODE_GPUS else 1
        scenario |= {"tp": tp, "cp": gpus // tp, "chunk": context}
    elif shape["parallelism"] == "one chunk":
        scenario["chunk"] = context
    limit_w = GROUP_POWER_W.get(shape["group"].partition("|")[0])
    if limit_w is not None:
        scenario["power_limit"] = limit_w
    if shape["group"].startswith("trt"):
        scenario["stack"] = "trtllm"
    (case,) = expand(read_scenario(scenario, where="table"), where="table")
    (row,) = plan_cases([replace(case, hypothetical=True)])
    return row


def _coverage(part: list[Scored]) -> float | None:
    """The share inside their intervals; None where there is none with an interval."""
    return round(sum(one.inside for one in part) / len(part), 4) if part else None


def request_scores(path: Path, table: str) -> list[dict[str, Any]]:
    """Scores as objects like those of the other tables, one for each kind of figure."""
    scored, refused = score_requests(path)
    objects = []
    for kind in sorted({one.kind for one in scored}):
        ours = [one for one in scored if one.kind == kind]
        for device in ["all", *sorted({one.device for one in ours})]:
            part = [one for one in ours if device in ("all", one.device)]
            errors = sorted(abs(one.error) for one in part)
            objects.append(
                {
                    "table": f"{table}.{kind}",
                    "device": device,
                    "framework": "all",
                    "subset": "all",
                    "rows": len(part),
                    "declined": sum(
                        one.kind == kind and device in ("all", one.device) for one in refused
                    ),
                    "median": round(statistics.median(errors), 5),
                    "p90": round(float(np.quantile(errors, 0.9)), 5),
                    "bias": round(statistics.median(one.error for one in part), 5),
                    "interval_coverage": _coverage([one for one in part if not one.bound]),
                }
            )
    return objects
