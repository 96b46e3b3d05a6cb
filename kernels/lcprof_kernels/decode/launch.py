"""The host side of the decode kernels: tiles and splits, workspace, launch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton

from lcprof_kernels.checks import interpreting, require
from lcprof_kernels.device import capability_of, multiprocessors_of

from .splits import Tile, plan_split, tiles_for
from .triton import decode_merge, decode_split

LOG2E = 1.4426950408889634


@dataclass(kw_only=True)
class Workspace:
    """Room for partial results in float32, kept between calls.

    One stream at a time may use it. It grows when a call needs more; a captured graph goes on
    using the memory it was captured with.
    """

    values: torch.Tensor

    @classmethod
    def empty(cls, device: torch.device) -> Workspace:
        """A workspace without room."""
        return cls(values=torch.empty(0, dtype=torch.float32, device=device))

    def reserve(self, values: int) -> torch.Tensor:
        """At least this many values."""
        if self.values.numel() < values:
            self.values = torch.empty(values, dtype=torch.float32, device=self.values.device)
        return self.values


_WORKSPACES: dict[tuple[torch.device, int], Workspace] = {}


def workspace_for(device: torch.device) -> Workspace:
    """The cached workspace of the current stream; a fresh one while a graph is captured.

    What is allocated during a capture belongs to that graph, so it is never shared.
    """
    if device.type != "cuda":
        return Workspace.empty(device)
    if torch.cuda.is_current_stream_capturing():
        return Workspace.empty(device)
    stream = torch.cuda.current_stream(device).cuda_stream
    return _WORKSPACES.setdefault((device, stream), Workspace.empty(device))


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    lengths: torch.Tensor | None,
    page_table: torch.Tensor | None,
    window_tokens: int | None,
    sink_tokens: int,
    ring: bool,
    scale: float,
    splits: int | None = None,
    workspace: Workspace | None = None,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend already checked arguments; see `decode_attention` for the layouts.

    `splits` and `tile` override what `plan_split` chooses.
    """
    batch, query_tokens, q_heads, head_dim = q.shape
    kv_heads = k.shape[1]
    group = q_heads // kv_heads
    device = q.device
    capability = capability_of(device)
    page = 0 if page_table is None else k.shape[2]
    context = k.shape[2] if page_table is None else page_table.shape[1] * page
    windowed = window_tokens is not None and not ring
    most_tokens = context
    if window_tokens is not None and not ring:
        most_tokens = min(context, sink_tokens + window_tokens + query_tokens - 1)
    choices = [tile] if tile is not None else tiles_for(capability, head_dim, group * query_tokens)
    row_tiles = -(-group * query_tokens // choices[0].rows)
    tile, splits = plan_split(
        choices,
        cells=batch * kv_heads * row_tiles,
        tokens=most_tokens,
        token_bytes=2 * head_dim * k.element_size(),
        multiprocessors=multiprocessors_of(device),
        uneven=lengths is not None and batch > 1 and window_tokens is None,
        splits=splits,
    )
    if page and (page % tile.block_n or windowed):
        # Page numbers are loaded ahead of the keys and take as many stages again.
        tile = replace(tile, num_stages=2 * tile.num_stages - 1)

    block_d = triton.next_power_of_2(head_dim)
    out = torch.empty(batch, query_tokens, q_heads, head_dim, dtype=q.dtype, device=device)
    lse = torch.empty(batch, query_tokens, q_heads, dtype=torch.float32, device=device)
    part_out = part_lse = lse
    if splits > 1:
        part_rows = batch * kv_heads * row_tiles * splits * tile.rows
        workspace = workspace or workspace_for(device)
        require(workspace.values.device == device, "workspace must be on the device of q")
        values = workspace.reserve(part_rows * (block_d + 1))
        part_out, part_lse = values[: part_rows * block_d], values[part_rows * block_d :]
    ring_slots = k.shape[2] - sink_tokens
    mask_all = (windowed and query_tokens > 1) or (
        ring and (query_tokens > 1 or window_tokens != ring_slots)
    )
    hidden_launch = splits > 1 and capability >= (9, 0) and not interpreting()
    decode_split[(splits * row_tiles, kv_heads, batch)](
        q,
        k,
        v,
        out,
        lse,
        part_out,
        part_lse,
        lengths,
        page_table if page_table is not None else lse,
        scale * LOG2E,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        page_table.stride(0) if page_table is not None else 0,
        context,
        kv_heads,
        splits,
        sink_tokens,
        window_tokens or 0,
        GROUP=group,
        QUERY_TOKENS=query_tokens,
        ROWS=tile.rows,
        ROW_TILES=row_tiles,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_N=tile.block_n,
        STAGES=tile.num_stages,
        PAGE=page,
        HAS_LENGTHS=lengths is not None,
        WINDOWED=windowed,
        RING=ring,
        MASK_ALL=mask_all,
        PARTIAL=splits > 1,
        PDL=hidden_launch,
        num_warps=tile.num_warps,
    )
    if splits > 1:
        decode_merge[(group * query_tokens, kv_heads, batch)](
            out,
            lse,
            part_out,
            part_lse,
            kv_heads,
            splits,
            GROUP=group,
            QUERY_TOKENS=query_tokens,
            ROWS=tile.rows,
            ROW_TILES=row_tiles,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            BLOCK_S=min(64, triton.next_power_of_2(splits)),
            PDL=hidden_launch,
            num_warps=4,
            **({"launch_pdl": True} if hidden_launch else {}),
        )
    return out, lse
