"""The published tables that calibrations are fitted on and scored against."""

from __future__ import annotations

from lcprof.calibrate.published import (
    attention,
    collective,
    exchange,
    gemm,
    infersim,
    latent,
    linear,
    moe,
    vidur_mlp,
)
from lcprof.calibrate.published.table import Table

TABLES: tuple[Table, ...] = (
    *attention.TABLES,
    *latent.TABLES,
    *linear.TABLES,
    *infersim.TABLES,
    *gemm.TABLES,
    *moe.TABLES,
    *collective.TABLES,
    *exchange.TABLES,
    *vidur_mlp.TABLES,
)
