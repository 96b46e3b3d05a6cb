"""Rows of published attention tables as calls, checked against what their columns say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcprof.calibrate.published import attention, infersim, latent, linear
from lcprof.calibrate.published.table import fit_rows, samples
from lcprof.calibrate.published.tables import TABLES
from lcprof.cost.timing.latent import DEEPSEEK_V3
from lcprof.errors import InputError

pd = pytest.importorskip("pandas")

H200 = {"device": "NVIDIA H200", "framework_version": "1"}
ROW = H200 | {"framework": "vllm", "kernel_source": "vllm_flash_attn_fa3", "batch_size": 2}
ROW |= {"num_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "window_size": 128}
ROW |= {"attn_dtype": "bfloat16", "kv_cache_dtype": "fp8", "latency_ms": 3.0}


def test_a_prompt_over_an_fp8_cache_multiplies_in_fp8() -> None:
    frame = pd.DataFrame([ROW | {"isl": 4096}, ROW | {"isl": 1024, "device": "unheard of"}])
    found = attention.context_attention(frame)
    (batch,) = found.known
    call = batch.call
    assert (batch.gpu, batch.stack, call.kernel) == ("h200-sxm", "vllm", "fa3")
    assert batch.variant == "vllm_flash_attn_fa3 bf16, fp8 cache"
    assert (call.compute, call.kv_bytes_per_element[0]) == ("fp8", 1.0)
    assert (call.q_heads[0], call.kv_heads[0], call.window_tokens[0]) == (64, 8, 128)
    assert (call.causal[0], call.prefix_tokens[0], batch.large[0]) == (1, 0, True)
    assert [list(rows) for rows in found.declined.values()] == [[1]]


def test_an_encoder_sees_every_token() -> None:
    (batch,) = attention.encoder_attention(pd.DataFrame([ROW | {"isl": 2304}])).known
    assert batch.call.causal[0] == 0
    assert batch.call.kv_heads[0] == 64
    assert not batch.large[0]


def test_decode_variants_follow_the_kernel() -> None:
    step = ROW | {"kv_len": 131_072, "framework": "trtllm", "kernel_source": "torch_flow"}
    alone = step | {"num_heads": 32, "num_key_value_heads": 32, "window_size": 0}
    windowed, single = sorted(
        attention.generation_attention(pd.DataFrame([step, alone])).known,
        key=lambda b: len(b.variant),
    )
    assert windowed.variant == "torch_flow fp8 cache, window"
    assert windowed.stand_ins == ("torch_flow fp8 cache",)
    assert single.variant == "torch_flow fp8 cache, one query head per KV head"
    assert single.large[0]
    assert not windowed.large[0]


def test_sglangs_latent_prompts_are_absorbed_and_tensorrts_expanded() -> None:
    base = ROW | {"isl": 8192, "num_heads": 16, "mla_dtype": "bfloat16"}
    frame = pd.DataFrame(
        [
            base | {"framework": "sglang", "kernel_source": "flash_attention"},
            base | {"framework": "trtllm", "kernel_source": "default"},
        ]
    )
    absorbed, expanded = latent.context_mla(frame).known
    assert (absorbed.call.qk_dim[0], absorbed.call.v_dim[0]) == (576, 512)
    assert absorbed.call.kv_heads[0] == 1
    assert (expanded.call.qk_dim[0], expanded.call.v_dim[0]) == (192, 128)
    assert expanded.call.kv_heads[0] == 16


def test_a_modules_decode_step_adds_the_new_token_to_its_history() -> None:
    row = ROW | {"op_name": "mla_generation_module", "model": "deepseek-ai/DeepSeek-V3"}
    row |= {"isl": 1, "kv_len": 1024, "gemm_type": "fp8_block"}
    (batch,) = latent.mla_modules(pd.DataFrame([row])).known
    assert batch.family.name == "mla_decode_module"
    assert (batch.call.context_tokens[0], batch.call.fp8_weights[0]) == (1025, 1)
    assert batch.call.shape is DEEPSEEK_V3
    row |= {"model": "someone/else"}
    assert not latent.mla_modules(pd.DataFrame([row])).known


def test_a_sparse_module_without_its_indexer_shares_the_kernels_variant() -> None:
    row = ROW | {"model": "zai-org/GLM-5.2", "isl": 1024, "prefix_or_kv_len": 65_536}
    row |= {"gemm_type": "bfloat16", "framework": "sglang"}
    scored = row | {"op_name": "dsa_context_module", "model": "deepseek-ai/DeepSeek-V3.2"}
    scored |= {"kernel_source": "sglang_dsa_indexer_flashmla_kv"}
    reused = row | {"op_name": "dsa_context_module_skip_indexer"}
    reused |= {"kernel_source": "sglang_dsa_skip_indexer_flashmla_kv"}
    one, other = latent.dsa_modules(pd.DataFrame([scored, reused])).known
    assert one.variant == other.variant == "prefill flashmla_kv, fp8 cache"
    assert (one.call.indexed[0], other.call.indexed[0]) == (1, 0)
    assert (one.call.index_heads[0], other.call.index_heads[0]) == (64, 32)
    assert (one.call.shape.hidden[0], other.call.shape.hidden[0]) == (7168, 6144)
    assert one.call.prefix_tokens[0] == 65_536


def test_kernels_of_linear_attention() -> None:
    base = H200 | {"framework": "vllm", "op_name": "gdn", "model_name": "m", "batch_size": 2}
    base |= {"num_k_heads": 16, "head_k_dim": 128, "num_v_heads": 32, "head_v_dim": 128}
    base |= {"d_conv": 4, "nheads": None, "seq_len": 4096, "phase": "context"}
    step = base | {"phase": "generation", "seq_len": 1}
    frame = pd.DataFrame(
        [
            base | {"kernel_source": "causal_conv1d_fn"},
            base | {"kernel_source": "chunk_gated_delta_rule_flashinfer"},
            step | {"kernel_source": "fused_recurrent_gated_delta_rule"},
        ]
    )
    found = {b.variant: b.call for b in linear.linear_attention(frame).known}
    assert found["causal_conv1d_fn"].moved_bytes[0] == 2 * 8192 * (4096 + 4096) * 2
    assert found["chunk_gated_delta_rule_flashinfer"].scan_heads[0] == 64
    assert found["fused_recurrent_gated_delta_rule"].moved_bytes[0] == 8 * 2 * 32 * 128 * 128


def test_infersims_heads_are_read_by_operation() -> None:
    row = {"device": "H20", "shape": "s", "n_q_heads": 128.0, "dtype": "bf16", "kv_dtype": "bf16"}
    row |= {"batch_size": 1.0, "query_len": 1.0, "kv_len": 4096.0, "m": None, "n": None, "k": None}
    frame = pd.DataFrame(
        [
            row | {"op": "mla_decode", "dim2": 512.0, "dim3": 64.0},
            row | {"op": "mha_decode", "dim2": 8.0, "dim3": 256.0, "n_q_heads": 16.0},
            row | {"op": "mla_prefill", "dim2": 128.0, "dim3": 64.0, "query_len": 4096.0},
        ]
    )
    calls = {b.family.name: b.call for b in infersim.kernels(frame).known}
    assert calls["mla_decode"].q_heads[0] == 128
    assert (calls["decode_attention"].kv_heads[0], calls["decode_attention"].head_dim[0]) == (
        8,
        256,
    )
    assert (calls["prefill_attention"].qk_dim[0], calls["prefill_attention"].v_dim[0]) == (192, 128)
    assert calls["prefill_attention"].prefix_tokens[0] == 0


def test_rows_without_a_positive_time_are_not_samples() -> None:
    (table,) = (t for t in TABLES if t.name == "op_context_attention")
    times = [3.0, 0.0, -1.0, float("nan")]
    frame = pd.DataFrame([ROW | {"isl": 4096, "latency_ms": ms} for ms in times])
    ((_, found),) = samples(table, frame)
    assert found.measured_s.tolist() == [3e-3]


def test_at_most_two_thirds_of_the_groups_are_fitted_whole_groups_at_a_time() -> None:
    (table,) = (t for t in TABLES if t.name == "op_context_attention")
    rows = [ROW | {"isl": n, "num_heads": h} for h in range(8, 80, 8) for n in (1024, 2048)]
    frame = pd.DataFrame(rows)
    chosen = frame[fit_rows(table, frame)]
    assert chosen["num_heads"].nunique() == 6
    assert (chosen.groupby("num_heads").size() == 2).all()
    shuffled = frame.sample(frac=1.0, random_state=1)
    again = shuffled[fit_rows(table, shuffled)]
    assert set(again["num_heads"]) == set(chosen["num_heads"])


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (table,) = (t for t in TABLES if t.name == "op_context_attention")
    path = tmp_path / "op_context_attention.csv"
    assert table.read(tmp_path) is None
    path.write_text("isl,num_heads\n1,2\n")
    with pytest.raises(InputError, match="no latency_ms"):
        table.read(tmp_path)
    path.write_text("isl,latency_ms\n1,2\n")
    frame = table.read(tmp_path)
    with pytest.raises(InputError, match="no column"):
        table.predictable(frame, where="op_context_attention")
