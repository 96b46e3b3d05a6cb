"""Money: what a price per GPU-hour makes of requests and tokens.

Prices are US dollars for one GPU for one hour. `gpus` counts the whole deployment, all replicas
and ranks; every result is for the whole deployment. A steady batch is `concurrency` sequences over
the whole deployment that give a token each per step.
"""

from __future__ import annotations

from typing import Any

from lcprof.num import Num

SECONDS_PER_HOUR = 3600.0
MILLION = 1e6


def gpu_second_usd(usd_per_gpu_hour: Num) -> Any:
    """One GPU for one second."""
    return usd_per_gpu_hour / SECONDS_PER_HOUR


def deployment_second_usd(usd_per_gpu_hour: Num, gpus: Num) -> Any:
    """The whole deployment for one second."""
    return gpu_second_usd(usd_per_gpu_hour) * gpus


def million_input_tokens_usd(
    usd_per_gpu_hour: Num, gpus: Num, *, prefill_seconds: Num, prefill_tokens: Num
) -> Any:
    """A million prompt tokens, the deployment reading nothing but prompts: `prefill_tokens` of
    them, over all sequences, in `prefill_seconds`."""
    second_usd = deployment_second_usd(usd_per_gpu_hour, gpus)
    return second_usd * prefill_seconds / prefill_tokens * MILLION


def million_output_tokens_usd(
    usd_per_gpu_hour: Num, gpus: Num, *, step_seconds: Num, concurrency: Num
) -> Any:
    """A million answer tokens of a steady batch, the deployment doing nothing but decode."""
    return deployment_second_usd(usd_per_gpu_hour, gpus) * step_seconds / concurrency * MILLION


def request_usd(
    usd_per_gpu_hour: Num,
    gpus: Num,
    *,
    prefill_seconds: Num,
    prefill_sequences: Num,
    decode_seconds: Num,
    concurrency: Num,
) -> Any:
    """One request: its share of a prefill that reads `prefill_sequences` prompts in
    `prefill_seconds`, and of `decode_seconds` (its whole answer) in a batch of `concurrency`."""
    held_seconds = prefill_seconds / prefill_sequences + decode_seconds / concurrency
    return deployment_second_usd(usd_per_gpu_hour, gpus) * held_seconds
