"""A serving engine: its flags, the constants of its releases, what a checkpoint adds to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

EngineName = Literal["vllm", "sglang", "trtllm"]
ENGINES: Final[tuple[EngineName, ...]] = ("vllm", "sglang", "trtllm")
Version = tuple[int, ...]
"""A release as numbers: 0.19.0 is (0, 19, 0). Endings such as `.post1` and `rc2` do not count."""

CONSTANTS: Final[Mapping[str, str]] = {
    "utilisation": "share of memory that the engine fills when no flag says how much",
    "driver_bytes": "memory of the card that CUDA does not show",
    "sequences": "most sequences at once on a card of at least 70 GiB that is no A100",
    "sequences_small": "most sequences at once on any other card",
    "batched_tokens": "tokens of a prefill step on a card of at least 70 GiB that is no A100",
    "batched_tokens_small": "tokens of a prefill step on any other card",
    "block_tokens": "tokens of a KV block",
    "sampler_bytes": "bytes alive for each logit while the sampler runs, beside the logits",
    "hidden_copies": "hidden states alive for each token in the widest layer",
    "context_bytes": "non-torch memory of one GPU without tensor parallelism",
    "tensor_bytes": "non-torch memory that tensor parallelism over two GPUs adds",
    "tensor_rank_bytes": "what each doubling beyond two GPUs adds to that",
    "pipeline_bytes": "non-torch memory of one GPU with pipeline but no tensor parallelism",
    "graphs_counted": "1 where the KV budget gives way to CUDA graphs, else 0",
    "graph_bytes": "memory of captured CUDA graphs that does not depend on the model",
    "graph_layer_bytes": "what each layer adds to that when sizes up to 512 are captured",
    "hybrid_manager": "1 where window layers keep only their window, else 0",
    "window_pool_share": "tokens of a pool of window layers as a share of those of full layers, "
    "where the two lie in pools of their own; 1 where a window layer has every token",
    "printed_by_concurrency": "1 where the printed KV tokens are concurrency x max_model_len",
    "page_align_tokens": "multiple that a block is raised to when it must hold a state",
    "latent_align_tokens": "the same for latent attention (MLA)",
    "load_slack_bytes": "what loading leaves in use beside the tensors of the model",
    "working_spread": "half the 90 % interval of activation and non-torch memory, as a share of it",
    "weights_spread": "half the 90 % interval of weights in 16 or 32 bits, as a share of them",
    "quantised_spread": "the same for quantised weights",
}
"""Every constant of an engine's file and what it means; 0 where an engine has no such thing."""


class Since(Struct, frozen=True, kw_only=True):
    """A constant from a release on, with where it comes from."""

    since: Version
    value: float
    source: str


class Engine(Struct, frozen=True, kw_only=True):
    """A serving engine as its catalog file describes it; `date` is when it was written, `fitted_on`
    names the models whose starts its fitted constants come from."""

    name: EngineName
    title: str
    date: str
    constants: Mapping[str, tuple[Since, ...]]
    fitted_on: tuple[str, ...] = ()

    def constant(self, name: str, version: Version | None) -> float:
        """The constant in a release; in the newest one that is known when `version` is None."""
        steps = self.constants[name]
        if version is None:
            return steps[-1].value
        return [step for step in steps if step.since <= version or step is steps[0]][-1].value


class EngineFlags(Struct, frozen=True, kw_only=True):
    """What a server is started with. None leaves a flag to the engine's own default.

    `memory_fraction` is vLLM's gpu_memory_utilization, SGLang's mem_fraction_static, TensorRT-LLM's
    free_gpu_memory_fraction. `kv_element_bytes` and `activation_bytes` are bytes of an element.
    `drafted_tokens` are proposed each step by `draft_layers` full-attention layers that are loaded
    beside the model (MTP, DFlash); 0 without speculative decoding.
    """

    version: Version | None = None
    max_model_len: int | None = None
    memory_fraction: float | None = None
    batched_tokens: int | None = None
    sequences: int | None = None
    block_tokens: int | None = None
    kv_element_bytes: float = 2.0
    activation_bytes: int = 2
    eager: bool = False
    hybrid_manager: bool = True
    drafted_tokens: int = 0
    draft_layers: int = 0


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What an engine loads or computes beside a text model's matrices.

    `encoder_params` of a vision or audio encoder with its projector, in 16 bits, cut over tensor
    ranks where `encoder_split`. `rotary_share` of a head is rotated, and cosines are kept for
    `position_tables` times the config's positions (multimodal rope), which `positions` states
    where a tuned model's config differs from its base's. Its drafter has `draft_layers` layers.
    """

    encoder_params: float = 0.0
    encoder_split: bool = True
    rotary_share: float = 1.0
    position_tables: int = 1
    positions: int | None = None
    draft_layers: int = 1
