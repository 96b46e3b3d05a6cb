"""From what a scenario plans to the operations that can be measured on one device.

A point is one operation at one shape, a rank's share of a layer. Its shape is plain data, so that a
record can hold it; `work` turns it into tensors and a call. What no kernel computes is a point
with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.decode import Step
from lcprof.cost.sharding import matrix_share, stored_format
from lcprof.domain.case import Case
from lcprof.domain.kv import KvStrategy
from lcprof.domain.kv.dense import Dense
from lcprof.domain.kv.formats import DECODE_PAGES, dense_dtype, kernel_format, listed
from lcprof.domain.kv.kivi import Kivi
from lcprof.domain.kv.quantised import Quantised
from lcprof.domain.kv.share import Share
from lcprof.domain.kv.sparse import Quest
from lcprof.domain.kv.window import Window
from lcprof.domain.model import (
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    Matrix,
    Mixer,
)
from lcprof.domain.operations import (
    ALL,
    GROUPED,
    OPERATIONS,
    STACKS,
    UNPLANNED,
    implementation_names,
    operation_names,
)
from lcprof.errors import InputError, nearest
from lcprof.num import ceil_div

Shape = Mapping[str, int | float | str]
Entries = dict[str, int | float | str]

EVERYWHERE: Mapping[str, tuple[str, ...]] = {"gemm": ("torch",)}
"""Matrix products are PyTorch's under each stack."""
ON_CPU = ("naive", "torch")
QUANTISED_PAGE = 64
MLA_WIDTHS = (512, 64)
MLA_HEAD_WIDTHS = (128, 64, 128)
FULL_GROUPS_TOKENS = 4095
"""Tokens held before one is appended: the next one closes a group of any size."""
GEMM_FORMATS = ("bf16", "fp16", "fp8")


class Part(Struct, frozen=True, kw_only=True, eq=False):
    """What a point is of: the planned case, a layer group of it, and the operation's plan. `kv` is
    the strategy as the kernel realises it, `matrix` the one that is multiplied by."""

    case: Case
    group: LayerGroup | None
    phase: str
    kv: KvStrategy
    query_tokens: int = 1
    matrix: Matrix | None = None


class Point(Struct, frozen=True, kw_only=True, eq=False):
    """One operation at one shape; `why` says what keeps it from being measured, "" when nothing.

    `note` says where the kernel differs from the plan. `name` is the same for every
    implementation.
    """

    operation: str
    shape: Shape
    part: Part
    implementation: str = ""
    why: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """Operation and shape in one line."""
        words = " ".join(f"{key}={value}" for key, value in self.shape.items())
        return f"{self.operation} {words}"

    @property
    def key(self) -> str:
        """What identifies the point's row in a record."""
        return f"{self.name} by {self.implementation or 'nothing'}"

    @property
    def ranks(self) -> int:
        """How many ranks run it together."""
        return int(self.shape.get("ranks", 1))

    @property
    def source(self) -> str:
        """Where it was planned first."""
        case = self.part.case
        group = f", {self.part.group.name} layers" if self.part.group is not None else ""
        return f"{case.model.name}{group}, kv {case.kv_spec}"


def implementations(names: Sequence[str], device: str) -> tuple[str, ...]:
    """The implementations that `--impl` names; by default our own on a GPU, on a CPU the
    references. Raises InputError for a name that none has."""
    if not names and device == "cpu":
        return ON_CPU
    chosen: list[str] = []
    known = implementation_names()
    for name in names or ("lcprof",):
        if name not in known:
            hint = nearest(name, known) or "one of " + ", ".join(known)
            raise InputError.one("--impl", given=name, expected=f"an implementation; {hint}")
        chosen += STACKS.get(name, (name,))
    return tuple(dict.fromkeys(chosen))


def chosen_operations(names: Sequence[str]) -> tuple[str, ...]:
    """The operations that `--only` names ("all": every one), without one all that a plan has.
    Raises InputError for another name."""
    known = operation_names()
    for name in names:
        if name not in known:
            hint = nearest(name, known) or ", or one of ".join((ALL, ", ".join(known[1:])))
            raise InputError.one("--only", given=name, expected=f"an operation; {hint}")
    if ALL in names:
        return (*OPERATIONS, *GROUPED)
    planned = tuple(name for name in (*OPERATIONS, *GROUPED) if name not in UNPLANNED)
    return tuple(names) or planned


def points_of(
    cases: Iterable[Case], *, impls: Sequence[str], only: Sequence[str], device: str
) -> list[Point]:
    """The points of some cases, each key once: by every implementation asked for that has the
    operation, or one that says why there is none."""
    found: dict[str, Point] = {}
    for case in cases:
        for point in _points_of_case(case):
            if point.operation not in only:
                continue
            for each in _by_implementation(point, impls, device):
                found.setdefault(each.key, each)
    return list(found.values())


def _by_implementation(point: Point, impls: Sequence[str], device: str) -> Iterator[Point]:
    if point.why:
        yield point
        return
    able = OPERATIONS[point.operation]
    wanted = [impl for impl in able if impl in impls or impl in EVERYWHERE.get(point.operation, ())]
    if not wanted:
        why = f"{point.operation} is computed by {', '.join(able)}, not by {', '.join(impls)}"
        yield replace(point, why=why)
        return
    for impl in wanted:
        refused = f"{impl} needs a CUDA GPU" if device == "cpu" and impl in _GPU_ONLY else ""
        yield replace(point, implementation=impl, why=refused)


_GPU_ONLY = ("flash", "cudnn")


def _points_of_case(case: Case) -> Iterator[Point]:
    groups = [group for group in case.model.groups if group.mixer or group.ffn]
    query_tokens = int(min(case.workload.chunk_tokens, _prompt_tokens(case)))
    for group in groups:
        if group.mixer is not None:
            yield from _attention(case, group, case.kv.remake(group.mixer), query_tokens)
    for phase, rows in (("prefill", query_tokens), ("decode", sequences(case))):
        for group in groups:
            yield from _gemms(case, group, phase, rows)
    yield _logits(case)


def _prompt_tokens(case: Case) -> float:
    return case.workload.context_tokens - case.workload.prefix_tokens


def sequences(case: Case) -> int:
    """Sequences that one pass takes along, on the fullest group of data-parallel attention."""
    workload = case.workload
    step = Step(sequences=workload.concurrency, context_tokens=float(workload.context_tokens))
    return int(step.in_flight(case.deployment).rank_sequences(case.deployment))


def _attention(case: Case, group: LayerGroup, mixer: Mixer, query_tokens: int) -> Iterator[Point]:
    group = replace(group, mixer=mixer)
    deployment = case.deployment
    if isinstance(mixer, GroupedAttention):
        points = _grouped(case, group, mixer, query_tokens)
    elif isinstance(mixer, LatentAttention):
        points = _latent(case, group, mixer, query_tokens)
    else:
        shape: Entries = {"layers": group.name, "kind": type(mixer).__name__}
        part = Part(case=case, group=group, phase="decode", kv=case.kv)
        why = f"no kernel for {type(mixer).__name__} layers"
        points = iter([Point(operation="decode_attention", shape=shape, part=part, why=why)])
    across = deployment.cp * deployment.dcp
    for point in points:
        if across > 1 and not point.why:
            why = f"tokens are cut over {across} ranks: started by torchrun, it measures them"
            yield replace(point, why=why)
        else:
            yield point


def _grouped(
    case: Case, group: LayerGroup, mixer: GroupedAttention, query_tokens: int
) -> Iterator[Point]:
    heads: Entries = {
        "q_heads": ceil_div(mixer.q_heads, case.deployment.tp),
        "kv_heads": max(1, ceil_div(mixer.kv_heads, case.deployment.tp)),
        "head_dim": mixer.k_dim,
    }
    odd = _odd_attention(mixer)
    yield _grouped_prefill(case, group, mixer, heads, query_tokens, odd)
    whole = int(case.workload.context_tokens)
    backward = _grouped_prefill(case, group, mixer, heads, whole, odd)
    yield replace(backward, operation="attention_backward")
    for point in _grouped_decode(case, group, mixer, heads):
        yield replace(point, why=odd) if odd and not point.why else point
    layout, scale, why, _ = kernel_format(case.kv, mixer.k_dim)
    if layout and not why and not mixer.shares_cache:
        shared: Entries = {"kv_heads": heads["kv_heads"], "head_dim": mixer.k_dim, "format": layout,
                  "scale": scale}  # fmt: skip
        for phase, batch, new, held in (
            ("prefill", 1, query_tokens, 0),
            ("decode", sequences(case), 1, FULL_GROUPS_TOKENS),
        ):
            yield Point(
                operation="append",
                shape={"batch": batch, "new_tokens": new, "held_tokens": held, **shared},
                part=Part(case=case, group=group, phase=phase, kv=case.kv, query_tokens=new),
                note="setting the lengths back is timed with it",
            )


def _odd_attention(mixer: GroupedAttention) -> str:
    if mixer.k_dim != mixer.v_dim:
        return f"no kernel for keys of {mixer.k_dim} and values of {mixer.v_dim}"
    if mixer.selection is not None:
        return "no kernel selects blocks by index heads"
    return ""


def _grouped_prefill(
    case: Case,
    group: LayerGroup,
    mixer: GroupedAttention,
    heads: Shape,
    query_tokens: int,
    odd: str,
) -> Point:
    """The last chunk of a prompt: its queries see every token before them."""
    kv, sight = _as_computed(case.kv), case.kv.sight()
    window, sinks = mixer.window_tokens or 0, 0
    if sight is not None and (not window or sight.tokens < window):
        window, sinks = sight.window_tokens, sight.sink_tokens
    shape: Entries = {
        "batch": 1,
        "query_tokens": query_tokens,
        "context_tokens": int(case.workload.context_tokens),
        **heads,
        "window_tokens": window,
        "sink_tokens": sinks,
        "dtype": "bf16",
    }
    why = "no kernel for attention within chunks" if mixer.chunk_tokens is not None else odd
    part = Part(case=case, group=group, phase="prefill", kv=kv, query_tokens=query_tokens)
    return Point(operation="prefill_attention", shape=shape, part=part, why=why)


def _as_computed(kv: KvStrategy) -> KvStrategy:
    """The strategy of prefill attention, which reads K and V as they are computed: its window
    without its number format."""
    window = next((link for link in kv.chain() if isinstance(link, Window)), None)
    return Dense() if window is None else replace(window, inner=Dense())


def _grouped_decode(
    case: Case, group: LayerGroup, mixer: GroupedAttention, heads: Shape
) -> Iterator[Point]:
    chain = [link for link in case.kv.chain() if not isinstance(link, Share)]
    context = int(case.workload.context_tokens)
    cap = mixer.window_tokens or mixer.chunk_tokens
    window = next((link for link in chain if isinstance(link, Window)), None)
    quest = next((link for link in chain if isinstance(link, Quest)), None)
    layout, scale, why, note = kernel_format(case.kv, mixer.k_dim)
    first: Entries = {
        "batch": sequences(case),
        "query_tokens": 1,
        "context_tokens": context,
        **heads,
    }
    part = Part(case=case, group=group, phase="decode", kv=case.kv)
    page = case.deployment.page_tokens
    refused = next((_without_kernel(link) for link in chain if _without_kernel(link)), "") or why
    if refused:
        shape: Entries = {**first, "kv": case.kv_spec, "window_tokens": cap or 0}
        yield Point(operation="decode_attention", shape=shape, part=part, why=refused)
        return
    tokens, sinks = cap or 0, 0
    if window is not None and (not cap or window.tokens + window.sinks < cap):
        tokens, sinks = window.tokens, window.sinks
    kept = min(context, tokens + sinks) if tokens else context
    if quest is not None:
        refused = "no kernel selects pages of a quantised cache" if layout else ""
        refused = refused or ("no kernel selects pages of a window" if tokens else "")
        if quest.page not in DECODE_PAGES:
            refused = f"pages of {quest.page} tokens; the kernel takes {listed(DECODE_PAGES)}"
        shape = {**first, "page_tokens": quest.page, "pages": quest.top, "dtype": "bf16"}
        yield Point(operation="quest_decode", shape=shape, part=part, why=refused)
    elif layout:
        note = _joined(note, "the window is held packed, in the order of its slots" * bool(tokens))
        shape = {**first, "context_tokens": kept, "format": layout, "scale": scale}
        for pages in (0, max(QUANTISED_PAGE, page, _group_of(case.kv))):
            yield Point(
                operation="quantised_decode",
                shape={**shape, "page_tokens": pages},
                part=part,
                note=note,
            )
    else:
        ring = bool(tokens) and context > kept
        shape = {**first, "window_tokens": tokens if ring else 0,
                 "sink_tokens": sinks if ring else 0, "dtype": dense_dtype(case.kv)}  # fmt: skip
        yield Point(
            operation="decode_attention",
            shape={**shape, "layout": "ring" if ring else "contiguous", "page_tokens": 0},
            part=part,
        )
        pages = page if page in DECODE_PAGES else QUANTISED_PAGE
        told = "" if pages == page else f"pages of {pages}: the kernel takes {listed(DECODE_PAGES)}"
        yield Point(
            operation="decode_attention",
            shape={**shape, "layout": "paged", "page_tokens": pages},
            part=part,
            note=told,
        )


def _without_kernel(link: KvStrategy) -> str:
    if isinstance(link, Dense):
        dtype = link.dtype
        return "" if dtype in ("bf16", "fp16") else f"no kernel for {dtype} keys and values"
    if link.kernel is None:
        return f"{link.kind} has no kernel: it can be planned, not measured"
    if link.kernel == "selection" and not isinstance(link, Quest):
        return f"{link.kind}: no kernel gathers single tokens of a grouped cache"
    return ""


def _group_of(kv: KvStrategy) -> int:
    return next((link.group for link in kv.chain() if isinstance(link, Kivi)), 1)


def _latent(
    case: Case, group: LayerGroup, mixer: LatentAttention, query_tokens: int
) -> Iterator[Point]:
    heads, context = ceil_div(mixer.q_heads, case.deployment.tp), int(case.workload.context_tokens)
    widths = (mixer.latent_dim, mixer.rope_dim)
    odd = "" if widths == MLA_WIDTHS else f"latents of {widths[0]} + {widths[1]}; kernels: 512 + 64"
    split = (mixer.nope_dim, mixer.rope_dim, mixer.v_dim)
    prefill = Part(case=case, group=group, phase="prefill", kv=Dense(), query_tokens=query_tokens)
    if mixer.indexer is None:
        told = f"heads of {split[0]} + {split[1]} and {split[2]}; kernels: 128 + 64 and 128"
        yield Point(
            operation="mla_prefill",
            shape={"batch": 1, "query_tokens": query_tokens, "context_tokens": context,
                   "q_heads": heads},
            part=prefill,
            why="" if split == MLA_HEAD_WIDTHS else told,
            note="keys and values are expanded before; the plan reads latents",
        )  # fmt: skip
    fp8, why = _latent_format(case.kv)
    shape: Entries = {"batch": sequences(case), "query_tokens": 1, "context_tokens": context,
             "q_heads": heads, "format": "fp8-656" if fp8 else "bf16"}  # fmt: skip
    page = QUANTISED_PAGE
    decode = Part(case=case, group=group, phase="decode", kv=case.kv)
    if why:
        odd = why
        shape = {**shape, "format": case.kv_spec}
    if mixer.indexer is None:
        for pages in (0, page):
            yield Point(operation="mla_decode", shape={**shape, "page_tokens": pages},
                        part=decode, why=odd)  # fmt: skip
        return
    indexer = mixer.indexer
    yield Point(operation="sparse_mla_decode",
                shape={**shape, "page_tokens": page, "top_tokens": indexer.top_tokens},
                part=decode, why=odd)  # fmt: skip
    if indexer.owns_keys:
        told = "" if indexer.key_dim in (64, 128) else f"index keys of {indexer.key_dim}"
        yield Point(
            operation="token_scores",
            shape={"batch": sequences(case), "query_tokens": 1, "context_tokens": context,
                   "heads": indexer.heads, "index_dim": indexer.key_dim, "format": "fp8",
                   "page_tokens": page},
            part=decode, why=told,
        )  # fmt: skip


def _latent_format(kv: KvStrategy) -> tuple[bool, str]:
    """Whether latents lie in the fp8 layout of 656 bytes, and why a strategy cannot be measured."""
    wrapped = [link for link in kv.chain() if not isinstance(link, Share)]
    (innermost, *outer) = wrapped
    if isinstance(innermost, Dense) and not outer:
        return False, _without_kernel(innermost)
    coded = outer[-1]
    if len(outer) > 1 or not isinstance(coded, Quantised) or coded.kind != "fp8":
        return False, f"no latent kernel for {'+'.join(link.kind for link in outer)}"
    if coded.granularity != "group" or coded.group != 128 or coded.scale_bytes != 4:
        return False, "no latent kernel for this fp8; fp8:scale=group,group=128 is measured"
    return True, ""


def _gemms(case: Case, group: LayerGroup, phase: str, rows: int) -> Iterator[Point]:
    matrices = [*(group.mixer.matrices if group.mixer else ())]
    matrices += group.ffn.matrices if group.ffn else ()
    for matrix in matrices:
        yield _gemm(case, group, phase, rows, matrix)
    if group.ffn is not None and group.ffn.experts:
        shape: Entries = {"tokens": rows, "experts": group.ffn.experts,
                                 "experts_per_token": group.ffn.experts_per_token}  # fmt: skip
        part = Part(case=case, group=group, phase=phase, kv=case.kv, query_tokens=rows)
        yield Point(operation="gemm", shape=shape, part=part, why="no kernel for routed experts")


def _gemm(case: Case, group: LayerGroup | None, phase: str, rows: int, matrix: Matrix) -> Point:
    """A rank's share of y = x W."""
    share = matrix_share(matrix, case.deployment.tp)
    stored = stored_format(matrix, case.deployment)
    shape: Entries = {
        "rows": rows,
        "depth": round(matrix.inputs * share) if matrix.closes else matrix.inputs,
        "columns": matrix.outputs if matrix.closes else round(matrix.outputs * share),
        "format": stored.name,
    }
    part = Part(case=case, group=group, phase=phase, kv=case.kv, query_tokens=rows, matrix=matrix)
    why = "" if stored.name in GEMM_FORMATS else f"no product with {stored.name} weights here"
    note = "activations are quantised before" if stored.name == "fp8" else ""
    return Point(operation="gemm", shape=shape, part=part, why=why, note=note)


def _logits(case: Case) -> Point:
    model = case.model
    head = Matrix(name="logits", inputs=model.hidden, outputs=model.vocab, split="vocab",
                  split_count=model.vocab, format=model.embedding_format, fixed=True)  # fmt: skip
    return _gemm(case, None, "decode", sequences(case), head)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
