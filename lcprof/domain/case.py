"""One row of a plan, before any number is computed."""

from __future__ import annotations

from msgspec import Struct

from lcprof.domain.deployment import Deployment
from lcprof.domain.kv import KvStrategy
from lcprof.domain.model import ModelShape
from lcprof.domain.workload import Workload


class Case(Struct, frozen=True, kw_only=True):
    """A model on a deployment, with a KV strategy, under a workload.

    `kv_spec` is the strategy as the user wrote it. `notes` are sentences on how the inputs were
    read (a content conversion, a fallback), to be shown with the result. `hypothetical` asks for
    times even where the case does not fit.
    """

    model: ModelShape
    deployment: Deployment
    kv: KvStrategy
    kv_spec: str
    workload: Workload[float]
    notes: tuple[str, ...] = ()
    hypothetical: bool = False
