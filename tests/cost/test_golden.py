"""Figures published elsewhere, each with its source and tolerance."""

from __future__ import annotations

import pytest
from shapes import H100, H200, LLAMA_8B, LLAMA_70B, deepseek_v3, grouped, on

from lcprof.cost.decode import token_flops
from lcprof.cost.prefill import Span, attention_flops, reexpansion_flops, score_bytes
from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import parse_kv
from lcprof.domain.kv.stream import streams
from lcprof.domain.model import ModelShape
from lcprof.domain.workload import Workload
from lcprof.plan.estimate import Estimate, estimate, token_bytes

BF16 = parse_kv("bf16", where="test")


def plan(
    model: ModelShape, deployment: Deployment, context: float, kv: str = "bf16"
) -> Estimate[float]:
    workload = Workload(context_tokens=context, concurrency=1.0)
    return estimate(model, deployment, parse_kv(kv, where="test"), workload)


STANDARD = [
    # Arithmetic with 989 TFLOP/s, 3.35 TB/s, causal attention and no overheads: weights 141.1 GB
    # and KV 42.95 GB for A; B and C on one GPU. TTFT and TPOT as printed, two or three digits.
    ("A", LLAMA_70B, 8, 131_072.0, 141.1e9, 42.95e9, 5.11, 6.8e-3, 0.56),
    ("B", LLAMA_8B, 1, 131_072.0, 16.06e9, 17.18e9, 6.40, 9.6e-3, 0.71),
    ("C", LLAMA_8B, 1, 1_000_000.0, 16.06e9, 131.07e9, 279.0, 43.6e-3, 0.95),
]


@pytest.mark.parametrize(
    ("name", "model", "tp", "context", "weights", "kv", "ttft", "tpot", "share"), STANDARD
)
def test_standard_cases(
    name: str,
    model: ModelShape,
    tp: int,
    context: float,
    weights: float,
    kv: float,
    ttft: float,
    tpot: float,
    share: float,
) -> None:
    row = plan(model, on(H100, tp=tp), context)
    assert row.weights_bytes_per_gpu * tp == pytest.approx(weights, rel=5e-4)
    assert row.kv_bytes_per_gpu * tp == pytest.approx(kv, rel=5e-4)
    assert row.ttft_floor_s == pytest.approx(ttft, rel=2e-3)
    assert row.tpot_floor_s == pytest.approx(tpot, rel=2e-3)
    assert row.prefill_attention_flops / row.prefill_flops == pytest.approx(share, abs=6e-3)
    assert row.fits == (name != "C")


def test_an_fp8_cache_lets_attention_run_at_its_fastest() -> None:
    """FlashAttention 3 reaches 1.2 PFLOP/s in fp8 (arXiv:2407.08608), more than the peak in bf16:
    4 x 4,096 x T^2 / 2 a layer at 1,979 TFLOP/s, the products with weights at 989."""
    attention = 32 * 4 * 4096 * 131_072**2 / 2
    products = 2 * (8.030e9 - 2 * 0.5253e9) * 131_072
    expected = attention / 1979e12 + products / 989.4e12
    found = plan(LLAMA_8B, on(H200), 131_072.0, "fp8")
    assert found.ttft_floor_s == pytest.approx(expected, rel=5e-3)
    assert found.ttft_floor_s < 0.7 * plan(LLAMA_8B, on(H200), 131_072.0).ttft_floor_s


def test_case_c_breaks_on_kv() -> None:
    assert plan(LLAMA_8B, on(H100), 1e6).limited_by == "kv"


def test_llama_parameters() -> None:
    # Totals of the published checkpoints: 8,030,261,248 and 70,553,706,496 parameters
    # (safetensors headers of meta-llama/Llama-3.1-8B and -70B).
    assert LLAMA_8B.params == 8_030_261_248
    assert LLAMA_70B.params == 70_553_706_496


def test_deepseek_v3() -> None:
    # arXiv:2412.19437, section 4.2: 671B parameters, 37B activated; 70,272 B of KV a token:
    # 61 layers x (512 + 64) x 2 B.
    model = deepseek_v3()
    assert model.params == pytest.approx(671e9, rel=1e-3)
    assert model.active_params == pytest.approx(37.5e9, rel=5e-3)
    assert token_bytes(model, BF16).growing == 70_272


def test_flashmla_fp8_layout() -> None:
    # deepseek-ai/FlashMLA README: 656 B a token and layer (512 fp8, 4 fp32 scales, 64 bf16).
    fp8 = parse_kv("fp8:scale=group,group=128", where="test")
    assert token_bytes(deepseek_v3(), fp8).growing == 61 * 656


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        # Bits an element, head_dim 128. KIVI: b + 32/G with fp16 scale and zero (arXiv:2402.02750);
        # per token and head: 8 + 32/d with an fp32 scale; Quest: + 1/page (arXiv:2406.10774).
        ("fp8", 8.0),
        ("int8", 8.25),
        ("fp8:scale=token-head", 8.25),
        ("kivi:bits=2,group=32", 3.0),
        ("kivi:bits=4,group=32", 5.0),
        ("int4:group=64", 4.5),
        ("int4:group=128", 4.25),
        ("quest:page=16,top=256", 17.0),
    ],
)
def test_bits_per_element(spec: str, bits: float) -> None:
    stream = streams(grouped(4096, 32, 8, 128))[0]
    rate = parse_kv(spec, where="test").bytes_per_token(stream)
    assert rate * 8 / stream.elements == bits


def test_int8_with_a_16_bit_scale_saves_1_97() -> None:
    stream = streams(grouped(4096, 32, 8, 128))[0]
    int8 = parse_kv("int8:scale_bytes=2", where="test").bytes_per_token(stream)
    assert BF16.bytes_per_token(stream) / int8 == pytest.approx(1.97, abs=5e-3)


def test_one_layer_at_a_million_tokens() -> None:
    # 4 x T^2/2 x 32 x 128 = 8.2e15 FLOP.
    span = Span(start=0.0, tokens=1e6, chunk_tokens=8192.0)
    flops = attention_flops(grouped(4096, 32, 8, 128), None, span)
    assert flops == pytest.approx(8.2e15, rel=2e-3)


def test_naive_scores_of_one_layer_at_128k() -> None:
    # 32 heads x 131,072^2 x 2 B = 1.1 TB.
    span = Span(start=0.0, tokens=131_072.0, chunk_tokens=8192.0)
    assert score_bytes(grouped(4096, 32, 8, 128), span) == pytest.approx(1.1e12, rel=2e-3)


def test_mla_decode_intensity() -> None:
    # DeepSeek-V3: 2 x 128 x (576 + 512) FLOP against 1,152 B: 242 FLOP a byte.
    mixer = deepseek_v3().groups[0].mixer
    assert mixer is not None
    stream = streams(mixer)[0]
    assert token_flops(mixer, stream) / BF16.bytes_per_token(stream) == pytest.approx(242, rel=2e-3)


def test_attention_overtakes_weights() -> None:
    # Attention equals weight FLOPs at T = N / (L x H): 61K tokens for Llama-3.1-8B, up to the
    # embedding and head that N counts and a prefill does not run.
    model = LLAMA_8B
    row = plan(model, on(H200), 61_000.0)
    rest = row.prefill_flops - row.prefill_attention_flops
    assert row.prefill_attention_flops / rest == pytest.approx(8.03 / 6.98, rel=5e-3)


def test_mla_reexpansion_needs_a_second_chunk() -> None:
    mixer = deepseek_v3().groups[0].mixer
    one = Span(start=0.0, tokens=8192.0, chunk_tokens=8192.0)
    two = Span(start=0.0, tokens=16384.0, chunk_tokens=8192.0)
    assert reexpansion_flops(mixer, one) == 0
    # The second chunk expands the 8,192 latents before it: 2 x 512 x 128 x 256 FLOP each.
    assert reexpansion_flops(mixer, two) == 8192 * 2 * 512 * 128 * 256


def test_kv_heads_are_copied_beyond_their_number() -> None:
    # 8 KV heads on 16 ranks: each holds one head, twice what 1/16 would be.
    sixteen = plan(LLAMA_70B, on(H100, tp=16), 131_072.0)
    eight = plan(LLAMA_70B, on(H100, tp=8), 131_072.0)
    assert sixteen.kv_bytes_per_gpu == eight.kv_bytes_per_gpu
    sharded = plan(LLAMA_70B, on(H100, tp=16, dcp=2), 131_072.0)
    assert sharded.kv_bytes_per_gpu == eight.kv_bytes_per_gpu / 2


def test_mla_latents_are_copied_on_every_tensor_rank() -> None:
    model = deepseek_v3()
    assert (
        plan(model, on(H200, tp=8), 131_072.0).kv_bytes_per_gpu
        == plan(model, on(H200), 131_072.0).kv_bytes_per_gpu
        == 131_072 * 70_272
    )
