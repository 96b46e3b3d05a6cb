"""From a scenario to the rows of its plan: names resolved, combinations made, layouts checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.share import Share
from lcprof.domain.layout import Degrees, misfits
from lcprof.domain.model import ModelShape
from lcprof.domain.weights import WeightFormat
from lcprof.domain.workload import Workload
from lcprof.errors import Fault, InputError
from lcprof.scenario import content
from lcprof.scenario.content import Converted
from lcprof.scenario.names import NAMED, load_named
from lcprof.scenario.schema import CONTENT_KEYS, Scenario
from lcprof.units import show_tokens

FAULTS_LIMIT = 20

AXES = (
    "model",
    "gpu",
    "weights",
    *("gpus", "tp", "pp", "cp", "dp", "ep", "dcp"),
    *("utilisation", "page", "stack", "price", "power_limit", "chunk"),
    *("video", "video_fps", "video_tokens_per_frame", "audio", "audio_tokens_per_s"),
    *("code", "code_tokens_per_line", "text", "text_tokens_per_word"),
    *("context", "prefix", "output", "concurrency", "kv"),
)
"""The order of rows: the last axis varies fastest, so KV strategies stand together."""


class Layout(Degrees, frozen=True, kw_only=True):
    """Degrees that multiply to `gpus`, where they do; `derived` when tp follows from the others."""

    gpus: int
    cp: int
    derived: bool


def expand(
    scenario: Scenario,
    *,
    where: str,
    places: Mapping[str, str] | None = None,
    base: Path | None = None,
) -> list[Case]:
    """Every combination of the scenario's axes, in the order of `AXES`, the last one fastest.

    Each distinct model, GPU and strategy is loaded once. `where`, `places` and `base` are those
    of `read_scenario`. Raises InputError with every fault: names that are not known, layouts
    that do not multiply to the GPUs or do not divide the model, a prefix as long as its prompt.
    """
    faults = _Faults(where, places or {})
    parts = _Parts(scenario, faults, base)
    faults.check()
    deployments: dict[tuple[Any, ...], Deployment | None] = {}
    prompts: dict[tuple[Any, ...], Converted] = {}
    cases: list[Case] = []
    for row in _rows(scenario):
        model = parts.models[row["model"]]
        named = row["model"], row["gpu"], row["weights"]
        sizes = {key: row[key] for key in ("gpus", "tp", "pp", "cp", "dp", "ep", "dcp")}
        deployment_key = (*named, *sizes.values(), *(row[key] for key in _SETTINGS))
        if deployment_key not in deployments:
            layout = _layout(**sizes)
            found = _layout_faults(layout, model)
            found += _power_faults(parts.gpus[row["gpu"]], row["power_limit"])
            for key, given, expected in found:
                faults.add(key, given, expected)
            deployments[deployment_key] = (
                None
                if found
                else _deployment(parts.gpus[row["gpu"]], layout, parts.weights[row["weights"]], row)
            )
        prompt_key = tuple(row[key] for key in _PROMPT_AXES)
        if prompt_key not in prompts:
            prompts[prompt_key] = _prompt(row)
        prompt = prompts[prompt_key]
        if row["prefix"] >= prompt.tokens:
            shorter = f"less than the prompt of {show_tokens(prompt.tokens)} tokens"
            faults.add("prefix", show_tokens(row["prefix"]), shorter)
        kv = parts.kvs[row["kv"]]
        for heads in _undivided(model, kv):
            expected = f"kv_heads that divide the {heads} query heads of {model.name}"
            faults.add("kv", parts.kv_specs[row["kv"]], expected)
        deployment = deployments[deployment_key]
        if deployment is None or faults.found:
            if len(faults.found) >= FAULTS_LIMIT:
                break
            continue
        cases.append(
            Case(
                model=model,
                deployment=deployment,
                kv=kv,
                kv_spec=parts.kv_specs[row["kv"]],
                workload=Workload(
                    context_tokens=float(prompt.tokens),
                    concurrency=float(row["concurrency"]),
                    output_tokens=float(row["output"]),
                    prefix_tokens=float(row["prefix"]),
                    chunk_tokens=float(row["chunk"]),
                ),
                notes=(prompt.note,) if prompt.note else (),
            )
        )
    faults.check()
    return cases


def _undivided(model: ModelShape, kv: KvStrategy) -> set[int]:
    shares = [link for link in kv.chain() if isinstance(link, Share)]
    found = {link.undivided(group.mixer) for link in shares for group in model.groups}
    return found - {0}


_SETTINGS = ("utilisation", "page", "stack", "price", "power_limit")


class _Faults:
    """The distinct faults found so far, each with the place its key was given in."""

    def __init__(self, where: str, places: Mapping[str, str]) -> None:
        self.where, self.places = where, places
        self.found: dict[Fault, None] = {}

    def place(self, key: str) -> str:
        return self.places.get(key, self.where)

    def add(self, key: str, given: str, expected: str) -> None:
        fault = Fault(where=self.place(key), key=key, given=given, expected=expected)
        self.found[fault] = None

    def check(self) -> None:
        if self.found:
            raise InputError(list(self.found)[:FAULTS_LIMIT])


class _Parts:
    """What the scenario names, by position in its axis."""

    def __init__(self, scenario: Scenario, faults: _Faults, base: Path | None) -> None:
        def load(key: str) -> list[Any]:
            refs = getattr(scenario, key)
            loaded, found = load_named(key, refs, where=faults.place(key), base=base)
            faults.found |= dict.fromkeys(found)
            return loaded

        self.models: list[ModelShape] = load("model")
        self.gpus: list[Gpu] = load("gpu")
        self.weights: list[WeightFormat | None] = load("weights")
        self.kvs: list[KvStrategy] = load("kv")
        self.kv_specs = scenario.kv


_PROMPT_AXES = tuple(key for key in AXES if key == "context" or key.split("_")[0] in CONTENT_KEYS)


def _rows(scenario: Scenario) -> Iterator[dict[str, Any]]:
    """Every combination by key; axes that name something hold positions, absent ones None."""
    axes = [
        tuple(range(len(getattr(scenario, key))))
        if key in NAMED
        else getattr(scenario, key) or (None,)
        for key in AXES
    ]
    for values in product(*axes):
        yield dict(zip(AXES, values, strict=True))


def _layout(gpus: int | None, tp: int | None, **degrees: int) -> Layout:
    """The degrees with the default filled in that the others leave open: tp from gpus, gpus from
    the degrees."""
    others = degrees["pp"] * degrees["cp"] * degrees["dp"]
    derived = tp is None
    if tp is None:
        tp = max(1, gpus // others) if gpus is not None else 1
    return Layout(gpus=tp * others if gpus is None else gpus, tp=tp, derived=derived, **degrees)


def _layout_faults(layout: Layout, model: ModelShape) -> list[tuple[str, str, str]]:
    """What is wrong with a layout, as (key, given, expected)."""
    gpus, tp, pp, cp, dp = layout.gpus, layout.tp, layout.pp, layout.cp, layout.dp
    faults = misfits(model, layout)
    if layout.derived:
        # What was given is how many GPUs there are.
        given = f"{gpus}, so that tp is {tp}"
        faults = [
            ("gpus", given, f"{expected}; or pp, dp or cp that take more GPUs")
            if key == "tp"
            else (key, wrong, expected)
            for key, wrong, expected in faults
        ]
    used = tp * pp * cp * dp
    if used == gpus:
        return faults
    if layout.derived:
        undivided = f"{gpus}, which pp {pp} · cp {cp} · dp {dp} does not divide"
        return [("gpus", undivided, f"a multiple of {pp * cp * dp}"), *faults]
    product_text = f"tp {tp} · pp {pp} · cp {cp} · dp {dp} = {used}"
    expected = f"gpus: {used}, or degrees that multiply to {gpus}"
    return [("gpus", f"{gpus}, but {product_text}", expected), *faults]


def _power_faults(gpu: Gpu, limit_w: float | None) -> list[tuple[str, str, str]]:
    """What is wrong with a power limit, as (key, given, expected)."""
    if limit_w is None:
        return []
    if gpu.tdp_w is None:
        expected = f"no limit, as the TDP of {gpu.name} is not known"
    elif not LEAST_LIMIT * gpu.tdp_w <= limit_w <= gpu.tdp_w:
        least = LEAST_LIMIT * gpu.tdp_w
        expected = f"from {least:g} to {gpu.tdp_w:g} W, a quarter of the TDP of {gpu.name} and all"
    else:
        return []
    return [("power_limit", f"{limit_w:g} W", expected)]


LEAST_LIMIT = 0.25
"""The share of its TDP that a board can be held to at least (an A100's 100 of 400 W)."""


def _deployment(
    gpu: Gpu, layout: Layout, weights: WeightFormat | None, row: Mapping[str, Any]
) -> Deployment:
    return Deployment(
        gpu=gpu,
        gpus=layout.gpus,
        tp=layout.tp,
        pp=layout.pp,
        cp=layout.cp,
        dp=layout.dp,
        ep=layout.ep,
        dcp=layout.dcp,
        weights=weights,
        utilisation=float(row["utilisation"]),
        page_tokens=row["page"],
        stack=row["stack"],
        price_usd_per_gpu_hour=None if row["price"] is None else float(row["price"]),
        power_limit_w=None if row["power_limit"] is None else float(row["power_limit"]),
    )


def _prompt(row: Mapping[str, Any]) -> Converted:
    """The prompt's tokens; contents add up, and their conversions are the note."""
    if row["context"] is not None:
        return Converted(tokens=int(row["context"]), note="")
    parts: list[Converted] = []
    if row["video"] is not None:
        fps, per_frame = row["video_fps"], row["video_tokens_per_frame"]
        parts.append(content.video(row["video"], fps=fps, tokens_per_frame=per_frame))
    if row["audio"] is not None:
        parts.append(content.audio(row["audio"], tokens_per_s=row["audio_tokens_per_s"]))
    if row["code"] is not None:
        parts.append(content.code(row["code"], tokens_per_line=row["code_tokens_per_line"]))
    if row["text"] is not None:
        parts.append(content.text(row["text"], tokens_per_word=row["text_tokens_per_word"]))
    return Converted(
        tokens=sum(part.tokens for part in parts), note="; ".join(part.note for part in parts)
    )
