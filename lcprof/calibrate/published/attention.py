"""Published attention kernels as calls: prompts, encoders and decode steps over a KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lcprof.calibrate.published.table import (
    AICONFIGURATOR,
    DEVICES,
    DTYPE_BYTES,
    VIDUR,
    Batch,
    Batches,
    Table,
    column,
    group_names,
    rows_where,
)
from lcprof.cost.timing.decode_attention import DECODE_ATTENTION, DecodeAttentionCall
from lcprof.cost.timing.decode_attention import large as much_kv
from lcprof.cost.timing.prefill_attention import PREFILL_ATTENTION, PrefillAttentionCall

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

LONG_PROMPT_TOKENS = 4096
SHORT_DTYPES = {"bfloat16": "bf16", "float16": "bf16", "fp8": "fp8"}
KERNELS = {
    "fa3": "fa3",
    "vllm_flash_attn_fa3": "fa3",
    "vllm_vit_flash_attn_fa3": "fa3",
    "vllm_flash_attn": "fa2",
    "flash_attention": "fa2",
    "torch_flow": "fmha",
}
"""The tables' kernel sources as `prefill_attention.KERNELS`."""


def kernel_of(source: str, gpu: str) -> str | None:
    """The prefill kernel behind a kernel source, which on Ampere has its own tiles."""
    kernel = KERNELS.get(source)
    return "fmha_ampere" if kernel == "fmha" and gpu.startswith("a100") else kernel


def context_attention(frame: DataFrame) -> Batches:
    """op_context_attention.csv: causal prompts without a prefix. With an fp8 cache every one of
    these kernels also multiplies in fp8."""
    known = []
    declined: dict[str, Any] = {}
    groups = group_names(
        frame, ["num_heads", "num_key_value_heads", "head_dim", "window_size", "batch_size"]
    )
    keys = ["device", "framework", "kernel_source", "attn_dtype", "kv_cache_dtype"]
    for (device, framework, source, dtype, kv_dtype), rows in rows_where(frame, keys):
        gpu = DEVICES.get(device)
        kernel = kernel_of(source, gpu or "")
        if gpu is None or kernel is None or not {dtype, kv_dtype} <= set(SHORT_DTYPES):
            declined[f"unknown device, kernel or dtype: {device}, {source}, {dtype}"] = rows
            continue
        part = frame.iloc[rows]
        none = 0.0 * column(part, "isl")
        call = PrefillAttentionCall(
            batch=column(part, "batch_size"),
            q_heads=column(part, "num_heads"),
            kv_heads=column(part, "num_key_value_heads"),
            qk_dim=column(part, "head_dim"),
            v_dim=column(part, "head_dim"),
            query_tokens=column(part, "isl"),
            prefix_tokens=none,
            window_tokens=column(part, "window_size"),
            causal=none + 1.0,
            compute="fp8" if "fp8" in {dtype, kv_dtype} else "bf16",
            kernel=kernel,
            kv_bytes_per_element=none + DTYPE_BYTES[kv_dtype],
        )
        variant = f"{source} {SHORT_DTYPES[dtype]}, {SHORT_DTYPES[kv_dtype]} cache"
        known.append(
            Batch(
                gpu=gpu,
                stack=framework,
                family=PREFILL_ATTENTION,
                variant=variant,
                call=call,
                rows=rows,
                groups=groups[rows],
                large=call.query_tokens >= LONG_PROMPT_TOKENS,
            )
        )
    return Batches(known=known, declined=declined)


def encoder_attention(frame: DataFrame) -> Batches:
    """op_encoder_attention.csv: every token sees every other."""
    known = []
    declined: dict[str, Any] = {}
    groups = group_names(frame, ["num_heads", "head_dim", "batch_size"])
    keys = ["device", "framework", "kernel_source", "attn_dtype"]
    for (device, framework, source, dtype), rows in rows_where(frame, keys):
        gpu = DEVICES.get(device)
        kernel = kernel_of(source, gpu or "")
        if gpu is None or kernel is None or dtype not in SHORT_DTYPES:
            declined[f"unknown device, kernel or dtype: {device}, {source}, {dtype}"] = rows
            continue
        part = frame.iloc[rows]
        none = 0.0 * column(part, "isl")
        call = PrefillAttentionCall(
            batch=column(part, "batch_size"),
            q_heads=column(part, "num_heads"),
            kv_heads=column(part, "num_heads"),
            qk_dim=column(part, "head_dim"),
            v_dim=column(part, "head_dim"),
            query_tokens=column(part, "isl"),
            prefix_tokens=none,
            window_tokens=none,
            causal=none,
            compute=SHORT_DTYPES[dtype],
            kernel=kernel,
            kv_bytes_per_element=none + DTYPE_BYTES[dtype],
        )
        known.append(
            Batch(
                gpu=gpu,
                stack=framework,
                family=PREFILL_ATTENTION,
                variant=f"{source} {SHORT_DTYPES[dtype]}, encoder",
                call=call,
                rows=rows,
                groups=groups[rows],
                large=call.query_tokens >= LONG_PROMPT_TOKENS,
            )
        )
    return Batches(known=known, declined=declined)


def decode_variants(
    source: str, kv_dtype: str, *, grouped: bool, windowed: bool
) -> tuple[str, ...]:
    """A decode kernel's variant, then those that can stand in. TensorRT-LLM has another kernel for
    query heads that do not share a KV head, FlashAttention another instance for windows."""
    plain = f"{source} {SHORT_DTYPES[kv_dtype]} cache"
    if source == "torch_flow" and not grouped:
        return (f"{plain}, one query head per KV head", plain)
    return (f"{plain}, window", plain) if windowed else (plain,)


def generation_attention(frame: DataFrame) -> Batches:
    """op_generation_attention.csv: one token per sequence."""
    known = []
    declined: dict[str, Any] = {}
    groups = group_names(
        frame, ["num_heads", "num_key_value_heads", "head_dim", "window_size", "batch_size"]
    )
    frame = frame.assign(
        grouped=frame["num_heads"] > frame["num_key_value_heads"],
        windowed=frame["window_size"] > 0,
    )
    keys = ["device", "framework", "kernel_source", "kv_cache_dtype", "grouped", "windowed"]
    for key, rows in rows_where(frame, keys):
        device, framework, source, kv_dtype, grouped, windowed = key
        gpu = DEVICES.get(device)
        if gpu is None or kv_dtype not in SHORT_DTYPES:
            declined[f"unknown device or dtype: {device}, {kv_dtype}"] = rows
            continue
        part = frame.iloc[rows]
        call = DecodeAttentionCall(
            batch=column(part, "batch_size"),
            q_heads=column(part, "num_heads"),
            kv_heads=column(part, "num_key_value_heads"),
            head_dim=column(part, "head_dim"),
            context_tokens=column(part, "kv_len"),
            window_tokens=column(part, "window_size"),
            kv_bytes_per_element=0.0 * column(part, "kv_len") + DTYPE_BYTES[kv_dtype],
        )
        variants = decode_variants(source, kv_dtype, grouped=bool(grouped), windowed=bool(windowed))
        known.append(decode_batch(gpu, framework, variants, call, rows, groups[rows]))
    return Batches(known=known, declined=declined)


def decode_batch(
    gpu: str,
    stack: str,
    variants: tuple[str, ...],
    call: DecodeAttentionCall,
    rows: NDArray[np.int64],
    groups: NDArray[np.str_],
    time_column: str = "latency_ms",
) -> Batch:
    """A batch of decode steps, those that read much of a cache counting as large."""
    return Batch(
        gpu=gpu,
        stack=stack,
        family=DECODE_ATTENTION,
        variant=variants[0],
        stand_ins=variants[1:],
        call=call,
        rows=rows,
        groups=groups,
        large=much_kv(call),
        column=time_column,
    )


def vidur_attention(frame: DataFrame) -> Batches:
    """vidur_attention_sample.csv: FlashInfer's decode steps, and short chunks after a prefix."""
    known = []
    groups = group_names(frame, ["phase", "batch_size", "kv_len"])
    for (device, phase), rows in rows_where(frame, ["device", "phase"]):
        part = frame.iloc[rows]
        none = 0.0 * column(part, "batch_size")
        heads = {
            "batch": column(part, "batch_size"),
            "q_heads": column(part, "n_q_head") / column(part, "tp"),
            "kv_heads": column(part, "n_kv_head") / column(part, "tp"),
        }
        if phase == "decode":
            step = DecodeAttentionCall(
                **heads,
                head_dim=column(part, "head_dim"),
                context_tokens=column(part, "kv_len"),
                window_tokens=none,
                kv_bytes_per_element=none + 2.0,
            )
            gpu = DEVICES[device]
            variants = ("flashinfer fp16 cache",)
            times = "time_median_ms"
            known.append(decode_batch(gpu, "vidur", variants, step, rows, groups[rows], times))
            continue
        chunk = PrefillAttentionCall(
            **heads,
            qk_dim=column(part, "head_dim"),
            v_dim=column(part, "head_dim"),
            query_tokens=column(part, "query_tokens"),
            prefix_tokens=column(part, "kv_len"),
            window_tokens=none,
            causal=none + 1.0,
            compute="bf16",
            kernel="flashinfer",
            kv_bytes_per_element=none + 2.0,
        )
        known.append(
            Batch(
                gpu=DEVICES[device],
                stack="vidur",
                family=PREFILL_ATTENTION,
                variant="flashinfer fp16, chunks after a prefix",
                call=chunk,
                rows=rows,
                groups=groups[rows],
                large=chunk.query_tokens >= LONG_PROMPT_TOKENS,
                column="time_median_ms",
            )
        )
    return Batches(known=known)


TABLES = (
    Table(
        name="op_context_attention",
        source=AICONFIGURATOR,
        batches=context_attention,
        withheld=("tflops_causal",),
    ),
    Table(
        name="op_encoder_attention",
        source=AICONFIGURATOR,
        batches=encoder_attention,
        withheld=("tflops_full",),
    ),
    Table(
        name="op_generation_attention",
        source=AICONFIGURATOR,
        batches=generation_attention,
        withheld=("achieved_GBps", "kv_bytes_read"),
    ),
    Table(
        name="vidur_attention_sample",
        source=VIDUR,
        batches=vidur_attention,
        seconds={"time_median_ms": 1e-3},
        withheld=("achieved_GBps",),
    ),
)
