"""How a GPU turns work into heat: a few energies per operation, with where each comes from."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace


class PowerModel(Struct, frozen=True, kw_only=True):
    """Board power of one GPU: `idle_w` always, `busy_w` more while kernels run at boost clock, and
    the energy of each FLOP (by compute dtype, at boost clock; attention's apart, as "attention
    bf16") and of each byte of GPU memory.

    `limit_w` is what the board is held to. `clock_exponent` a says how the power of the SMs grows
    with their clock f near boost: f V^2 with V linear in f is f^a there, and flatter far below it,
    where V has a floor. `low` and `high` are factors on `busy_w` and the energies that nine in
    ten measurements fall between. `basis` is "measured" or "transported" (from `measured_on`).
    """

    gpu: str
    basis: str
    measured_on: tuple[str, ...]
    idle_w: float
    busy_w: float
    limit_w: float
    joules_per_flop: Mapping[str, float]
    joules_per_hbm_byte: float
    clock_exponent: float
    low: float
    high: float
    sources: Mapping[str, str] = {}

    @property
    def voltage_floor(self) -> float:
        """The voltage at clock zero as a share of that at boost: a = 1 + 2 dlnV/dlnf there."""
        return (3.0 - self.clock_exponent) / 2.0

    def flop_j(self, compute: str) -> float:
        """Joules of one FLOP at boost clock; a dtype that the chip has no unit for runs in bf16."""
        known = self.joules_per_flop.get(compute)
        attention = self.joules_per_flop.get("attention bf16") if "attention" in compute else None
        return known or attention or self.joules_per_flop["bf16"]

    def scaled(self, factor: float) -> PowerModel:
        """The model with everything above idle `factor` times as hungry: `low` and `high` give the
        ends of an interval."""
        return replace(
            self,
            busy_w=self.busy_w * factor,
            joules_per_flop={name: j * factor for name, j in self.joules_per_flop.items()},
            joules_per_hbm_byte=self.joules_per_hbm_byte * factor,
        )

    def held_to(self, limit_w: float) -> PowerModel:
        """The model under another power limit."""
        return replace(self, limit_w=limit_w)
