"""Layers whose state has a constant size: delta nets, lightning attention, Mamba, short convs.

The recurrence of one token costs, for each state element: 2 FLOPs to read it, 2 to add the outer
product and 1 to decay it; the delta rule reads the state once more (2). Mamba-1 also discretises
its decay for each element (2). A convolution of k taps costs 2k for each channel.
"""

from __future__ import annotations

from typing import Final

from lcprof.domain.model import Matrix, RecurrentState
from lcprof.scenario.models.families import Family
from lcprof.scenario.models.keys import Keys

_DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


def recurrent_state(keys: Keys, family: Family, hidden: int, q_heads: int) -> RecurrentState:
    """The recurrent layer that the config's keys, or else its family, describe."""
    if keys.has("linear_attn_config"):
        return kimi_delta(keys, hidden)
    if keys.has("linear_num_value_heads"):
        return gated_delta_net(keys, hidden)
    kind = family.recurrence
    if kind == "lightning":
        return lightning(keys, hidden, q_heads)
    if kind == "conv" or keys.has("conv_L_cache"):
        return short_convolution(keys, hidden)
    if kind == "mamba2" or keys.has("mamba_n_heads", "mamba_num_heads"):
        return mamba2(keys, hidden)
    if kind == "mamba1" or keys.has("mamba_d_state", "state_size"):
        return mamba1(keys, family, hidden)
    keys.refuse(
        "layer_types",
        "recurrent layers",
        "a modelled recurrence (gated delta net, KDA, lightning, Mamba-1, Mamba-2, short conv)",
    )
    return RecurrentState(
        kind="unknown",
        heads=1,
        state_elements=0,
        state_bytes=4,
        conv_elements=0,
        flops_per_token=0,
        matrices=(),
    )


def _state_bytes(keys: Keys) -> int:
    stated = keys.text("mamba_ssm_dtype", "mamba_ssm_cache_dtype", "ssm_cache_dtype")
    if stated is None:
        return 4
    size = _DTYPE_BYTES.get(stated.removeprefix("torch."))
    if size is None:
        keys.fault("mamba_ssm_cache_dtype", stated, f"one of {', '.join(_DTYPE_BYTES)}")
    return size or 4


def _wide(name: str, inputs: int, outputs: int, pieces: int) -> Matrix:
    return Matrix(name=name, inputs=inputs, outputs=outputs, split="width", split_count=pieces)


def gated_delta_net(keys: Keys, hidden: int) -> RecurrentState:
    """Gated DeltaNet (arXiv:2412.06464) as in transformers `qwen3_next`."""
    k_heads = keys.count("linear_num_key_heads", high=100_000)
    v_heads = keys.count("linear_num_value_heads", high=100_000)
    k_dim = keys.count("linear_key_head_dim", high=65_536)
    v_dim = keys.count("linear_value_head_dim", high=65_536)
    taps = keys.count("linear_conv_kernel_dim", high=1024)
    if v_heads % k_heads:
        keys.fault("linear_num_value_heads", v_heads, f"a multiple of the {k_heads} key heads")
    keys_out, values_out = k_heads * k_dim, v_heads * v_dim
    conv_width = 2 * keys_out + values_out
    state = v_heads * k_dim * v_dim
    return RecurrentState(
        kind="gated-deltanet",
        heads=v_heads,
        state_elements=state,
        state_bytes=_state_bytes(keys),
        conv_elements=conv_width * (taps - 1),
        flops_per_token=7 * state + 2 * taps * conv_width,
        matrices=(
            _wide("q", hidden, keys_out, k_heads),
            _wide("k", hidden, keys_out, k_heads),
            _wide("v", hidden, values_out, v_heads),
            _wide("gate", hidden, values_out, v_heads),
            _wide("beta", hidden, v_heads, v_heads),
            _wide("decay", hidden, v_heads, v_heads),
            _wide("out", values_out, hidden, v_heads),
        ),
        vectors=conv_width * taps + 2 * v_heads + v_dim,
    )


def kimi_delta(keys: Keys, hidden: int) -> RecurrentState:
    """Kimi Delta Attention (arXiv:2510.26692), a delta net with a decay for each channel."""
    part = keys.section("linear_attn_config") or keys
    part.ignore("full_attn_layers", "kda_layers", "gate_lower_bound")
    heads = part.count("num_heads", high=100_000)
    dim = part.count("head_dim", high=65_536)
    taps = part.count("short_conv_kernel_size", high=1024)
    width = heads * dim
    state = heads * dim * dim
    gate = (
        (_wide("gate", hidden, width, heads),)
        if part.flag("use_full_rank_gate")
        else (
            Matrix(name="gate_down", inputs=hidden, outputs=dim),
            _wide("gate_up", dim, width, heads),
        )
    )
    return RecurrentState(
        kind="kda",
        heads=heads,
        state_elements=state,
        state_bytes=_state_bytes(keys),
        conv_elements=3 * width * (taps - 1),
        flops_per_token=7 * state + 2 * taps * 3 * width,
        matrices=(
            _wide("q", hidden, width, heads),
            _wide("k", hidden, width, heads),
            _wide("v", hidden, width, heads),
            Matrix(name="decay_down", inputs=hidden, outputs=dim),
            _wide("decay_up", dim, width, heads),
            _wide("beta", hidden, heads, heads),
            *gate,
            _wide("out", width, hidden, heads),
        ),
        vectors=3 * width * taps + heads + width + dim,
    )


def lightning(keys: Keys, hidden: int, heads: int) -> RecurrentState:
    """Lightning attention (MiniMax-01, arXiv:2501.08313, section 2.2), with its output gate."""
    dim = keys.maybe_count("head_dim", high=65_536) or max(1, hidden // heads)
    width = heads * dim
    state = heads * dim * dim
    return RecurrentState(
        kind="lightning",
        heads=heads,
        state_elements=state,
        state_bytes=_state_bytes(keys),
        conv_elements=0,
        flops_per_token=5 * state,
        matrices=(
            _wide("q", hidden, width, heads),
            _wide("k", hidden, width, heads),
            _wide("v", hidden, width, heads),
            _wide("gate", hidden, width, heads),
            _wide("out", width, hidden, heads),
        ),
        vectors=width,
    )


def mamba2(keys: Keys, hidden: int) -> RecurrentState:
    """Mamba-2 (arXiv:2405.21060) as in transformers `nemotron_h`, `granitemoehybrid`, `bamba`."""
    heads = keys.count("mamba_n_heads", "mamba_num_heads", "num_heads", high=100_000)
    dim = keys.maybe_count("mamba_d_head", "mamba_head_dim", "head_dim", high=65_536)
    expand = keys.count("mamba_expand", "expand", high=64, default=2)
    inner = keys.maybe_count("mamba_d_ssm")
    if dim is None:
        dim = max(1, (inner or expand * hidden) // heads)
        keys.assume(f"Mamba-2 head size = {dim} assumed: inner width / heads.")
    state_size = keys.count("mamba_d_state", "ssm_state_size", "state_size", high=65_536)
    groups = keys.count("mamba_n_groups", "n_groups", high=100_000, default=1)
    taps = keys.count("mamba_d_conv", "conv_kernel", high=1024, default=4)
    conv_bias = keys.flag("mamba_conv_bias", "use_conv_bias") is not False
    proj_bias = bool(keys.flag("mamba_proj_bias"))
    normed = keys.flag("mamba_rms_norm") is not False
    keys.ignore("mamba_chunk_size", "chunk_size", "mamba_hidden_act", "mamba_use_mlp")
    keys.ignore("time_step_rank", "mamba_dt_rank", "mamba_norm_before_gate")
    inner = heads * dim
    conv_width = inner + 2 * groups * state_size
    state = inner * state_size
    vectors = conv_width * (taps + int(conv_bias)) + 3 * heads + (inner if normed else 0)
    if proj_bias:
        vectors += inner + conv_width + heads + hidden
    return RecurrentState(
        kind="mamba-2",
        heads=heads,
        state_elements=state,
        state_bytes=_state_bytes(keys),
        conv_elements=conv_width * (taps - 1),
        flops_per_token=5 * state + 2 * taps * conv_width,
        matrices=(
            _wide("gate", hidden, inner, heads),
            _wide("x", hidden, inner, heads),
            _wide("bc", hidden, 2 * groups * state_size, groups),
            _wide("dt", hidden, heads, heads),
            _wide("out", inner, hidden, heads),
        ),
        vectors=vectors,
    )


def mamba1(keys: Keys, family: Family, hidden: int) -> RecurrentState:
    """Mamba-1 (arXiv:2312.00752); Jamba adds norms on dt, B and C."""
    expand = keys.count("mamba_expand", "expand", high=64, default=2)
    inner = expand * hidden
    if not keys.has("num_attention_heads"):
        inner = keys.maybe_count("intermediate_size", "d_inner") or inner
    state_size = keys.count("mamba_d_state", "state_size", high=65_536, default=16)
    taps = keys.count("mamba_d_conv", "conv_kernel", high=1024, default=4)
    rank_key, rank = keys.first("mamba_dt_rank", "time_step_rank")
    dt_rank = -(-hidden // 16)
    if rank_key and rank != "auto":
        dt_rank = keys.whole(rank_key, rank, low=1, high=65_536)
    conv_bias = keys.flag("mamba_conv_bias", "use_conv_bias") is not False
    inner_norms = (
        0 if family.positions == "none" and family.norms == 1 else dt_rank + 2 * state_size
    )
    keys.ignore("mamba_inner_layernorms", "mamba_proj_bias")
    state = inner * state_size
    return RecurrentState(
        kind="mamba-1",
        heads=inner,
        state_elements=state,
        state_bytes=_state_bytes(keys),
        conv_elements=inner * (taps - 1),
        flops_per_token=7 * state + 2 * taps * inner,
        matrices=(
            _wide("x", hidden, inner, inner),
            _wide("gate", hidden, inner, inner),
            _wide("dbc", inner, dt_rank + 2 * state_size, inner),
            _wide("dt", dt_rank, inner, inner),
            _wide("out", inner, hidden, inner),
        ),
        vectors=inner * (taps + int(conv_bias) + state_size + 2) + inner_norms,
    )


def short_convolution(keys: Keys, hidden: int) -> RecurrentState:
    """The gated short convolution of LFM2 (transformers `lfm2`): no state but the last taps."""
    taps = keys.count("conv_L_cache", high=1024)
    bias = bool(keys.flag("conv_bias"))
    keys.ignore("conv_dim", "conv_dim_out", "conv_use_xavier_init")
    return RecurrentState(
        kind="short-conv",
        heads=hidden,
        state_elements=0,
        state_bytes=4,
        conv_elements=hidden * (taps - 1),
        flops_per_token=2 * taps * hidden + 2 * hidden,
        matrices=(
            _wide("in", hidden, 3 * hidden, hidden),
            _wide("out", hidden, hidden, hidden),
        ),
        vectors=hidden * (taps + int(bias)) + (4 * hidden if bias else 0),
    )
