"""Published kernels of linear attention as calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lcprof.calibrate.published.table import (
    AICONFIGURATOR,
    DEVICES,
    Batch,
    Batches,
    Table,
    column,
    group_names,
    rows_where,
)
from lcprof.cost.timing.linear_attention import (
    LINEAR_ATTENTION,
    LinearAttentionCall,
    convolution,
    convolution_step,
    large,
    recurrent_step,
    scan,
)

if TYPE_CHECKING:
    from pandas import DataFrame

DELTA_NETS = frozenset({"gdn", "kda"})
SCANS = frozenset({"chunk_gated_delta_rule_flashinfer"})
STEPS = frozenset(
    {"fused_recurrent_gated_delta_rule", "fused_recurrent_gated_delta_rule_packed_decode"}
)
"""Kernels of a kind, one standing in for another of the same that was not measured."""


def linear_attention(frame: DataFrame) -> Batches:
    """op_linear_attention.csv: the kernels of gated delta nets and of Mamba-2."""
    known = []
    declined: dict[str, Any] = {}
    groups = group_names(
        frame, ["op_name", "model_name", "num_v_heads", "num_k_heads", "nheads", "batch_size"]
    )
    keys = ["device", "framework", "op_name", "kernel_source", "phase"]
    kinds = {
        ("context", True): {"causal_conv1d_fn"},
        ("context", False): SCANS,
        ("generation", True): {"causal_conv1d_update"},
        ("generation", False): STEPS,
    }
    for (device, framework, name, source, phase), rows in rows_where(frame, keys):
        gpu = DEVICES.get(device)
        if gpu is None or name not in {*DELTA_NETS, "mamba2"}:
            declined[f"unknown device or operation: {device}, {name}"] = rows
            continue
        call = kernel_call(frame.iloc[rows], name=name, source=source, framework=framework)
        known.append(
            Batch(
                gpu=gpu,
                stack=framework,
                family=LINEAR_ATTENTION,
                variant=source,
                stand_ins=tuple(sorted(kinds[phase, "conv1d" in source] - {source})),
                call=call,
                rows=rows,
                groups=groups[rows],
                large=large(call),
            )
        )
    return Batches(known=known, declined=declined)


def kernel_call(part: DataFrame, *, name: str, source: str, framework: str) -> LinearAttentionCall:
    """The call of one kernel: a convolution, a scan over prompts, or a recurrent step.

    SGLang's convolution does not slow with the value heads, as if it ran over queries and keys.
    """
    batch, tokens = column(part, "batch_size"), column(part, "seq_len")
    prompt = part["phase"].iloc[0] == "context"
    if name in DELTA_NETS:
        k_heads, v_heads = column(part, "num_k_heads"), column(part, "num_v_heads")
        k_dim, v_dim = column(part, "head_k_dim"), column(part, "head_v_dim")
        channels = 2.0 * k_heads * k_dim
        if framework != "sglang":
            channels = channels + v_heads * v_dim
    else:
        k_heads, v_heads = column(part, "n_groups"), column(part, "nheads")
        k_dim, v_dim = column(part, "d_state"), column(part, "head_dim")
        channels = v_heads * v_dim + 2.0 * k_heads * k_dim
    if "conv1d" in source:
        if prompt:
            return convolution(tokens=batch * tokens, channels=channels)
        return convolution_step(batch=batch, channels=channels, width=column(part, "d_conv"))
    if prompt:
        return scan(
            batch=batch, tokens=tokens, k_heads=k_heads, v_heads=v_heads, k_dim=k_dim, v_dim=v_dim
        )
    return recurrent_step(batch=batch, heads=v_heads, k_dim=k_dim, v_dim=v_dim)


TABLES = (Table(name="op_linear_attention", source=AICONFIGURATOR, batches=linear_attention),)
