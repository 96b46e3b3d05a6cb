"""Published matrix products as calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from lcprof.cost.timing.gemm import GEMM, GemmCall, large

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

STORAGE = {
    "bfloat16": (2.0, 2.0, "bf16"),
    "fp8": (1.0, 1.0, "fp8"),
    "fp8_block": (1.0, 1.0, "fp8"),
    "sq": (1.0, 1.0, "int8"),
    "int8_wo": (1.0, 2.0, "bf16"),
    "int4_wo": (0.5, 2.0, "bf16"),
}
"""Bytes of a weight and of an activation, and the matrix units' dtype, by the tables' dtype."""
STAND_INS = {
    "fp8_block few rows": ("fp8_block", "fp8"),
    "fp8_block": ("fp8",),
    "fp8": ("fp8_block",),
    "bfloat16": ("float16",),
}
"""Variants that stand in for one that no GPU was measured with."""
CUTLASS_FP8 = "CutlassFP8ScaledMMLinearKernel"
FEW_ROWS = "FlashInferFp8BlockScaledMMKernel"
"""vLLM's block-scaled product for fewer than 32 rows; DeepGEMM takes the others."""


def batches(frame: DataFrame) -> Batches:
    """op_gemm.csv: vLLM's fp8 product picks its tile from the rows alone, and its block-scaled
    products are launched without CUDA graphs."""
    found = []
    declined = {}
    groups = group_names(frame, ["n", "k"])
    keys = ["device", "framework", "gemm_dtype", "kernel_source"]
    for (device, framework, dtype, kernel), rows in rows_where(frame, keys):
        if device not in DEVICES or dtype not in STORAGE:
            declined[f"unknown device or dtype: {device}, {dtype}"] = rows
            continue
        weight, activation, compute = STORAGE[dtype]
        part = frame.iloc[rows]
        call = GemmCall(
            rows=column(part, "m"),
            columns=column(part, "n"),
            depth=column(part, "k"),
            weight_bytes=weight,
            activation_bytes=activation,
            compute=compute,
            dispatch="rows" if kernel == CUTLASS_FP8 else "best",
            quantised=dtype in {"fp8", "fp8_block"},
            eager=framework == "vllm" and dtype == "fp8_block",
        )
        variant = f"{dtype} few rows" if kernel == FEW_ROWS else dtype
        found.append(batch(DEVICES[device], framework, variant, call, rows, groups[rows]))
    return Batches(known=found, declined=declined)


def infersim(frame: DataFrame) -> list[Batch]:
    """The products of infersim_kernels.csv, in microseconds."""
    found = []
    groups = group_names(frame, ["op", "shape"])
    for (device, op, dtype), rows in rows_where(frame, ["device", "op", "dtype"]):
        if op != "gemm" or device not in DEVICES:
            continue
        fp8 = str(dtype).startswith("fp8")
        part = frame.iloc[rows]
        call = GemmCall(
            rows=column(part, "m"),
            columns=column(part, "n"),
            depth=column(part, "k"),
            weight_bytes=1.0 if fp8 else 2.0,
            activation_bytes=1.0 if fp8 else 2.0,
            compute="fp8" if fp8 else "bf16",
        )
        variant = "fp8_block" if fp8 else "bfloat16"
        found.append(
            batch(DEVICES[device], "infersim", variant, call, rows, groups[rows], "latency_us")
        )
    return found


def batch(
    gpu: str,
    stack: str,
    variant: str,
    call: GemmCall,
    rows: NDArray[np.int64],
    groups: NDArray[np.str_],
    measured: str = "latency_ms",
) -> Batch:
    """A batch of products."""
    return Batch(
        gpu=gpu,
        stack=stack,
        family=GEMM,
        variant=variant,
        call=call,
        rows=rows,
        groups=groups,
        large=large(call),
        column=measured,
        stand_ins=STAND_INS.get(variant, ()),
    )


TABLES = (
    Table(
        name="op_gemm",
        source=AICONFIGURATOR,
        batches=batches,
        withheld=("tflops", "weight_GBps"),
    ),
)
