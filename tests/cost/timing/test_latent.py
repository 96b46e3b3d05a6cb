from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from lcprof.cost.timing import dsa_module
from lcprof.cost.timing.ceilings import Ceilings
from lcprof.cost.timing.dsa_module import (
    DSA_MODULE,
    DsaModuleCall,
    scored_pairs,
    selected_pairs,
)
from lcprof.cost.timing.family import Family
from lcprof.cost.timing.latent import DEEPSEEK_V3, GLM_5, projection_elements
from lcprof.cost.timing.mla_decode import MLA_DECODE, MlaDecodeCall, flops, kv_bytes
from lcprof.cost.timing.mla_module import (
    MLA_DECODE_MODULE,
    MLA_PREFILL_MODULE,
    MlaModuleCall,
    prefill_core,
)

H200 = Ceilings(
    bandwidth_bytes_per_s=4.8e12,
    peak_flops={"bf16": 989e12, "fp8": 1979e12},
    sm_count=132.0,
    link_bytes_per_s=450e9,
    l2_bytes=50 * 2.0**20,
    clock_hz=1.98e9,
)
STEP = MlaDecodeCall(
    batch=64.0,
    q_heads=128.0,
    context_tokens=131_072.0,
    kv_bytes_per_element=2.0,
    compute="bf16",
)
MODULE = MlaModuleCall(
    shape=DEEPSEEK_V3,
    batch=1.0,
    q_heads=128.0,
    query_tokens=8192.0,
    context_tokens=8192.0,
    kv_bytes_per_element=2.0,
    fp8_weights=0.0,
    compute="bf16",
    kernel="fa3",
)
SPARSE = DsaModuleCall(
    shape=DEEPSEEK_V3,
    index_heads=64.0,
    batch=1.0,
    q_heads=128.0,
    query_tokens=4096.0,
    prefix_tokens=0.0,
    kv_bytes_per_element=2.0,
    fp8_weights=0.0,
    indexed=1.0,
)


def starts(family: Family) -> dict[str, float]:
    return {name: parameter.start for name, parameter in family.parameters.items()}


def many(call: Any) -> Any:
    numbers = {f.name: getattr(call, f.name) for f in fields(call)}
    return replace(call, **{k: np.full(2, v) for k, v in numbers.items() if isinstance(v, float)})


def agree(family: Family, call: Any) -> None:
    one = family.seconds(call, H200, starts(family))
    assert one > 0
    assert family.seconds(many(call), H200, starts(family)).tolist() == [one, one]


@settings(deadline=None)
@given(
    st.integers(1, 4_000_000).map(float),
    st.sampled_from([1.0, 16.0, 128.0]),
    st.integers(1, 300).map(float),
    st.booleans(),
    st.sampled_from([0.0, 1.0]),
)
def test_one_call_and_an_array_of_them_agree_to_the_last_bit(
    context: float, heads: float, batch: float, splits: bool, fp8: float
) -> None:
    step = replace(STEP, context_tokens=context, q_heads=heads, batch=batch, splits=splits)
    agree(MLA_DECODE, step)
    module = replace(MODULE, q_heads=heads, batch=batch, fp8_weights=fp8)
    agree(MLA_PREFILL_MODULE, replace(module, query_tokens=context, context_tokens=context))
    agree(MLA_DECODE_MODULE, replace(module, query_tokens=1.0, context_tokens=context))
    sparse = replace(SPARSE, q_heads=heads, batch=batch, prefix_tokens=context, fp8_weights=fp8)
    agree(DSA_MODULE, sparse)
    agree(DSA_MODULE, replace(sparse, query_tokens=1.0, indexed=0.0, shape=GLM_5))


def test_a_step_with_many_heads_is_bound_by_compute_and_with_few_by_reading() -> None:
    quiet = starts(MLA_DECODE) | {"serial": 0.005, "cta_bytes_per_s": 4e11}
    many_heads = MLA_DECODE.seconds(STEP, H200, quiet | {"cta_bytes_per_s": 1e15})
    assert flops(STEP) == 64 * 128 * 131_072 * 2 * (576 + 512)
    assert many_heads == pytest.approx(flops(STEP) / (quiet["compute"] * 989e12), rel=0.02)
    few = replace(STEP, q_heads=1.0)
    assert kv_bytes(few) == 64 * 131_072 * 576 * 2
    expected = kv_bytes(few) / (quiet["stream"] * 4.8e12)
    assert MLA_DECODE.seconds(few, H200, quiet) == pytest.approx(expected, rel=0.03)


def test_a_kernel_that_does_not_split_is_slow_on_one_sequence() -> None:
    one = replace(STEP, batch=1.0)
    whole = MLA_DECODE.seconds(replace(one, splits=False), H200, starts(MLA_DECODE))
    assert whole > 20 * MLA_DECODE.seconds(one, H200, starts(MLA_DECODE))


def test_weights_that_the_l2_could_hold_are_read_between_other_layers() -> None:
    p = starts(MLA_DECODE_MODULE)
    step = replace(MODULE, query_tokens=1.0, context_tokens=1024.0, q_heads=4.0)
    plain, expansion = projection_elements(DEEPSEEK_V3, 4.0)
    weight_bytes = 2.0 * (plain + expansion)
    held = math.exp(-weight_bytes / (50 * 2**20))
    cache_held = math.exp(-1024 * 576 * 2 / (50 * 2**20))
    saved = weight_bytes * held / (p["weights"] * 4.8e12) + p["cold_s"] * cache_held
    cold = MLA_DECODE_MODULE.seconds(replace(step, cold=1.0), H200, p)
    assert cold - MLA_DECODE_MODULE.seconds(step, H200, p) == pytest.approx(saved, rel=1e-6)


def test_projections_have_deepseeks_weights() -> None:
    plain, expansion = projection_elements(DEEPSEEK_V3, 128.0)
    down = 7168 * (1536 + 512 + 64)
    assert plain == down + 1536 * 128 * 192 + 128 * 128 * 7168
    assert expansion == 512 * 128 * 256


def test_a_prompts_attention_in_a_module_has_expanded_heads() -> None:
    core = prefill_core(MODULE)
    assert (core.qk_dim, core.v_dim, core.kv_heads, core.prefix_tokens) == (192, 128, 128, 0)


def test_a_large_prompt_is_its_projections_and_its_attention() -> None:
    p = starts(MLA_PREFILL_MODULE) | {"passes": 1e-9, "imbalance": 0.005}
    plain, expansion = projection_elements(DEEPSEEK_V3, 128.0)
    projections = 2 * 8192 * (plain + expansion) / (p["projection"] * 989e12)
    attention = 128 * 8192 * 8193 / 2 * 2 * 320 / (p["attention"] * 989e12)
    found = MLA_PREFILL_MODULE.seconds(MODULE, H200, p)
    assert projections + attention < found < 1.25 * (projections + attention)


def test_a_small_batch_of_steps_streams_the_weights_fp8_in_half_the_time() -> None:
    p = starts(MLA_DECODE_MODULE)
    step = replace(MODULE, query_tokens=1.0, context_tokens=1024.0)
    plain, expansion = projection_elements(DEEPSEEK_V3, 128.0)
    bf16 = MLA_DECODE_MODULE.seconds(step, H200, p)
    assert bf16 > 2 * (plain + expansion) / 4.8e12
    fp8 = MLA_DECODE_MODULE.seconds(replace(step, fp8_weights=1.0), H200, p | {"quantise_s": 0.0})
    saved = plain / (p["weights"] * 4.8e12)
    assert bf16 - fp8 == pytest.approx(saved, rel=0.03)


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_pairs_of_sparse_attention(queries: int, prefix: int) -> None:
    call = replace(SPARSE, query_tokens=float(queries), prefix_tokens=float(prefix))
    seen = range(prefix + 1, prefix + queries + 1)
    assert scored_pairs(call) == sum(seen)
    assert selected_pairs(call) == sum(min(tokens, 2048) for tokens in seen)


def test_a_reused_selection_makes_the_time_independent_of_the_prefix() -> None:
    p = starts(DSA_MODULE)
    reused = replace(SPARSE, indexed=0.0, prefix_tokens=65_536.0)
    further = replace(reused, prefix_tokens=1_048_576.0)
    assert DSA_MODULE.seconds(further, H200, p) == DSA_MODULE.seconds(reused, H200, p)
    scored = [DSA_MODULE.seconds(replace(call, indexed=1.0), H200, p) for call in (reused, further)]
    assert scored[1] > 5 * scored[0]


def test_heads_below_a_tile_cost_a_tile() -> None:
    p = starts(DSA_MODULE)
    bare = p | {"projection": 1.2, "passes": 0.1}
    times = [
        DSA_MODULE.seconds(replace(SPARSE, q_heads=heads), H200, bare) for heads in (8.0, 64.0)
    ]
    assert times[1] < 1.5 * times[0]


def test_large_modules_are_long_prompts_and_long_caches() -> None:
    assert dsa_module.large(SPARSE)
    step = replace(SPARSE, query_tokens=1.0, prefix_tokens=1e6)
    assert dsa_module.large(step)
    assert not dsa_module.large(replace(step, indexed=0.0))
