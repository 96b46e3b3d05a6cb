"""What a config leaves to the library: one row of facts for each model_type.

The facts are those of the public modelling code named by the model_type (Hugging Face
transformers, or the `modeling_*.py` beside the published weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct


class Family(Struct, frozen=True, kw_only=True):
    """Facts that hold for every config of one model_type unless the config says otherwise.

    `norm` gives the elements of one norm per hidden element (1 RMS, 2 with a bias, 0 without
    weights); `norms` how many stand in a layer. `bias_scope` is what `attention_bias: true`
    switches on. `window` says which layers `sliding_window` concerns: all, those the flag
    `use_sliding_window` names, all but every n-th (`pattern`), or that the library ignores it.
    `defaults` are values of absent keys; `core` likewise, but only for the text part of a
    multimodal config, which may be as short as a model_type.
    """

    tied: bool = False
    attention_bias: Literal["none", "qkv", "out", "all"] = "none"
    bias_scope: Literal["qkv", "all"] = "all"
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "width", "head-bias"] = "none"
    gated: bool = True
    norm: Literal[0, 1, 2] = 1
    norms: int = 2
    embedding_norm: bool = False
    head_bias: bool = False
    window: Literal["all", "flag", "pattern", "ignored", "refused"] = "refused"
    pattern: int = 0
    positions: Literal["rope", "learned", "alibi", "none"] = "rope"
    position_offset: int = 0
    head_dim: int | None = None
    output_gate: Literal["none", "wide", "heads"] = "none"
    sinks: bool = False
    shared_switch: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    dense_width: str = ""
    implicit_shared: bool = False
    recurrence: str = ""
    width_factor: int = 0
    defaults: Mapping[str, Any] = {}
    core: Mapping[str, Any] = {}


def _core(
    hidden: int, intermediate: int, layers: int, heads: int, kv: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        **more,
    }


_QWEN2: Final = Family(
    attention_bias="qkv",
    bias_scope="qkv",
    window="flag",
    core=_core(4096, 22016, 32, 32, 32, 151936),
)
_QWEN3: Final = Family(qk_norm="head", window="flag")
_QWEN35: Final = Family(
    qk_norm="head", output_gate="wide", recurrence="delta", shared_switch=True, window="flag"
)
_DEEPSEEK: Final = Family(bias_scope="qkv", router_bias=True, window="ignored")
_BIASED: Final = Family(
    attention_bias="all", mlp_bias=True, gated=False, norm=2, window="ignored", width_factor=4
)
_GEMMA: Final = Family(tied=True, head_dim=256, window="ignored")
_BAILING: Final = Family(bias_scope="qkv", window="ignored")

FAMILIES: Final[Mapping[str, Family]] = {
    # Llama and its kin
    "llama": Family(core=_core(4096, 11008, 32, 32, 32, 32000), window="ignored"),
    "mistral": Family(
        window="all",
        core=_core(4096, 14336, 32, 32, 8, 32000, sliding_window=4096),
    ),
    "ministral": Family(window="all"),
    "ministral3": Family(window="all"),
    "mixtral": Family(window="all"),
    "solar": Family(window="ignored"),
    "granite": Family(window="ignored"),
    "granitemoe": Family(window="ignored"),
    "granitemoeshared": Family(window="ignored"),
    "granitemoehybrid": Family(recurrence="mamba2", window="ignored"),
    "internlm": Family(attention_bias="all", window="ignored"),
    "internlm2": Family(window="ignored"),
    "internlm3": Family(bias_scope="qkv", window="ignored"),
    "baichuan": Family(window="ignored"),
    "xverse": Family(window="ignored"),
    "aquila": Family(window="ignored"),
    "yi": Family(window="ignored"),
    "seed_oss": Family(attention_bias="qkv", bias_scope="qkv", window="ignored"),
    "smollm3": Family(tied=True, window="flag"),
    "minicpm": Family(tied=True, window="ignored"),
    "minicpm3": Family(tied=True, window="ignored"),
    "helium": Family(window="ignored"),
    "arcee": Family(gated=False, window="ignored"),
    "apertus": Family(gated=False, qk_norm="head", window="ignored"),
    "nemotron": Family(gated=False, norm=2, window="ignored"),
    "nemotron-nas": Family(window="ignored"),
    "deci": Family(window="ignored"),
    "phi3": Family(window="all"),
    "phi4_multimodal": Family(window="all", tied=True),
    "phimoe": Family(attention_bias="all", norm=2, head_bias=True, window="all"),
    "mimo": Family(attention_bias="qkv", bias_scope="qkv", window="flag"),
    "ernie4_5": Family(tied=True, window="ignored"),
    "ernie4_5_moe": Family(tied=True, router_bias=True, window="ignored"),
    "dots1": Family(qk_norm="head", router_bias=True, window="flag"),
    "exaone": Family(tied=True, window="ignored"),
    "exaone4": Family(qk_norm="head", window="pattern", pattern=4),
    "hunyuan": Family(window="ignored"),
    "hunyuan_v1_dense": Family(qk_norm="head", tied=True, window="ignored"),
    "hunyuan_v1_moe": Family(window="ignored", tied=True),
    "openelm": Family(tied=True, window="ignored"),
    "bailing_moe": _BAILING,
    "bailing_moe_v2": Family(qk_norm="head", bias_scope="qkv", router_bias=True, window="ignored"),
    "bailing_moe_linear": Family(
        qk_norm="head",
        bias_scope="qkv",
        router_bias=True,
        recurrence="lightning",
        window="ignored",
    ),
    # Qwen
    "qwen": Family(
        attention_bias="qkv", bias_scope="qkv", window="ignored", defaults={"vocab_size": 151936}
    ),
    "qwen2": _QWEN2,
    "qwen2_moe": Family(attention_bias="qkv", bias_scope="qkv", shared_switch=True, window="flag"),
    "qwen2_vl": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen2_5_omni_text": _QWEN2,
    "qwen2_audio": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3,
    "qwen3_omni_moe_text": _QWEN3,
    "qwen3_omni_moe_thinker": _QWEN3,
    "qwen3_next": Family(
        qk_norm="head",
        output_gate="wide",
        recurrence="delta",
        shared_switch=True,
        window="flag",
        defaults={
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "full_attention_interval": 4,
        },
    ),
    "qwen3_5": _QWEN35,
    "qwen3_5_text": _QWEN35,
    "qwen3_5_moe": _QWEN35,
    "qwen3_5_moe_text": _QWEN35,
    # Gemma
    "gemma": _GEMMA,
    "gemma2": Family(
        tied=True,
        head_dim=256,
        norms=4,
        window="pattern",
        pattern=2,
        core=_core(2304, 9216, 26, 8, 4, 256000),
        defaults={"sliding_window": 4096},
    ),
    "gemma3_text": Family(
        tied=True,
        head_dim=256,
        norms=4,
        qk_norm="head",
        window="pattern",
        pattern=6,
        core=_core(2304, 9216, 26, 8, 4, 262208, max_position_embeddings=131072),
        defaults={"sliding_window": 4096},
    ),
    "gemma3n_text": Family(
        tied=True,
        head_dim=256,
        norms=4,
        qk_norm="head",
        window="pattern",
        pattern=5,
        defaults={
            "sliding_window": 512,
            "num_kv_shared_layers": 15,
            "laurel_rank": 64,
            "altup_num_inputs": 4,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262144,
        },
        core=_core(2048, 16384, 35, 8, 2, 262400),
    ),
    "gemma4_text": Family(
        tied=True,
        head_dim=256,
        norms=4,
        qk_norm="head",
        window="pattern",
        pattern=6,
        defaults={
            "sliding_window": 512,
            "global_head_dim": 512,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262144,
        },
        core=_core(2304, 9216, 30, 8, 4, 262144),
    ),
    # Cohere
    "cohere": Family(tied=True, norms=1, window="ignored"),
    "cohere2": Family(tied=True, norms=1, window="pattern", pattern=4),
    "cohere2_vision": Family(tied=True, norms=1, window="pattern", pattern=4),
    # DeepSeek and its kin
    "deepseek": Family(window="ignored"),
    "deepseek_v2": Family(bias_scope="qkv", window="ignored"),
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "deepseek_v4": Family(router_bias=True, window="all", sinks=True),
    "kimi_k2": _DEEPSEEK,
    "kimi_linear": Family(router_bias=True, recurrence="kda", window="ignored"),
    "longcat_flash": Family(router_bias=True, window="ignored"),
    "glm_moe_dsa": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    # GLM
    "chatglm": Family(window="ignored"),
    "glm": Family(attention_bias="qkv", bias_scope="qkv", head_dim=128, window="ignored"),
    "glm4": Family(attention_bias="qkv", bias_scope="qkv", head_dim=128, norms=4, window="ignored"),
    "glm4v_text": Family(attention_bias="qkv", bias_scope="qkv", norms=4, window="ignored"),
    "glm4_moe": Family(bias_scope="qkv", router_bias=True, window="ignored"),
    "glm4v_moe_text": Family(
        attention_bias="qkv", bias_scope="qkv", router_bias=True, window="ignored"
    ),
    # MiniMax, Step, MiMo, Llama 4, gpt-oss
    "minimax_text_01": Family(recurrence="lightning", window="ignored"),
    "minimax_m1": Family(recurrence="lightning", window="ignored"),
    "minimax": Family(recurrence="lightning", window="ignored"),
    "minimax_m2": Family(qk_norm="width", router_bias=True, window="ignored"),
    "minimax_m3": Family(
        qk_norm="head", router_bias=True, window="ignored", dense_width="dense_intermediate_size"
    ),
    "minimax_m3_text": Family(
        qk_norm="head", router_bias=True, window="ignored", dense_width="dense_intermediate_size"
    ),
    "afmoe": Family(
        qk_norm="head",
        norms=4,
        output_gate="wide",
        router_bias=True,
        window="pattern",
        pattern=4,
    ),
    "step3_text": Family(window="ignored"),
    "step3p5": Family(qk_norm="head", window="refused"),
    "step3p7": Family(qk_norm="head", window="refused"),
    "step3p7_text": Family(qk_norm="head", window="refused"),
    "mimo_v2_flash": Family(router_bias=True, window="refused"),
    "llama4_text": Family(
        window="ignored",
        dense_width="intermediate_size_mlp",
        implicit_shared=True,
        defaults={"attention_chunk_size": 8192, "interleave_moe_layer_step": 1},
    ),
    "gpt_oss": Family(
        attention_bias="all",
        sinks=True,
        expert_bias=True,
        router_bias=True,
        window="pattern",
        pattern=2,
    ),
    # OLMo
    "olmo": Family(norm=0, window="ignored"),
    "olmo2": Family(qk_norm="width", window="ignored"),
    "olmo3": Family(qk_norm="width", window="pattern", pattern=4),
    "olmoe": Family(qk_norm="width", window="ignored"),
    # Recurrent hybrids
    "jamba": Family(recurrence="mamba1", positions="none", window="ignored"),
    "bamba": Family(recurrence="mamba2", window="ignored"),
    "falcon_h1": Family(recurrence="mamba2", window="ignored"),
    "nemotron_h": Family(
        recurrence="mamba2", gated=False, positions="none", router_bias=True, window="ignored"
    ),
    "mamba": Family(recurrence="mamba1", tied=True, positions="none", norms=1, window="ignored"),
    "mamba2": Family(recurrence="mamba2", positions="none", norms=1, window="ignored"),
    "falcon_mamba": Family(
        recurrence="mamba1", tied=True, positions="none", norms=1, window="ignored"
    ),
    "lfm2": Family(tied=True, qk_norm="head", recurrence="conv", window="ignored"),
    "lfm2_moe": Family(
        tied=True, qk_norm="head", recurrence="conv", router_bias=True, window="ignored"
    ),
    # Older decoders
    "falcon": Family(tied=True, gated=False, norm=2, window="ignored", width_factor=4),
    "RefinedWeb": Family(tied=True, gated=False, norm=2, window="ignored", width_factor=4),
    "RefinedWebModel": Family(tied=True, gated=False, norm=2, window="ignored", width_factor=4),
    "gpt2": Family(
        tied=True,
        attention_bias="all",
        mlp_bias=True,
        gated=False,
        norm=2,
        positions="learned",
        window="ignored",
        width_factor=4,
    ),
    "gpt_bigcode": Family(
        tied=True,
        attention_bias="all",
        mlp_bias=True,
        gated=False,
        norm=2,
        positions="learned",
        window="ignored",
        width_factor=4,
    ),
    "gpt_neo": Family(
        tied=True,
        attention_bias="out",
        mlp_bias=True,
        gated=False,
        norm=2,
        positions="learned",
        window="ignored",
        width_factor=4,
    ),
    "gpt_neox": _BIASED,
    "gptj": Family(
        mlp_bias=True,
        gated=False,
        norm=2,
        norms=1,
        head_bias=True,
        window="ignored",
        width_factor=4,
    ),
    "codegen": Family(
        mlp_bias=True,
        gated=False,
        norm=2,
        norms=1,
        head_bias=True,
        window="ignored",
        width_factor=4,
    ),
    "phi": Family(
        attention_bias="all",
        mlp_bias=True,
        gated=False,
        norm=2,
        norms=1,
        head_bias=True,
        window="ignored",
        width_factor=4,
    ),
    "opt": Family(
        tied=True,
        attention_bias="all",
        mlp_bias=True,
        gated=False,
        norm=2,
        positions="learned",
        position_offset=2,
        window="ignored",
    ),
    "bloom": Family(
        tied=True,
        attention_bias="all",
        mlp_bias=True,
        gated=False,
        norm=2,
        embedding_norm=True,
        positions="alibi",
        window="ignored",
        width_factor=4,
    ),
    "mpt": Family(tied=True, gated=False, norm=1, positions="alibi", window="ignored"),
    "starcoder2": Family(
        tied=True, attention_bias="all", mlp_bias=True, gated=False, norm=2, window="all"
    ),
    "stablelm": Family(norm=2, bias_scope="qkv", window="ignored"),
    "stablelm_epoch": Family(norm=2, bias_scope="qkv", window="ignored"),
    "persimmon": Family(
        attention_bias="all",
        mlp_bias=True,
        gated=False,
        norm=2,
        qk_norm="head-bias",
        window="ignored",
    ),
    "dbrx": Family(norm=1, window="ignored"),
}

ALIASES: Final[Mapping[str, str]] = {
    "kimi_k25": "deepseek_v3",
    "hunyuan_moe": "hunyuan_v1_moe",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "moonshot_kimia": "qwen2",
    "mistral4": "deepseek_v3",
    "longcat": "longcat_flash",
    "phi4mm": "phi4_multimodal",
    "hunyuan_v1": "hunyuan_v1_dense",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "minimax_m3_vl_text": "minimax_m3",
    "MiniMaxM2": "minimax_m2",
    "MiniMaxM1": "minimax_m1",
    "MiniMaxText01": "minimax_text_01",
}

REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "deberta",
         "deberta-v2", "modernbert", "nomic_bert", "esm", "longformer", "big_bird", "clip",
         "siglip", "vit", "wav2vec2"),
        "a decoder with a KV cache; an encoder has none",
    ),
    **dict.fromkeys(
        ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "whisper", "m2m_100", "marian", "led",
         "prophetnet", "bigbird_pegasus", "t5gemma", "blenderbot", "encoder-decoder",
         "switch_transformers"),
        "a decoder-only model; encoder-decoder cross-attention is not modelled",
    ),
    **dict.fromkeys(
        ("mllama", "mllama_text_model"),
        "self-attention layers only; the cross-attention layers of mllama are not modelled",
    ),
    **dict.fromkeys(
        ("rwkv", "rwkv5", "rwkv6", "rwkv7", "rwkv_hybrid", "retnet", "xlstm", "recurrent_gemma",
         "reformer", "transfo-xl", "xlnet", "hyena", "stripedhyena", "ttt", "titans"),
        "a modelled mixer; the recurrence of this model_type is not modelled",
    ),
    **dict.fromkeys(
        ("zamba", "zamba2"),
        "layers with their own weights; attention blocks shared between layers are not modelled",
    ),
    "jetmoe": "attention that every token runs whole; experts of attention are not modelled",
    **dict.fromkeys(
        ("phi4flash", "phi3small"),
        "a modelled attention; this model_type's own attention pattern is not modelled",
    ),
}  # fmt: skip


def family_of(model_type: str | None) -> Family | None:
    """The facts of `model_type`, or None when it is not in the table."""
    if model_type is None:
        return None
    return FAMILIES.get(ALIASES.get(model_type, model_type))


UNKNOWN: Final = Family(window="refused")
