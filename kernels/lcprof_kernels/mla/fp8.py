"""The 656-byte fp8 row of a latent cache.

512 e4m3 codes of the latent part, 4 float32 scales (one for each 128 codes), 64 bf16 rotary
elements: the layout that FlashMLA (deepseek-ai/FlashMLA, README, "FP8 KV cache") reads.
"""

from __future__ import annotations

import torch

from lcprof_kernels.checks import check_dtype, require

LATENT = 512
ROPE = 64
ROW = LATENT + ROPE
FP8_ROW_BYTES = 656
TILE = 128
LARGEST_E4M3 = 448.0


def pack_fp8(rows: torch.Tensor) -> torch.Tensor:
    """bf16 rows `[..., 576]` as bytes `[..., 656]`; each scale is its tile's largest |x| / 448."""
    check_dtype("rows", rows, [torch.bfloat16])
    require(rows.shape[-1] == ROW, f"rows must end in {ROW} elements, got {list(rows.shape)}")
    tiles = rows[..., :LATENT].float().reshape(*rows.shape[:-1], -1, TILE)
    scales = tiles.abs().amax(-1).clamp_min(1e-12) / LARGEST_E4M3
    codes = (tiles / scales[..., None]).to(torch.float8_e4m3fn).flatten(-2)
    parts = (codes, scales, rows[..., LATENT:].contiguous())
    return torch.cat([part.view(torch.uint8) for part in parts], -1)


def unpack_fp8(packed: torch.Tensor) -> torch.Tensor:
    """Bytes `[..., 656]` as bf16 rows `[..., 576]`, rounded as a kernel rounds them."""
    check_dtype("packed", packed, [torch.uint8])
    codes = packed[..., :LATENT].contiguous()
    scales = packed[..., LATENT : LATENT + 16].contiguous()
    rope = packed[..., LATENT + 16 :].contiguous()
    tiles = codes.view(torch.float8_e4m3fn).float().reshape(*codes.shape[:-1], -1, TILE)
    latent = (tiles * scales.view(torch.float32)[..., None]).flatten(-2)
    return torch.cat([latent.to(torch.bfloat16), rope.view(torch.bfloat16)], -1)
