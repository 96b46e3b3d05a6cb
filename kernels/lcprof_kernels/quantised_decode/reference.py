"""The oracle: dequantise exactly, then attend in float64 on a CPU, in float32 on a GPU."""

from __future__ import annotations

import math

import torch

from lcprof_kernels.caches import CompressedCache, Quantised


def unpack_int4(words: torch.Tensor) -> torch.Tensor:
    """int16 words `[..., head_dim / 4]` to codes 0 to 15 `[..., head_dim]`, int32."""
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=words.device)[:, None]
    return ((words.to(torch.int32).unsqueeze(-2) >> shifts) & 15).flatten(-2)


def dequantise(cache: CompressedCache, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of sequence b, float32 `[kv_heads, length, head_dim]`, residual included."""
    length = int(cache.lengths[b])
    closed = int(cache.format.closed(cache.lengths[b : b + 1]))
    both = []
    for side, scaling, residual in (
        (cache.keys, cache.format.keys, cache.residual_keys),
        (cache.values, cache.format.values, cache.residual_values),
    ):
        x = _codes(cache, side, b, closed)
        if scaling == "tensor":
            x = x * side.scale
        elif scaling == "token":
            grouped = torch.unflatten(x, -1, (side.scale.shape[2], -1))
            x = _by_token(cache, side.scale, b, closed) * grouped
            if side.low is not None:
                x = x + _by_token(cache, side.low, b, closed)
            x = x.flatten(-2)
        elif side.low is not None:
            step = cache.format.group_tokens or 1
            grouped = torch.unflatten(x, 1, (-1, step))
            x = _by_group(cache, side.scale, b, closed // step) * grouped
            x = (x + _by_group(cache, side.low, b, closed // step)).flatten(1, 2)
        if residual is not None:
            x = torch.cat([x, residual[b, :, : length - closed].float()], 1)
        both.append(x)
    return both[0], both[1]


def _pieces(cache: CompressedCache, tensor: torch.Tensor, b: int, dim: int) -> torch.Tensor:
    """`tensor[slots, heads, ...]` of one sequence, its slots joined along `dim` of `[heads,
    ...]`.
    """
    if cache.page_table is None:
        return tensor[b]
    pages = -(-int(cache.lengths[b]) // cache.slot_tokens)
    picked = tensor[cache.page_table[b, :pages].long()]
    return torch.cat(list(picked), dim) if pages else tensor[0].narrow(dim, 0, 0)


def _codes(cache: CompressedCache, side: Quantised, b: int, closed: int) -> torch.Tensor:
    stored = side.codes
    if cache.format.code == "fp8":
        stored = stored.view(torch.uint8)
    codes = _pieces(cache, stored, b, 1)[:, :closed]
    if cache.format.code == "int4":
        return unpack_int4(codes).float()
    return codes.contiguous().view(side.codes.dtype).float()


def _by_token(cache: CompressedCache, scale: torch.Tensor, b: int, closed: int) -> torch.Tensor:
    """[heads, tokens, groups, 1]."""
    return _pieces(cache, scale, b, 2)[:, :, :closed].transpose(1, 2).unsqueeze(-1).float()


def _by_group(cache: CompressedCache, scale: torch.Tensor, b: int, groups: int) -> torch.Tensor:
    """[heads, groups, 1, channels]."""
    return _pieces(cache, scale, b, 1)[:, :groups].unsqueeze(2).float()


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence, everything in `dtype`: q `[query_tokens, q_heads, head_dim]`, k and v
    `[kv_heads, length, head_dim]`; the output and its log-sum-exp `[query_tokens, q_heads]`.

    Queries are aligned to the end of the keys. A row without keys gives zeros and -inf.
    """
    query_tokens, q_heads, head_dim = q.shape
    kv_heads, length, _ = k.shape
    rows = torch.unflatten(q.to(dtype), 1, (kv_heads, q_heads // kv_heads)).permute(1, 2, 0, 3)
    scores = rows.flatten(1, 2) @ k.to(dtype).transpose(1, 2) * softmax_scale
    scores = torch.unflatten(scores, 1, (-1, query_tokens))
    key = torch.arange(length, device=q.device)
    query = torch.arange(query_tokens, device=q.device) + length - query_tokens
    scores = scores.masked_fill(key[None, :] > query[:, None], -math.inf)
    lse = torch.logsumexp(scores, -1)
    p = torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse)[..., None])
    out = torch.unflatten(p.flatten(1, 2) @ v.to(dtype), 1, (-1, query_tokens))
    return (
        out.permute(2, 0, 1, 3).reshape(query_tokens, q_heads, head_dim),
        lse.permute(2, 0, 1).reshape(query_tokens, q_heads),
    )


def quantised_decode_reference(
    q: torch.Tensor, cache: CompressedCache, softmax_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp in float64 on a CPU, float32 on a GPU."""
    return _each(q, cache, softmax_scale, torch.float32 if q.is_cuda else torch.float64)


def quantised_decode_naive(
    q: torch.Tensor, cache: CompressedCache, softmax_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantise to q's dtype, then attend eagerly in it."""
    out, lse = _each(q, cache, softmax_scale, q.dtype)
    return out, lse.float()


def _each(
    q: torch.Tensor, cache: CompressedCache, softmax_scale: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    found = [attend(q[b], *dequantise(cache, b), softmax_scale, dtype) for b in range(cache.batch)]
    return torch.stack([out for out, _ in found]), torch.stack([lse for _, lse in found])


def quantised_decode_sdpa(
    q: torch.Tensor, cache: CompressedCache, softmax_scale: float
) -> torch.Tensor:
    """Dequantise to q's dtype, then torch's scaled_dot_product_attention; no log-sum-exp."""
    outs = []
    for b in range(cache.batch):
        k, v = (x.to(q.dtype)[None] for x in dequantise(cache, b))
        length, query_tokens = k.shape[2], q.shape[1]
        key = torch.arange(length, device=q.device)
        query = torch.arange(query_tokens, device=q.device) + length - query_tokens
        seen = key[None, :] <= query[:, None]
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(
                q[b : b + 1].transpose(1, 2),
                k,
                v,
                attn_mask=None if query_tokens == 1 else seen,
                scale=softmax_scale,
                enable_gqa=q.shape[2] != cache.kv_heads,
            )[0].transpose(0, 1)
        )
    return torch.stack(outs)
