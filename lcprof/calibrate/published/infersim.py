"""InferSim's kernels on H20 and H800 as calls: attention, latent attention and matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lcprof.calibrate.published import gemm
from lcprof.calibrate.published.attention import LONG_PROMPT_TOKENS
from lcprof.calibrate.published.table import (
    DEVICES,
    DTYPE_BYTES,
    INFERSIM,
    Batch,
    Batches,
    Table,
    column,
    group_names,
    rows_where,
)
from lcprof.cost.timing.decode_attention import DECODE_ATTENTION, DecodeAttentionCall
from lcprof.cost.timing.decode_attention import large as much_kv
from lcprof.cost.timing.latent import DEEPSEEK_V3
from lcprof.cost.timing.mla_decode import MLA_DECODE, MlaDecodeCall
from lcprof.cost.timing.mla_decode import large as much_latent
from lcprof.cost.timing.prefill_attention import PREFILL_ATTENTION, PrefillAttentionCall

if TYPE_CHECKING:
    from pandas import DataFrame

STACK = "infersim"


def kernels(frame: DataFrame) -> Batches:
    """infersim_kernels.csv. Columns dim2 and dim3 are KV heads and head dimension (mha), latent
    and rope dimension (mla decode), or value and rope dimension (mla prefill)."""
    known = gemm.infersim(frame)
    declined: dict[str, Any] = {}
    groups = group_names(frame, ["op", "shape", "batch_size", "query_len"])
    attention = frame[frame["op"].str.startswith("m")]
    for (device, name, kv_dtype), places in rows_where(attention, ["device", "op", "kv_dtype"]):
        rows = attention.index.to_numpy()[places]
        part = frame.iloc[rows]
        if device not in DEVICES or name not in CALLS:
            declined[f"unknown device or operation: {device}, {name}"] = rows
            continue
        family, read, is_large = CALLS[name]
        stored = "fp8" if "fp8" in str(kv_dtype) else "bf16"
        call = read(part, DTYPE_BYTES[stored])
        kind = name.partition("_")[0]
        known.append(
            Batch(
                gpu=DEVICES[device],
                stack=STACK,
                family=family,
                variant=f"{kind}, {stored} cache",
                stand_ins=(f"{kind}, bf16 cache", "mha, bf16 cache", "mla, bf16 cache"),
                call=call,
                rows=rows,
                groups=groups[rows],
                large=is_large(call),
                column="latency_us",
            )
        )
    return Batches(known=known, declined=declined)


def mha_decode(part: DataFrame, kv_bytes: float) -> DecodeAttentionCall:
    """A decode step over keys and values."""
    context = column(part, "kv_len")
    return DecodeAttentionCall(
        batch=column(part, "batch_size"),
        q_heads=column(part, "n_q_heads"),
        kv_heads=column(part, "dim2"),
        head_dim=column(part, "dim3"),
        context_tokens=context,
        window_tokens=0.0 * context,
        kv_bytes_per_element=0.0 * context + kv_bytes,
    )


def mla_decode(part: DataFrame, kv_bytes: float) -> MlaDecodeCall:
    """A decode step over latents."""
    context = column(part, "kv_len")
    return MlaDecodeCall(
        batch=column(part, "batch_size"),
        q_heads=column(part, "n_q_heads"),
        latent_dim=DEEPSEEK_V3.kv_rank + 0.0 * context,
        rope_dim=DEEPSEEK_V3.rope_dim,
        context_tokens=context,
        kv_bytes_per_element=0.0 * context + kv_bytes,
        compute="bf16",
    )


def prefill(part: DataFrame, kv_bytes: float) -> PrefillAttentionCall:
    """A causal prompt, of keys and values or of expanded latents."""
    queries = column(part, "query_len")
    latent = part["op"].iloc[0] == "mla_prefill"
    value = column(part, "dim2") if latent else column(part, "dim3")
    return PrefillAttentionCall(
        batch=column(part, "batch_size"),
        q_heads=column(part, "n_q_heads"),
        kv_heads=column(part, "n_q_heads") if latent else column(part, "dim2"),
        qk_dim=value + column(part, "dim3") if latent else value,
        v_dim=value,
        query_tokens=queries,
        prefix_tokens=column(part, "kv_len") - queries,
        window_tokens=0.0 * queries,
        causal=0.0 * queries + 1.0,
        compute="bf16",
        kernel="fa3",
        kv_bytes_per_element=0.0 * queries + kv_bytes,
    )


def long_prompt(call: PrefillAttentionCall) -> Any:
    """Whether the prompt is long."""
    return call.query_tokens >= LONG_PROMPT_TOKENS


CALLS: dict[str, tuple[Any, Any, Any]] = {
    "mha_decode": (DECODE_ATTENTION, mha_decode, much_kv),
    "mha_prefill": (PREFILL_ATTENTION, prefill, long_prompt),
    "mla_decode": (MLA_DECODE, mla_decode, much_latent),
    "mla_prefill": (PREFILL_ATTENTION, prefill, long_prompt),
}
"""The family, the call and what is large, by the table's operation."""

TABLES = (
    Table(
        name="infersim_kernels",
        source=INFERSIM,
        batches=kernels,
        seconds={"latency_us": 1e-6},
        withheld=("mfu",),
    ),
)
