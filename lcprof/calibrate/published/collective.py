"""Published times of collectives as calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lcprof.calibrate.published.table import (
    AICONFIGURATOR,
    DEVICES,
    VIDUR,
    Batch,
    Batches,
    Table,
    column,
    group_names,
    kin,
    rows_where,
)
from lcprof.cost.timing.collective import (
    COLLECTIVE,
    SWITCHED_RANKS,
    CollectiveCall,
    large,
    narrow_limit,
    own_kernel,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame

OPERATIONS = ("all_reduce", "send_recv")
HOPPER = ("h100-sxm", "h200-sxm")
NETWORKS = {
    "a100_dgx": ("a100-80gb-sxm", True),
    "h100_dgx": ("h100-sxm", True),
    "a100_pairwise_nvlink": ("a100-80gb-pcie", False),
    "h100_pairwise_nvlink": ("h100-nvl", False),
    "a40_pairwise_nvlink": ("a40", False),
}
"""The GPU of each of Vidur's machines, and whether every GPU of a node reaches every other by
NVLink."""


def nccl(frame: DataFrame) -> Batches:
    """op_nccl.csv: nccl-tests on one node."""
    found = []
    declined = {}
    groups = group_names(frame, ["message_bytes"])
    kinds = group_names(frame, ["op_name", "num_gpus"])
    for (device,), rows in rows_where(frame, ["device"]):
        if device not in DEVICES:
            declined[f"unknown device: {device}"] = rows
            continue
        gpu = DEVICES[device]
        part = frame.iloc[rows]
        reduces = (part["op_name"] == "all_reduce").to_numpy()
        call = CollectiveCall(
            buffer_bytes=column(part, "message_bytes"),
            ranks=column(part, "num_gpus"),
            passes=1.0 + reduces,
            in_switch=reduces * switched(gpu, column(part, "num_gpus")),
        )
        found.append(batch(gpu, "nccl", "nccl", call, rows, groups[rows], kinds[rows]))
    return Batches(known=found, declined=declined)


def engine(frame: DataFrame) -> Batches:
    """op_custom_allreduce.csv: the engines' all-reduce, which turns to NCCL for large buffers."""
    import numpy as np

    found = []
    declined = {}
    groups = group_names(frame, ["message_bytes"])
    kinds = group_names(frame, ["num_gpus"])
    keys = ["device", "framework", "kernel_source"]
    for (device, framework, kernel), rows in rows_where(frame, keys):
        if device not in DEVICES:
            declined[f"unknown device: {device}"] = rows
            continue
        gpu = DEVICES[device]
        part = frame.iloc[rows]
        ranks = column(part, "num_gpus")
        own = own_kernel(framework, ranks, hopper=gpu in HOPPER)
        call = CollectiveCall(
            buffer_bytes=column(part, "message_bytes"),
            ranks=ranks,
            passes=np.full(len(rows), 2.0),
            in_switch=switched(gpu, ranks),
            own_limit_bytes=own.limit_bytes,
            one_shot_bytes=own.one_shot_bytes,
            eager=kernel.endswith("eager"),
        )
        variant = "all_reduce eager" if call.eager else "all_reduce"
        found.append(batch(gpu, framework, variant, call, rows, groups[rows], kinds[rows]))
    return Batches(known=found, declined=declined)


def vidur(frame: DataFrame) -> Batches:
    """vidur_network.csv. The time is that of the rank which arrived last (the least), since the
    others' kernels wait. GPUs without NVLink between all, and nodes, are variants of their own."""
    import numpy as np

    found = []
    declined = {}
    groups = group_names(frame, ["size_bytes"])
    keys = ["network_device", "op", "num_workers", "devices_per_node"]
    for (network, op, workers, per_node), rows in rows_where(frame, keys):
        if network not in NETWORKS:
            declined[f"unknown machine: {network}"] = rows
            continue
        gpu, all_linked = NETWORKS[network]
        part = frame.iloc[rows]
        if workers > per_node:
            place = "between nodes"
        elif workers > 2 and not all_linked:
            place = "over PCIe"
        else:
            place = "in a node"
        count = len(rows)
        nodes = max(workers / per_node, 1.0)
        reduces = float(op == "all_reduce")
        call = CollectiveCall(
            buffer_bytes=column(part, "size_bytes"),
            ranks=np.full(count, float(workers)),
            passes=np.full(count, 2.0),
            nodes=np.full(count, nodes),
            narrow_bytes=np.full(count, reduces * narrow_limit(workers, nodes)),
            on_bus=np.full(count, float(place == "over PCIe")),
            in_switch=np.zeros(count),
        )
        variant = f"{op} {place}"
        names = groups[rows]
        found.append(
            batch(
                gpu,
                "vidur",
                variant,
                call,
                rows,
                names,
                names,
                measured="min_over_ranks_ms",
                stand_ins=tuple(f"{kind} {place}" for kind in OPERATIONS if kind != op),
                elsewhere=(("nccl", "nccl"),) if place == "in a node" else (),
            )
        )
    return Batches(known=found, declined=declined)


def switched(gpu: str, ranks: NDArray[np.float64]) -> Any:
    """1 where the switches reduce."""
    return (ranks == SWITCHED_RANKS) * float(gpu in HOPPER)


def batch(
    gpu: str,
    stack: str,
    variant: str,
    call: CollectiveCall,
    rows: NDArray[np.int64],
    groups: NDArray[np.str_],
    kinds: NDArray[np.str_],
    measured: str = "latency_ms",
    stand_ins: tuple[str, ...] = (),
    elsewhere: tuple[tuple[str, str], ...] = (),
) -> Batch:
    """A batch of collectives."""
    return Batch(
        gpu=gpu,
        stack=stack,
        family=COLLECTIVE,
        variant=variant,
        call=call,
        rows=rows,
        groups=groups,
        large=large(call),
        column=measured,
        kin=kin(kinds, groups),
        stand_ins=stand_ins,
        elsewhere=elsewhere,
    )


TABLES = (
    Table(name="op_nccl", source=AICONFIGURATOR, batches=nccl, withheld=("bus_GBps",)),
    Table(
        name="op_custom_allreduce",
        source=AICONFIGURATOR,
        batches=engine,
        withheld=("algo_GBps",),
    ),
    Table(
        name="vidur_network",
        source=VIDUR,
        batches=vidur,
        seconds={"min_over_ranks_ms": 1e-3},
        withheld=("median_over_ranks_ms", "max_over_ranks_ms", "bus_GBps_min_rank"),
    ),
)
