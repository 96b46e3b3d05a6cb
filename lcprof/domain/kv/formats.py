"""The cache formats that kernels know, and the strategies that they realise."""

from __future__ import annotations

from collections.abc import Iterable

from lcprof.domain.kv.dense import Dense
from lcprof.domain.kv.kivi import Kivi
from lcprof.domain.kv.quantised import Fp8, Int4, Int8, Quantised
from lcprof.domain.kv.strategy import KvStrategy
from lcprof.domain.kv.stream import Stream
from lcprof.num import Num

DECODE_PAGES = (16, 32, 64, 128, 256)
"""Tokens of a page that the kernels of a dense cache take."""
QUANTISED_HEAD_DIMS = (64, 128, 256)
KERNEL_GROUPS = (32, 64, 128)
SCALE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


def kernel_format(kv: KvStrategy, head_dim: int) -> tuple[str, str, str, str]:
    """The format of the kernels' caches that a strategy means, its scales' type, why there is none
    ("" when there is), and how it differs from the plan. A dense cache has the format ""."""
    coded = next((link for link in kv.chain() if isinstance(link, Quantised | Kivi)), None)
    if coded is None:
        return "", "", "", ""
    if head_dim not in QUANTISED_HEAD_DIMS:
        why = f"head_dim {head_dim}; compressed caches take {listed(QUANTISED_HEAD_DIMS)}"
        return "none", "", why, ""
    if isinstance(coded, Kivi):
        return _kivi_format(coded, head_dim)
    name = f"{coded.kind}:scale={coded.granularity}"
    if coded.granularity == "tensor" and coded.kind == "fp8":
        return "fp8-tensor", "fp32", "", ""
    if coded.granularity == "token-head" and coded.kind in ("fp8", "int8"):
        scale = {2: "fp16", 4: "fp32"}.get(coded.scale_bytes)
        if scale is None:
            return "none", "", f"no kernel for scales of {coded.scale_bytes} bytes", ""
        return f"{coded.kind}-token", scale, "", ""
    if coded.kind == "int4":
        why = _groups_refused(coded.group, head_dim)
        if not why and coded.scale_bytes != 4:
            why = "no kernel for int4 scales other than an fp16 pair (scale_bytes=4)"
        return f"int4-token-{coded.group}", "fp16", why, ""
    return "none", "", f"no kernel for {name}", ""


def _kivi_format(kivi: Kivi, head_dim: int) -> tuple[str, str, str, str]:
    if kivi.bits != 4:
        return "none", "", f"no kernel for kivi with {kivi.bits} bits", ""
    note = ""
    if kivi.residual != kivi.group:
        note = f"the kernel keeps {kivi.group} tokens at most in bf16, the plan {kivi.residual}"
    return f"int4-kivi-{kivi.group}", "fp16", _groups_refused(kivi.group, head_dim), note


def _groups_refused(group: int, head_dim: int) -> str:
    if group not in KERNEL_GROUPS:
        return f"groups of {group}; the kernel takes {listed(KERNEL_GROUPS)}"
    if head_dim % group or head_dim // group > 4:
        return f"groups of {group} do not divide {head_dim} channels into at most 4"
    return ""


def dense_dtype(kv: KvStrategy) -> str:
    """The element type of the innermost, dense cache."""
    return next((link.dtype for link in kv.chain() if isinstance(link, Dense)), "bf16")


def strategy_of(name: str, scale: str) -> KvStrategy:
    """The strategy that a format of `kernel_format` realises; KIVI's kernel keeps at most a group
    of tokens in bf16. Raises ValueError for a name that is none."""
    kind, _, rest = name.partition("-")
    if not rest and kind in ("bf16", "fp16", "fp32"):
        return Dense(dtype=kind)
    scaling, _, size = rest.partition("-")
    if kind == "int4" and size.isdecimal():
        group = int(size)
        if scaling == "kivi":
            return Kivi(inner=Dense(), group=group, residual=group)
        if scaling == "token":
            return Int4(inner=Dense(), group=group)
    if scale in SCALE_BYTES and not size:
        width = SCALE_BYTES[scale]
        if name in ("fp8-token", "int8-token"):
            coded = Fp8 if kind == "fp8" else Int8
            return coded(inner=Dense(), granularity="token-head", scale_bytes=width)
        if name == "fp8-tensor":
            return Fp8(inner=Dense())
    raise ValueError(f"no cache format {name} with {scale or 'no'} scales")


def element_bytes(kv: KvStrategy, stream: Stream, tokens: Num) -> Num:
    """Bytes read for each cached K or V element of a sequence of `tokens`, scales included."""
    elements = stream.heads * (stream.k_elements + stream.v_elements) / stream.tokens_per_entry
    each: Num = kv.payload_bytes(stream, tokens) / (tokens * elements)
    return each


def choosing_bytes(kv: KvStrategy, stream: Stream, context_tokens: Num) -> Num:
    """Bytes read for each element of the tokens that a strategy chooses, with what it chooses them
    by."""
    read: Num = kv.read_tokens(stream, context_tokens)
    scanned = kv.scan_bytes(stream, kv.stored_tokens(stream, context_tokens))
    elements = stream.elements / stream.tokens_per_entry
    each: Num = element_bytes(kv, stream, read) + scanned / (read * elements)
    return each


def listed(values: Iterable[int]) -> str:
    """Numbers in a sentence."""
    return ", ".join(str(value) for value in values)
