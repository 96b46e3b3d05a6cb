"""KV bytes of catalog models against published figures and against what engines printed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from shapes import H100

from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import parse_kv
from lcprof.domain.model import ModelShape
from lcprof.domain.workload import Workload
from lcprof.plan.estimate import estimate, rank_token_bytes, token_bytes
from lcprof.scenario.models import load_model, read_inline

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
GIB = 2**30
BF16 = parse_kv("bf16", where="test")


@pytest.mark.parametrize(
    ("model", "context", "gib"),
    [
        # arXiv:2408.12570, table 1: KV cache of Jamba-1.5-Large at 256K in 16 bits, 9 GB.
        ("jamba-large-1.5", 262_144, 9.0),
        # arXiv:2407.21783 shapes: 2 x 32 x 8 x 128 x 2 B = 128 KiB a token; 80 and 126 layers.
        ("llama-3.1-8b", 131_072, 16.0),
        ("llama-3.1-8b", 1_048_576, 128.0),
        ("llama-3.1-70b", 131_072, 40.0),
        ("llama-3.1-405b", 131_072, 63.0),
        # 61 layers x 576 x 2 B (arXiv:2412.19437, section 2.1.1).
        ("deepseek-v3", 1_048_576, 68.625),
        # 24 of 48 layers full and 1/2 of 36 with a window of 128 (arXiv:2508.10925, section 2.2).
        ("gpt-oss-120b", 131_072, 4.5),
    ],
)
def test_growing_cache(model: str, context: int, gib: float) -> None:
    rate = token_bytes(load_model(model, where="test"), BF16).growing
    assert rate * context / GIB == pytest.approx(gib, rel=2e-3)


def test_gemma_3_at_128k_with_its_windows() -> None:
    # 10 full layers x 131,072 tokens and 52 windows of 1,024, 16 heads x 128 (arXiv:2503.19786).
    model = load_model("gemma-3-27b", where="test")
    workload = Workload(context_tokens=131_072.0, concurrency=1.0)
    row = estimate(model, Deployment(gpu=H100), BF16, workload)
    per_token = 2 * 16 * 128 * 2
    assert row.kv_bytes_per_gpu == per_token * (10 * 131_072 + 52 * 1024)


def startup_rows() -> list[dict[str, str]]:
    with (FIXTURES / "engine_startup_kv.csv").open() as file:
        return list(csv.DictReader(file))


def printed_model(row: dict[str, str]) -> ModelShape:
    """The catalog's model, or the attention that the row states (a vision model whose
    cross-attention layers the engine counts as if they cached text)."""
    if row["catalog_model"]:
        return load_model(row["catalog_model"], where="test")
    kv_heads, head_dim = int(row["cfg_kv_heads"]), int(row["cfg_head_dim"])
    shape = {
        "layers": int(row["cfg_attn_layers"]),
        "hidden": 4 * kv_heads * head_dim,
        "q_heads": 4 * kv_heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": 16384,
        "vocab": 128256,
    }
    return read_inline(shape, where="test")


@pytest.mark.parametrize("row", startup_rows(), ids=lambda row: row["record_id"])
def test_bytes_per_token_that_engines_printed(row: dict[str, str]) -> None:
    """vLLM and SGLang start-up logs: available KV bytes / KV tokens, per GPU. The rows that differ
    from the formula say why; what they say is checked by the sign of the difference."""
    tp = int(row["attn_tp"] or row["tp"])
    layout = Deployment(gpu=H100, gpus=tp * int(row["pp"]), tp=tp, pp=int(row["pp"]))
    dtype = {"float32": "fp32"}.get(row["dtype"], "bf16")
    kv = parse_kv("fp8" if row["kv_cache_dtype"] == "fp8" else dtype, where="test")
    model = printed_model(row)
    predicted = rank_token_bytes(model, layout, kv)
    measured = float(row["kv_bytes_per_token_per_gpu"])
    if row["explanation"]:
        assert abs(measured / predicted - 1) > 0.005
    else:
        assert predicted == pytest.approx(measured, rel=5e-3)
