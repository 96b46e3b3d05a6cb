"""A Hugging Face `config.json` as a `ModelShape`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from lcprof.domain.model import (
    CompressedAttention,
    FeedForward,
    GroupedAttention,
    LatentAttention,
    LayerGroup,
    Mixer,
    ModelShape,
    RecurrentState,
)
from lcprof.domain.weights import WeightFormat
from lcprof.errors import InputError
from lcprof.scenario.models.attention import (
    Q_HEADS,
    Heads,
    compressed_attention,
    grouped_attention,
    latent_attention,
    read_heads,
)
from lcprof.scenario.models.families import ALIASES, REFUSED, UNKNOWN, Family, family_of
from lcprof.scenario.models.feedforward import (
    Experts,
    dense_width,
    feed_forward,
    is_gated,
    projections,
    read_experts,
)
from lcprof.scenario.models.keys import TOKEN_LIMIT, VOCAB_LIMIT, Keys
from lcprof.scenario.models.layer_plan import LayerPlan
from lcprof.scenario.models.layers import LAYER_COUNTS, count_layers, plan_layers
from lcprof.scenario.models.quantisation import Quantisation, read_dtype, read_quantisation
from lcprof.scenario.models.recurrent import recurrent_state
from lcprof.scenario.models.rope import read_positions, read_rope

_TEXT_PARTS: Final = (
    "text_config", "llm_config", "language_config", "thinker_config", "language_model_config",
)  # fmt: skip
_SIZES: Final = ("hidden_size", "n_embd", "d_model", "model_dim", "n_embed")
_NESTING_LIMIT: Final = 4

# An entry that nobody read and whose name says attention or cache means an unknown mechanism.
_TELLING: Final = re.compile(
    r"window|sliding|linear_att|lin_attn|(^|_)ssm|mamba|rwkv|retention|retnet|compress|lora_rank"
    r"|(shared?|sharing)_?kv|kv_?(shared?|sharing)|(^|_)cla(_|$)|cross_att|cross_layer|recurrent"
    r"|sparse_att|blocksparse|(^|_)index(er)?_|attn_type|attention_type|attention_layers"
    r"|attn_layer|latent|state_size|block_types?$|layer_types?$|(^|_)hybrid|local_att|global_att"
    r"|dilated|lightning|memory_|(^|_)hyena|delta_?net|block_configs|attn_chunk|attention_chunk"
    r"|att_window|no_kv|kv_mirror|yoco|per_layer_config|reuse|(^|_)sparse_config|(^|_)moba(_|$)"
    r"|(^|_)nsa(_|$)|mixer_types?$|projection_size$|ut_steps|(^|_)n(um)?_?(loops?|recursions?)$"
    r"|loop_count|recursion|parallel_attn_mlp|(^|_)use_residual$"
)
_EXPERTS: Final = re.compile(r"(^|_)(moe|experts?)(_|$)")
_QUIET: Final = re.compile(
    r"^(add_cross_attention|cross_attention_hidden_size|chunk_size_feed_forward|layernorm_.*"
    r"|use_mamba_kernels|mamba_chunk_size|mlp_layer_types|is_hybrid.*|compression_config"
    r"|.*_token(s)?(_id|_index)?s?|vision_.*|image_.*|audio_.*|video_.*|aux_.*|attn_implementation"
    r"|.*rope.*|max_window_layers|use_sliding_window|sliding_window_theta|linear_bias|mtp_.*"
    r"|memory_format|hybrid_cache.*|.*_impl|cache_implementation|_name_or_path|sdp_.*|index_share.*"
    r"|context_window|.*_multipliers?)$"
)


def read_config(config: Mapping[str, Any], *, name: str, where: str) -> ModelShape:
    """The shape that a config.json describes, for its text model alone.

    Raises `UnsupportedModelError` where the config names attention or caching that is not
    modelled, and `InputError` with every fault for missing, wrong or absurd entries. What the
    config leaves open and the library decides is said in `ModelShape.assumptions`.
    """
    if not isinstance(config, Mapping):
        raise InputError.one(where, given=config, expected="a mapping of config.json entries")
    keys, outer = _text_part(config, where)
    model_type = keys.text("model_type") or (outer.text("model_type") if outer else None)
    _refuse_kinds(keys, outer, model_type)
    keys.settle()
    family = family_of(model_type)
    known = family is not None
    family = family or UNKNOWN
    if not known and keys.has(*_SIZES):
        shown_type = repr(model_type[:60]) if model_type else "absent"
        keys.assume(f"model_type {shown_type} is not known; read as a standard decoder.")
    keys.defaults = {**(family.core if outer else {}), **family.defaults}
    _unfold(keys, model_type)

    hidden = keys.count(*_SIZES)
    layers = count_layers(keys)
    vocab = keys.count("vocab_size", "padded_vocab_size", "n_vocab", high=VOCAB_LIMIT)
    keys.settle()
    builder = _Builder(keys, family, hidden, layers, known=known)
    groups, order = builder.build(read_quantisation(keys, read_dtype_of(keys, outer), outer))
    rope = read_rope(keys, family)
    positions = read_positions(keys, rope)
    tied = _tied(keys, outer, family, known=known)
    extra, vectors = _outside_layers(keys, family, hidden, vocab, layers, positions)
    _refuse_unread(keys, family, dense=builder.experts is None)
    keys.settle()
    return ModelShape(
        name=name,
        hidden=hidden,
        vocab=vocab,
        groups=groups,
        order=order,
        tied_embeddings=tied,
        embedding_format=read_dtype_of(keys, outer),
        extra_embedding_params=extra,
        vectors=vectors,
        positions=positions,
        rope=rope,
        assumptions=tuple(keys.assumptions),
    )


def read_dtype_of(keys: Keys, outer: Keys | None) -> WeightFormat:
    """The dtype of the text config, or of the config around it."""
    if outer is not None and not keys.has("torch_dtype", "dtype"):
        return read_dtype(outer)
    return read_dtype(keys)


def _text_part(config: Mapping[str, Any], where: str) -> tuple[Keys, Keys | None]:
    """The text model's entries and, for a multimodal config, those around them."""
    keys = Keys(config, where=where)
    outer: Keys | None = None
    for _ in range(_NESTING_LIMIT):
        if keys.has(*_SIZES) and keys.has(*LAYER_COUNTS):
            break
        inner = next(
            (part for part in _TEXT_PARTS if isinstance(keys.values.get(part), Mapping)), None
        )
        if inner is None:
            break
        section = keys.section(inner)
        if section is None:
            break
        outer, keys = keys, section
    return keys, outer


def _refuse_kinds(keys: Keys, outer: Keys | None, model_type: str | None) -> None:
    for part in (keys, *([outer] if outer else [])):
        stated = part.values.get("model_type")
        if isinstance(stated, str) and stated in REFUSED:
            part.refuse("model_type", stated, REFUSED[stated])
        if part.flag("is_encoder_decoder"):
            part.refuse(
                "is_encoder_decoder", True, "a decoder-only model; cross-attention is not modelled"
            )
        if part.flag("add_cross_attention"):
            part.refuse("add_cross_attention", True, "false; cross-attention is not modelled")
        if part.values.get("cross_attention_layers"):
            part.refuse(
                "cross_attention_layers",
                part.values["cross_attention_layers"],
                "no such layers; cross-attention is not modelled",
            )
    for listed in (keys.items("architectures"), outer.items("architectures") if outer else None):
        for entry in listed[1] if listed else ():
            if isinstance(entry, str) and entry.endswith(
                ("ForMaskedLM", "ForSequenceClassification")
            ):
                keys.refuse("architectures", entry, "a causal language model")
    if model_type is None and not keys.has(*_SIZES):
        keys.fault(
            "model_type",
            "nothing",
            "the config.json of a decoder (model_type, hidden_size, num_hidden_layers, ...)",
        )


def _unfold(keys: Keys, model_type: str | None) -> None:
    """Bring nested attention and FFN settings (MPT, DBRX) beside the others."""
    if model_type not in {"mpt", "dbrx"}:
        return
    merged = dict(keys.values)
    for part_name in ("attn_config", "ffn_config"):
        part = keys.section(part_name)
        if part is None:
            continue
        if part_name == "attn_config":
            kind = part.text("attn_type") or "multihead_attention"
            heads = {"multihead_attention": None, "multiquery_attention": 1}
            kv_heads = part.maybe_count("kv_n_heads", high=100_000)
            if kv_heads or heads.get(kind):
                merged.setdefault("num_key_value_heads", kv_heads or heads[kind])
            elif kind not in heads:
                part.refuse("attn_type", kind, "multihead, multiquery or grouped_query_attention")
            window = part.values.get("sliding_window_size")
            if isinstance(window, int) and not isinstance(window, bool) and window > 0:
                part.refuse("sliding_window_size", window, "-1 (full attention)")
            for name in ("alibi", "rope_theta", "qk_ln"):
                if name in part.values:
                    merged.setdefault({"qk_ln": "qk_norm"}.get(name, name), part.values[name])
        else:
            for name in ("moe_num_experts", "moe_top_k", "ffn_hidden_size"):
                if name in part.values:
                    merged.setdefault(name, part.values[name])
    keys.values = merged


class _Builder:
    """Builds each distinct layer once and strings the layers together."""

    def __init__(
        self, keys: Keys, family: Family, hidden: int, layers: int, *, known: bool
    ) -> None:
        self.keys = keys
        self.family = family
        self.hidden = hidden
        self.layers = layers
        self.experts: Experts | None = read_experts(keys, family)
        self.width = dense_width(keys, family, hidden, self.experts)
        self.gated = is_gated(keys, family, known=known)
        self.plans = plan_layers(keys, family, layers, moe=self.experts is not None)
        kinds = {plan.mixer for plan in self.plans}
        self.heads: Heads | None = None
        if "grouped" in kinds or family.recurrence == "lightning":
            self.heads = read_heads(keys, family, hidden)
        if any(plan.ffn == "dense" for plan in self.plans) and self.experts and not self.width:
            keys.fault("intermediate_size", "nothing", "the width of the dense layers")
        keys.settle()

    def build(self, quantisation: Quantisation) -> tuple[tuple[LayerGroup, ...], tuple[int, ...]]:
        """The distinct layer groups and the group of each layer, in depth order."""
        parts: dict[LayerPlan, tuple[LayerGroup, ...]] = {}
        places: dict[LayerGroup, int] = {}
        order: list[int] = []
        numbers: dict[tuple[LayerPlan, object], tuple[int, ...]] = {}
        for layer, plan in enumerate(self.plans):
            if plan not in parts:
                parts[plan] = self._layer(plan)
            key = (plan, quantisation.signature(layer))
            if key not in numbers:
                stored = [quantisation.apply(group, layer) for group in parts[plan]]
                numbers[key] = tuple(places.setdefault(group, len(places)) for group in stored)
            order.extend(numbers[key])
        return _named(tuple(places)), tuple(order)

    def _layer(self, plan: LayerPlan) -> tuple[LayerGroup, ...]:
        """One layer; two where a block has two mixers (Falcon-H1, LongCat-Flash)."""
        keys, family, hidden = self.keys, self.family, self.hidden
        mixer = self._mixer(plan)
        ffn = feed_forward(
            keys,
            family,
            hidden,
            plan,
            experts=self.experts,
            width=self.width,
            gated=self.gated,
        )
        vectors = self._layer_vectors(plan, ffn)
        model_type = keys.values.get("model_type")
        if model_type == "falcon_h1" and plan.mixer == "grouped":
            keys.assume("Each layer's Mamba-2 branch is counted as a layer of its own.")
            branch = recurrent_state(keys, family, hidden, self.heads.q_heads if self.heads else 1)
            return (
                LayerGroup(name="", mixer=branch, ffn=None),
                LayerGroup(name="", mixer=mixer, ffn=ffn, vectors=vectors),
            )
        if ALIASES.get(str(model_type), model_type) == "longcat_flash" and ffn is not None:
            keys.assume("Each layer's two attention blocks are counted as two layers.")
            dense = projections("", hidden, keys.count("ffn_hidden_size"), gated=True)
            first = replace(ffn, matrices=(*dense, *ffn.matrices))
            return (
                LayerGroup(name="", mixer=mixer, ffn=first, vectors=vectors),
                LayerGroup(name="", mixer=mixer, ffn=FeedForward(matrices=dense), vectors=vectors),
            )
        return (LayerGroup(name="", mixer=mixer, ffn=ffn, vectors=vectors),)

    def _mixer(self, plan: LayerPlan) -> Mixer | None:
        keys = self.keys
        if plan.mixer == "latent":
            return latent_attention(keys, self.hidden, plan)
        if plan.mixer == "compressed":
            return compressed_attention(keys, self.hidden, plan)
        if plan.mixer == "recurrent":
            heads = self.heads.q_heads if self.heads else 1
            return recurrent_state(keys, self.family, self.hidden, heads)
        if plan.mixer == "grouped" and self.heads is not None:
            return grouped_attention(keys, self.family, self.hidden, self.heads, plan)
        return None

    def _layer_vectors(self, plan: LayerPlan, ffn: FeedForward | None) -> int:
        """Norms, and the small per-layer extras of Gemma 3n/4 and DeepSeek-V4."""
        keys, family, hidden = self.keys, self.family, self.hidden
        norms = family.norms
        if plan.mixer == "none" or ffn is None:
            norms = min(norms, 1)
        if plan.mixer == "none" and ffn is None:
            norms = 0
        if keys.flag("parallel_attn") and not keys.flag("new_decoder_architecture"):
            norms = 1
        if (stated := keys.maybe_count("num_ln_in_parallel_attn", high=2)) is not None:
            norms = stated
        if family.window == "ignored" and keys.flag("use_parallel_residual") and family.norm == 2:
            norms = 2 if keys.values.get("model_type") == "gpt_neox" else 1
        if keys.flag("sandwich_norm"):
            norms = 4
        if keys.values.get("model_type") == "gemma4_text" and keys.flag("enable_moe_block"):
            norms += 3
        vectors = norms * family.norm * hidden
        if keys.has("hc_mult"):
            streams = keys.count("hc_mult", high=64)
            keys.ignore("hc_eps", "hc_sinkhorn_iters")
            mix = (2 + streams) * streams
            vectors += 2 * (mix * streams * hidden + mix + 3)
        if keys.has("attn_res_block_size"):
            vectors += 4 * hidden  # a query and a norm before each half (attention residuals)
        if side := keys.maybe_count("hidden_size_per_layer_input", low=0):
            vectors += 2 * hidden * side + hidden
        if rank := keys.maybe_count("laurel_rank"):
            vectors += 2 * hidden * rank + hidden
            streams = keys.count("altup_num_inputs", high=64, default=4)
            vectors += streams * (streams * streams + streams) + hidden * (streams + 2)
        return vectors


def _named(groups: tuple[LayerGroup, ...]) -> tuple[LayerGroup, ...]:
    """The groups with names that say what they are, numbered where two would be the same."""
    names = [_group_name(group) for group in groups]
    if len(set(names)) < len(names):
        seen: dict[str, int] = {}
        numbered = []
        for name in names:
            seen[name] = seen.get(name, 0) + 1
            numbered.append(f"{name} #{seen[name]}" if names.count(name) > 1 else name)
        names = numbered
    return tuple(replace(group, name=name) for group, name in zip(groups, names, strict=True))


def _group_name(group: LayerGroup) -> str:
    parts = []
    mixer = group.mixer
    if isinstance(mixer, GroupedAttention):
        kind = "full"
        if mixer.window_tokens:
            kind = f"window {mixer.window_tokens}"
        elif mixer.chunk_tokens:
            kind = f"chunk {mixer.chunk_tokens}"
        elif mixer.selection:
            kind = "block-sparse"
        parts.append(kind + (" (shared cache)" if mixer.shares_cache else ""))
    elif isinstance(mixer, LatentAttention):
        if mixer.indexer:
            parts.append("mla sparse" + ("" if mixer.indexer.owns_keys else " (shared index)"))
        else:
            parts.append("mla")
    elif isinstance(mixer, CompressedAttention):
        parts.append(
            f"compressed {mixer.ratio}" if mixer.ratio else f"window {mixer.window_tokens}"
        )
    elif isinstance(mixer, RecurrentState):
        parts.append(mixer.kind)
    if group.ffn is not None and (group.ffn.experts or mixer is None):
        parts.append("moe" if group.ffn.experts else "mlp")
    return " + ".join(parts) or "no-op"


def _tied(keys: Keys, outer: Keys | None, family: Family, *, known: bool) -> bool:
    for part in (keys, *([outer] if outer else [])):
        stated = part.flag("tie_word_embeddings", "share_input_output_layers", "tie_embedding")
        if stated is not None:
            return stated
    if family.tied or not known:
        word = "tied" if family.tied else "not tied"
        keys.assume(f"Embeddings {word}: assumed, as tie_word_embeddings is absent.")
    return family.tied


def _outside_layers(
    keys: Keys, family: Family, hidden: int, vocab: int, layers: int, positions: int | None
) -> tuple[int, int]:
    """Parameters of position and per-layer embeddings, and of norms outside the layers."""
    extra = 0
    vectors = family.norm * hidden
    learned = family.positions == "learned"
    if family.positions == "alibi" and keys.flag("learned_pos_emb"):
        learned = keys.flag("alibi") is False
    if learned and positions:
        extra += (positions + family.position_offset) * hidden
    if family.embedding_norm:
        vectors += family.norm * hidden
    if keys.flag("lm_head_bias") or (family.head_bias and keys.flag("lm_head_bias") is None):
        vectors += vocab
    narrow = keys.maybe_count("word_embed_proj_dim")
    if narrow and narrow != hidden:
        extra += vocab * (narrow - hidden) + 2 * narrow * hidden
    if side := keys.maybe_count("hidden_size_per_layer_input", low=0):
        rows = keys.count("vocab_size_per_layer_input", high=VOCAB_LIMIT, default=vocab)
        extra += rows * layers * side
        vectors += hidden * layers * side + side
    if keys.has("laurel_rank"):
        streams = keys.count("altup_num_inputs", high=64, default=4)
        vectors += 2 * (streams - 1) * hidden * hidden
    if keys.has("hc_mult"):
        streams = keys.count("hc_mult", high=64)
        vectors += streams * streams * hidden + streams + 1
    if keys.has("attn_res_block_size"):
        vectors += 2 * hidden
    return extra, vectors


def _refuse_unread(keys: Keys, family: Family, *, dense: bool) -> None:
    keys.ignore(*Q_HEADS, *_TEXT_PARTS)
    window = keys.values.get("sliding_window")
    if isinstance(window, int) and not 0 <= window <= TOKEN_LIMIT:
        keys.fault("sliding_window", window, "a window in tokens, or null")
    for key, value in keys.unread():
        if family.recurrence and key.startswith(("mamba_", "ssm_", "linear_")):
            continue  # sizes of recurrent layers that this checkpoint has none of
        name = key.lower()
        if _TELLING.search(name) and not _QUIET.match(name):
            keys.refuse(key, value, "no such entry; what it means is not modelled")
        elif dense and _EXPERTS.search(name) and _counts(value):
            keys.refuse(key, value, "no such entry; these experts are not modelled")


def _counts(value: object) -> bool:
    return value is True or isinstance(value, Mapping) or (isinstance(value, int) and value > 1)
