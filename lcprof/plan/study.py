"""What a report shows of a plan beyond its rows: the choice among them, and what lies around it.

Tables map a column to its values, all of one length. Times are given even where a point does not
fit; whoever shows them compares the bytes with the capacity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from lcprof.cost.expected.task import UnmeasuredError
from lcprof.cost.expected.whole import Clock
from lcprof.cost.total import Work
from lcprof.domain.calibration import Found
from lcprof.domain.case import Case
from lcprof.domain.deployment import Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.kv import parse_kv
from lcprof.domain.workload import Workload
from lcprof.num import Num
from lcprof.plan.crossover import attention_read_bytes
from lcprof.plan.estimate import Counts, Estimate, capacity_bytes, count, finish, remade
from lcprof.plan.fits import fits_for
from lcprof.plan.row import Row
from lcprof.plan.search import LIMIT, max_concurrency, max_context_tokens
from lcprof.plan.times import NAMED, passes, times

Table: TypeAlias = dict[str, list[Any]]

ALIKE = 0.05
"""Lines that differ by no more of their height are drawn as one."""
SHORTEST_TOKENS = 4096.0
LONGEST_TOKENS = 2.0**22
BEYOND = 4.0
"""How far past the planned context curves reach, times."""
PER_OCTAVE = 4
MOST_SEQUENCES = 1024.0
GRID_POINTS = 6000
"""The most points of the grid that a page's sliders move on."""
GRID_SEQUENCES = 128.0
GRID_GPUS = ("a100-80gb-sxm", "h100-sxm", "h200-sxm", "b200")
FOLDED = {"projections", "kv write", "select", "dequantise"}
"""Work that a fused kernel may do together with attention, and that is then timed with it."""


def kinds(cases: Iterable[Case]) -> list[Case]:
    """The first case of each kind: of those that differ in context and concurrency alone."""
    found: dict[Any, Case] = {}
    for case in cases:
        found.setdefault(kind(case), case)
    return list(found.values())


def kind(case: Case) -> tuple[Any, ...]:
    """What cases have in common that differ in context and concurrency alone."""
    workload = replace(case.workload, context_tokens=0.0, concurrency=0.0)
    return case.model, case.deployment, case.kv_spec, workload


def alike(ones: Sequence[float], others: Sequence[float]) -> bool:
    """Whether two lines are hard to tell apart in a chart."""
    pairs = zip(ones, others, strict=True)
    return all(abs(one - other) <= ALIKE * other for one, other in pairs)


def longest_tokens(case: Case, sequences: float) -> float | None:
    """The longest context that fits with so many sequences; None where memory sets no bound."""
    workload = replace(case.workload, concurrency=sequences)
    found = max_context_tokens(
        remade(case.model, case.kv),
        case.deployment,
        case.kv,
        workload,
        capacity_bytes(case.deployment),
    )
    return None if found >= LIMIT else found


def lengths(case: Case, planned: Iterable[float], per_octave: int) -> list[float]:
    """Contexts from 4 K to four times the longest that was planned, evenly spaced in their
    logarithm, and the planned ones; whole tokens beyond the shared prefix."""
    asked = sorted(set(planned))
    end = min(max(asked[-1] * BEYOND, 2.0**17), max(LONGEST_TOKENS, asked[-1]))
    start = min(SHORTEST_TOKENS, asked[0])
    steps = math.ceil(math.log2(end / start) * per_octave)
    even = {float(round(start * 2.0 ** (step / per_octave))) for step in range(steps + 1)}
    least = case.workload.prefix_tokens + 1.0
    return sorted(tokens for tokens in even | set(asked) if least <= tokens <= end)


def batches(most: float, planned: Iterable[float]) -> list[float]:
    """Powers of two up to `most`, and the planned batches."""
    powers = {2.0**step for step in range(int(math.log2(max(most, 1.0))) + 1)}
    return sorted(powers | set(planned))


def swept(
    case: Case,
    contexts: Sequence[float],
    sequences: Sequence[float],
    names: Sequence[str],
    deployments: Sequence[Deployment] = (),
    kv: Sequence[str] = (),
) -> list[Table]:
    """Columns of a plan for a case over contexts x batches, the last fastest, None for what is not
    known or not bounded. With KV strategies or deployments of one layout: a table for each strategy
    on each deployment, strategies first. Raises InputError for a damaged calibration."""
    import numpy as np

    grid: Workload[Any] = replace(
        case.workload,
        context_tokens=np.asarray(contexts, dtype=np.float64).reshape(-1, 1),
        concurrency=np.asarray(sequences, dtype=np.float64).reshape(1, -1),
    )
    shape = len(contexts), len(sequences)
    places = list(deployments) or [case.deployment]
    clocks = [Clock(place.gpu, fits_for(place.gpu)) for place in places]
    strategies = [parse_kv(spec, where="kv") for spec in kv] or [case.kv]
    sizes = {"context_tokens", "concurrency", "max_concurrency", *Estimate.__struct_fields__}
    tables: list[Table] = []
    for strategy in strategies:
        counts = count(case.model, places[0], strategy, grid)
        for place, clock in zip(places, clocks, strict=True):
            sized = finish(counts, place)
            timed = None
            if not sizes.issuperset(names):
                timed, _, _ = times(counts, place, clock, sized, shown=True)
            found: dict[str, Any] = {
                "context_tokens": grid.context_tokens,
                "concurrency": grid.concurrency,
            }
            if "max_concurrency" in names:
                asked = (counts.model, place, strategy, grid, capacity_bytes(place))
                most = max_concurrency(*asked)
                found["max_concurrency"] = np.where(most >= LIMIT, np.nan, most)
            table: Table = {}
            for name in names:
                values = found.get(name, getattr(sized, name, getattr(timed, name, None)))
                said: tuple[str, ...] = ()
                if values is None:
                    values, said = getattr(timed, f"{name}_code"), NAMED["_basis_code"]
                flat = np.broadcast_to(values, shape).ravel().tolist()
                table[name] = [said[int(v)] or None if said else _known(v) for v in flat]
            tables.append(table)
    return tables


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def context_shares(case: Case, contexts: Sequence[float]) -> Table:
    """The share of attention in a prefill's FLOPs, and of the cache in what a decode step reads on
    a GPU, at each context."""
    import numpy as np

    workload: Workload[Any] = replace(case.workload, context_tokens=np.asarray(contexts))
    counts: Counts[Any] = count(case.model, case.deployment, case.kv, workload)
    prefill = counts.prefill.flops("attention") / counts.prefill_flops
    read = attention_read_bytes(counts.step) / counts.step.stages[0].read_bytes
    return {
        "context_tokens": list(contexts),
        "attention_share_of_prefill_flops": prefill.tolist(),
        "kv_share_of_step_bytes": read.tolist(),
    }


def operations(row: Row) -> tuple[Table, list[Found]]:
    """A prefill and a decode step by operation, and the measured kernels that they rest on.

    `seconds` with the ends of their interval are those of the expected time, and add up to it.
    `flops` and `hbm_bytes` are one GPU's, the mean over pipeline stages. Empty where no time can be
    given.
    """
    case = row.case
    deployment = case.deployment
    table: Table = {name: [] for name in OPERATION_COLUMNS}
    if not row.has_times or row.times is None or row.no_times:
        return table, []
    counts = count(case.model, deployment, case.kv, case.workload)
    clock = Clock(deployment.gpu, fits_for(deployment.gpu))
    try:
        held_to_power = passes(counts, deployment, clock)
    except UnmeasuredError:
        return table, []
    kernels: dict[Any, Found] = {}
    share = 1.0 / deployment.pp
    for phase, held, work in (
        ("prefill", held_to_power.alone.expected, counts.prefill),
        ("decode step", held_to_power.step.expected, counts.step),
    ):
        timed = {part.operation for part in held.parts}
        sums = _work_by(work, timed)
        for part in held.parts:
            flops, moved, compute = sums.get(part.operation, (0.0, 0.0, ""))
            for found in part.found:
                kernels.setdefault((found.variant, found.measured_on), found)
            values = (
                phase,
                part.operation,
                part.seconds,
                part.seconds - part.below_s,
                part.seconds + part.above_s,
                part.seconds / held.seconds,
                flops * share,
                moved * share,
                compute,
                part.distance,
                ", ".join(dict.fromkeys(_kernel(found) for found in part.found)),
            )
            for name, value in zip(OPERATION_COLUMNS, values, strict=True):
                table[name].append(value)
    return table, list(kernels.values())


OPERATION_COLUMNS = (
    *("phase", "operation", "seconds", "low_s", "high_s", "share"),
    *("flops", "hbm_bytes", "compute", "distance", "kernels"),
)


def _kernel(found: Found) -> str:
    stack, variant = found.variant
    return f"{stack} {variant} on {found.measured_on}"


def _work_by(work: Work[Num], timed: set[str]) -> dict[str, tuple[float, float, str]]:
    """FLOPs, bytes of GPU memory and the dtype of most FLOPs by timed operation; work that is timed
    as part of attention is counted there."""
    flops: dict[str, dict[str, float]] = {}
    moved: dict[str, float] = {}
    for part in work.whole:
        operation = part.operation
        name = operation.name
        if name not in timed and name in FOLDED:
            name = "attention"
        rates = flops.setdefault(name, {})
        done = operation.rank_flops * part.count
        rates[operation.compute] = rates.get(operation.compute, 0.0) + float(done)
        read = (operation.rank_read_bytes + operation.rank_write_bytes) * part.count
        moved[name] = moved.get(name, 0.0) + float(read)
    return {
        name: (sum(rates.values()), moved[name], max(rates, key=lambda each: rates[each]))
        for name, rates in flops.items()
    }


def neighbours(case: Case, gpus: Iterable[Gpu]) -> list[Deployment]:
    """The case's deployment, and the same on each other GPU at its own price and power."""
    own = case.deployment
    others = [gpu for gpu in gpus if gpu.name != own.gpu.name]
    bare = replace(own, price_usd_per_gpu_hour=None, power_limit_w=None)
    return [own, *(replace(bare, gpu=gpu) for gpu in others)]


PROMPT_COLUMNS = ("ttft_s", "ttft_low_s", "ttft_high_s", "ttft_floor_s", "prefill_j")
STEP_COLUMNS = (
    *("total_bytes_per_gpu", "kv_reserved_bytes_per_gpu", "tpot_s", "tpot_low_s", "tpot_high_s"),
    *("tpot_floor_s", "output_tokens_per_s", "output_token_j", "request_usd"),
    "usd_per_million_output_tokens",
)


class Grid(Struct, frozen=True, kw_only=True):
    """Points of a page's sliders: `cases` (kinds) x `deployments` (one for each GPU) x `contexts` x
    `sequences`, flattened in this order, the last fastest. `prompt` has no batch among its axes,
    since a prompt is read alone; `capacity_bytes` is by GPU."""

    cases: list[Case]
    deployments: list[Deployment]
    contexts: list[float]
    sequences: list[float]
    capacity_bytes: list[float]
    prompt: Table
    step: Table


def grid(rows: Sequence[Row], centre: Row, gpus: Iterable[Gpu]) -> Grid:
    """The grid around `centre` for the kinds of `rows`; GPUs beyond `centre`'s, then kinds, are
    left out where there would be more than `GRID_POINTS` points."""
    contexts = lengths(centre.case, (row.case.workload.context_tokens for row in rows), 1)
    sequences = batches(GRID_SEQUENCES, (row.case.workload.concurrency for row in rows))
    each = len(contexts) * len(sequences)
    alike = [row.case for row in (centre, *rows) if _like(row.case, centre.case)]
    held = kinds(alike)
    held = [
        case for group in _laid_out_alike(held[: max(1, GRID_POINTS // each)]) for case in group
    ]
    near = neighbours(centre.case, gpus)[: max(1, GRID_POINTS // each // len(held))]
    prompt: Table = {name: [] for name in PROMPT_COLUMNS}
    step: Table = {name: [] for name in STEP_COLUMNS}
    names = (*PROMPT_COLUMNS, *STEP_COLUMNS)
    for alike in _laid_out_alike(held):
        first = alike[0]
        placed = [_on(first, deployment) for deployment in near]
        specs = [case.kv_spec for case in alike]
        for table in swept(first, contexts, sequences, names, placed, specs):
            for name in STEP_COLUMNS:
                step[name] += table[name]
            for name in PROMPT_COLUMNS:
                prompt[name] += table[name][:: len(sequences)]
    return Grid(
        cases=held,
        deployments=near,
        contexts=contexts,
        sequences=sequences,
        capacity_bytes=[capacity_bytes(deployment) for deployment in near],
        prompt=prompt,
        step=step,
    )


def _laid_out_alike(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases in groups that differ in their KV strategy alone."""
    groups: dict[Any, list[Case]] = {}
    for case in cases:
        workload = replace(case.workload, context_tokens=0.0, concurrency=0.0)
        groups.setdefault((case.model, case.deployment, workload), []).append(case)
    return list(groups.values())


def _like(case: Case, centre: Case) -> bool:
    return case.deployment.gpu is centre.deployment.gpu


def _on(case: Case, there: Deployment) -> Deployment:
    """The case's layout on another deployment's GPU, at that one's price and power."""
    return replace(
        case.deployment,
        gpu=there.gpu,
        price_usd_per_gpu_hour=there.price_usd_per_gpu_hour,
        power_limit_w=there.power_limit_w,
    )
