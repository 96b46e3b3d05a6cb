"""The launch line that realises a row of a plan, and what of the row an engine has no flag for."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.engine.reserve import Reserved, case_flags, reserve
from lcprof.cost.memory import memory
from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.engine import Checkpoint, Engine, EngineFlags
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.dense import Dense
from lcprof.domain.kv.kivi import Kivi
from lcprof.domain.kv.offload import Offload
from lcprof.domain.kv.quantised import Fp8, Quantised
from lcprof.domain.kv.window import Window
from lcprof.errors import InputError
from lcprof.report.rope import Extension, extend
from lcprof.scenario.engines import read_checkpoint
from lcprof.scenario.models.catalog import model_card

GIB = 2**30
GB = 10**9
VLLM_BLOCK_MULTIPLE = 16
CONFIG_FILE = "trtllm.yaml"


SGLANG_OVER_TOTAL = 2
SGLANG_OVER_PROMPT = 7
"""SGLang's scheduler serves prompt + output up to context_len - 2, as it cuts max_new_tokens to
max_req_len - prompt - 1 with max_req_len = context_len - 1, and a prompt below
max_req_input_len = max_req_len - 5 (init_req_max_new_tokens, validate_input_length)."""


class Missing(Struct, frozen=True, kw_only=True):
    """A part of the plan that the engine cannot be told, and why."""

    part: str
    reason: str


class Launch(Struct, frozen=True, kw_only=True):
    """A command that starts a server: environment, arguments, a configuration file's text (empty
    where the engine needs none), what is missing, and what else to know.

    `deployment` and `flags` are what the command realises of the case: what is missing is not in
    them.
    """

    engine: str
    environment: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]
    config: str
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]
    deployment: Deployment
    flags: EngineFlags

    @property
    def command(self) -> str:
        """The command on one line."""
        values = [f"{name}={shlex.quote(value)}" for name, value in self.environment]
        return " ".join([*values, shlex.join(self.arguments)])

    @property
    def lines(self) -> list[str]:
        """What to print: the configuration file, the command, then a comment for each gap."""
        lines: list[str] = []
        if self.config:
            lines += [f"cat > {CONFIG_FILE} <<'EOF'", *self.config.splitlines(), "EOF"]
        lines.append(self.command)
        lines += [f"# missing: {gap.part}: {gap.reason}" for gap in self.missing]
        lines += [f"# {note}" for note in self.notes]
        return lines


class _Plan:
    """A case read for launching: what every engine is told, and the gaps found on the way."""

    def __init__(self, case: Case, engine: Engine) -> None:
        self.case = case
        self.engine = engine
        self.deployment = case.deployment
        self.served = case.deployment
        self.flags = case_flags(case)
        self.model = case.model
        work = case.workload
        self.length = math.ceil(work.context_tokens + work.output_tokens)
        self.sequences = max(1, math.ceil(work.concurrency / self.deployment.dp))
        self.chunk = math.ceil(work.chunk_tokens)
        self.gaps: list[Missing] = []
        self.notes: list[str] = []
        self.links = {type(link): link for link in case.kv.chain()}
        self.experts = any(g.ffn is not None and g.ffn.experts for g in case.model.groups)

    def missing(self, part: str, reason: str) -> None:
        self.gaps.append(Missing(part=part, reason=reason))

    def link(self, kind: type[KvStrategy]) -> Any:
        return self.links.get(kind)

    @property
    def name(self) -> str:
        try:
            return model_card(self.model.name).hub_id
        except InputError:
            return self.model.name

    @property
    def checkpoint(self) -> Checkpoint:
        return read_checkpoint(self.name)

    def reach(self, over_total: int = 0, over_prompt: int = 1) -> tuple[int, Extension | None]:
        """The length of one request as the engine counts it, and the rope that it needs.

        The engines count prompt and output (vLLM --max-model-len, SGLang --context-length,
        TensorRT-LLM --max_seq_len), and refuse or cut what is over the model's positions. The last
        token is never fed back, so a request uses one position less than that; where only this, or
        what the engine keeps for itself, is over, the length is held to the positions.
        """
        prompt, output = (
            math.ceil(tokens)
            for tokens in (self.case.workload.context_tokens, self.case.workload.output_tokens)
        )
        positions = self.model.positions
        length = max(self.length + over_total, prompt + over_prompt)
        if positions is None or length <= positions:
            return length, None
        if self.length - 1 <= positions:
            served = positions - max(over_total + output, over_prompt)
            self.notes.append(
                f"the model has {positions:,} positions: {self.engine.title} serves prompts of up "
                f"to {served:,} tokens with {output:,} of output"
            )
            return self._held(positions), None
        scaling = self._extended(positions, length)
        return (length, scaling) if scaling is not None else (self._held(positions), None)

    def _held(self, positions: int) -> int:
        self.flags = replace(self.flags, max_model_len=min(self.length, positions))
        return positions

    def _extended(self, positions: int, length: int) -> Extension | None:
        part = f"context of {self.length:,} tokens"
        found = extend(self.model.rope, positions, length)
        if isinstance(found, str):
            self.missing(part, found)
            return None
        if self.engine.name == "trtllm" and self.model.rope.kind == "mrope":
            self.missing(part, "TensorRT-LLM documents no scaling of a multimodal rope")
            return None
        self.notes.append(
            f"{length:,} tokens exceed the model's {positions:,} positions: {found.kind} scaling "
            f"by {found.block['factor']:g} extends them, for short prompts too; the quality there "
            "is untested"
        )
        return found

    def host_bytes(self) -> float:
        """Bytes of KV in host memory for each GPU."""
        held = memory(self.model, self.deployment, self.case.kv, self.case.workload)
        return held.kv_host_bytes

    def dtype(self, known: dict[str, str]) -> str:
        """The engine's name for the cache's number format; "auto" for the model's own."""
        for link in self.links.values():
            if not isinstance(link, Quantised | Kivi):
                continue
            if isinstance(link, Fp8) and link.granularity != "tensor":
                self.missing(
                    f"fp8 scales by {link.granularity}",
                    f"{self.engine.title} keeps one scale for each layer",
                )
            if link.kind in known:
                return known[link.kind]
            self.missing(f"{link.kind} cache", f"{self.engine.title} has no such kv cache dtype")
            self.flags = replace(self.flags, kv_element_bytes=float(self.flags.activation_bytes))
        return "auto"

    def refuse_strategies(self, reasons: dict[str, str]) -> None:
        """A gap for every strategy of the chain that `reasons` names."""
        for link in self.links.values():
            if link.kind in reasons:
                self.missing(link.kind, reasons[link.kind])

    def weights(self, online: dict[str, str], dtypes: dict[str, str]) -> tuple[str, str]:
        """The flags' values for quantising on loading and for the dtype, "" where not needed."""
        form = self.deployment.weights
        if form is None:
            return "", ""
        if form.name in dtypes:
            return "", dtypes[form.name]
        if form.name in online:
            return online[form.name], ""
        self.missing(
            f"{form.name} weights",
            f"{self.engine.title} does not quantise to it on loading: serve a checkpoint that is",
        )
        self.served = replace(self.served, weights=None)
        return "", ""

    def static_share(self) -> float:
        """The share of free memory that weights and KV take when the plan's utilisation is kept, as
        SGLang is told it; of what weights and activations leave, as TensorRT-LLM is. Asked for once
        everything else that is missing is known."""
        held = reserve(self.model, self.served, self.checkpoint, self.flags, self.engine)
        allowed = self.deployment.utilisation * held.visible_bytes
        used = held.activation_bytes + held.non_torch_bytes + held.graph_bytes
        if self.engine.name == "sglang":
            share = (allowed - used) / (held.visible_bytes - held.non_torch_bytes)
        else:
            used += held.weights_bytes
            share = (allowed - used) / max(held.visible_bytes - used, 1.0)
        share = max(0.05, math.floor(share * 1000) / 1000)
        self.flags = replace(self.flags, memory_fraction=share)
        return share


_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_CHOOSING = {
    "h2o": "it evicts by attention scores, which paged attention kernels do not keep",
    "snapkv": "it evicts a prompt's tokens by attention scores after prefill",
    "quest": "no backend reads only the best pages of a full cache",
    "topk": "only models with an indexer of their own (DeepSeek sparse attention) select tokens",
    "share": "a what-if on the architecture: no flag changes how many KV heads a model has",
}


def launch_lines(case: Case, engine: Engine) -> Launch:
    """How `engine` is started to serve a case of a plan: 16-bit models from the Hub, one instance.

    Parts of the plan that no flag expresses are in `missing`, each with its reason; none is dropped
    silently. Raises InputError for an engine that is not known.
    """
    makers = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}
    return makers[engine.name](_Plan(case, engine))


def launched_reservation(case: Case, engine: Engine, launch: Launch) -> Reserved:
    """What the server that `launch` starts reserves, without the parts that are missing from it."""
    checkpoint = _Plan(case, engine).checkpoint
    return reserve(case.model, launch.deployment, checkpoint, launch.flags, engine)


def _vllm(plan: _Plan) -> Launch:
    """`vllm serve`. --hf-overrides took the place of --rope-scaling (docs.vllm.ai, "Context
    Extension"; gone in 0.11.1, vllm-project/recipes pull request 856). It sets a dict whole and
    merges into a nested config (ModelConfig._apply_dict_overrides). A max-model-len over the
    derived one is refused without VLLM_ALLOW_LONG_MAX_MODEL_LEN, and the derived one is the
    tokenizer's too, which no override lifts (_get_and_verify_max_len)."""
    d = plan.deployment
    arguments = ["vllm", "serve", plan.name]
    environment: list[tuple[str, str]] = []
    length, scaling = plan.reach()
    arguments += ["--max-model-len", str(length)]
    arguments += ["--tensor-parallel-size", str(d.tp)]
    if d.pp > 1:
        arguments += ["--pipeline-parallel-size", str(d.pp)]
    if d.dp > 1:
        arguments += ["--data-parallel-size", str(d.dp)]
    if d.cp > 1:
        arguments += ["--prefill-context-parallel-size", str(d.cp)]
        plan.notes.append("prefill context parallelism needs an attention backend that supports it")
    if d.dcp > 1:
        arguments += ["--decode-context-parallel-size", str(d.dcp)]
    if d.ep > 1:
        arguments.append("--enable-expert-parallel")
        if d.ep != d.tp * d.dp:
            plan.missing(
                f"experts over {d.ep} ranks",
                f"vLLM spreads experts over all {d.tp * d.dp} ranks of tp x dp",
            )
            plan.served = replace(plan.served, ep=d.tp * d.dp)
    arguments += ["--max-num-batched-tokens", str(plan.chunk)]
    arguments += ["--max-num-seqs", str(plan.sequences)]
    arguments += ["--gpu-memory-utilization", f"{d.utilisation:g}"]
    arguments.append("--enable-chunked-prefill")
    if d.page_tokens % VLLM_BLOCK_MULTIPLE:
        plan.missing(
            f"pages of {d.page_tokens} tokens",
            f"vLLM's blocks are multiples of {VLLM_BLOCK_MULTIPLE} tokens",
        )
        plan.flags = replace(plan.flags, block_tokens=None)
    else:
        arguments += ["--block-size", str(d.page_tokens)]
    dtype = plan.dtype({"fp8": "fp8"})
    arguments += ["--kv-cache-dtype", dtype]
    online, precision = plan.weights({"fp8": "fp8"}, _DTYPES)
    arguments += ["--quantization", online] if online else []
    arguments += ["--dtype", precision or _dense_dtype(plan)] if precision or _wide(plan) else []
    if plan.case.workload.prefix_tokens:
        arguments.append("--enable-prefix-caching")
    if scaling is not None:
        environment.append(("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1"))
        arguments += ["--hf-overrides", json.dumps(scaling.override("rope_parameters"))]
    if plan.link(Offload) is not None:
        size = plan.host_bytes() * d.tp * d.pp / GIB
        arguments += ["--kv-offloading-backend", "native", "--kv-offloading-size", f"{size:.0f}"]
        plan.missing(
            "reading offloaded KV while decoding",
            "vLLM parks blocks of waiting requests on the host; those of running ones must fit",
        )
    plan.refuse_strategies(
        {**_CHOOSING, "window": "a window is a property of the model's config, and has no sinks"}
    )
    return _launch(plan, arguments, environment)


def _sglang(plan: _Plan) -> Launch:
    """`sglang.launch_server`. --json-model-override-args sets top entries whole and merges one
    level into a nested config (get_config; sgl-project/sglang issue 27974: at the top it does
    nothing to a nested one). A block without rope_theta fails (pull request 22739, whose example
    sets max_position_embeddings too). A context-length over the derived one is refused without
    SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN."""
    d = plan.deployment
    arguments = ["python", "-m", "sglang.launch_server", "--model-path", plan.name]
    environment: list[tuple[str, str]] = []
    length, scaling = plan.reach(SGLANG_OVER_TOTAL, SGLANG_OVER_PROMPT)
    arguments += ["--context-length", str(length)]
    shared = d.dp > 1 and plan.experts
    arguments += ["--tp-size", str(d.tp * d.dp if shared else d.tp)]
    if d.pp > 1:
        arguments += ["--pp-size", str(d.pp)]
    if d.dp > 1:
        arguments += ["--dp-size", str(d.dp)]
    if shared:
        arguments.append("--enable-dp-attention")
    if d.ep > 1:
        arguments += ["--ep-size", str(d.ep)]
    if d.cp > 1:
        plan.missing(
            f"cp {d.cp}", "SGLang's prefill context parallelism serves sparse attention models only"
        )
    if d.dcp > 1:
        plan.missing(f"dcp {d.dcp}", "SGLang keeps a whole copy of a KV head on every tensor rank")
        plan.served = replace(plan.served, dcp=1)
    online, precision = plan.weights({"fp8": "fp8"}, _DTYPES)
    arguments += ["--chunked-prefill-size", str(plan.chunk)]
    arguments += ["--max-running-requests", str(plan.sequences * (d.dp if shared else 1))]
    arguments += ["--mem-fraction-static", f"{plan.static_share():g}"]
    arguments += ["--page-size", str(d.page_tokens)]
    arguments += ["--kv-cache-dtype", plan.dtype({"fp8": "fp8_e4m3"})]
    arguments += ["--quantization", online] if online else []
    arguments += ["--dtype", precision or _dense_dtype(plan)] if precision or _wide(plan) else []
    if scaling is not None:
        environment.append(("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "1"))
        override = scaling.override(plan.model.rope.key)
        arguments += ["--json-model-override-args", json.dumps(override)]
        if scaling.path:
            plan.notes.append(
                "the override lies in the config's text part, which SGLang before its pull request "
                "33351 replaced by it"
            )
    if plan.link(Offload) is not None:
        size = plan.host_bytes() / GB
        arguments += ["--enable-hierarchical-cache", "--hicache-size", f"{max(1.0, size):.0f}"]
        plan.missing(
            "reading offloaded KV while decoding",
            "SGLang's hierarchical cache holds prefixes; KV of running requests must fit",
        )
    plan.refuse_strategies(
        {**_CHOOSING, "window": "a window is a property of the model's config, and has no sinks"}
    )
    return _launch(plan, arguments, environment)


def _trtllm(plan: _Plan) -> Launch:
    """`trtllm-serve`. model_kwargs (TorchLlmArgs, nvidia.github.io/TensorRT-LLM) overrides the
    config, merging into nested ones and setting dicts whole. max_seq_len counts prompt and
    output, and is cut to max_position_embeddings, by which YaRN and Llama 3 scaling do not count
    (PyTorchModelEngine._infer_max_seq_len_from_config): the override raises both."""
    d = plan.deployment
    arguments = ["trtllm-serve", plan.name, "--backend", "pytorch"]
    length, scaling = plan.reach()
    arguments += ["--max_seq_len", str(length)]
    arguments += ["--tp_size", str(d.tp * d.dp)]
    if d.pp > 1:
        arguments += ["--pp_size", str(d.pp)]
    if d.ep > 1:
        arguments += ["--ep_size", str(d.ep)]
    arguments += ["--max_num_tokens", str(plan.chunk)]
    arguments += ["--max_batch_size", str(plan.sequences)]
    if d.dp > 1 and d.tp > 1:
        plan.missing(
            f"dp {d.dp} of tp {d.tp}",
            "attention data parallelism of TensorRT-LLM has one rank for each replica",
        )
        plan.served = replace(plan.served, tp=1, dp=d.tp * d.dp)
    if d.cp > 1:
        plan.missing(f"cp {d.cp}", "the PyTorch backend prefills a request on one context rank")
    if d.dcp > 1:
        plan.missing(
            f"dcp {d.dcp}",
            "Helix parallelism runs only in the generation servers of a disaggregated deployment",
        )
        plan.served = replace(plan.served, dcp=1)
    plan.weights({}, {"bf16": "auto"})
    if _wide(plan):
        plan.missing("fp32 cache", "the PyTorch backend caches in 16 or 8 bits")
        plan.flags = replace(plan.flags, kv_element_bytes=2.0, activation_bytes=2)
    cache: dict[str, Any] = {
        "dtype": plan.dtype({"fp8": "fp8"}),
        "free_gpu_memory_fraction": plan.static_share(),
        "tokens_per_block": d.page_tokens,
        "enable_block_reuse": bool(plan.case.workload.prefix_tokens),
    }
    config: dict[str, Any] = {"enable_chunked_prefill": True, "kv_cache_config": cache}
    if d.dp > 1:
        config["enable_attention_dp"] = True
    window = plan.link(Window)
    if window is not None:
        cache["max_attention_window"] = [window.tokens]
        plan.notes.append("what is reserved is counted for whole requests, as without the window")
        if window.sinks:
            plan.missing(f"{window.sinks} sink tokens", "the PyTorch backend keeps no sinks")
    if scaling is not None:
        config["model_kwargs"] = replace(scaling, tables=True).override("rope_scaling")
    if plan.link(Offload) is not None:
        cache["host_cache_size"] = math.ceil(plan.host_bytes())
        plan.missing(
            "reading offloaded KV while decoding",
            "the host cache holds reusable blocks; KV of running requests must fit",
        )
    plan.refuse_strategies(_CHOOSING)
    arguments += ["--extra_llm_api_options", CONFIG_FILE]
    return _launch(plan, arguments, [], _yaml(config))


def _wide(plan: _Plan) -> bool:
    dense = plan.link(Dense)
    return dense is not None and dense.dtype == "fp32" and dense is plan.case.kv.chain()[-1]


def _dense_dtype(plan: _Plan) -> str:
    return _DTYPES[plan.link(Dense).dtype]


def _launch(
    plan: _Plan, arguments: list[str], environment: list[tuple[str, str]], config: str = ""
) -> Launch:
    return Launch(
        engine=plan.engine.name,
        environment=tuple(environment),
        arguments=tuple(arguments),
        config=config,
        missing=tuple(plan.gaps),
        notes=tuple(plan.notes),
        deployment=plan.served,
        flags=plan.flags,
    )


def _yaml(config: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(config, sort_keys=False, default_flow_style=False)
    return text
