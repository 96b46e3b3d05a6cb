"""What a run says of where it took place, and which catalogued GPU that is."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from lcprof import __version__
from lcprof.domain.gpu import Gpu
from lcprof.errors import InputError
from lcprof.measure.board import Facts
from lcprof.measure.row import FORMAT, Provenance

SAME_MEMORY = 0.08
"""A board is a catalogued one when their memories differ by less than this share."""
SM_FLOPS_PER_CYCLE = {"9.0": 4096.0}


def provenance(
    *,
    device: Literal["cuda", "cpu"],
    name: str,
    facts: Facts,
    missing: str,
    scenario: str,
    command: Sequence[str],
    now: datetime | None = None,
) -> Provenance:
    """Everything about this run that its numbers depend on; `missing` says why a board is mute."""
    unknown = {"gpu_uuid_sha256": missing} if facts.uuid is None and missing else {}
    return Provenance(
        format=FORMAT,
        device=device,
        gpu=name,
        gpu_uuid_sha256=None if facts.uuid is None else _sha256(facts.uuid),
        driver=facts.driver,
        cuda=facts.cuda,
        torch=package_version("torch"),
        triton=package_version("triton"),
        lcprof=__version__,
        commit=commit_here(),
        python=platform.python_version(),
        sm_clock_max_hz=facts.sm_clock_max_hz,
        memory_clock_max_hz=facts.memory_clock_max_hz,
        memory_bytes=facts.memory_bytes,
        power_limit_w=facts.power_limit_w,
        mig=facts.mig,
        ecc=facts.ecc,
        scenario=scenario,
        scenario_sha256=_sha256(scenario),
        command=tuple(command),
        started=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        unknown=unknown,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def package_version(package: str) -> str:
    """The installed version of a package, "" without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit_here() -> str:
    """The commit of lcprof's own source tree, with "+" after local changes; "" outside one."""
    here = Path(__file__).resolve()
    # An installed copy may lie within somebody else's tree, which does not track it.
    asked = (
        ["ls-files", "--error-unmatch", here.name],
        ["rev-parse", "--short=12", "HEAD"],
        ["status", "--porcelain", "-uno"],
    )
    told = []
    for ask in asked:
        try:
            done = subprocess.run(  # noqa: S603 (git, about our own folder)
                ["git", "-C", str(here.parent), *ask],  # noqa: S607
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        told.append(done.stdout.strip())
    return told[1] + ("+" if told[2] else "")


def catalogued(name: str, memory_bytes: float | None) -> Gpu | None:
    """The catalogued GPU that a driver calls `name`, None where that is not certain."""
    from lcprof.scenario.gpus import load_gpu

    words = name.lower().replace("nvidia", "").replace("geforce", "").replace("sxm4", "sxm")
    parts = words.replace("sxm5", "sxm").replace("-", " ").split()
    for count in range(len(parts), 0, -1):
        try:
            gpu = load_gpu("-".join(parts[:count]), where="the GPU here")
        except InputError:
            continue
        same = memory_bytes is None or abs(gpu.usable_bytes / memory_bytes - 1) < SAME_MEMORY
        return gpu if same else None
    return None


def flops_per_cycle(gpu: Gpu | None) -> float | None:
    """Dense bf16 FLOPs of a whole chip in a clock cycle; None where that is not certain.

    A Hopper SM does 4 x 512 fused multiply-adds (NVIDIA H100 whitepaper); the data sheet's peak
    must follow from it at a clock near boost, which it does not on chips with fewer tensor cores.
    """
    if gpu is None or not gpu.sm_count or not gpu.boost_hz:
        return None
    each = SM_FLOPS_PER_CYCLE.get(gpu.compute_capability)
    if each is None:
        return None
    clock_hz = gpu.peak_flops["bf16"] / (each * gpu.sm_count)
    return each * gpu.sm_count if 0.8 * gpu.boost_hz < clock_hz < 1.05 * gpu.boost_hz else None
