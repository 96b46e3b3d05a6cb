"""How weights are stored: element width, scale layout, and the arithmetic they feed."""

from __future__ import annotations

from msgspec import Struct

from lcprof.num import ceil_div


class WeightFormat(Struct, frozen=True, kw_only=True):
    """A storage format of a weight matrix.

    `bits` per element without scales. A scale of `scale_bytes` (zero point included) serves
    `group_inputs` x `group_outputs` elements; `group_inputs=0` means a whole input row (per output
    channel), and `scale_bytes=0` none at all. `compute` names the peak rate that a GEMM with
    these weights may reach ("bf16", "fp8", "int8", "fp4").
    """

    name: str
    bits: int
    scale_bytes: float = 0.0
    group_inputs: int = 0
    group_outputs: int = 1
    compute: str = "bf16"

    def matrix_bytes(self, inputs: int, outputs: int) -> float:
        """Bytes of one `inputs` x `outputs` matrix with its scales."""
        across = ceil_div(inputs, self.group_inputs) if self.group_inputs else 1
        scales = across * ceil_div(outputs, self.group_outputs)
        return inputs * outputs * self.bits / 8 + scales * self.scale_bytes


FP32 = WeightFormat(name="fp32", bits=32, compute="tf32")
BF16 = WeightFormat(name="bf16", bits=16)
FP16 = WeightFormat(name="fp16", bits=16)
FP8 = WeightFormat(name="fp8", bits=8, scale_bytes=4, compute="fp8")
FP8_BLOCK = WeightFormat(
    name="fp8-block", bits=8, scale_bytes=4, group_inputs=128, group_outputs=128, compute="fp8"
)
INT8 = WeightFormat(name="int8", bits=8, scale_bytes=4, compute="int8")
MXFP4 = WeightFormat(name="mxfp4", bits=4, scale_bytes=1, group_inputs=32)
NVFP4 = WeightFormat(name="nvfp4", bits=4, scale_bytes=1, group_inputs=16, compute="fp4")


def int4(group: int) -> WeightFormat:
    """int4 with an fp16 scale and a 4-bit zero point for every `group` inputs (AWQ, GPTQ)."""
    return WeightFormat(name=f"int4-g{group}", bits=4, scale_bytes=2.5, group_inputs=group)


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    "fp32": FP32,
    "bf16": BF16,
    "fp16": FP16,
    "fp8": FP8,
    "fp8-block": FP8_BLOCK,
    "int8": INT8,
    "int4": int4(128),
    "int4-g32": int4(32),
    "int4-g64": int4(64),
    "int4-g128": int4(128),
    "mxfp4": MXFP4,
    "nvfp4": NVFP4,
}
