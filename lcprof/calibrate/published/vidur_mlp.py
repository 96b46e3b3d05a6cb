"""Vidur's times of a decoder layer's operators as calls: each row has a column per operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcprof.calibrate.published.table import (
    VIDUR,
    Batch,
    Batches,
    Table,
    column,
    group_names,
    rows_where,
)
from lcprof.cost.timing.elementwise import ELEMENTWISE, ElementwiseCall
from lcprof.cost.timing.gemm import GEMM, GemmCall

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

GPUS = {"a100": "a100-80gb-sxm", "h100": "h100-sxm", "a40": "a40"}
ELEMENT_BYTES = 2.0
PROJECTIONS = ("attn_pre_proj_ms", "attn_post_proj_ms", "mlp_up_proj_ms", "mlp_down_proj_ms")
MOVERS = (
    "emb_ms",
    "input_layernorm_ms",
    "attn_rope_ms",
    "post_attention_layernorm_ms",
    "mlp_act_ms",
    "add_ms",
)


def batches(frame: DataFrame) -> Batches:
    """vidur_mlp.csv: fp16, one decoder layer at each tensor-parallel size."""
    found = []
    declined = {}
    groups = group_names(frame, ["model", "tp"])
    for (device,), rows in rows_where(frame, ["device"]):
        if device not in GPUS:
            declined[f"unknown device: {device}"] = rows
            continue
        part = frame.iloc[rows]
        tokens = column(part, "num_tokens")
        for name, (columns, depth) in matrices(part).items():
            product = GemmCall(
                rows=tokens, columns=columns, depth=depth, weight_bytes=2.0, activation_bytes=2.0
            )
            found.append(batch(device, GEMM, "float16", product, rows, groups, name))
        for name, elements in moved(part).items():
            width = elements * ELEMENT_BYTES
            mover = ElementwiseCall(moved_bytes=tokens * width, row_bytes=width)
            variant = name.removesuffix("_ms")
            found.append(batch(device, ELEMENTWISE, variant, mover, rows, groups, name))
    return Batches(known=found, declined=declined)


def matrices(frame: DataFrame) -> Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Output columns and depth of each projection on one GPU; queries, keys and values are one
    product, gate and up another."""
    import numpy as np

    hidden, wide, tp = (column(frame, n) for n in ("n_embd", "n_expanded_embd", "tp"))
    q_heads, kv_heads = column(frame, "n_head"), column(frame, "n_kv_head")
    head_dim = hidden / q_heads
    gated = 1.0 + frame["use_gated_mlp"].to_numpy(dtype="float64")
    heads = q_heads / tp + 2.0 * np.maximum(kv_heads / tp, 1.0)
    return {
        "attn_pre_proj_ms": (heads * head_dim, hidden),
        "attn_post_proj_ms": (hidden, hidden / tp),
        "mlp_up_proj_ms": (gated * wide / tp, hidden),
        "mlp_down_proj_ms": (hidden, wide / tp),
    }


def moved(frame: DataFrame) -> Mapping[str, NDArray[np.float64]]:
    """Elements that each operator reads and writes per token."""
    import numpy as np

    hidden, wide, tp = (column(frame, n) for n in ("n_embd", "n_expanded_embd", "tp"))
    q_heads, kv_heads = column(frame, "n_head"), column(frame, "n_kv_head")
    rotated = (q_heads / tp + np.maximum(kv_heads / tp, 1.0)) * hidden / q_heads
    gated = 1.0 + frame["use_gated_mlp"].to_numpy(dtype="float64")
    return {
        "emb_ms": 2.0 * hidden,
        "input_layernorm_ms": 2.0 * hidden,
        "attn_rope_ms": 2.0 * rotated,
        "post_attention_layernorm_ms": 2.0 * hidden,
        "mlp_act_ms": (gated + 1.0) * wide / tp,
        "add_ms": 3.0 * hidden,
    }


def batch(
    device: str,
    family: Any,
    variant: str,
    call: Any,
    rows: NDArray[np.int64],
    groups: NDArray[np.str_],
    measured: str,
) -> Batch:
    """A batch of one operator."""
    return Batch(
        gpu=GPUS[device],
        stack="vidur",
        family=family,
        variant=variant,
        call=call,
        rows=rows,
        groups=groups[rows],
        large=family.large(call),
        column=measured,
    )


TABLES = (
    Table(
        name="vidur_mlp",
        source=VIDUR,
        batches=batches,
        seconds=dict.fromkeys((*PROJECTIONS, *MOVERS), 1e-3),
    ),
)
