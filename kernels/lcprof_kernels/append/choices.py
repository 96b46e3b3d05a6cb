"""Launch records of the append that are worth timing beside the chosen one."""

from __future__ import annotations

from lcprof_kernels.caches import Format

from .launch import Tuning, choose_tuning


def others(layout: Format, head_dim: int, new_tokens: int) -> tuple[Tuning, ...]:
    """Records that differ from the present one, likeliest first.

    int4 in pairs takes 12 to 16 instructions an element where the present kernels take 16 to 19,
    of which fewer go to the half-rate pipe; a KIVI group fits the registers of 4 to 8 warps.
    """
    if layout.group_tokens is not None:
        step = layout.group_tokens
        fitting = max(1, min(16, step * head_dim // 2048))
        warps = dict.fromkeys([fitting, max(1, fitting // 2), min(16, 2 * fitting)])
        tried = [Tuning(block_n=step, warps=count, pairs=True) for count in warps]
    elif layout.code == "int4":
        shapes = [(32, 4), (32, 2), (64, 4), (64, 8), (16, 2), (128, 8)]
        if new_tokens == 1:
            shapes = [(4, 1), (4, 2), (4, 4)]
        tried = [Tuning(block_n=n, warps=warps, pairs=True) for n, warps in shapes]
        tried.append(Tuning(block_n=64, warps=4))
    else:
        tried = [Tuning(block_n=n, warps=warps) for n, warps in ((32, 2), (64, 4), (64, 8))]
    kept = dict.fromkeys(tried)
    kept.pop(choose_tuning(layout, head_dim, new_tokens), None)
    return tuple(kept)


def place(layout: Format, head_dim: int, new_tokens: int) -> str:
    """The entry of the launch's table that would hold a record."""
    return f"append.launch.TUNINGS[{(layout.name, head_dim, new_tokens > 1)!r}]"
