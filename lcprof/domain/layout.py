"""Which parallel degrees a model can be cut by."""

from __future__ import annotations

from msgspec import Struct

from lcprof.domain.model import (
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    ModelShape,
)

Attention = GroupedAttention | LatentAttention | CompressedAttention


class Degrees(Struct, frozen=True, kw_only=True):
    """Parallel degrees, named as in `Deployment`; cp divides tokens and fits every model."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    dcp: int = 1


def misfits(model: ModelShape, degrees: Degrees) -> list[tuple[str, str, str]]:
    """What of the degrees does not divide the model, as (key, given, expected); [] when all do."""
    tp, pp, dp, ep, dcp = degrees.tp, degrees.pp, degrees.dp, degrees.ep, degrees.dcp
    faults: list[tuple[str, str, str]] = []
    if (tp * dp) % ep:
        faults.append(("ep", str(ep), f"a divisor of tp · dp = {tp * dp}"))
    if pp > model.layers:
        faults.append(("pp", str(pp), f"at most the {model.layers} layers of {model.name}"))
    attention = [
        group.mixer
        for group in model.groups
        if isinstance(group.mixer, GroupedAttention | LatentAttention | CompressedAttention)
    ]
    heads = dict.fromkeys(mixer.q_heads for mixer in attention)
    faults += [
        ("tp", str(tp), f"a divisor of the {count} query heads of {model.name}")
        for count in heads
        if count % tp
    ]
    experts = dict.fromkeys(
        group.ffn.experts for group in model.groups if group.ffn and group.ffn.experts
    )
    if ep > 1 and not experts:
        faults.append(("ep", str(ep), f"1, as {model.name} has no routed experts"))
    faults += [
        ("ep", str(ep), f"a divisor of the {count} experts of {model.name}")
        for count in experts
        if count % ep
    ]
    if dcp > 1:
        faults += _dcp_misfits(model, attention, tp, dcp)
    return faults


def _dcp_misfits(
    model: ModelShape, attention: list[Attention], tp: int, dcp: int
) -> list[tuple[str, str, str]]:
    if tp % dcp:
        return [("dcp", str(dcp), f"a divisor of tp = {tp}")]
    heads = [mixer.kv_heads if isinstance(mixer, GroupedAttention) else 1 for mixer in attention]
    if not heads:
        return [("dcp", str(dcp), f"1, as {model.name} has no attention to shard")]
    # Layers differ in KV heads; every one of them must have the copies.
    copies = max(1, tp // max(heads))
    if dcp > copies:
        text = f"at most {copies}: tp {tp} holds {copies} copies of each KV head of {model.name}"
        return [("dcp", str(dcp), text)]
    return []
