"""The operation families, by name."""

from __future__ import annotations

from collections.abc import Mapping

from lcprof.cost.timing.collective import COLLECTIVE
from lcprof.cost.timing.decode_attention import DECODE_ATTENTION
from lcprof.cost.timing.dsa_module import DSA_MODULE
from lcprof.cost.timing.elementwise import ELEMENTWISE
from lcprof.cost.timing.exchange import EXCHANGE
from lcprof.cost.timing.family import Family
from lcprof.cost.timing.gemm import GEMM
from lcprof.cost.timing.linear_attention import LINEAR_ATTENTION
from lcprof.cost.timing.mla_decode import MLA_DECODE
from lcprof.cost.timing.mla_module import MLA_DECODE_MODULE, MLA_PREFILL_MODULE
from lcprof.cost.timing.moe import MOE
from lcprof.cost.timing.prefill_attention import PREFILL_ATTENTION
from lcprof.domain.calibration import Parameter

_ALL: tuple[Family, ...] = (
    PREFILL_ATTENTION,
    DECODE_ATTENTION,
    MLA_DECODE,
    MLA_PREFILL_MODULE,
    MLA_DECODE_MODULE,
    DSA_MODULE,
    LINEAR_ATTENTION,
    GEMM,
    MOE,
    COLLECTIVE,
    EXCHANGE,
    ELEMENTWISE,
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}
PARAMETERS: Mapping[str, Mapping[str, Parameter]] = {
    family.name: family.parameters for family in _ALL
}
"""What a calibration file must give for each family."""
