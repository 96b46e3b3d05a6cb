"""Attention layers that keep a cache: grouped, multi-head latent, compressed."""

from __future__ import annotations

from msgspec import Struct

from lcprof.domain.model import (
    BlockSelection,
    CompressedAttention,
    GroupedAttention,
    LatentAttention,
    Matrix,
    TokenIndexer,
)
from lcprof.scenario.models.families import Family
from lcprof.scenario.models.keys import TOKEN_LIMIT, Keys
from lcprof.scenario.models.layer_plan import LayerPlan


class Heads(Struct, frozen=True, kw_only=True):
    """Head counts and sizes of the full-attention layers."""

    q_heads: int
    kv_heads: int
    k_dim: int
    v_dim: int


def read_heads(keys: Keys, family: Family, hidden: int) -> Heads:
    """Head counts and sizes; a fault where query heads cannot share the KV heads evenly."""
    name, listed = keys.first(*Q_HEADS)
    if isinstance(listed, list):  # one entry for each layer, read by the layer plan
        q_heads = max(1, *(v for v in listed if isinstance(v, int)), 1)
    elif name:
        q_heads = keys.whole(name, listed, low=1, high=100_000)
    else:
        q_heads = keys.count(*Q_HEADS, high=100_000)
    head_dim = keys.maybe_count(
        "head_dim", "kv_channels", "attention_head_dim", "head_size", "d_kv", high=65_536
    )
    if head_dim is None and family.head_dim:
        head_dim = family.head_dim
        keys.assume(f"head_dim = {head_dim} assumed (library default).")
    if head_dim is None:
        if hidden % q_heads:
            keys.fault(
                name or "head_dim", q_heads, f"heads that divide hidden_size {hidden}, or head_dim"
            )
        head_dim = max(1, hidden // q_heads)
        keys.assume(f"head_dim = {head_dim} assumed: hidden_size / heads, as head_dim is absent.")
    kv_heads = _kv_heads(keys, q_heads)
    v_dim = keys.maybe_count("v_head_dim", "value_head_dim", high=65_536) or head_dim
    return Heads(q_heads=q_heads, kv_heads=kv_heads, k_dim=head_dim, v_dim=v_dim)


Q_HEADS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "num_query_heads")
KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_kv_heads",
    "n_head_kv",
    "num_attention_groups",
    "multi_query_group_num",
)


def _kv_heads(keys: Keys, q_heads: int) -> int:
    grouped = keys.flag("multi_query_attention")
    single = keys.flag("multi_query")
    decoder = keys.flag("new_decoder_architecture")
    name, value = keys.first(*KV_HEADS)
    if isinstance(value, list) or keys.has("block_configs", "_block_configs"):
        return q_heads
    if single and not decoder:
        return 1
    if single is False and decoder is False:
        return q_heads
    if grouped is False or not name:
        if grouped is None and single is None:
            keys.assume(f"kv_heads = {q_heads} assumed: equal to the query heads.")
        return q_heads
    kv_heads = keys.whole(name, value, low=1, high=100_000)
    check_groups(keys, name, q_heads, kv_heads)
    return kv_heads


def check_groups(keys: Keys, name: str, q_heads: int, kv_heads: int) -> None:
    """A fault where `q_heads` is no multiple of `kv_heads`."""
    if q_heads % kv_heads:
        keys.fault(name, kv_heads, f"a divisor of the {q_heads} query heads")


def grouped_attention(
    keys: Keys, family: Family, hidden: int, heads: Heads, plan: LayerPlan
) -> GroupedAttention:
    """Softmax attention over K and V (MHA, GQA, MQA, MFA), as the layer plan wants it."""
    q_heads, kv_heads = plan.q_heads or heads.q_heads, plan.kv_heads or heads.kv_heads
    k_dim, v_dim = heads.k_dim, heads.v_dim
    if plan.other_heads:
        q_heads, kv_heads, k_dim, v_dim = other_heads(keys, heads)
    elif plan.wide:
        k_dim = v_dim = keys.maybe_count("global_head_dim", high=65_536) or k_dim
        if keys.flag("attention_k_eq_v"):
            kv_heads = keys.maybe_count("num_global_key_value_heads") or kv_heads
    q_out, k_out, v_out = q_heads * k_dim, kv_heads * k_dim, kv_heads * v_dim
    matrices: list[Matrix] = []
    vectors = 0
    rank = keys.maybe_count("share_q_dim")
    if rank:
        matrices.append(Matrix(name="q_down", inputs=hidden, outputs=rank))
        matrices.append(_heads("q_up", rank, q_out, q_heads))
        vectors += rank
    else:
        matrices.append(_heads("q", hidden, q_out, q_heads))
    same = bool(plan.wide and keys.flag("attention_k_eq_v"))
    if plan.own_kv_weights:
        matrices.append(_kv("k", hidden, k_out, kv_heads))
        if not same:
            matrices.append(_kv("v", hidden, v_out, kv_heads))
    gate = family.output_gate
    if (stated := keys.flag("attn_output_gate", "attention_output_gate")) is not None:
        gate = "wide" if stated else "none"
    if keys.flag("use_head_wise_attn_gate"):
        gate = "heads"
    if gate != "none":
        outputs = q_heads if gate == "heads" else q_heads * v_dim
        matrices.append(_heads("gate", hidden, outputs, q_heads))
    matrices.append(
        Matrix(
            name="o", inputs=q_heads * v_dim, outputs=hidden, split="q_heads", split_count=q_heads
        )
    )
    qkv_bias, out_bias = biases(keys, family)
    if qkv_bias:
        vectors += q_out + (k_out + (0 if same else v_out) if plan.own_kv_weights else 0)
    if out_bias:
        vectors += hidden
    vectors += _qk_norm(keys, family, q_heads, kv_heads if plan.own_kv_weights else 0, k_dim)
    if _sinks(keys, family, plan):
        vectors += q_heads
    selection = None
    if plan.selects:
        selection = block_selection(keys)
        matrices.append(
            Matrix(
                name="index_q",
                inputs=hidden,
                outputs=selection.heads * selection.key_dim,
                split="kv_heads",
                split_count=selection.heads,
            )
        )
        matrices.append(Matrix(name="index_k", inputs=hidden, outputs=selection.key_dim))
        vectors += 2 * selection.key_dim
    return GroupedAttention(
        q_heads=q_heads,
        kv_heads=kv_heads,
        k_dim=k_dim,
        v_dim=v_dim,
        matrices=tuple(matrices),
        vectors=vectors,
        window_tokens=plan.window,
        chunk_tokens=plan.chunk,
        selection=selection,
        shares_cache=plan.shares_cache,
    )


def other_heads(keys: Keys, heads: Heads) -> tuple[int, int, int, int]:
    """Heads of the window layers where they differ: MiMo-V2 `swa_*`, Step-3.5's
    `attention_other_setting`."""
    other = keys.section("attention_other_setting")
    if other is not None:
        other.ignore("attention_type", "true_head_dim")
        q_heads = other.count("num_attention_heads", default=heads.q_heads)
        kv_heads = other.count("num_attention_groups", default=heads.kv_heads)
        k_dim = other.count("head_dim", default=heads.k_dim)
        v_dim = k_dim
    else:
        q_heads = keys.count("swa_num_attention_heads", default=heads.q_heads)
        kv_heads = keys.count("swa_num_key_value_heads", default=heads.kv_heads)
        k_dim = keys.count("swa_head_dim", default=heads.k_dim)
        v_dim = keys.count("swa_v_head_dim", default=heads.v_dim)
    check_groups(keys, "swa_num_key_value_heads", q_heads, kv_heads)
    return q_heads, kv_heads, k_dim, v_dim


def block_selection(keys: Keys) -> BlockSelection:
    """MiniMax-M3's `sparse_attention_config`."""
    part = keys.section("sparse_attention_config") or keys
    part.ignore(
        "sparse_attention_freq",
        "sparse_local_block",
        "index_local_blocks",
        "sparse_disable_index_value",
        "sparse_score_type",
        "use_sparse_attention",
    )
    if part.maybe_count("sparse_init_block", low=0):
        part.refuse("sparse_init_block", part.values["sparse_init_block"], "0 (no first blocks)")
    return BlockSelection(
        block_tokens=part.count("sparse_block_size", "index_block_size"),
        top_blocks=part.count("sparse_topk_blocks", "index_topk_blocks"),
        heads=part.count("sparse_num_index_heads", "index_n_heads", high=100_000),
        key_dim=part.count("sparse_index_dim", "index_head_dim", high=65_536),
    )


def biases(keys: Keys, family: Family) -> tuple[bool, bool]:
    """Whether q, k, v and whether the output projection carry a bias."""
    qkv = family.attention_bias in {"qkv", "all"}
    out = family.attention_bias in {"out", "all"}
    if (no_bias := keys.flag("no_bias")) is not None and not qkv:
        qkv = out = not no_bias
    if (everything := keys.flag("use_bias", "bias", "add_bias_linear", "enable_bias")) is not None:
        qkv = out = everything
    if (stated := keys.flag("attention_bias")) is not None:
        qkv, out = stated, stated and family.bias_scope == "all"
    if (stated := keys.flag("qkv_bias", "use_qkv_bias", "add_qkv_bias")) is not None:
        qkv = stated
    if (stated := keys.flag("attention_out_bias")) is not None:
        out = stated
    return qkv, out


def _qk_norm(keys: Keys, family: Family, q_heads: int, kv_heads: int, dim: int) -> int:
    kind = family.qk_norm
    stated = keys.flag(
        "use_qk_norm", "qk_norm", "qk_layernorm", "use_qk_layernorm", "normalize_qk_projections"
    )
    style = keys.text("qk_norm_type")
    if stated is False:
        return 0
    if stated and kind == "none":
        kind = "head"
    if style == "per_head":
        kind = "head"
    elif style == "per_layer":
        kind = "width"
    if kind == "none":
        return 0
    if kind == "width" or (stated and family.norms == 1):
        return (q_heads + kv_heads) * dim
    each = dim * (2 if kind == "head-bias" else 1)
    return each * (2 if kv_heads else 1)


def _sinks(keys: Keys, family: Family, plan: LayerPlan) -> bool:
    window = keys.flag("add_swa_attention_sink_bias")
    full = keys.flag("add_full_attention_sink_bias")
    stated = window if plan.window else full
    return family.sinks if stated is None else stated


def latent_attention(
    keys: Keys, hidden: int, plan: LayerPlan, *, heads: int | None = None
) -> LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), with the token indexer of
    DeepSeek-V3.2 where the config has one. `num_key_value_heads` and `head_dim` mean nothing
    here."""
    q_heads = heads or keys.count(*Q_HEADS, high=100_000)
    keys.ignore(*KV_HEADS, "head_dim", "qk_head_dim")
    latent = keys.count("kv_lora_rank", high=65_536)
    rank = keys.maybe_count("q_lora_rank", high=65_536)
    rope = keys.count("qk_rope_head_dim", low=0, high=65_536)
    nope = keys.count("qk_nope_head_dim", high=65_536)
    v_dim = keys.maybe_count("v_head_dim", high=65_536)
    if v_dim is None:
        v_dim = max(1, hidden // q_heads)
        keys.assume(f"v_head_dim = {v_dim} assumed: hidden_size / heads.")
    q_out = q_heads * (nope + rope)
    matrices: list[Matrix] = []
    vectors = latent
    if rank:
        matrices.append(Matrix(name="q_down", inputs=hidden, outputs=rank))
        matrices.append(_heads("q_up", rank, q_out, q_heads))
        vectors += rank
    else:
        matrices.append(_heads("q", hidden, q_out, q_heads))
    matrices.append(Matrix(name="kv_down", inputs=hidden, outputs=latent + rope))
    matrices.append(_heads("kv_up", latent, q_heads * (nope + v_dim), q_heads))
    if keys.flag("mla_use_output_gate"):
        matrices.append(_heads("gate", hidden, q_heads * v_dim, q_heads))
    matrices.append(
        Matrix(
            name="o", inputs=q_heads * v_dim, outputs=hidden, split="q_heads", split_count=q_heads
        )
    )
    if keys.flag("attention_bias"):
        vectors += (rank or 0) + latent + rope + hidden
    indexer = None
    if plan.indexed:
        indexer = TokenIndexer(
            heads=keys.count("index_n_heads", high=100_000),
            key_dim=keys.count("index_head_dim", high=65_536),
            top_tokens=keys.count("index_topk", high=TOKEN_LIMIT),
            owns_keys=plan.owns_index,
        )
        if plan.owns_index:
            outputs = indexer.heads * indexer.key_dim
            matrices.append(Matrix(name="index_q", inputs=rank or hidden, outputs=outputs))
            matrices.append(Matrix(name="index_k", inputs=hidden, outputs=indexer.key_dim))
            matrices.append(
                Matrix(name="index_weights", inputs=hidden, outputs=indexer.heads, fixed=True)
            )
            vectors += 2 * indexer.key_dim
    return LatentAttention(
        q_heads=q_heads,
        latent_dim=latent,
        rope_dim=rope,
        nope_dim=nope,
        v_dim=v_dim,
        matrices=tuple(matrices),
        vectors=vectors,
        indexer=indexer,
    )


def compressed_attention(keys: Keys, hidden: int, plan: LayerPlan) -> CompressedAttention:
    """DeepSeek-V4: one shared K=V head, a window, and one entry for every `ratio` tokens.

    Ratio 4 (CSA) compresses overlapping windows, so its projections are twice as wide, and an
    indexer picks entries; larger ratios (HCA) read all of them (transformers `deepseek_v4`).
    """
    q_heads = keys.count(*Q_HEADS, high=100_000)
    keys.ignore(*KV_HEADS, "qk_rope_head_dim")
    dim = keys.count("head_dim", high=65_536)
    rank = keys.count("q_lora_rank", high=65_536)
    groups = keys.count("o_groups", high=100_000)
    out_rank = keys.count("o_lora_rank", high=65_536)
    window = keys.count("sliding_window", high=TOKEN_LIMIT)
    if q_heads * dim % groups:
        keys.fault("o_groups", groups, f"a divisor of heads x head_dim = {q_heads * dim}")
    matrices = [
        Matrix(name="q_down", inputs=hidden, outputs=rank),
        _heads("q_up", rank, q_heads * dim, q_heads),
        Matrix(name="kv", inputs=hidden, outputs=dim),
        Matrix(
            name="o_down",
            inputs=q_heads * dim // groups,
            outputs=groups * out_rank,
            split="q_heads",
            split_count=groups,
        ),
        Matrix(
            name="o_up",
            inputs=groups * out_rank,
            outputs=hidden,
            split="q_heads",
            split_count=groups,
        ),
    ]
    vectors = rank + dim + q_heads
    indexer = None
    overlap = 2 if plan.indexed else 1
    if plan.ratio:
        width = overlap * dim
        matrices.append(Matrix(name="compress_kv", inputs=hidden, outputs=width))
        matrices.append(Matrix(name="compress_gate", inputs=hidden, outputs=width))
        vectors += plan.ratio * width + dim
    if plan.indexed:
        indexer = TokenIndexer(
            heads=keys.count("index_n_heads", high=100_000),
            key_dim=keys.count("index_head_dim", high=65_536),
            top_tokens=keys.count("index_topk", high=TOKEN_LIMIT),
        )
        width = overlap * indexer.key_dim
        outputs = indexer.heads * indexer.key_dim
        matrices.append(Matrix(name="index_q", inputs=rank, outputs=outputs))
        matrices.append(Matrix(name="index_k", inputs=hidden, outputs=width))
        matrices.append(Matrix(name="index_k_gate", inputs=hidden, outputs=width))
        matrices.append(
            Matrix(name="index_weights", inputs=hidden, outputs=indexer.heads, fixed=True)
        )
        vectors += plan.ratio * width + indexer.key_dim
    return CompressedAttention(
        q_heads=q_heads,
        vector_dim=dim,
        ratio=plan.ratio,
        window_tokens=window,
        matrices=tuple(matrices),
        vectors=vectors,
        indexer=indexer,
    )


def _heads(name: str, inputs: int, outputs: int, heads: int) -> Matrix:
    return Matrix(name=name, inputs=inputs, outputs=outputs, split="q_heads", split_count=heads)


def _kv(name: str, inputs: int, outputs: int, heads: int) -> Matrix:
    return Matrix(name=name, inputs=inputs, outputs=outputs, split="kv_heads", split_count=heads)
