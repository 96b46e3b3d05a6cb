"""Published times of routed experts as calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import asdict

from lcprof.calibrate.published.routing import routing
from lcprof.calibrate.published.table import (
    AICONFIGURATOR,
    DEVICES,
    Batch,
    Batches,
    Table,
    column,
    group_names,
    kin,
    rows_where,
)
from lcprof.cost.timing.moe import MOE, MoeCall, large

if TYPE_CHECKING:
    from pandas import DataFrame

STORAGE = {
    "bfloat16": (2.0, "bf16"),
    "fp8": (1.0, "fp8"),
    "fp8_block": (1.0, "fp8"),
    "w4a16_mxfp4": (0.53125, "bf16"),
    "int4_wo": (0.515625, "bf16"),
}
"""Bytes of a weight (group scales included) and the matrix units' dtype."""
LIKE = {"int4_wo": ("w4a16_mxfp4 triton",), "fp8": ("fp8_block triton",)}
"""Variants that stand in for a dtype that a GPU was not measured with."""
SPREAD = ["num_tokens", "topk", "num_experts", "moe_ep_size", "distribution"]


def batches(frame: DataFrame) -> Batches:
    """op_moe.csv. CUTLASS's fp8 experts (per-tensor scales) use tiles of 128 rows only."""
    import numpy as np

    spread = [
        routing(int(tokens), int(top_k), int(experts), int(ranks), str(distribution))
        for tokens, top_k, experts, ranks, distribution in frame[SPREAD].itertuples(index=False)
    ]
    found = []
    declined = {}
    groups = group_names(frame, ["model_shape", "moe_tp_size", "moe_ep_size"])
    models = group_names(frame.assign(split=frame["moe_ep_size"] > 1), ["model_shape", "split"])
    keys = ["device", "framework", "moe_dtype", "kernel_source"]
    for (device, framework, dtype, kernel), rows in rows_where(frame, keys):
        if device not in DEVICES or dtype not in STORAGE:
            declined[f"unknown device or dtype: {device}, {dtype}"] = rows
            continue
        weight, compute = STORAGE[dtype]
        backend = "cutlass" if "cutlass" in kernel else "triton"
        part = frame.iloc[rows]
        fallen = [asdict(spread[row]) for row in rows]
        routed = {name: np.array([each[name] for each in fallen]) for name in fallen[0]}
        call = MoeCall(
            tokens=column(part, "num_tokens"),
            top_k=column(part, "topk"),
            hidden=column(part, "hidden_size"),
            inter=column(part, "inter_size") / column(part, "moe_tp_size"),
            weight_bytes=weight,
            expert_parallel=(column(part, "moe_ep_size") > 1) * 1.0,
            compute=compute,
            kernel="wide" if dtype == "fp8" and backend == "cutlass" else "best",
            **routed,
        )
        found.append(
            Batch(
                gpu=DEVICES[device],
                stack=framework,
                family=MOE,
                variant=f"{dtype} {backend}",
                stand_ins=(f"{dtype} triton", f"{dtype} cutlass", *LIKE.get(dtype, ())),
                call=call,
                rows=rows,
                groups=groups[rows],
                large=large(call),
                kin=kin(models[rows], groups[rows]),
            )
        )
    return Batches(known=found, declined=declined)


TABLES = (Table(name="op_moe", source=AICONFIGURATOR, batches=batches),)
