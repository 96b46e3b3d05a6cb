"""The merge in plain eager steps."""

from __future__ import annotations

import torch


def merge_reference(outs: torch.Tensor, lses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `merge_partials` computes, in float64 on a CPU and float32 on a GPU."""
    exact = torch.float64 if outs.device.type == "cpu" else torch.float32
    lse = torch.logsumexp(lses.to(exact), 0)
    empty = lse == float("-inf")
    weights = torch.exp(lses.to(exact) - torch.where(empty, 0, lse))
    parts = torch.where(weights[..., None] == 0, 0, outs.to(exact))
    return (weights[..., None] * parts).sum(0), lse
