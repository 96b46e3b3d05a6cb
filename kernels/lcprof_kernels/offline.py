"""Compile kernels for a GPU that is not here, and read what the assembler says of them.

Triton's compiler needs no card: `triton.compile(ASTSource(...), target=GPUTarget("cuda", 90, 32))`
gives the binary, and the cuobjdump that Triton ships reads registers, spills and instructions from
it. Under TRITON_INTERPRET=1 kernels are not compilable, so `compile_elsewhere` does the work in a
fresh process without the variable.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lcprof_kernels.errors import KernelError

SHARED_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Shared memory one block may have (CUDA C++ programming guide, compute capabilities)."""
SHARED_PER_SM_BYTES = {80: 164 * 1024, 90: 228 * 1024}
"""Shared memory of one multiprocessor (same guide); each resident block takes 1 KiB more."""
REGISTERS_PER_SCHEDULER = 16384
SCHEDULERS_PER_SM = 4
"""A multiprocessor's 65,536 registers lie with its four schedulers (same guide; the occupancy
calculator of the CUDA toolkit therefore rounds the warps that fit down to a multiple of four)."""
WARPS_PER_SM = 64


@dataclass(frozen=True, kw_only=True)
class Job:
    """One compilation.

    `kernel` is "package.module:function". `signature` maps each argument that is not a constant to
    its Triton type ("*bf16", "*i32", "i32", "fp32"), `constants` the others to their values;
    together they cover every argument. `aligned` names the arguments known to be multiples of 16
    (every name that is aligned in ordinary use: pointers, strides).
    """

    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, int | float | bool | str | None]
    aligned: Sequence[str] = ()
    arch: int = 90
    num_warps: int = 4
    num_stages: int = 3
    options: Mapping[str, int | bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a compiled kernel takes. Counts of instructions are of the machine code, not run."""

    arch: int
    num_warps: int
    shared_bytes: int
    registers: int
    spill_instructions: int
    instructions: Mapping[str, int]
    """How many of each family: HMMA, HGMMA, QGMMA, IMMA, IGMMA, LDGSTS, UTMALDG, LDSM, I2F, ..."""

    @property
    def matrix_instructions(self) -> int:
        """All matrix instructions together, of whichever family."""
        families = ("HMMA", "HGMMA", "QGMMA", "IMMA", "IGMMA")
        return sum(self.instructions.get(name, 0) for name in families)

    @property
    def blocks_per_sm(self) -> int:
        """Resident blocks a multiprocessor can hold, by shared memory, registers and warps."""
        by_shared = SHARED_PER_SM_BYTES[self.arch] // (self.shared_bytes + 1024)
        per_warp = -(-self.registers * 32 // 256) * 256
        warps = min(WARPS_PER_SM, SCHEDULERS_PER_SM * (REGISTERS_PER_SCHEDULER // per_warp))
        return min(by_shared, warps // self.num_warps, 32)

    def faults(self) -> list[str]:
        """What no kernel may do on its target: too much shared memory, or spilled registers."""
        limit = SHARED_LIMIT_BYTES[self.arch]
        found = []
        if self.shared_bytes > limit:
            found.append(f"{self.shared_bytes} bytes of shared memory, sm_{self.arch} has {limit}")
        if self.spill_instructions:
            found.append(f"{self.spill_instructions} loads and stores of spilled registers")
        return found


COUNTED = (
    "HMMA", "HGMMA", "QGMMA", "IMMA", "IGMMA", "LDGSTS", "UTMALDG", "LDSM", "LDG", "STG",
    "LDS", "STS", "LDL", "STL", "MUFU", "I2F", "F2F", "PRMT", "LOP3", "BAR", "FFMA", "HFMA2",
)  # fmt: skip


def compile_here(job: Job) -> Resources:
    """Compile one job in this process, which must not have TRITON_INTERPRET set."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = job.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    signature = {
        argument: job.signature.get(argument, "constexpr") for argument in kernel.arg_names
    }
    missing = [a for a, t in signature.items() if t == "constexpr" and a not in job.constants]
    if missing:
        raise KernelError(f"{job.kernel}: no type and no value for {', '.join(missing)}")
    aligned = {
        (kernel.arg_names.index(argument),): [["tt.divisibility", 16]] for argument in job.aligned
    }
    source = ASTSource(kernel, signature, constexprs=dict(job.constants), attrs=aligned)
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages, **job.options}
    compiled = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    return read_cubin(
        compiled.asm["cubin"],
        arch=job.arch,
        num_warps=compiled.metadata.num_warps,
        shared_bytes=compiled.metadata.shared,
    )


def read_cubin(cubin: bytes, *, arch: int, num_warps: int, shared_bytes: int) -> Resources:
    """Registers, stack, spills and instruction counts of a binary, through cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run(  # noqa: S603 (the tool that Triton ships, on our own file)
                [str(tool), flag, str(path)], capture_output=True, text=True, check=True
            ).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+)", usage)
    if found is None:
        raise KernelError("cuobjdump reported no resource usage")
    counts = dict.fromkeys(COUNTED, 0)
    for opcode in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", sass):
        if opcode in counts:
            counts[opcode] += 1
    return Resources(
        arch=arch,
        num_warps=num_warps,
        shared_bytes=shared_bytes,
        registers=int(found[1]),
        spill_instructions=counts["LDL"] + counts["STL"],
        instructions={name: count for name, count in counts.items() if count},
    )


def compile_elsewhere(jobs: Sequence[Job]) -> list[Resources]:
    """Compile the jobs in one fresh process without TRITON_INTERPRET; results in the same order.

    Raises `KernelError` with the compiler's last lines when a job does not compile.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "lcprof_kernels.offline"],
        input=json.dumps([asdict(job) for job in jobs]),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        raise KernelError("the compiler failed: " + "\n".join(done.stderr.splitlines()[-12:]))
    return [Resources(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    """Read jobs as JSON on standard input, print their resources as one line of JSON."""
    results = [asdict(compile_here(Job(**entry))) for entry in json.load(sys.stdin)]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
