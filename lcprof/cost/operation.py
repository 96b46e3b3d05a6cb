"""One operation's work: what it computes, moves and sends."""

from __future__ import annotations

from typing import Generic

from msgspec import Struct

from lcprof.num import Num

ACTIVATION_BYTES = 2
"""Activations are bf16 or fp16."""


class Operation(Struct, Generic[Num], frozen=True, kw_only=True):
    """The work of one operation in one layer.

    `flops` is the whole model's, each product counted once; the `rank_` quantities are the fullest
    rank's, copies included. `compute` names the peak rate that bounds `rank_flops` ("vector" for
    element-wise work, which runs on fp32 units). `rank_link_bytes` is what the rank sends to other
    GPUs, `rank_host_bytes` what it reads from host memory.
    """

    name: str
    compute: str
    flops: Num
    rank_flops: Num
    rank_read_bytes: Num
    rank_write_bytes: Num
    rank_link_bytes: Num | float = 0.0
    rank_host_bytes: Num | float = 0.0
