"""What a rank moves for products that tensor parallelism cuts."""

from __future__ import annotations

import pytest
from shapes import H100, on

from lcprof.cost.layer import Batch, matrix_operation
from lcprof.domain.model import Matrix

K = Matrix(name="k", inputs=4096, outputs=1024, split="kv_heads", split_count=8)
LAST = Matrix(name="o", inputs=4096, outputs=4096, split="q_heads", split_count=32)
OUT = Matrix(name="out", inputs=8192, outputs=4096, split="width", split_count=8192)


@pytest.mark.parametrize(
    ("matrix", "inputs", "outputs"),
    [
        (K, 4096, 1024 / 4),  # whole input, a quarter of the heads
        (LAST, 4096 / 4, 4096),  # a quarter of the heads, whole partial sums
        (OUT, 8192 / 4, 4096),
    ],
)
def test_a_rank_moves_its_part_of_the_cut_side_and_all_of_the_other(
    matrix: Matrix, inputs: float, outputs: float
) -> None:
    tokens = 1000.0
    batch = Batch(tokens=tokens, rank_tokens=tokens, expert_tokens=tokens, steps=1.0)
    found = matrix_operation("products", (matrix,), on(H100, tp=4), batch)
    weights = matrix.inputs * matrix.outputs / 4 * 2
    assert found.rank_read_bytes == weights + tokens * inputs * 2
    assert found.rank_write_bytes == tokens * outputs * 2
