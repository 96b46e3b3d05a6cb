"""Feed-forward layers: dense, routed experts, shared experts."""

from __future__ import annotations

from msgspec import Struct

from lcprof.domain.model import FeedForward, Matrix
from lcprof.scenario.models.families import Family
from lcprof.scenario.models.keys import Keys
from lcprof.scenario.models.layer_plan import LayerPlan
from lcprof.scenario.models.uneven import round_up


class Experts(Struct, frozen=True, kw_only=True):
    """The routed experts of a layer and what runs beside them.

    `latent` is the width that experts work in when it is not the hidden size, `rows` the
    router's outputs (more than `count` where some experts do nothing).
    """

    count: int
    per_token: int
    width: int
    shared_width: int
    latent: int = 0
    rows: int = 0
    switch: bool = False
    beside_dense: bool = False


_COUNT = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts",
)  # fmt: skip
_TOP = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k",
    "moe_k", "top_k_experts", "num_selected_experts",
)  # fmt: skip
_EXPERT_WIDTH = (
    "moe_intermediate_size", "expert_ffn_hidden_size", "expert_intermediate_size",
    "moe_ffn_hidden_size",
)  # fmt: skip
_WIDTH = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff", "block_ff_dim")


def read_experts(keys: Keys, family: Family) -> Experts | None:
    """The routed experts, or None for a dense model. One expert is a dense model."""
    count = _number(keys, *_COUNT, low=0, default=0)
    if keys.flag("enable_moe_block") is False:
        count = 0
    if count <= 1:
        keys.ignore(*_TOP, *_EXPERT_WIDTH, "n_shared_experts", "num_shared_experts")
        return None
    per_token = _number(keys, *_TOP, low=1)
    if per_token > count:
        keys.fault(_TOP[0], per_token, f"at most the {count} experts")
    width = _number(keys, *_EXPERT_WIDTH, default=0)
    if not width:
        width = _number(keys, *_WIDTH)
    latent = keys.maybe_count("moe_latent_size", "routed_expert_hidden_size") or 0
    idle = keys.maybe_count("zero_expert_num", low=0) or 0
    running = per_token
    if idle:
        running = max(1, round(per_token * count / (count + idle)))
        keys.assume(
            f"{running} of {per_token} chosen experts run on average: "
            f"{idle} of {count + idle} experts do nothing."
        )
    return Experts(
        count=count,
        per_token=running,
        width=width,
        shared_width=_shared_width(keys, family, width),
        latent=latent,
        rows=count + idle,
        switch=family.shared_switch,
        beside_dense=bool(keys.flag("enable_moe_block")),
    )


def _shared_width(keys: Keys, family: Family, width: int) -> int:
    stated = keys.maybe_count(
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "share_expert_dim",
        "share_expert_dims",
        "shared_intermediate_size",
        low=0,
    )
    number = _number(
        keys,
        "n_shared_experts",
        "num_shared_experts",
        "num_shared_expert",
        "moe_num_shared_experts",
        low=0,
        default=-1,
    )
    if keys.flag("use_mixed_mlp_moe") is False:
        return 0
    if stated is not None:
        return 0 if number == 0 else stated
    if number > 0:
        return number * width
    return width if family.implicit_shared else 0


def _number(keys: Keys, *names: str, low: int = 1, default: int | None = None) -> int:
    """A count that may be given as a list: of equal values for each layer, or text first."""
    key, value = keys.first(*names)
    if isinstance(value, list) and value:
        if len({v for v in value if isinstance(v, int)}) > 1 and len(value) > 2:
            keys.refuse(key, value, "the same number for every layer")
        value = value[0]
        return keys.whole(key, value, low=low, high=1_000_000)
    return keys.count(*names, low=low, default=default)


def dense_width(keys: Keys, family: Family, hidden: int, experts: Experts | None) -> int:
    """The width of a dense feed-forward; 0 where the model has none."""
    if is_attention_free(keys, family):
        keys.ignore(*_WIDTH)
        return 0
    if family.dense_width and keys.has(family.dense_width):
        width = keys.count(family.dense_width)
        keys.ignore(*_WIDTH)
        return width
    name, value = keys.first(*_WIDTH)
    if isinstance(value, list):
        return 0
    if experts is None and keys.has("shared_intermediate_size"):
        shared = keys.count("shared_intermediate_size", low=0)
        width = shared or _number(keys, *_WIDTH)
    elif name:
        width = keys.whole(name, value, low=0, high=1_000_000)
    elif ratio := keys.number("expansion_ratio"):
        width = int(min(ratio, 1e4) * hidden)
    elif family.width_factor:
        width = family.width_factor * hidden
        keys.assume(f"FFN width = {width} assumed: {family.width_factor} x hidden_size.")
    elif keys.has("ffn_multipliers", "block_configs", "_block_configs"):
        width = 0
    else:
        width = _number(keys, *_WIDTH) if experts is None else 0
    if keys.has("block_ff_dim") or keys.flag("block_auto_adjust_ff_dim"):
        width = _lfm2_width(keys, width)
    if keys.values.get("model_type") in ("qwen", "molmo"):
        width //= 2  # both state the gate and up widths together
    return width


def _lfm2_width(keys: Keys, width: int) -> int:
    """LFM2 states the width before its two-thirds rule (transformers `lfm2`)."""
    if keys.flag("block_auto_adjust_ff_dim") is False:
        return width
    width = int(2 * width / 3)
    factor = keys.number("block_ffn_dim_multiplier")
    if factor is not None:
        width = int(min(factor, 1e4) * width)
    return round_up(width, keys.count("block_multiple_of", default=256))


def is_attention_free(keys: Keys, family: Family) -> bool:
    """Whether every layer is a Mamba block without attention or feed-forward."""
    return family.recurrence in {"mamba1", "mamba2"} and not keys.has("num_attention_heads")


def is_gated(keys: Keys, family: Family, *, known: bool) -> bool:
    """Whether the feed-forward multiplies two projections (SwiGLU, GeGLU)."""
    activation = keys.text(
        "hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act", "ffn_act_type"
    )
    stated = keys.flag("ffn_with_glu", "gated_mlp", "use_glu")
    if stated is not None:
        return stated
    if known or is_attention_free(keys, family):
        return family.gated
    if activation in {"relu2", "xielu", "gelu_new", "relu"}:
        keys.assume(f"FFN without a gate assumed, as hidden_act is {activation}.")
        return False
    keys.assume("Gated FFN (gate, up and down projections) assumed.")
    return True


def feed_forward(
    keys: Keys,
    family: Family,
    hidden: int,
    plan: LayerPlan,
    *,
    experts: Experts | None,
    width: int,
    gated: bool,
) -> FeedForward | None:
    """The feed-forward of one layer, or None where the plan has none."""
    if plan.ffn == "none" or (plan.ffn == "dense" and not (plan.width or width)):
        return None
    bias = mlp_bias(keys, family)
    if plan.ffn == "dense" or experts is None:
        size = plan.width or width
        matrices = projections("", hidden, size, gated=gated)
        return FeedForward(
            matrices=matrices, vectors=sum(m.outputs for m in matrices) if bias else 0
        )
    inside = experts.latent or hidden
    rows = experts.rows
    common = [Matrix(name="router", inputs=hidden, outputs=rows, fixed=True)]
    vectors = rows if family.router_bias or keys.flag("use_moe_router_bias") else 0
    if experts.latent:
        common.append(Matrix(name="latent_down", inputs=hidden, outputs=inside))
        common.append(Matrix(name="latent_up", inputs=inside, outputs=hidden))
        if keys.flag("latent_moe_use_norm"):
            vectors += inside
    if experts.shared_width:
        common += projections("shared_", hidden, experts.shared_width, gated=gated)
    if experts.switch and experts.shared_width:
        common.append(Matrix(name="shared_switch", inputs=hidden, outputs=1, fixed=True))
    if experts.beside_dense:
        common += projections("", hidden, plan.width or width, gated=gated)
    expert = projections("", inside, experts.width, gated=gated)
    expert_bias = family.expert_bias or bias
    return FeedForward(
        matrices=tuple(common),
        expert=expert,
        experts=experts.count,
        experts_per_token=experts.per_token,
        vectors=vectors,
        expert_vectors=sum(m.outputs for m in expert) if expert_bias else 0,
    )


def projections(prefix: str, hidden: int, width: int, *, gated: bool) -> tuple[Matrix, ...]:
    """Gate, up and down; column-parallel into the width and row-parallel out of it."""

    def matrix(name: str, inputs: int, outputs: int) -> Matrix:
        return Matrix(
            name=prefix + name, inputs=inputs, outputs=outputs, split="width", split_count=width
        )

    gate = (matrix("gate", hidden, width),) if gated else ()
    return (*gate, matrix("up", hidden, width), matrix("down", width, hidden))


def mlp_bias(keys: Keys, family: Family) -> bool:
    """Whether the feed-forward projections carry biases."""
    bias = family.mlp_bias
    if (everything := keys.flag("add_bias_linear", "enable_bias")) is not None:
        bias = everything
    if (everything := keys.flag("use_bias", "bias")) is not None and not family.recurrence:
        bias = everything
    if (stated := keys.flag("mlp_bias")) is not None:
        bias = stated
    return bias
