from __future__ import annotations

import pytest

from lcprof_kernels.errors import KernelError
from lcprof_kernels.offline import Job, Resources, compile_elsewhere

READ = "lcprof_kernels.bench.ceilings:_read"


def resources(**changes: object) -> Resources:
    values = {
        "arch": 90,
        "num_warps": 4,
        "shared_bytes": 0,
        "registers": 32,
        "spill_instructions": 0,
        "instructions": {},
    }
    return Resources(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, 16),  # 64 warps
        ({"num_warps": 1}, 32),  # the most blocks a multiprocessor holds
        ({"registers": 255}, 2),  # 65,536 / (256 x 128)
        ({"registers": 168}, 3),
        ({"registers": 187, "num_warps": 1}, 8),  # two warps of 6,144 registers to a scheduler
        ({"shared_bytes": 100 * 1024}, 2),  # 228 KiB / 101 KiB
        ({"shared_bytes": 100 * 1024, "arch": 80}, 1),  # 164 KiB / 101 KiB
    ],
)
def test_blocks_per_multiprocessor(changes: dict[str, object], blocks: int) -> None:
    assert resources(**changes).blocks_per_sm == blocks


def test_faults_name_what_is_too_much() -> None:
    assert resources(shared_bytes=227 * 1024).faults() == []
    assert resources(shared_bytes=164 * 1024, arch=80).faults() == [
        "167936 bytes of shared memory, sm_80 has 166912"
    ]
    assert resources(spill_instructions=3).faults() == ["3 loads and stores of spilled registers"]


def test_compiles_without_a_card() -> None:
    jobs = [
        Job(
            kernel=READ,
            signature={"source": "*i32", "out": "*i32", "n": "i32"},
            constants={"block": 4096, "steps": 16},
            aligned=["source", "out"],
            arch=arch,
            num_warps=8,
        )
        for arch in (80, 90)
    ]
    ampere, hopper = compile_elsewhere(jobs)
    assert (ampere.arch, hopper.arch) == (80, 90)
    assert ampere.faults() == hopper.faults() == []
    assert hopper.instructions["LDG"] > 0
    assert hopper.matrix_instructions == 0


def test_an_argument_without_a_type_is_refused() -> None:
    job = Job(kernel=READ, signature={"source": "*i32"}, constants={"block": 64, "steps": 1})
    with pytest.raises(KernelError, match="no type and no value for out, n"):
        compile_elsewhere([job])
