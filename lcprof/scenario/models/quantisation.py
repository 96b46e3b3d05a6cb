"""`quantization_config`: the storage format of every matrix of a published checkpoint.

Formats read: fp8 (per tensor, per channel, in blocks), compressed-tensors, GPTQ, AWQ, MXFP4,
modelopt (FP8, NVFP4, mixed precision), quark, bitsandbytes, and DeepSeek-V4's `expert_dtype`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from lcprof.domain.model import FeedForward, LayerGroup, Matrix
from lcprof.domain.weights import (
    BF16,
    FP8,
    FP8_BLOCK,
    FP16,
    INT8,
    MXFP4,
    NVFP4,
    WeightFormat,
    int4,
)
from lcprof.scenario.models.keys import Keys

_PREFIXES: Final = ("model.layers.", "model.language_model.layers.", "language_model.model.layers.")

_DELTA_QKV: Final = ("linear_attn.in_proj_qkv", "linear_attn.in_proj_qkvz")
_MIXER: Final[Mapping[str, tuple[str, ...]]] = {
    "q": ("self_attn.q_proj", "self_attn.qkv_proj", *_DELTA_QKV),
    "k": ("self_attn.k_proj", "self_attn.qkv_proj", *_DELTA_QKV),
    "v": ("self_attn.v_proj", "self_attn.qkv_proj", *_DELTA_QKV),
    "o": ("self_attn.o_proj",),
    "out": ("linear_attn.out_proj", "mixer.out_proj", "mamba.out_proj", "self_attn.o_proj"),
    "in": ("conv.in_proj",),
    "q_down": ("self_attn.q_a_proj", "self_attn.wq_a"),
    "q_up": ("self_attn.q_b_proj", "self_attn.wq_b"),
    "kv_down": ("self_attn.kv_a_proj_with_mqa",),
    "kv_up": ("self_attn.kv_b_proj",),
    "kv": ("self_attn.wkv", "self_attn.kv_proj"),
    "o_down": ("self_attn.wo_a", "self_attn.o_a_proj"),
    "o_up": ("self_attn.wo_b", "self_attn.o_b_proj"),
    "beta": ("linear_attn.in_proj_ba", "linear_attn.in_proj_b", "self_attn.b_proj"),
    "decay": ("linear_attn.in_proj_ba", "linear_attn.in_proj_a"),
    "dt": ("mixer.in_proj", "mamba.in_proj", "mamba.dt_proj"),
    "x": ("mixer.in_proj", "mamba.in_proj"),
    "bc": ("mixer.in_proj", "mamba.in_proj"),
    "dbc": ("mamba.x_proj", "mixer.x_proj"),
}  # fmt: skip
_DENSE: Final = ("mlp", "feed_forward", "mixer")
_SHARED: Final = ("mlp.shared_experts", "mlp.shared_expert", "block_sparse_moe.shared_experts",
                  "mixer.shared_experts", "feed_forward.shared_expert")  # fmt: skip
_EXPERTS: Final = ("mlp.experts.0", "block_sparse_moe.experts.0", "mixer.experts.0",
                   "feed_forward.experts.0", "ffn.experts.0")  # fmt: skip
_EVERY: Final = -1
_LAYER: Final = re.compile(r"layers\.(\d{1,5})(?=\.|\*|$)")
_FFN_LEAF: Final = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


class _Names(Struct, kw_only=True):
    """Module-name patterns: pieces of dotted names, kept by layer where they name one, and
    regular expressions."""

    pieces: dict[int, list[str]] = {}
    patterns: list[re.Pattern[str]] = []
    everything: bool = False

    def signature(self, layer: int) -> tuple[object, ...]:
        """What can tell this layer from another: equal signatures match the same names."""
        own = sorted(_LAYER.sub("layers.", piece) for piece in self.pieces.get(layer, ()))
        telling = any("layers" in pattern.pattern for pattern in self.patterns)
        return (*own, layer if telling else -1)

    def match(self, layer: int, names: Sequence[str]) -> bool:
        if self.everything:
            return True
        pieces = [*self.pieces.get(layer, ()), *self.pieces.get(_EVERY, ())]
        return any(
            any(piece in f".{name}." for piece in pieces)
            or any(pattern.match(name) for pattern in self.patterns)
            for name in names
        )


class Quantisation(Struct, frozen=True, kw_only=True):
    """How a checkpoint stores its matrices: the first rule whose names match, else `base`."""

    base: WeightFormat = BF16
    rules: tuple[tuple[_Names, WeightFormat], ...] = ()
    ignored: _Names = field(default_factory=_Names)
    experts_only: bool = False
    expert_format: WeightFormat | None = None

    def signature(self, layer: int) -> tuple[object, ...]:
        """Layers of one make with equal signatures have the same formats."""
        named = [names for names, _ in self.rules] + [self.ignored]
        return tuple(names.signature(layer) for names in named)

    def apply(self, group: LayerGroup, layer: int) -> LayerGroup:
        """`group` with the storage formats that layer number `layer` has."""
        if not self.rules and self.expert_format is None:
            return group if self.base == BF16 else _rebased(group, self.base)
        mixer, ffn = group.mixer, group.ffn
        if mixer is not None:
            matrices = [self._stored(m, layer, _mixer_names(group, m.name)) for m in mixer.matrices]
            mixer = replace(mixer, matrices=tuple(matrices))
        if ffn is not None:
            common = [self._stored(m, layer, _ffn_names(m.name)) for m in ffn.matrices]
            expert = [
                self._stored(m, layer, [f"{e}.{_FFN_LEAF[m.name]}" for e in _EXPERTS], expert=True)
                for m in ffn.expert
            ]
            ffn = replace(ffn, matrices=tuple(common), expert=tuple(expert))
        return replace(group, mixer=mixer, ffn=ffn)

    def _stored(
        self, matrix: Matrix, layer: int, leaves: Iterable[str], *, expert: bool = False
    ) -> Matrix:
        stored = self.base
        if not matrix.fixed and (expert or not self.experts_only):
            names = [f"{prefix}{layer}.{leaf}" for prefix in _PREFIXES for leaf in leaves]
            if not self.ignored.match(layer, names):
                found = [form for rule, form in self.rules if rule.match(layer, names)]
                stored = found[0] if found else self.base
            if expert and self.expert_format is not None:
                stored = self.expert_format
        return replace(matrix, format=stored)


def _rebased(group: LayerGroup, base: WeightFormat) -> LayerGroup:
    def each(matrices: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
        return tuple(replace(matrix, format=base) for matrix in matrices)

    mixer, ffn = group.mixer, group.ffn
    if mixer is not None:
        mixer = replace(mixer, matrices=each(mixer.matrices))
    if ffn is not None:
        ffn = FeedForward(
            matrices=each(ffn.matrices),
            expert=each(ffn.expert),
            experts=ffn.experts,
            experts_per_token=ffn.experts_per_token,
            vectors=ffn.vectors,
            expert_vectors=ffn.expert_vectors,
        )
    return replace(group, mixer=mixer, ffn=ffn)


def _mixer_names(group: LayerGroup, name: str) -> Sequence[str]:
    if name == "gate":
        kind = getattr(group.mixer, "kind", "")
        if kind.startswith("mamba"):
            return ("mixer.in_proj", "mamba.in_proj")
        if kind == "gated-deltanet":
            return ("linear_attn.in_proj_z", "linear_attn.in_proj_qkvz")
        return ("self_attn.q_proj", "self_attn.g_proj")
    if name.startswith(("index", "compress")):
        return (f"self_attn.indexer.{name}", f"self_attn.compressor.{name}")
    kind = getattr(group.mixer, "kind", "attention")
    known = _MIXER.get(name, (f"self_attn.{name}_proj",))
    own = "linear_attn." if kind == "gated-deltanet" else "self_attn."
    chosen = tuple(leaf for leaf in known if leaf.startswith(own))
    return chosen or known


def _ffn_names(name: str) -> Sequence[str]:
    if name.startswith("shared_"):
        leaf = _FFN_LEAF.get(name.removeprefix("shared_"), name)
        return [f"{part}.{leaf}" for part in _SHARED]
    return [f"{part}.{_FFN_LEAF.get(name, name)}" for part in _DENSE]


def read_dtype(keys: Keys) -> WeightFormat:
    """The dtype of matrices that are not quantised; float32 checkpoints are served in bf16."""
    name = keys.text("torch_dtype", "dtype", "params_dtype")
    plain = (name or "bfloat16").removeprefix("torch.").lower()
    if plain in {"bfloat16", "bf16", "auto"}:
        return BF16
    if plain in {"float16", "half", "fp16"}:
        return FP16
    if plain in {"float32", "float", "fp32"}:
        keys.assume("float32 checkpoint, taken as served in bf16.")
    else:
        keys.assume(f"dtype {plain[:40]!r} taken as bf16.")
    return BF16


def read_quantisation(keys: Keys, base: WeightFormat, outer: Keys | None = None) -> Quantisation:
    """The quantisation of the text config, or of the multimodal config around it."""
    part = keys.section("quantization_config", "compression_config")
    if part is None and outer is not None:
        part = outer.section("quantization_config", "compression_config")
    expert_dtype = keys.text("expert_dtype")
    expert_format = MXFP4 if expert_dtype in {"fp4", "mxfp4"} else None
    if part is None:
        return Quantisation(base=base, expert_format=expert_format)
    method = (part.text("quant_method") or "").lower().replace("_", "-")
    if not method:
        method = "modelopt" if part.has("quant_algo") else "compressed-tensors"
    ignored = _names(
        part, "ignore", "modules_to_not_convert", "exclude_modules", "exclude", "ignored_layers",
        "modules_to_not_quantize", "llm_int8_skip_modules",
    )  # fmt: skip
    every = _Names(everything=True)
    if method in {"fp8", "fbgemm-fp8"}:
        rules: list[tuple[_Names, WeightFormat]] = [(every, _fp8(part))]
    elif method == "compressed-tensors":
        rules = _compressed_tensors(part)
    elif method in {"gptq", "awq", "auto-round", "gptq-marlin", "awq-marlin", "intel/auto-round"}:
        rules = [(every, _integer(part))]
    elif method == "mxfp4":
        return Quantisation(base=base, rules=((every, MXFP4),), ignored=ignored, experts_only=True)
    elif method.startswith("modelopt"):
        rules = _modelopt(part)
    elif method == "quark":
        rules = _quark(part)
    elif method in {"bitsandbytes", "bitblas", "eetq"}:
        rules = [(every, _bitsandbytes(part, method))]
    else:
        part.refuse(
            "quant_method",
            method or "nothing",
            "fp8, compressed-tensors, gptq, awq, mxfp4, modelopt, quark or bitsandbytes",
        )
        rules = []
    return Quantisation(base=base, rules=tuple(rules), ignored=ignored, expert_format=expert_format)


def _fp8(part: Keys) -> WeightFormat:
    found = part.items("weight_block_size")
    if found is None:
        return FP8
    if len(found[1]) != 2:
        part.fault(found[0], found[1], "two block sizes, such as [128, 128]")
        return FP8_BLOCK
    out, inner = (part.whole(found[0], v, low=1, high=1_000_000) for v in found[1])
    return replace(FP8_BLOCK, group_inputs=inner, group_outputs=out)


def _integer(part: Keys) -> WeightFormat:
    bits = part.count("bits", "w_bit", "num_bits", high=16, default=4)
    group = part.count("group_size", "q_group_size", low=-1, high=65_536, default=128)
    if bits == 4 and group > 0:
        return int4(group)
    scales = 2 + bits / 8
    return WeightFormat(
        name=f"int{bits}-g{max(group, 0)}",
        bits=bits,
        scale_bytes=scales,
        group_inputs=max(group, 0),
    )


def _bitsandbytes(part: Keys, method: str) -> WeightFormat:
    if method == "bitsandbytes" and (part.flag("load_in_4bit") or part.flag("_load_in_4bit")):
        scale = 0.5 if part.flag("bnb_4bit_use_double_quant") else 4.0
        return WeightFormat(name="nf4", bits=4, scale_bytes=scale, group_inputs=64)
    return INT8


def _weights(part: Keys, scheme: Keys, *, activations: bool) -> WeightFormat:
    """A compressed-tensors (or modelopt) weight scheme."""
    bits = scheme.count("num_bits", high=16, default=8)
    group = scheme.maybe_count("group_size", low=-1, high=65_536) or 0
    kind = scheme.text("type") or "float"
    text = part.text("format") or ""
    compute = {(8, "float"): "fp8", (8, "int"): "int8", (4, "float"): "fp4"}.get((bits, kind))
    compute = compute if activations and compute else "bf16"
    if bits == 4 and kind == "float":
        if group == 32 or "mxfp4" in text:
            return replace(MXFP4, compute=compute)
        return replace(NVFP4, group_inputs=group if group > 0 else 16, compute=compute)
    block = scheme.items("block_structure")
    if bits == 8 and kind == "float":
        if block is not None and len(block[1]) == 2:
            out, inner = (scheme.whole(block[0], v, low=1, high=1_000_000) for v in block[1])
            return replace(FP8_BLOCK, group_inputs=inner, group_outputs=out, compute=compute)
        if group == 32:
            return replace(FP8, name="mxfp8", scale_bytes=1, group_inputs=32, compute=compute)
        return replace(FP8, group_inputs=max(group, 0), compute=compute)
    if bits == 16:
        return BF16
    symmetric = scheme.flag("symmetric") is not False
    return WeightFormat(
        name=f"int{bits}-g{max(group, 0)}" if group > 0 else f"int{bits}",
        bits=bits,
        scale_bytes=2 if symmetric else 2 + bits / 8,
        group_inputs=max(group, 0),
        compute=compute,
    )


def _compressed_tensors(part: Keys) -> list[tuple[_Names, WeightFormat]]:
    groups = part.section("config_groups")
    rules = []
    for name in groups.values if groups else ():
        entry = groups.section(str(name)) if groups else None
        if entry is None:
            continue
        scheme = entry.section("weights")
        if scheme is None:
            continue
        activations = entry.section("input_activations") is not None
        form = _weights(entry if entry.has("format") else part, scheme, activations=activations)
        rules.append((_names(entry, "targets"), form))
    if not rules and not part.faults:
        part.fault("config_groups", "nothing", "at least one group with weights")
    return rules


def _algorithm(part: Keys, key: str, name: str, group: int | None) -> WeightFormat | None:
    plain = name.upper()
    if "NVFP4" in plain:
        compute = "bf16" if plain.startswith("W4A16") else "fp4"
        return replace(NVFP4, group_inputs=group or 16, compute=compute)
    if "MXFP4" in plain:
        return MXFP4
    if plain in {"FP8_PB_WO", "FP8_BLOCK_SCALES", "FP8_PB_REAL"}:
        return FP8_BLOCK
    if plain in {"MXFP8"}:
        return replace(FP8, name="mxfp8", scale_bytes=1, group_inputs=32)
    if plain.startswith("FP8"):
        return FP8
    if plain in {"W4A16_AWQ", "W4A8_AWQ", "INT4_AWQ", "W4A16", "W4A16_GPTQ"}:
        return int4(group or 128)
    if plain in {"INT8_SQ", "W8A8_SQ_PER_CHANNEL", "INT8", "W8A16"}:
        return INT8
    part.refuse(key, name, "FP8, NVFP4, MXFP4, W4A16_AWQ, INT8 or MIXED_PRECISION")
    return None


def _modelopt(part: Keys) -> list[tuple[_Names, WeightFormat]]:
    inner = part.section("quantization") or part
    algorithm = inner.text("quant_algo") or "FP8"
    if algorithm.upper() != "MIXED_PRECISION":
        group = inner.maybe_count("group_size", high=65_536)
        form = _algorithm(inner, "quant_algo", algorithm, group)
        return [(_Names(everything=True), form)] if form else []
    layers = inner.section("quantized_layers")
    if layers is None:
        return _compressed_tensors(inner)
    chosen: dict[tuple[str, int], list[str]] = {}
    for name in layers.values:
        entry = layers.section(str(name))
        if entry is not None:
            algo = entry.text("quant_algo") or "FP8"
            size = entry.maybe_count("group_size", high=65_536) or 0
            chosen.setdefault((algo, size), []).append(str(name))
    rules = []
    for (algo, size), names in chosen.items():
        form = _algorithm(layers, "quant_algo", algo, size or None)
        if form is not None:
            rules.append((_patterns(names), form))
    return rules


def _quark(part: Keys) -> list[tuple[_Names, WeightFormat]]:
    whole = part.section("global_quant_config")
    scheme = whole.section("weight") if whole else None
    dtype = (scheme.text("dtype") if scheme else None) or ""
    if dtype.startswith("fp8"):
        return [(_Names(everything=True), FP8)]
    if dtype.startswith(("fp4", "mxfp4")):
        return [(_Names(everything=True), replace(MXFP4, compute="fp4"))]
    if dtype.startswith("int8"):
        return [(_Names(everything=True), INT8)]
    if dtype.startswith(("int4", "uint4")) and scheme:
        return [(_Names(everything=True), int4(scheme.count("group_size", default=128)))]
    part.refuse("global_quant_config.weight.dtype", dtype or "nothing", "fp8, fp4, int8 or int4")
    return []


# -- names ----------------------------------------------------------------------------------


def _names(part: Keys, *keys: str) -> _Names:
    found = part.items(*keys)
    if found is None:
        return _Names()
    texts = [text for text in found[1] if isinstance(text, str)]
    if len(texts) != len(found[1]):
        part.fault(found[0], found[1], "a list of module names")
    if "Linear" in texts:
        return _Names(everything=True)
    return _patterns(texts, part, found[0])


def _patterns(texts: Iterable[str], part: Keys | None = None, key: str = "") -> _Names:
    names = _Names()
    for text in texts:
        if text.startswith("re:") or "*" in text.rstrip("*"):
            try:
                names.patterns.append(_pattern(text))
            except (re.error, OverflowError, RecursionError, ValueError):
                if part is not None:
                    part.fault(key, text, "a module name or a regular expression after re:")
            continue
        number = _LAYER.search(text)
        piece = f".{text.rstrip('*')}" if text.endswith("*") else f".{text}."
        names.pieces.setdefault(int(number.group(1)) if number else _EVERY, []).append(piece)
    return names


def _pattern(text: str) -> re.Pattern[str]:
    """A module-name pattern: after `re:` a regular expression, else a dotted name with `*`.

    A name matches a whole run of name parts: "mlp.gate" is the router, not the gate projection,
    and "self_attn" everything inside attention.
    """
    repeats = len(re.findall(r"[*+{]", text))
    if len(text) > 300 or repeats > 6 or re.search(r"\)[*+{]", text):
        raise ValueError("a pattern that could take forever")
    if text.startswith("re:"):
        return re.compile(text[3:])
    body = ".*".join(re.escape(piece) for piece in text.split("*"))
    return re.compile(rf"(?:.*\.)?{body}(?:\..*)?$")
