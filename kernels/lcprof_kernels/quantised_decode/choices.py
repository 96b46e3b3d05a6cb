"""Launch records of the compressed decode that are worth timing beside the chosen one."""

from __future__ import annotations

from dataclasses import replace

from lcprof_kernels.caches import Format

from .launch import Tuning, choose_tuning


def others(
    layout: Format, head_dim: int, rows: int, *, page_tokens: int | None, hopper: bool
) -> tuple[Tuning, ...]:
    """Records that differ from the present one, likeliest first.

    `rows` is query rows that read the same keys. A block is never larger than a page or a group.
    """
    present = choose_tuning(layout, head_dim, rows, paged=page_tokens is not None, hopper=hopper)
    if head_dim > 128:
        tried = wide_heads(present)
    elif layout.code == "int4":
        tried = int4(layout, head_dim, rows)
    else:
        tried = eight_bits(head_dim, rows, tensor=layout.keys == "tensor")
    most = min(page_tokens or 1 << 30, layout.group_tokens or 1 << 30)
    kept = dict.fromkeys(record for record in tried if record.block_n <= most)
    kept.pop(present, None)
    return tuple(kept)


def wide_heads(present: Tuning) -> list[Tuning]:
    """The present block with the row distance compiled in, and more blocks or stages."""
    dense = replace(present, dense_rows=True)
    return [
        dense,
        replace(dense, stages=dense.stages + 1),
        replace(dense, blocks_per_sm=2 * dense.blocks_per_sm),
    ]


def eight_bits(head_dim: int, rows: int, *, tensor: bool) -> list[Tuning]:
    """fp8 and int8.

    Dense rows keep a paged block at 168 registers, so that six share a multiprocessor; without
    them it has 234 and four do, while the work is split for six. A half-size head fills a block
    with twice the tokens.
    """
    base = Tuning(rows=8, block_n=64, stages=3, warps=2, blocks_per_sm=6, dense_rows=True)
    two_passes = replace(base, blocks_per_sm=12)
    tried = [base, two_passes, replace(base, dense_rows=False, blocks_per_sm=4)]
    if head_dim == 64:
        long = replace(base, block_n=128, late_scales=not tensor)
        tried = [
            long,
            replace(long, late_scales=False),
            replace(long, blocks_per_sm=12),
            base,
            replace(base, stages=4),
        ]
    if rows > 8:
        wide = replace(base, rows=16, blocks_per_sm=4)
        tried += [
            wide,
            replace(wide, blocks_per_sm=8),
            replace(wide, block_n=32, stages=4),
            replace(wide, block_n=32, stages=3, blocks_per_sm=6),
        ]
    else:
        tried += [
            replace(base, stages=2, blocks_per_sm=6),
            replace(base, block_n=32, stages=4, blocks_per_sm=8),
        ]
    return tried


def int4(layout: Format, head_dim: int, rows: int) -> list[Tuning]:
    """int4, one warp a block.

    Late scales leave 962 of 1,051 instructions in a tile of 64 tokens (groups of 64 channels) and
    take every exchange of scales between lanes out of it; three stages issue copies a whole tile
    ahead, two only a third of one. Sixteen query rows are also tried as two blocks of eight.
    """
    late = Tuning(
        rows=8, block_n=64, stages=3, warps=1, blocks_per_sm=8, dense_rows=True, late_scales=True
    )
    early = replace(late, late_scales=False)
    tried = [
        late,
        replace(late, blocks_per_sm=16),
        replace(late, stages=2),
        replace(late, stages=4, blocks_per_sm=7),
        early,
        replace(early, stages=2),
    ]
    if layout.channel_groups(head_dim) == 1 and layout.group_tokens is None:
        plain = replace(early, dense_rows=False)
        tried = [
            late,
            replace(late, blocks_per_sm=16),
            replace(late, stages=2),
            replace(plain, stages=2, blocks_per_sm=24),
            replace(plain, stages=3, blocks_per_sm=12),
        ]
    if head_dim == 64:
        tried = [
            replace(late, blocks_per_sm=12),
            replace(late, blocks_per_sm=24),
            replace(late, stages=4, blocks_per_sm=12),
            replace(late, block_n=128, blocks_per_sm=8),
            replace(late, block_n=128, warps=2, blocks_per_sm=6),
            replace(early, stages=2, blocks_per_sm=12),
        ]
    if layout.group_tokens is None and rows <= 8:
        tried.append(replace(early, block_n=32, blocks_per_sm=12, registers=168))
    if rows > 8:
        wide = replace(early, rows=16, warps=2, blocks_per_sm=4)
        tried += [wide] if layout.group_tokens is None else []  # a KIVI block of three would spill
        tried += [
            replace(wide, stages=2),
            replace(wide, block_n=32),
            replace(wide, block_n=32, blocks_per_sm=8),
        ]
    return tried


def place(layout: Format, head_dim: int, rows: int, *, page_tokens: int | None) -> str:
    """The entry of the launch's table that would hold a record."""
    key = (layout.name, head_dim, rows, page_tokens is not None)
    return f"quantised_decode.launch.TUNINGS[{key!r}]"
