from __future__ import annotations

import pytest
import torch

from lcprof_kernels.device import capability_of


@pytest.mark.parametrize(
    ("have", "suits"),
    [((8, 0), (8, 0)), ((8, 9), (8, 9)), ((9, 0), (9, 0)), ((10, 0), (10, 0)), ((12, 0), (8, 9))],
)
def test_kernels_that_suit_a_device(
    have: tuple[int, int], suits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RTX Blackwell has 99 KB of shared memory and no warp-group products, as Ada."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: have)
    assert capability_of(torch.device("cuda")) == suits
    assert capability_of(torch.device("cpu")) == (8, 0)
