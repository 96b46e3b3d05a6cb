"""Rows of published tables as calls, checked against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lcprof.calibrate.published import collective, exchange, gemm, moe, vidur_mlp

pd = pytest.importorskip("pandas")


def test_a_product_of_vllms_fp8_layer() -> None:
    row = {"device": "NVIDIA H200", "framework": "vllm", "gemm_dtype": "fp8", "m": 8, "n": 4096}
    row |= {"k": 2048, "kernel_source": gemm.CUTLASS_FP8}
    other = row | {"device": "unheard of"}
    found = gemm.batches(pd.DataFrame([row, other]))
    (batch,) = found.known
    assert (batch.gpu, batch.stack, batch.variant) == ("h200-sxm", "vllm", "fp8")
    assert (batch.call.dispatch, batch.call.quantised, batch.call.eager) == ("rows", True, False)
    assert [*batch.call.rows, *batch.call.columns, *batch.call.depth] == [8.0, 4096.0, 2048.0]
    assert [list(rows) for rows in found.declined.values()] == [[1]]


def test_block_scaled_products_have_a_kernel_of_their_own_for_few_rows() -> None:
    row = {"device": "NVIDIA H200", "framework": "vllm", "gemm_dtype": "fp8_block", "m": 8}
    row |= {"n": 4096, "k": 2048, "kernel_source": gemm.FEW_ROWS}
    other = row | {"m": 64, "kernel_source": "DeepGemmFp8BlockScaledMMKernel"}
    variants = {b.variant: b for b in gemm.batches(pd.DataFrame([row, other])).known}
    assert set(variants) == {"fp8_block few rows", "fp8_block"}
    assert all(b.call.eager for b in variants.values())


def test_experts_are_split_by_width_over_tensor_parallel_ranks() -> None:
    row = {"device": "NVIDIA H200", "framework": "vllm", "moe_dtype": "bfloat16", "topk": 8}
    row |= {"kernel_source": "vllm_unquantizedfusedmoe_triton_tritonexperts", "num_tokens": 1024}
    row |= {"model_shape": "Qwen3-235B-A22B", "hidden_size": 4096, "inter_size": 1536}
    row |= {"num_experts": 128, "moe_tp_size": 4, "moe_ep_size": 1, "distribution": "balanced"}
    (batch,) = moe.batches(pd.DataFrame([row])).known
    assert batch.variant == "bfloat16 triton"
    assert (batch.call.inter[0], batch.call.touched[0], batch.call.tiles_16[0]) == (384, 128, 512)


def test_collectives_count_their_passes_and_who_reduces() -> None:
    base = {"device": "NVIDIA H200", "message_bytes": 2**20}
    frame = pd.DataFrame(
        [
            base | {"op_name": "all_reduce", "num_gpus": 8},
            base | {"op_name": "all_reduce", "num_gpus": 4},
            base | {"op_name": "all_gather", "num_gpus": 8},
            base | {"op_name": "all_reduce", "num_gpus": 8, "device": "NVIDIA A100-SXM4-80GB"},
        ]
    )
    ampere, hopper = collective.nccl(frame).known
    assert list(hopper.call.passes) == [2, 2, 1]
    assert list(hopper.call.in_switch) == [1, 0, 0]
    assert list(ampere.call.in_switch) == [0]


def test_engines_take_one_shot_between_two_gpus_and_for_small_buffers() -> None:
    base = {"device": "NVIDIA H200", "framework": "vllm", "message_bytes": 2**20}
    frame = pd.DataFrame([base | {"num_gpus": n} for n in (2, 4, 8)])
    (graph,) = collective.engine(frame.assign(kernel_source="vLLM_custom_graph")).known
    (eager,) = collective.engine(frame.assign(kernel_source="vLLM_custom_eager")).known
    assert (graph.variant, eager.variant) == ("all_reduce", "all_reduce eager")
    assert (graph.call.eager, eager.call.eager) == (False, True)
    assert graph.call.one_shot_bytes[0] > 2**40
    assert list(graph.call.one_shot_bytes[1:]) == [2**19 - 1, 2**18 - 1]
    assert set(graph.call.own_limit_bytes) == {2**23 - 1}


def test_nodes_and_pcie_are_variants_of_their_own() -> None:
    base = {"op": "all_reduce", "size_bytes": 2**20}
    frame = pd.DataFrame(
        [
            base | {"network_device": "a100_dgx", "num_workers": 16, "devices_per_node": 8},
            base | {"network_device": "a100_dgx", "num_workers": 8, "devices_per_node": 8},
            base
            | {"network_device": "a100_pairwise_nvlink", "num_workers": 4}
            | {"devices_per_node": 4},
            base | {"network_device": "torus", "num_workers": 4, "devices_per_node": 4},
        ]
    )
    found = collective.vidur(frame)
    assert {batch.variant for batch in found.known} == {
        "all_reduce between nodes",
        "all_reduce in a node",
        "all_reduce over PCIe",
    }
    far, near, bus = (
        next(batch for batch in found.known if batch.variant == f"all_reduce {place}")
        for place in ("between nodes", "in a node", "over PCIe")
    )
    assert (far.call.ranks[0], far.call.nodes[0]) == (16, 2)
    assert near.call.nodes[0] == bus.call.nodes[0] == 1
    assert far.stand_ins == ("send_recv between nodes",)
    assert (near.elsewhere, bus.elsewhere) == ((("nccl", "nccl"),), ())
    assert [list(rows) for rows in found.declined.values()] == [[3]]


@pytest.mark.parametrize(
    ("mode", "copies", "sms"), [("low_latency", 8.0, 128.0), ("normal", 5.27, 20.0)]
)
def test_a_deepep_row_is_a_dispatch_and_a_combine(mode: str, copies: float, sms: float) -> None:
    row = {"device": "NVIDIA H200", "framework": "sglang", "mode": mode, "node_num": 1}
    row |= {"hidden_size": 7168, "num_token": 4096, "num_topk": 8, "num_experts": 256}
    row |= {"dispatch_sms": 20.0, "combine_sms": 20.0}
    dispatch, combine = exchange.batches(pd.DataFrame([row])).known
    assert (dispatch.call.element_bytes, combine.call.element_bytes) == (1.0, 2.0)
    for batch in (dispatch, combine):
        assert batch.call.copies[0] == pytest.approx(copies, abs=0.1)
        assert batch.call.sms[0] == sms


def test_a_decoder_layers_matrices() -> None:
    """Llama-3-8B over two GPUs: 16 query and 4 KV heads of 128, half of 14,336."""
    row = {"device": "h100", "model": "meta-llama/Meta-Llama-3-8B", "n_head": 32, "n_kv_head": 8}
    row |= {"n_embd": 4096, "n_expanded_embd": 14336, "use_gated_mlp": True, "tp": 2}
    frame = pd.DataFrame([row | {"num_tokens": 64}])
    found = {b.column: b.call for b in vidur_mlp.batches(frame).known}
    shapes = {
        name: (found[name].columns[0], found[name].depth[0]) for name in vidur_mlp.PROJECTIONS
    }
    assert shapes == {
        "attn_pre_proj_ms": (24 * 128, 4096),
        "attn_post_proj_ms": (4096, 2048),
        "mlp_up_proj_ms": (14336, 4096),
        "mlp_down_proj_ms": (4096, 7168),
    }
    assert found["add_ms"].moved_bytes[0] == 64 * 3 * 4096 * 2
    assert found["attn_rope_ms"].row_bytes[0] == 2 * 20 * 128 * 2
    assert np.array_equal(found["mlp_act_ms"].moved_bytes, [64 * 3 * 7168 * 2])
