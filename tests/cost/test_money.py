"""Prices turned into dollars for requests and tokens. Expected values are worked out here."""

from __future__ import annotations

import numpy as np
import pytest

from lcprof.cost.money import (
    deployment_second_usd,
    gpu_second_usd,
    million_input_tokens_usd,
    million_output_tokens_usd,
    request_usd,
)


def test_seconds_of_a_gpu_and_of_a_deployment() -> None:
    assert gpu_second_usd(3.6) == pytest.approx(0.001)
    assert deployment_second_usd(3.6, 8) == pytest.approx(0.008)


def test_a_million_tokens() -> None:
    # 8 GPUs at $3.60 cost $0.008 a second; 128,000 tokens in 16 s are 8,000 a second: $1.
    assert million_input_tokens_usd(
        3.6, 8, prefill_seconds=16.0, prefill_tokens=128_000
    ) == pytest.approx(1.0)
    # 40 sequences, one token each per 20 ms, are 2,000 a second: $4.
    assert million_output_tokens_usd(3.6, 8, step_seconds=0.02, concurrency=40) == pytest.approx(
        4.0
    )


def test_a_request_is_its_prompt_and_its_share_of_the_batch() -> None:
    # 16 s over two prompts, then 1,000 steps of 20 ms over 40 sequences: 8.5 s of $0.008.
    assert request_usd(
        3.6, 8, prefill_seconds=16.0, prefill_sequences=2, decode_seconds=20.0, concurrency=40
    ) == pytest.approx(0.068)


def test_arrays_agree_with_numbers() -> None:
    steps = np.array([0.01, 0.02, 0.03])
    many = million_output_tokens_usd(3.5, 4, step_seconds=steps, concurrency=7.0)
    one = [
        million_output_tokens_usd(3.5, 4, step_seconds=float(step), concurrency=7.0)
        for step in steps
    ]
    assert many.tolist() == one
