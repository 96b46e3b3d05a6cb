"""What the benchmark times of decode attention, and how each result is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from lcprof_kernels.bench.case import Case
from lcprof_kernels.budget import Budget, tolerance

from .api import decode_attention
from .inputs import DecodeInputs, decode_inputs
from .reference import decode_reference, gather_tokens

SAMPLES = 4
"""(sequence, KV head) pairs that a result is checked on: the first, the last and some between."""


@dataclass
class Prepared:
    """Inputs of a case: as asked, and for pages and windows the same tokens laid out densely."""

    given: DecodeInputs
    dense: DecodeInputs | None = None
    ring: DecodeInputs | None = None

    @cached_property
    def picks(self) -> list[tuple[int, int]]:
        """Which (sequence, KV head) pairs are checked."""
        batch, kv_heads = self.given.q.shape[0], self.given.k_cache.shape[1]
        cells = batch * kv_heads
        return sorted({divmod(i * (cells - 1) // (SAMPLES - 1), kv_heads) for i in range(SAMPLES)})

    def picked(self, out: torch.Tensor) -> torch.Tensor:
        """The checked pairs' rows of an output: `[pairs, query_tokens, group, head_dim]`."""
        group = self.given.q.shape[2] // self.given.k_cache.shape[1]
        return torch.stack([out[b, :, h * group : (h + 1) * group] for b, h in self.picks])

    @cached_property
    def budget(self) -> Budget:
        """The oracle on the checked pairs, and the error it allows."""

        def reference(low_precision: bool) -> torch.Tensor:
            group = self.given.q.shape[2] // self.given.k_cache.shape[1]
            parts = []
            for b, h in self.picks:
                given = self.given
                paged = given.page_table is not None
                rows = slice(None) if paged else slice(b, b + 1)
                one = replace(
                    given,
                    q=given.q[b : b + 1, :, h * group : (h + 1) * group],
                    k_cache=given.k_cache[rows, h : h + 1],
                    v_cache=given.v_cache[rows, h : h + 1],
                    lengths=None if given.lengths is None else given.lengths[b : b + 1],
                    page_table=None if given.page_table is None else given.page_table[b : b + 1],
                )
                out, _ = decode_reference(**one.arguments(), low_precision=low_precision)
                parts.append(out[0])
            return torch.stack(parts)

        return tolerance(reference(False), reference(True))


def check(prepared: Prepared, out: torch.Tensor) -> tuple[float, float]:
    """Largest error on the checked pairs, and the largest allowed."""
    return prepared.budget.judge(prepared.picked(out))


def run(impl: str, layout: str = "given") -> Callable[[Prepared], torch.Tensor]:
    """An implementation on one of the layouts of the prepared inputs."""

    def call(prepared: Prepared) -> torch.Tensor:
        inputs: DecodeInputs = getattr(prepared, layout)
        return decode_attention(**inputs.arguments(), impl=impl)[0]

    return call


def decode_case(
    *,
    batch: int,
    heads: tuple[int, int],
    head_dim: int,
    context_tokens: int,
    variant: str = "",
    query_tokens: int = 1,
    page_tokens: int | None = None,
    window_tokens: int | None = None,
    sink_tokens: int = 0,
    ragged: bool = False,
) -> Case:
    """One shape. Pages are timed beside the same tokens contiguous; a window beside a ring buffer
    and beside dense decode over as many tokens as the window and its sinks hold."""
    q_heads, kv_heads = heads
    kept = context_tokens if window_tokens is None else window_tokens + sink_tokens
    lengths = [context_tokens] * batch
    if ragged:
        draw = torch.Generator().manual_seed(batch)
        lengths = torch.randint(1, context_tokens + 1, (batch,), generator=draw).tolist()
    read_tokens = sum(min(length, kept) for length in lengths)
    kv_bytes = read_tokens * kv_heads * head_dim * 2 * 2
    io_bytes = batch * query_tokens * q_heads * (head_dim * 2 * 2 + 4)

    def make_inputs(device: torch.device) -> Prepared:
        given = decode_inputs(
            batch=batch,
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context_tokens=context_tokens,
            query_tokens=query_tokens,
            lengths=lengths if ragged else None,
            page_tokens=page_tokens,
            window_tokens=window_tokens,
            sink_tokens=sink_tokens,
            device=device,
            seed=torch.seed() % 2**31,
        )
        if given.page_table is not None:
            k, v = (gather_tokens(x, given.page_table) for x in (given.k_cache, given.v_cache))
            return Prepared(given, dense=replace(given, k_cache=k, v_cache=v, page_table=None))
        if window_tokens is None:
            return Prepared(given)
        last = context_tokens - window_tokens
        k, v = (
            torch.cat([x[:, :, :sink_tokens], x[:, :, last:]], 2)
            for x in (given.k_cache, given.v_cache)
        )
        dense = replace(given, k_cache=k, v_cache=v, window_tokens=None, sink_tokens=0)
        turn = (last - sink_tokens) % window_tokens
        k, v = (
            torch.cat([x[:, :, :sink_tokens], x[:, :, sink_tokens:].roll(turn, 2)], 2)
            for x in (k, v)
        )
        written = torch.tensor(lengths, dtype=torch.int32, device=device)
        return Prepared(
            given,
            dense=dense,
            ring=replace(given, k_cache=k, v_cache=v, lengths=written, ring=True),
        )

    implementations = {"triton": run("triton")}
    if page_tokens is not None:
        implementations["triton-contiguous"] = run("triton", "dense")
    elif window_tokens is not None:
        implementations["triton-ring"] = run("triton", "ring")
        implementations["triton-dense"] = run("triton", "dense")
        implementations["cudnn-dense"] = run("cudnn", "dense")
    elif not ragged:
        if query_tokens == 1:
            implementations["cudnn"] = run("cudnn")
        implementations["flash"] = run("flash")
        if kv_bytes < 150e6:
            implementations["naive"] = run("naive")
    return Case(
        op="decode",
        variant=variant,
        dtype="bfloat16",
        kv_dtype="bfloat16",
        batch=batch,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query_tokens=query_tokens,
        context_tokens=context_tokens,
        window_tokens=window_tokens,
        page_tokens=page_tokens,
        bytes=kv_bytes + io_bytes,
        flops=4 * read_tokens * query_tokens * q_heads * head_dim,
        make_inputs=make_inputs,
        implementations=implementations,
        check=check,
    )


def cases(*, quick: bool) -> list[Case]:
    """Dense over batch and context, pages, windows, several query tokens, ragged lengths."""
    kib = 1024
    found = []
    if quick:
        shapes = [(1, 8 * kib), (8, 32 * kib)]
        kinds = [((32, 8), 128), ((32, 1), 64)]
    else:
        shapes = [
            (1, 8),
            (1, 32),
            (1, 128),
            (1, 1024),
            (8, 8),
            (8, 32),
            (8, 128),
            (64, 8),
            (64, 32),
        ]
        shapes = [(batch, n * kib) for batch, n in shapes]
        kinds = [((q, kv), d) for d in (128, 64) for q, kv in ((32, 8), (64, 8), (32, 32), (32, 1))]
    for batch in (8, 64):
        for context in (32 * kib,) if quick else (32 * kib, 128 * kib):
            found += [
                decode_case(batch=batch, heads=(32, 8), head_dim=128, context_tokens=context,
                            variant="paged", page_tokens=page)
                for page in (16, 64)
            ]  # fmt: skip
    found += [
        decode_case(batch=batch, heads=(32, 8), head_dim=128, context_tokens=128 * kib,
                    variant="window", window_tokens=4096, sink_tokens=4)
        for batch in (1, 8, 64)
    ]  # fmt: skip
    found += [
        decode_case(batch=8, heads=(32, 8), head_dim=128, context_tokens=32 * kib,
                    variant="speculative", query_tokens=4),
        decode_case(batch=64, heads=(32, 8), head_dim=128, context_tokens=32 * kib,
                    variant="ragged", ragged=True),
    ]  # fmt: skip
    found += [
        decode_case(batch=batch, heads=heads, head_dim=head_dim, context_tokens=context)
        for heads, head_dim in kinds
        for batch, context in shapes
    ]
    return found
