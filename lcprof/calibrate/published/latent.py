"""Published latent attention (MLA, DSA) as calls: kernels between the projections, and modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lcprof.calibrate.published.attention import LONG_PROMPT_TOKENS, SHORT_DTYPES
from lcprof.calibrate.published.table import (
    AICONFIGURATOR,
    DEVICES,
    DTYPE_BYTES,
    Batch,
    Batches,
    Table,
    column,
    group_names,
    rows_where,
)
from lcprof.cost.timing import dsa_module, mla_module
from lcprof.cost.timing.dsa_module import DSA_MODULE, DsaModuleCall
from lcprof.cost.timing.latent import DEEPSEEK_V3, GLM_5, LatentShape
from lcprof.cost.timing.mla_decode import MLA_DECODE, MlaDecodeCall
from lcprof.cost.timing.mla_decode import large as much_latent
from lcprof.cost.timing.mla_module import MLA_DECODE_MODULE, MLA_PREFILL_MODULE, MlaModuleCall
from lcprof.cost.timing.prefill_attention import PREFILL_ATTENTION, PrefillAttentionCall

if TYPE_CHECKING:
    from pandas import DataFrame


def context_mla(frame: DataFrame) -> Batches:
    """op_context_mla.csv: the attention of prompts. SGLang's kernel works on absorbed heads (576
    and 512 wide, one KV head), TensorRT-LLM's on expanded ones (192 and 128)."""
    known = []
    declined: dict[str, Any] = {}
    groups = group_names(frame, ["num_heads", "batch_size"])
    keys = ["device", "framework", "kernel_source", "kv_cache_dtype"]
    for (device, framework, source, kv_dtype), rows in rows_where(frame, keys):
        gpu = DEVICES.get(device)
        if gpu is None or kv_dtype not in SHORT_DTYPES:
            declined[f"unknown device or dtype: {device}, {kv_dtype}"] = rows
            continue
        part = frame.iloc[rows]
        none = 0.0 * column(part, "isl")
        absorbed = framework == "sglang"
        fused = "fmha_ampere" if gpu.startswith("a100") else "fmha"
        heads = column(part, "num_heads")
        call = PrefillAttentionCall(
            batch=column(part, "batch_size"),
            q_heads=heads,
            kv_heads=none + 1.0 if absorbed else heads,
            qk_dim=none + (576.0 if absorbed else 192.0),
            v_dim=none + (512.0 if absorbed else 128.0),
            query_tokens=column(part, "isl"),
            prefix_tokens=none,
            window_tokens=none,
            causal=none + 1.0,
            compute="bf16",
            kernel="fa3_absorbed" if absorbed else fused,
            kv_bytes_per_element=none + DTYPE_BYTES[kv_dtype],
        )
        known.append(
            Batch(
                gpu=gpu,
                stack=framework,
                family=PREFILL_ATTENTION,
                variant=f"mla {source}, {SHORT_DTYPES[kv_dtype]} cache",
                call=call,
                rows=rows,
                groups=groups[rows],
                large=call.batch * call.query_tokens >= LONG_PROMPT_TOKENS,
            )
        )
    return Batches(known=known, declined=declined)


def decode_compute(framework: str, kv_dtype: str) -> str:
    """TensorRT-LLM multiplies an fp8 cache in fp8; the others widen it first."""
    return "fp8" if framework == "trtllm" and kv_dtype == "fp8" else "bf16"


def generation_mla(frame: DataFrame) -> Batches:
    """op_generation_mla.csv: the attention of decode steps. The generic kernel that runs on Ampere
    does not split a sequence over SMs."""
    known = []
    declined: dict[str, Any] = {}
    groups = group_names(frame, ["num_heads", "batch_size"])
    keys = ["device", "framework", "kernel_source", "kv_cache_dtype"]
    for (device, framework, source, kv_dtype), rows in rows_where(frame, keys):
        gpu = DEVICES.get(device)
        if gpu is None or kv_dtype not in SHORT_DTYPES:
            declined[f"unknown device or dtype: {device}, {kv_dtype}"] = rows
            continue
        part = frame.iloc[rows]
        call = MlaDecodeCall(
            batch=column(part, "batch_size"),
            q_heads=column(part, "num_heads"),
            latent_dim=DEEPSEEK_V3.kv_rank + 0.0 * column(part, "kv_len"),
            rope_dim=DEEPSEEK_V3.rope_dim,
            context_tokens=column(part, "kv_len"),
            kv_bytes_per_element=0.0 * column(part, "kv_len") + DTYPE_BYTES[kv_dtype],
            compute=decode_compute(framework, kv_dtype),
            splits=not gpu.startswith("a100"),
        )
        known.append(
            Batch(
                gpu=gpu,
                stack=framework,
                family=MLA_DECODE,
                variant=f"{source}, {SHORT_DTYPES[kv_dtype]} cache",
                call=call,
                rows=rows,
                groups=groups[rows],
                large=much_latent(call),
            )
        )
    return Batches(known=known, declined=declined)


def mla_modules(frame: DataFrame) -> Batches:
    """op_mla_module.csv: DeepSeek-V3's whole attention; in a decode step the history excludes the
    new token."""
    known = []
    declined: dict[str, Any] = {}
    groups = group_names(frame, ["op_name", "num_heads", "batch_size"])
    keys = ["device", "framework", "kernel_source", "op_name", "model", "kv_cache_dtype"]
    for (device, framework, source, name, model, kv_dtype), rows in rows_where(frame, keys):
        gpu = DEVICES.get(device)
        shape = shape_of(model)
        if gpu is None or shape is None or kv_dtype not in SHORT_DTYPES:
            declined[f"unknown device, model or dtype: {device}, {model}, {kv_dtype}"] = rows
            continue
        part = frame.iloc[rows]
        prompt = name == "mla_context_module"
        queries = column(part, "isl")
        call = MlaModuleCall(
            shape=shape,
            batch=column(part, "batch_size"),
            q_heads=column(part, "num_heads"),
            query_tokens=queries,
            context_tokens=queries if prompt else column(part, "kv_len") + 1.0,
            kv_bytes_per_element=0.0 * queries + DTYPE_BYTES[kv_dtype],
            fp8_weights=fp8_weights(part),
            compute=decode_compute(framework, kv_dtype),
            kernel="fmha" if framework == "trtllm" else "fa3",
        )
        large = mla_module.prefill_large(call) if prompt else mla_module.decode_large(call)
        known.append(
            Batch(
                gpu=gpu,
                stack=framework,
                family=MLA_PREFILL_MODULE if prompt else MLA_DECODE_MODULE,
                variant=f"{source}, {SHORT_DTYPES[kv_dtype]} cache",
                call=call,
                rows=rows,
                groups=groups[rows],
                large=large,
            )
        )
    return Batches(known=known, declined=declined)


def dsa_modules(frame: DataFrame) -> Batches:
    """op_dsa_module.csv: DeepSeek-V3.2's and GLM-5's whole sparse attention, with the indexer or
    (GLM-5.2's `skip_indexer`) with another layer's selection."""
    import numpy as np

    known = []
    declined: dict[str, Any] = {}
    groups = group_names(frame, ["op_name", "model", "num_heads", "batch_size"])
    keys = ["device", "framework", "kernel_source", "op_name", "kv_cache_dtype"]
    for (device, framework, source, name, kv_dtype), places in rows_where(frame, keys):
        gpu = DEVICES.get(device)
        shapes = [shape_of(model) for model in frame["model"].iloc[places]]
        nameless = np.array([shape is None for shape in shapes])
        if gpu is None or kv_dtype not in SHORT_DTYPES or nameless.all():
            declined[f"unknown device, model or dtype: {device}, {kv_dtype}"] = places
            continue
        if nameless.any():
            declined[f"unknown model, {source} {name} {kv_dtype} {device}"] = places[nameless]
        rows = places[~nameless]
        part = frame.iloc[rows]
        glm = np.array([shape is GLM_5 for shape in shapes if shape is not None])
        queries = column(part, "isl")
        call = DsaModuleCall(
            shape=either(glm, GLM_5, DEEPSEEK_V3),
            index_heads=np.where(glm, GLM_5_INDEX_HEADS, DEEPSEEK_V32_INDEX_HEADS),
            batch=column(part, "batch_size"),
            q_heads=column(part, "num_heads"),
            query_tokens=queries,
            prefix_tokens=column(part, "prefix_or_kv_len"),
            kv_bytes_per_element=0.0 * queries + DTYPE_BYTES[kv_dtype],
            fp8_weights=fp8_weights(part),
            indexed=0.0 * queries + (0.0 if name.endswith("skip_indexer") else 1.0),
        )
        phase = "decode" if "generation" in name else "prefill"
        backend = source.replace("sglang_dsa_", "").replace("skip_", "").replace("indexer_", "")
        known.append(
            Batch(
                gpu=gpu,
                stack=framework,
                family=DSA_MODULE,
                variant=f"{phase} {backend}, {SHORT_DTYPES[kv_dtype]} cache",
                call=call,
                rows=rows,
                groups=groups[rows],
                large=np.broadcast_to(dsa_module.large(call), queries.shape),
            )
        )
    return Batches(known=known, declined=declined)


DEEPSEEK_V32_INDEX_HEADS = 64.0
GLM_5_INDEX_HEADS = 32.0


def shape_of(model: str) -> LatentShape | None:
    """The dimensions of a model's latent attention, by its public name."""
    if model.startswith("deepseek-ai/DeepSeek-V3"):
        return DEEPSEEK_V3
    return GLM_5 if model.startswith("zai-org/GLM-5") else None


def either(choice: Any, yes: LatentShape, no: LatentShape) -> LatentShape:
    """Row by row the dimensions of one of two models."""
    import numpy as np

    return LatentShape(
        hidden=np.where(choice, yes.hidden, no.hidden),
        q_rank=np.where(choice, yes.q_rank, no.q_rank),
        kv_rank=np.where(choice, yes.kv_rank, no.kv_rank),
        nope_dim=np.where(choice, yes.nope_dim, no.nope_dim),
        rope_dim=np.where(choice, yes.rope_dim, no.rope_dim),
        v_dim=np.where(choice, yes.v_dim, no.v_dim),
    )


def fp8_weights(part: DataFrame) -> Any:
    """1.0 where the projections' weights are fp8, else 0.0."""
    return part["gemm_type"].str.startswith("fp8").to_numpy(dtype="float64")


TABLES = (
    Table(
        name="op_context_mla",
        source=AICONFIGURATOR,
        batches=context_mla,
        withheld=("tflops_causal",),
    ),
    Table(
        name="op_generation_mla",
        source=AICONFIGURATOR,
        batches=generation_mla,
        withheld=("achieved_GBps", "kv_bytes_read"),
    ),
    Table(name="op_mla_module", source=AICONFIGURATOR, batches=mla_modules),
    Table(name="op_dsa_module", source=AICONFIGURATOR, batches=dsa_modules),
)
