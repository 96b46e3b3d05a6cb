"""How a model is laid over GPUs."""

from __future__ import annotations

from msgspec import Struct

from lcprof.domain.gpu import Gpu
from lcprof.domain.weights import WeightFormat

STACKS = ("vllm", "sglang", "trtllm", "lcprof", "torch")
"""Whose kernels a plan's times can be those of: serving stacks, lcprof's own, PyTorch's."""
NODE_GPUS = 8
"""GPUs that NVLink joins (an HGX board); what lies beyond is reached over a network."""
NETWORK_BYTES_PER_S = 50e9
"""A GPU's share of that network, one way: 400 Gb/s InfiniBand, as HGX H100 and H200 nodes have."""


class Deployment(Struct, frozen=True, kw_only=True):
    """One instance of a model on `gpus` GPUs: gpus = tp · pp · cp · dp.

    - `tp` tensor, `pp` pipeline degree; `cp` context-parallel ranks that share a prefill.
    - `dp` data-parallel attention: each of `dp` groups of `tp` ranks serves other sequences.
    - `ep` spreads whole experts over `ep` of a stage's tp·dp ranks; what is left of tp·dp/ep cuts
      the experts' width. `ep=1`: experts are cut like a dense FFN over tp·dp ranks.
    - `dcp` decode-context parallel: the tp ranks that would hold copies of a KV head (or of an
      MLA latent) shard its tokens instead; it adds no GPUs.
    - `weights`: None keeps the checkpoint's own formats.
    - `utilisation`: the share of the driver's memory that the engine may fill.
    - `page_tokens`: tokens of a KV page.
    - `stack`: whose kernels run, one of `STACKS`.
    - `price_usd_per_gpu_hour`: what a GPU costs; None leaves the catalog's price.
    - `power_limit_w`: what a GPU may draw; None leaves its TDP.
    """

    gpu: Gpu
    gpus: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    ep: int = 1
    dcp: int = 1
    weights: WeightFormat | None = None
    utilisation: float = 0.9
    page_tokens: int = 16
    stack: str = "vllm"
    price_usd_per_gpu_hour: float | None = None
    power_limit_w: float | None = None

    @property
    def expert_cuts(self) -> int:
        """Ranks that cut the width of a routed expert: what `ep` leaves of tp · dp."""
        return self.tp * self.dp // self.ep

    @property
    def usd_per_gpu_hour(self) -> float | None:
        """The price given, or else the catalog's; None where neither is known."""
        given = self.price_usd_per_gpu_hour
        return self.gpu.price_usd_per_hour if given is None else given
