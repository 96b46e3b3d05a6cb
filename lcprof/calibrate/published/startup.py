"""What engines printed at start-up: each row as a server, and its prediction beside the print.

A row's flags, versions and names are read; what the engine measured is only compared with. Where
`given` asks for it, the printed activation and non-torch memory stand in for the predicted ones.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.engine.reserve import Logged, Reserved, reserve
from lcprof.cost.engine.working import default_batch
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import ENGINES, Checkpoint, EngineFlags, Version
from lcprof.domain.gpu import Gpu
from lcprof.domain.model import LayerGroup, Matrix, ModelShape
from lcprof.domain.weights import (
    BF16,
    FP8,
    FP8_BLOCK,
    INT8,
    MXFP4,
    NVFP4,
    WeightFormat,
    int4,
)
from lcprof.errors import Fault, InputError, shown
from lcprof.scenario.engines import load_engine, parse_version, read_checkpoint
from lcprof.scenario.gpus import load_gpu
from lcprof.scenario.models import load_model

TABLE: Final = "engine_startup_memory"
GIB: Final = float(2**30)
Row = Mapping[str, str]

_SCHEMES: Final[tuple[tuple[str, WeightFormat], ...]] = (
    ("nvfp4", NVFP4),
    ("mxfp4", MXFP4),
    ("fp4", NVFP4),
    ("w4a16", int4(128)),
    ("awq", int4(128)),
    ("gptq", int4(128)),
    ("int4", int4(128)),
    ("4bit", int4(128)),
    ("w8a8", INT8),
    ("int8", INT8),
    ("8bit", INT8),
    ("fp8", FP8),
)
"""Words in a checkpoint's name or quantisation flag and the format they stand for, in order."""
_BLOCK_FP8: Final = ("qwen", "deepseek-ai", "zai-org", "minimaxai")
"""Vendors whose own FP8 checkpoints scale blocks of 128 x 128."""
_FINE_INT4: Final = ("cyankiwi", "poolside")
"""Re-uploaders whose 4-bit checkpoints scale groups of 32."""
_FP8_CACHE: Final = re.compile(r"nvidia/.*(fp8|fp4)|unsloth/.*nvfp4|poolside/.*int4")
"""Checkpoints whose quantisation config asks for an fp8 cache, which kv-cache-dtype auto obeys."""
_PLAIN_MIXERS: Final[tuple[tuple[str, WeightFormat], ...]] = (
    ("meta-llama/.*fp8", BF16),
    ("unsloth/.*nvfp4", FP8),
    ("poolside/", BF16),
)
"""Checkpoints that quantise only feed-forward layers so, and keep attention in another format."""
COLUMNS: Final = (
    "record_id", "engine", "engine_version", "model", "base_model", "device", "tp", "pp", "dp",
    "attn_tp", "dcp", "dtype", "quantization", "kv_cache_dtype", "max_model_len",
    "gpu_memory_utilization", "max_num_batched_tokens", "enforce_eager", "device_total_gib",
    "weights_gib_per_gpu", "activation_peak_gib", "non_torch_gib", "cuda_graph_gib",
    "available_kv_gib_per_gpu", "kv_tokens", "notes",
)  # fmt: skip
_PRINTED: Final = (
    "weights_gib_per_gpu",
    "device_total_gib",
    "activation_peak_gib",
    "non_torch_gib",
    "available_kv_gib_per_gpu",
    "kv_tokens",
)
SAMPLER_SHARE: Final = 0.3
"""Of an activation peak, the most that may lie beside the sampler's tensors to fit those."""
EXCLUDED: Final = ("not a GPU", "no card named", "no release named")
"""Reasons that lie in what the source leaves out, not in what can be predicted."""
MIXED: Final = "a checkpoint of mixed formats that its name does not state"
_MIXED_FP4: Final = ("poolside/",)
DRAFTED_TOKENS: Final = 3
"""Tokens drafted each step where a row says that it drafts, not how many."""
UNNAMED_GIB: Final = 180.0
"""A card large enough for any row, where none is named."""
_TAIL: Final = re.compile(
    r"[-_.](?:fp8|fp4|nvfp4|mxfp4|bf16|fp16|dynamic|block|quantized|w8a8|w4a16|w8a16|w4a4|int4|int8"
    r"|awq|gptq|[48]bit|g?gguf|qat|exp|instruct|it|hf|chat|base|preview|reasoning|thinking"
    r"|autoround|marlin|\d{4})$"
)
_DEVICES: Final[tuple[tuple[str, str], ...]] = (
    ("h100-80gb", "h100-sxm"),
    ("h100", "h100-sxm"),
    ("h200", "h200-sxm"),
    ("h20", "h20"),
    ("a100-80gb", "a100-80gb-sxm"),
    ("a100-40gb", "a100-40gb-sxm"),
    ("a100", "a100-80gb-sxm"),
    ("a10g", "a10g"),
    ("l40s", "l40s"),
    ("l4", "l4"),
    ("b200", "b200"),
    ("rtx 5090", "rtx-5090"),
    ("rtx 4090", "rtx-4090"),
)
_SIZES: Final[Mapping[str, float]] = {"rtx 3090": 23.56, "gb10": 119.7, "a40": 44.4, "l20": 44.5}
"""GiB that CUDA shows of cards outside the catalog."""


class Declined(Struct, frozen=True, kw_only=True):
    """A row that nothing is predicted for."""

    record_id: str
    reason: str


class Server(Struct, frozen=True, kw_only=True):
    """A row as a server that starts: what the flags and names of the row say. `sized` is False
    where nothing tells the card, so that only weights and pages can be predicted."""

    record_id: str
    group: str
    engine: str
    model: ModelShape
    checkpoint: Checkpoint
    deployment: Deployment
    flags: EngineFlags
    visible_bytes: float | None
    sized: bool
    quantised: bool

    def predict(self, logged: Logged | None = None) -> Reserved:
        """The reservation from the flags alone, or with what a log says."""
        logged = logged or Logged(visible_bytes=self.visible_bytes)
        return reserve(
            self.model,
            self.deployment,
            self.checkpoint,
            self.flags,
            load_engine(self.engine),
            logged=logged,
        )


class Compared(Struct, frozen=True, kw_only=True):
    """One printed figure beside its prediction."""

    record_id: str
    table: str
    device: str
    framework: str
    group: str
    predicted: float
    measured: float
    low: float
    high: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1.0


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a start-up table. Raises InputError with every fault: columns that are absent,
    printed figures that are no finite positive numbers."""
    with path.open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    faults = [
        Fault(where=str(path), key=name, given="no such column", expected="a start-up table")
        for name in absent
    ]
    for row in [] if absent else rows:
        for name in _PRINTED:
            text = row[name]
            if text and not _is_positive(text):
                where = f"{path} {row['record_id']}"
                faults.append(
                    Fault(where=where, key=name, given=shown(text), expected="a positive number")
                )
    if faults:
        raise InputError(faults)
    return rows


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def plain_names(text: str) -> list[str]:
    """A model's name as re-uploads spell it, then with what quantisers and tuners append taken off
    one word at a time."""
    name = re.sub(r"\s*\(.*\)$", "", text.strip()).replace(" ", "-").lower()
    names = [name]
    rest = name.rpartition("/")[2]
    while True:
        for spelt in (rest, rest.replace("-instruct", "")):
            if spelt not in names:
                names.append(spelt)
        shorter = _TAIL.sub("", rest)
        if shorter == rest:
            return names
        rest = shorter


def named_model(row: Row) -> ModelShape | None:
    """The catalog's model for a row: by its own name, then by the name of its base model."""
    for text in (row["model"], row["base_model"]):
        for name in plain_names(text):
            try:
                return load_model(name, where=row["record_id"])
            except InputError:
                continue
    return None


def weight_scheme(row: Row) -> WeightFormat | None:
    """The format that a quantised re-upload or an online quantisation stores linear layers in;
    None for what the model's own config states."""
    owner, _, name = row["model"].lower().rpartition("/")
    for text in (name, row["quantization"].lower()):
        for word, form in _SCHEMES:
            if word in text:
                if form is FP8 and text is name and owner in _BLOCK_FP8:
                    return FP8_BLOCK
                if form.bits == 4 and form.name.startswith("int4") and owner in _FINE_INT4:
                    return int4(32)
                return form
    return None


def server(row: Row) -> Server | Declined:
    """A row as a server, or why not."""

    def declined(reason: str) -> Declined:
        return Declined(record_id=row["record_id"], reason=reason)

    if "ascend" in row["device"].lower():
        return declined(EXCLUDED[0])
    model = named_model(row)
    if model is None:
        return declined("model not in the catalog")
    gpu, visible = _device(row)
    sized = gpu is not None
    if gpu is None:
        visible = UNNAMED_GIB * GIB
        gpu = _unlisted("unnamed", visible)
    scheme = weight_scheme(row)
    stated = any(matrix.format.bits < 16 for group in model.groups for matrix in _matrices(group))
    if stated:
        if scheme is not None and "(" in row["model"]:
            return declined(MIXED)
        scheme = None
    if scheme is NVFP4 and row["model"].lower().startswith(_MIXED_FP4):
        return declined(MIXED)
    for owner, kept in _PLAIN_MIXERS:
        if re.match(owner, row["model"].lower()):
            model = _other_mixers(model, kept)
    tp, pp, dp = (int(float(row[key] or 1)) for key in ("tp", "pp", "dp"))
    if row["engine"] == "sglang":
        # dp-attention cuts the tensor ranks into replicas of attention.
        attention = int(float(row["attn_tp"] or tp))
        tp, dp = attention, tp // attention
    ep = 1
    if tp > 1 and scheme is FP8_BLOCK and _too_narrow(model, tp):
        ep = tp
    deployment = Deployment(
        gpu=gpu,
        gpus=tp * pp * dp,
        tp=tp,
        pp=pp,
        dp=dp,
        ep=ep,
        dcp=int(float(row["dcp"] or 1)),
        weights=scheme,
    )
    return Server(
        record_id=row["record_id"],
        group=row["base_model"],
        engine=row["engine"],
        model=model,
        checkpoint=read_checkpoint(_family(row)),
        deployment=deployment,
        flags=_flags(row),
        visible_bytes=visible,
        sized=sized,
        quantised=scheme is not None or stated,
    )


def _family(row: Row) -> str:
    own = row["model"]
    return own if read_checkpoint(own) != Checkpoint() else row["base_model"]


def _flags(row: Row) -> EngineFlags:
    """The flags of a row; notes repeat those that have no column."""

    def number(key: str) -> int | None:
        return int(float(row[key])) if row[key] else None

    note = row["notes"]
    block = re.search(r"block size (\d+)(?! \(to)", note)
    sequences = re.search(r"max_num_seqs (\d+)", note)
    wide = row["dtype"] == "float32"
    narrow = row["kv_cache_dtype"].startswith("fp8") or (
        row["kv_cache_dtype"] == "auto" and _FP8_CACHE.match(row["model"].lower())
    )
    drafting = re.search("speculative decoding on|MTP head loaded", note)
    return EngineFlags(
        version=_release(row),
        max_model_len=number("max_model_len"),
        memory_fraction=float(row["gpu_memory_utilization"])
        if row["gpu_memory_utilization"]
        else None,
        batched_tokens=number("max_num_batched_tokens"),
        sequences=int(sequences[1]) if sequences else None,
        block_tokens=int(block[1]) if block and "attention block" not in note else None,
        kv_element_bytes=1.0 if narrow else 4.0 if wide else 2.0,
        activation_bytes=4 if wide else 2,
        eager=row["enforce_eager"] == "True",
        drafted_tokens=DRAFTED_TOKENS if drafting else 0,
        draft_layers=read_checkpoint(_family(row)).draft_layers if drafting else 0,
    )


def _release(row: Row) -> Version | None:
    """The engine's release; None where the row names none, or a branch."""
    try:
        return parse_version(row["engine_version"], where=row["record_id"])
    except InputError:
        return None


def _device(row: Row) -> tuple[Gpu | None, float | None]:
    """The card, and the bytes that CUDA shows of it where they are known better than by the
    catalog: a log that names no card still says how large it is."""
    name = row["device"].lower()
    printed = float(row["device_total_gib"]) * GIB if row["device_total_gib"] else None
    for word, gpu in _DEVICES:
        if name.startswith(word):
            return load_gpu(gpu, where=row["record_id"]), None
    for word, size in _SIZES.items():
        if name.startswith(word):
            return _unlisted(word, size * GIB), size * GIB
    if printed is not None:
        return _unlisted("unnamed", printed), printed
    return None, None


def _unlisted(name: str, size: float) -> Gpu:
    likeness = load_gpu("l40s", where=name)
    return replace(likeness, name=name, usable_bytes=size, marketed_bytes=size)


def _matrices(group: LayerGroup) -> tuple[Matrix, ...]:
    found: tuple[Matrix, ...] = group.mixer.matrices if group.mixer else ()
    if group.ffn is not None:
        found += group.ffn.matrices + group.ffn.expert
    return found


def _too_narrow(model: ModelShape, tp: int) -> bool:
    """Whether tensor parallelism would cut experts finer than a block of 128."""
    return any(
        group.ffn is not None
        and any(m.name == "down" and m.inputs // tp % 128 for m in group.ffn.expert)
        for group in model.groups
    )


def _other_mixers(model: ModelShape, form: WeightFormat) -> ModelShape:
    """The model with attention and recurrent layers in a format of their own."""
    groups = []
    for group in model.groups:
        mixer = group.mixer
        if mixer is not None:
            kept = tuple(replace(matrix, fixed=True, format=form) for matrix in mixer.matrices)
            mixer = replace(mixer, matrices=kept)
        groups.append(replace(group, mixer=mixer))
    return replace(model, groups=tuple(groups))


def compare(rows: list[dict[str, str]]) -> tuple[list[Compared], list[Declined]]:
    """Every printed figure that the rows' flags suffice to predict, and the rows that they do not.

    - weights_bf16, weights_quantised: bytes of weights on a GPU;
    - kv_bytes, kv_tokens: from the flags alone, on a named or sized card of a named release;
    - kv_tokens_given_log: with the printed activation, non-torch memory and size of the card;
    - kv_bytes_per_token: printed KV bytes over printed tokens, on any card.
    """
    found: list[Compared] = []
    declined: list[Declined] = []
    for row in rows:
        made = server(row)
        if isinstance(made, Declined):
            declined.append(made)
            continue
        found += _compared(row, made)
        if row["kv_tokens"] and not made.sized:
            declined.append(Declined(record_id=made.record_id, reason=EXCLUDED[1]))
        elif row["kv_tokens"] and made.flags.version is None:
            declined.append(Declined(record_id=made.record_id, reason=EXCLUDED[2]))
    return found, declined


def _compared(row: Row, made: Server) -> list[Compared]:
    found: list[Compared] = []

    def add(table: str, value: float, printed: float, low: float, high: float) -> None:
        device = row["device"] or (f"{row['device_total_gib']} GiB" if made.sized else "unnamed")
        found.append(
            Compared(
                record_id=made.record_id,
                table=f"{TABLE}.{table}",
                device=device,
                framework=made.engine,
                group=made.group,
                predicted=value,
                measured=printed,
                low=low,
                high=high,
            )
        )

    result = made.predict()
    printed = {key: float(row[key]) if row[key] else None for key in _PRINTED}
    if (weights := printed["weights_gib_per_gpu"]) is not None:
        kind, margin = ("quantised", 0.04) if made.quantised else ("bf16", 0.006)
        value = result.weights_bytes / GIB
        add(f"weights_{kind}", value, weights, value * (1 - margin), value * (1 + margin))
    tokens, budget = printed["kv_tokens"], printed["available_kv_gib_per_gpu"]
    complete = made.sized and made.flags.version is not None and result.kv_bytes > 0
    if budget and complete:
        low, high = result.kv_low_bytes / GIB, result.kv_high_bytes / GIB
        add("kv_bytes", result.kv_bytes / GIB, budget, low, high)
    if tokens and complete:
        each = result.kv_tokens / result.kv_bytes
        low, high = result.kv_low_bytes * each, result.kv_high_bytes * each
        add("kv_tokens", float(result.kv_tokens), tokens, low, high)
    if tokens and budget and result.kv_tokens and "two pools" not in row["notes"]:
        value = result.kv_bytes / result.kv_tokens
        add("kv_bytes_per_token", value, budget * GIB / tokens, value * 0.98, value * 1.02)
    activation, library = printed["activation_peak_gib"], printed["non_torch_gib"]
    if tokens and activation and library and printed["device_total_gib"]:
        logged = Logged(
            visible_bytes=printed["device_total_gib"] * GIB,
            activation_bytes=activation * GIB,
            non_torch_bytes=library * GIB,
            # Figures quoted without a release come from before graphs were counted.
            graph_bytes=None if row["engine_version"] else 0.0,
        )
        value = float(made.predict(logged).kv_tokens)
        add("kv_tokens_given_log", value, tokens, value * 0.985, value * 1.015)
    return found


def fitted_groups() -> frozenset[str]:
    """The base models whose rows constants were fitted on: at most two thirds of the table's."""
    return frozenset(name for engine in ENGINES for name in load_engine(engine).fitted_on)


def fit_startup(rows: list[dict[str, str]]) -> dict[str, float]:
    """vLLM's fitted constants from printed activation and non-torch memory, as medians over rows of
    0.18 and later whose sampler outweighs the widest layer: `sampler_bytes` for each logit,
    `context_bytes`, `tensor_bytes`; and of captured graphs, `graph_bytes` and `graph_layer_bytes`
    by least squares over layers."""
    logits: list[float] = []
    alone: list[float] = []
    pairs: list[float] = []
    graphs: list[tuple[int, float]] = []
    for row in rows:
        made = server(row)
        printed = [row[key] for key in ("activation_peak_gib", "non_torch_gib", "cuda_graph_gib")]
        late = not isinstance(made, Declined) and (made.flags.version or ()) >= (0, 18)
        if isinstance(made, Declined) or not late or not all(printed) or made.deployment.pp > 1:
            continue
        activation, library, graph = (float(text) * GIB for text in printed)
        sequences, _ = default_batch(made.deployment, made.flags, load_engine("vllm"))
        count = sequences * made.model.vocab
        predicted = made.predict()
        beside = predicted.activation_bytes - count * (
            load_engine("vllm").constant("sampler_bytes", made.flags.version)
            + made.flags.activation_bytes
        )
        if 0 <= beside < SAMPLER_SHARE * predicted.activation_bytes:
            logits.append((activation - beside) / count - made.flags.activation_bytes)
        (alone if made.deployment.tp == 1 else pairs).append(library)
        graphs.append((made.model.layers, graph))
    each, base = statistics.linear_regression(*zip(*graphs, strict=True))
    context = statistics.median(alone)
    return {
        "sampler_bytes": statistics.median(logits),
        "context_bytes": context,
        "tensor_bytes": statistics.median(pairs) - context,
        "graph_bytes": base,
        "graph_layer_bytes": each,
    }


def score_startup(path: Path, *, without: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Scores of a start-up table as objects like those of the other tables; rows whose base model
    is in `without` are left out."""
    rows = [row for row in read_rows(path) if row["base_model"] not in without]
    compared, declined = compare(rows)
    objects = []
    for table in sorted({one.table for one in compared}):
        ours = [one for one in compared if one.table == table]
        places = sorted({(one.device, one.framework) for one in ours})
        for device, framework in [("all", "all"), *places]:
            part = [
                one
                for one in ours
                if device == "all" or (one.device, one.framework) == (device, framework)
            ]
            objects.append(_score(table, device, framework, part, declined))
    return objects


def _score(
    table: str, device: str, framework: str, part: list[Compared], declined: list[Declined]
) -> dict[str, Any]:
    errors = sorted(abs(one.error) for one in part)
    inside = [one.low <= one.measured <= one.high for one in part]
    return {
        "table": table,
        "device": device,
        "framework": framework,
        "subset": "all",
        "rows": len(part),
        "declined": sum(d.reason not in EXCLUDED for d in declined) if device == "all" else 0,
        "median": round(statistics.median(errors), 5),
        "p90": round(float(np.quantile(errors, 0.9)), 5),
        "bias": round(statistics.median(one.error for one in part), 5),
        "interval_coverage": round(sum(inside) / len(inside), 4),
    }
