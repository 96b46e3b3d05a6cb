"""From a row of `lcprof measure` to a call of an operation family, and the kernels that predict it.

The one place that says which variant an operation, a shape and an implementation are; what is
measured and what is predicted for measuring both come through here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.expected import own
from lcprof.cost.expected.kernels import alike, is_on_bus, nccl
from lcprof.cost.expected.task import Task
from lcprof.cost.timing.ceilings import ceilings_of
from lcprof.cost.timing.collective import COLLECTIVE, SWITCHED_RANKS, CollectiveCall
from lcprof.cost.timing.decode_attention import DECODE_ATTENTION, DecodeAttentionCall
from lcprof.cost.timing.elementwise import ELEMENTWISE, ElementwiseCall
from lcprof.cost.timing.family import Family
from lcprof.cost.timing.gemm import GEMM, GemmCall
from lcprof.cost.timing.latent import DEEPSEEK_V3
from lcprof.cost.timing.mla_decode import MLA_DECODE, MlaDecodeCall
from lcprof.cost.timing.prefill_attention import PREFILL_ATTENTION, PrefillAttentionCall
from lcprof.domain.calibration import Variant
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv.dense import DTYPE_BYTES, Dense
from lcprof.domain.kv.formats import choosing_bytes, element_bytes, strategy_of
from lcprof.domain.kv.kivi import Kivi
from lcprof.domain.kv.quantised import Fp8
from lcprof.domain.kv.sparse import Quest
from lcprof.domain.kv.stream import Stream
from lcprof.domain.operations import COLLECTIVES

Shape = Mapping[str, int | float | str]

LENGTHS = frozenset({"query_tokens", "context_tokens", "rows", "new_tokens", "held_tokens"})
"""What varies between the points of one shape, beside the batch."""
STEPS = frozenset({"decode_attention", "quantised_decode", "quest_decode", "mla_decode",
                   "sparse_mla_decode"})  # fmt: skip
EXPANDED_DIMS = (192.0, 128.0)
"""Dimensions of keys and of values of DeepSeek's expanded latents."""
LATENT = Stream(heads=1, k_elements=576, v_elements=0, plain_elements=64)
LATENT_FORMATS = {
    "bf16": ("bf16", Dense()),
    "fp8-656": ("fp8", Fp8(inner=Dense(), granularity="group", group=128, scale_bytes=4)),
}
"""A short name, and the strategy whose bytes a format takes."""
INDEX_BYTES = {"bf16": (2.0, 0.0), "fp8": (1.0, 4.0)}
"""Bytes of an element of an index key, and of its scale."""


class UncalledError(Exception):
    """No family has a call for a row; the text says why."""


class Called(Struct, frozen=True, kw_only=True):
    """A row as a call of a family. `variants` are its own (stack and variant), then those most like
    it; quantities of `call` are floats. `groups` name the shape: without batch and lengths, without
    lengths, and whole."""

    operation: str
    family: Family
    variants: tuple[Variant, ...]
    call: Any
    groups: tuple[str, str, str]

    @property
    def variant(self) -> Variant:
        """Its own stack and variant."""
        return self.variants[0]

    def task(self, call: Any) -> Task:
        """Calls of its kind as a task."""
        return Task(operation=self.operation, family=self.family, variants=self.variants, call=call)


class _Row(Struct, frozen=True, kw_only=True):
    shape: Shape
    implementation: str
    gpu: Gpu

    def number(self, name: str) -> float:
        value = self.shape.get(name)
        if isinstance(value, str) or value is None or not value >= 0:
            raise UncalledError(f"its shape has no {name}")
        return float(value)

    def positive(self, *names: str) -> dict[str, float]:
        found = {name: self.number(name) for name in names}
        if not all(found.values()):
            raise UncalledError(f"its shape has no {next(n for n in names if not found[n])}")
        return found

    def text(self, name: str) -> str:
        value = self.shape.get(name)
        if not isinstance(value, str):
            raise UncalledError(f"its shape has no {name}")
        return value

    @property
    def layout(self) -> str:
        return own.layout(int(self.number("page_tokens")))


_Made = tuple[Family, tuple[Variant, ...], Any]


def called(operation: str, shape: Shape, implementation: str, gpu: Gpu) -> Called:
    """The call of a row that was or will be measured on `gpu`. Raises UncalledError."""
    make = _CALLS.get(operation)
    if make is None:
        raise UncalledError(f"no family describes {operation}")
    if implementation not in _ABLE.get(operation, ("triton",)):
        raise UncalledError(f"no stack has {operation} by {implementation or 'nothing'}")
    if operation in STEPS and shape.get("query_tokens", 1) != 1:
        raise UncalledError("its family is of one new token a sequence")
    family, variants, call = make(_Row(shape=shape, implementation=implementation, gpu=gpu))
    without = (LENGTHS | {"batch"}, LENGTHS, frozenset[str]())
    coarse, fine, whole = (_group(operation, shape, left_out) for left_out in without)
    return Called(
        operation=operation,
        family=family,
        variants=variants,
        call=call,
        groups=(coarse, fine, whole),
    )


def _group(operation: str, shape: Shape, without: frozenset[str]) -> str:
    named = (f"{name}={value}" for name, value in shape.items() if name not in without)
    return " ".join((operation, *named))


def stacked(calls: Sequence[Any]) -> Any:
    """Calls of one variant as one whose quantities are arrays; what is no quantity is alike."""
    import numpy as np

    quantities = {
        name: np.array([getattr(call, name) for call in calls], dtype=np.float64)
        for name in calls[0].__struct_fields__
        if isinstance(getattr(calls[0], name), float)
    }
    return replace(calls[0], **quantities)


def _prefill(row: _Row) -> _Made:
    queries = row.positive("query_tokens")["query_tokens"]
    dim = row.positive("head_dim")["head_dim"]
    window = row.number("window_tokens")
    call = PrefillAttentionCall(
        **row.positive("batch", "q_heads", "kv_heads"),
        qk_dim=dim,
        v_dim=dim,
        query_tokens=queries,
        prefix_tokens=row.number("context_tokens") - queries,
        window_tokens=window + row.number("sink_tokens") if window else 0.0,
        causal=1.0,
        compute="bf16",
        kernel=own.kernel_of(row.implementation, row.gpu),
        kv_bytes_per_element=_dense_bytes(row.text("dtype")),
    )
    variants = own.prompt_variants(row.implementation, row.text("dtype"), dim)
    return PREFILL_ATTENTION, (*variants, *own.public_prompt(row.gpu)), call


def _dense_bytes(dtype: str) -> float:
    if dtype not in DTYPE_BYTES:
        raise UncalledError(f"no family knows the type {dtype}")
    return DTYPE_BYTES[dtype]


def _mla_prefill(row: _Row) -> _Made:
    queries, heads = row.positive("query_tokens", "q_heads").values()
    keys, values = EXPANDED_DIMS
    call = PrefillAttentionCall(
        **row.positive("batch"),
        q_heads=heads,
        kv_heads=heads,
        qk_dim=keys,
        v_dim=values,
        query_tokens=queries,
        prefix_tokens=row.number("context_tokens") - queries,
        window_tokens=0.0,
        causal=1.0,
        compute="bf16",
        kernel=own.kernel_of(row.implementation, row.gpu),
        kv_bytes_per_element=2.0,
    )
    meant = own.prompt_variant(row.implementation, "bf16", "expanded latents")
    return PREFILL_ATTENTION, (meant, *own.PUBLIC_LATENT_PROMPT), call


def _decode(row: _Row) -> _Made:
    context = row.positive("context_tokens")["context_tokens"]
    window, ring = row.number("window_tokens"), row.text("layout") == "ring"
    read = min(context, window + row.number("sink_tokens")) if window else context
    lies = own.layout(int(row.number("page_tokens")), ring=ring)
    dtype = row.text("dtype")
    each, variants = _dense_bytes(dtype), own.step_variants(row.implementation, dtype, lies)
    if row.implementation == "flash" and not _splits(row):
        variants = (*own.step_variants("flash unsplit", dtype, lies), *variants)
    return _step(row, read, each, variants, windowed=bool(window))


def _splits(row: _Row) -> bool:
    """Whether PyTorch's FlashAttention spreads a sequence over several SMs (`num_splits_heuristic`
    of FlashAttention 2 v2.7: fewer tiles than 0.8 of two for each SM)."""
    batch, kv_heads = row.positive("batch", "kv_heads").values()
    return batch * kv_heads < 0.8 * 2.0 * ceilings_of(row.gpu).sm_count


def _step(
    row: _Row, read: float, each: float, variants: tuple[Variant, ...], *, windowed: bool = False
) -> _Made:
    call = DecodeAttentionCall(
        **row.positive("batch", "q_heads", "kv_heads", "head_dim"),
        context_tokens=read,
        window_tokens=0.0,
        kv_bytes_per_element=each,
        cold=1.0,
    )
    public = own.public_step(row.gpu, each, windowed=windowed)
    return DECODE_ATTENTION, (*variants, *public), call


def _stream(row: _Row) -> Stream:
    heads, dim = map(int, row.positive("kv_heads", "head_dim").values())
    return Stream(heads=heads, k_elements=dim, v_elements=dim)


def _quantised(row: _Row) -> _Made:
    context = row.positive("context_tokens")["context_tokens"]
    name = row.text("format")
    try:
        kv = strategy_of(name, row.text("scale"))
    except ValueError as error:
        raise UncalledError(str(error)) from None
    each: float = element_bytes(kv, _stream(row), context)
    variants = own.step_variants(row.implementation, name, row.layout)
    return _step(row, context, each, variants)


def _quest(row: _Row) -> _Made:
    context, page, top = row.positive("context_tokens", "page_tokens", "pages").values()
    kv, dtype = Quest(inner=Dense(), page=int(page), top=int(top)), row.text("dtype")
    _dense_bytes(dtype)
    stream = _stream(row)
    each: float = choosing_bytes(kv, stream, context)
    read: float = kv.read_tokens(stream, context)
    meant = own.step_variant(row.implementation, dtype, own.chosen_pages(int(page)))
    return _step(row, read, each, (meant,))


def _latent_format(row: _Row) -> tuple[str, float]:
    name = row.text("format")
    if name not in LATENT_FORMATS:
        raise UncalledError(f"no family knows latents in {name}")
    short, kv = LATENT_FORMATS[name]
    return short, element_bytes(kv, LATENT, 1.0)


def _latent_tile(heads: float, row: _Row) -> float:
    """Heads that a block of our latent kernel takes (lcprof_kernels.mla.launch.tile_for)."""
    fp8 = _latent_format(row)[0] == "fp8"
    if own.is_new(row.gpu) and (heads > 32 or (fp8 and heads > 16)):
        return 64.0
    wide = own.is_new(row.gpu) or row.gpu.compute_capability == "8.0"
    return 32.0 if wide and heads > 16 and not fp8 else 16.0


def _latents(row: _Row, read: float, name: str) -> _Made:
    batch, heads = row.positive("batch", "q_heads").values()
    call = MlaDecodeCall(
        batch=batch,
        q_heads=heads,
        latent_dim=DEEPSEEK_V3.kv_rank,
        rope_dim=DEEPSEEK_V3.rope_dim,
        context_tokens=read,
        kv_bytes_per_element=_latent_format(row)[1],
        compute="bf16",
        tile_heads=_latent_tile(heads, row),
        cold=1.0,
    )
    return MLA_DECODE, (("lcprof", name), *own.PUBLIC_LATENT_STEP), call


def _mla_decode(row: _Row) -> _Made:
    context = row.positive("context_tokens")["context_tokens"]
    return _latents(row, context, f"{_latent_format(row)[0]} latents, {row.layout}")


def _sparse_mla(row: _Row) -> _Made:
    context, top = row.positive("context_tokens", "top_tokens").values()
    return _latents(row, min(context, top), f"{_latent_format(row)[0]} latents, chosen tokens")


def _token_scores(row: _Row) -> _Made:
    batch, context, queries = row.positive("batch", "context_tokens", "query_tokens").values()
    heads, dim = row.positive("heads", "index_dim").values()
    name = row.text("format")
    if name not in INDEX_BYTES:
        raise UncalledError(f"no family knows index keys in {name}")
    element, scale = INDEX_BYTES[name]
    key_bytes = dim * element + scale
    # Work grows as bytes do, for heads and dimensions that the variant fixes.
    call = ElementwiseCall(
        moved_bytes=batch * context * (key_bytes + 4.0 * queries), row_bytes=key_bytes
    )
    meant = "lcprof", f"token scores {name}, {heads:.0f} heads of {dim:.0f}"
    return ELEMENTWISE, (meant,), call


def _append(row: _Row) -> _Made:
    name = row.text("format")
    try:
        kv = strategy_of(name, row.text("scale"))
    except ValueError as error:
        raise UncalledError(str(error)) from None
    stream, batch = _stream(row), row.positive("batch")["batch"]
    new, held = row.positive("new_tokens")["new_tokens"], row.number("held_tokens")
    group = kv.residual if isinstance(kv, Kivi) else 1
    # Keys that share scales with earlier tokens are written when their group is full.
    closed = ((held + new) // group - held // group) * group
    token_bytes = 2.0 * stream.elements + kv.bytes_per_token(stream)
    call = ElementwiseCall(
        moved_bytes=batch * max(new, closed) * token_bytes, row_bytes=token_bytes
    )
    stack = "lcprof" if row.implementation == "triton" else "torch"
    return ELEMENTWISE, ((stack, f"append {name}"), ("vidur", "attn_rope")), call


def _gemm(row: _Row) -> _Made:
    name = row.text("format")
    bf16 = (*alike("torch", "bfloat16"), ("vidur", "float16"))
    variants: dict[str, tuple[Variant, ...]] = {
        "bf16": bf16,
        "fp16": (("torch", "float16"), *bf16),
        "fp8": (*alike("torch", "fp8"), *alike("torch", "fp8_block")),
    }
    if name not in variants:
        raise UncalledError(f"no family knows products in {name}")
    each = 1.0 if name == "fp8" else 2.0
    rows, columns, depth = row.positive("rows", "columns", "depth").values()
    call = GemmCall(
        rows=rows,
        columns=columns,
        depth=depth,
        weight_bytes=each,
        activation_bytes=each,
        compute=name,
    )
    return GEMM, variants[name], call


def _exchange(row: _Row, passes: float) -> _Made:
    """A collective of the library, on one machine."""
    ranks, buffer_bytes = row.positive("ranks", "buffer_bytes").values()
    bus = is_on_bus(row.gpu, int(ranks))
    switched = passes == 2.0 and row.gpu.architecture == "Hopper" and ranks == SWITCHED_RANKS
    call = CollectiveCall(
        buffer_bytes=buffer_bytes,
        ranks=ranks,
        passes=passes,
        on_bus=float(bus),
        in_switch=float(switched and not bus),
    )
    return COLLECTIVE, nccl(row.gpu, int(ranks)), call


_CALLS: Mapping[str, Callable[[_Row], _Made]] = {
    "prefill_attention": _prefill,
    "mla_prefill": _mla_prefill,
    "decode_attention": _decode,
    "quantised_decode": _quantised,
    "quest_decode": _quest,
    "mla_decode": _mla_decode,
    "sparse_mla_decode": _sparse_mla,
    "token_scores": _token_scores,
    "append": _append,
    "gemm": _gemm,
    **{name: partial(_exchange, passes=passes) for name, passes in COLLECTIVES.items()},
}
_ABLE: Mapping[str, tuple[str, ...]] = {
    "prefill_attention": ("triton", "flash", "cudnn"),
    "decode_attention": ("triton", "flash", "cudnn"),
    "append": ("triton", "torch"),
    "gemm": ("torch",),
    **dict.fromkeys(COLLECTIVES, ("nccl",)),
}
"""Implementations that are a stack's; only our own kernel where an operation is not named.
PyTorch's step over a quantised cache widens all of it first, which no family describes."""
