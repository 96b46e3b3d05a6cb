"""Published times of DeepEP's dispatch and combine as calls."""

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
from lcprof.cost.layer import reached_ranks
from lcprof.cost.timing.ceilings import TYPICAL_SM_COUNT
from lcprof.cost.timing.exchange import (
    EXCHANGE,
    ExchangeCall,
    expert_sms,
    large,
)
from lcprof.domain.deployment import NODE_GPUS

if TYPE_CHECKING:
    from pandas import DataFrame

ELEMENT_BYTES = {"dispatch": 1.0, "combine": 2.0}
"""Tokens travel to the experts in fp8 and back in bf16."""


def batches(frame: DataFrame) -> Batches:
    """op_deepep.csv: each row has a dispatch and a combine. Low-latency kernels send a copy to
    every chosen expert, the others one to every GPU that holds any."""
    import numpy as np

    found = []
    declined = {}
    groups = group_names(frame, ["hidden_size", "num_topk", "num_experts"])
    for (device, framework, mode, nodes), rows in rows_where(
        frame, ["device", "framework", "mode", "node_num"]
    ):
        if device not in DEVICES or nodes != 1:
            declined[f"unknown device or more than one node: {device}, {nodes}"] = rows
            continue
        part = frame.iloc[rows]
        chosen = list(zip(part["num_topk"].tolist(), part["num_experts"].tolist(), strict=True))
        low_latency = mode == "low_latency"
        for step, element_bytes in ELEMENT_BYTES.items():
            if low_latency:
                copies = column(part, "num_topk")
                sms = np.array([expert_sms(experts, TYPICAL_SM_COUNT) for _, experts in chosen])
                polled = column(part, "num_experts")
            else:
                copies = np.array([reached_ranks(*pair, NODE_GPUS) for pair in chosen])
                sms = column(part, f"{step}_sms")
                polled = np.zeros(len(rows))
            call = ExchangeCall(
                tokens=column(part, "num_token"),
                hidden=column(part, "hidden_size"),
                copies=copies,
                sms=sms,
                element_bytes=element_bytes,
                polled=polled,
            )
            found.append(
                Batch(
                    gpu=DEVICES[device],
                    stack=framework,
                    family=EXCHANGE,
                    variant=f"{step} low latency" if low_latency else step,
                    call=call,
                    rows=rows,
                    groups=groups[rows],
                    large=large(call),
                    column=f"{step}_avg_t_us" if low_latency else f"{step}_transmit_us",
                )
            )
    return Batches(known=found, declined=declined)


TABLES = (
    Table(
        name="op_deepep",
        source=AICONFIGURATOR,
        batches=batches,
        seconds=dict.fromkeys(
            (
                "dispatch_avg_t_us",
                "combine_avg_t_us",
                "dispatch_transmit_us",
                "combine_transmit_us",
            ),
            1e-6,
        ),
        withheld=(
            "dispatch_bandwidth_gbps",
            "combine_bandwidth_gbps",
            "dispatch_notify_us",
            "combine_notify_us",
        ),
    ),
)
