"""The commands that measure: `measure`, `compare`, `calibrate`, `doctor`. They stand beside `cli`,
which adds them to its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from lcprof.cli import BAD_INPUT, FITS, INTERRUPTED, NONE_FITS
from lcprof.errors import InputError
from lcprof.flags import Asked, axis_options, plan_asked

if TYPE_CHECKING:
    from lcprof.domain.calibration import Calibration
    from lcprof.domain.case import Case
    from lcprof.domain.gpu import Gpu
    from lcprof.measure.floors import Prediction
    from lcprof.measure.points import Point
    from lcprof.measure.ranks import Place, Ranks
    from lcprof.measure.runner import Outcome
    from lcprof.scenario.measuring import Measuring

T = TypeVar("T")

IMPOSSIBLE = OFF_LIMIT = NONE_FITS
SHOWN_ROWS = 20
SUSTAINED_S = 1.0

MEASURE_EPILOG = """\b
Examples:
  lcprof measure scenarios/llama-3.1-8b-1m-one-h200.yaml -o runs/llama --budget 5m
  lcprof measure scenarios/standard/*.yaml --only all --ceilings
  lcprof measure scenarios/smoke.yaml --device cpu
  lcprof measure scenarios/smoke.yaml --device cpu --resume
  lcprof measure --ceilings
  torchrun --nproc-per-node=8 -m lcprof measure scenarios/standard/llama-3.1-70b.yaml --tp 8
Exit status: 0 when every row was measured or has its reason, 3 when nothing could be measured, a
result was wrong or the GPU was lost, 2 for bad input, 130 after Ctrl-C."""


@click.command(epilog=MEASURE_EPILOG)
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO.yaml]...")
@axis_options
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="any scenario key")
@click.option("-o", "run", metavar="RUN", help="folder of the record; runs/NAME-DEVICE by default")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--impl", "impls", multiple=True, metavar="NAME", help="lcprof, torch, naive, ...")
@click.option("--only", multiple=True, metavar="OPERATION", help="decode_attention, all, ...")
@click.option("--budget", metavar="TIME", help="begin no point after this long: 5m")
@click.option("--sustained", metavar="TIME", help="0 for none; 1 s by default")
@click.option("--max-batch", metavar="N", help="leave out more sequences at once")
@click.option("--max-context", metavar="TOKENS", help="leave out longer prompts")
@click.option("--ceilings", is_flag=True, help="bandwidths, products and launches first")
@click.option("--counters", is_flag=True, help="bytes and FLOPs by Nsight Compute, point by point")
@click.option("--trace", is_flag=True, help="keep each point's Chrome trace in RUN/traces")
@click.option("--timeline", is_flag=True, help="keep what each point allocates in RUN/traces")
@click.option("--resume", is_flag=True, help="go on with the record in RUN")
@click.option("--beside-others", is_flag=True, help="although other processes use the GPU")
def measure(
    scenarios: tuple[str, ...],
    settings: tuple[str, ...],
    run: str | None,
    device: Literal["cuda", "cpu"],
    impls: tuple[str, ...],
    only: tuple[str, ...],
    budget: str | None,
    sustained: str | None,
    max_batch: str | None,
    max_context: str | None,
    ceilings: bool,
    counters: bool,
    trace: bool,
    timeline: bool,
    resume: bool,
    beside_others: bool,
    **axes: tuple[str, ...],
) -> int:
    """Run the kernels of scenarios on the GPU at hand and put what they took beside the plan.

    What several scenarios share is measured once. Every row is on the disk once it is measured; a
    run that ended early goes on with --resume. Flags win over a scenario's `measure` block.
    """
    from lcprof.measure.groups import check_ranks
    from lcprof.measure.machine import catalogued, flops_per_cycle
    from lcprof.measure.ranks import place_of
    from lcprof.measure.record import record_path
    from lcprof.measure.runner import Settings
    from lcprof.measure.session import Wish, counter_of, open_session, run_session
    from lcprof.report.progress import measuring

    place = place_of()
    if place is not None and place.rank:
        # All ranks plan the same, and refuse the same; the first one says so.
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    flags = _measuring(impls, only, budget, sustained, max_batch, max_context)
    bare = not scenarios and not settings and not any(axes.values())
    if bare and not ceilings:
        raise InputError.one(
            "measure", given="nothing", expected="a scenario, flags that make one, or --ceilings"
        )
    asked = [] if bare else [plan_asked(each, axes, settings) for each in scenarios or (None,)]
    taken = [each.measure.under(flags) for each in asked] or [flags]
    cases = [row.case for each in asked for row in each.rows]
    points = _points(asked, taken, device, grouped=place is not None)
    if place is not None and not bare:
        check_ranks(points, place.size)
    folder = Path(run or f"runs/{_stem(scenarios, bare=bare)}-{device}")
    given = cases[0].deployment.gpu if axes["gpu"] and cases else None
    ranks = _joined(place, device)

    def work() -> int:
        index = 0 if place is None else place.local_rank
        session = open_session(device, beside_others=beside_others, index=index)
        sheet = given or catalogued(session.name, session.facts.memory_bytes)
        sheet = sheet if device == "cuda" else None
        traces = record_path(folder).parent / "traces"
        wish = Wish(
            run=folder,
            points=points,
            predictions=_predictions(points, sheet, session.facts.power_limit_w),
            scenario=_scenario_text(scenarios, axes, settings),
            command=("lcprof", *sys.argv[1:]),
            ceilings=ceilings,
            resume=resume,
            counter=counter_of(device, ranks=ranks.size) if counters else None,
        )
        how = Settings(
            budget_s=_longest(each.budget for each in taken),
            sustained_s=_longest((each.sustained for each in taken), SUSTAINED_S) or 0.0,
            trace=traces if trace else None,
            timeline=traces if timeline else None,
            flops_per_cycle=flops_per_cycle(sheet),
            bandwidth_bytes_per_s=None if sheet is None else sheet.bandwidth_bytes_per_s,
        )
        with measuring(sys.stderr) as observe:
            result = run_session(session, wish, how, observe=observe, ranks=ranks)
        status = FITS
        if ranks.rank == 0:
            if result.dropped_bytes:
                words = f"a torn last line of {result.dropped_bytes} bytes was cut off"
                print(words, file=sys.stderr)
            _print_record(folder)
            status = _measured_status(folder, result.outcome)
        return ranks.first(status)

    try:
        status = work()
    except KeyboardInterrupt:
        if record_path(folder).exists():
            kept = f"interrupted: {folder} keeps what was measured; --resume goes on"
            print(kept, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if ranks.size == 1:
            raise
        # The other ranks would wait for this one.
        bad = isinstance(error, InputError)
        ranks.fail("; ".join(str(error).splitlines()), BAD_INPUT if bad else IMPOSSIBLE)
    ranks.close()
    return status


def _joined(place: Place | None, device: Literal["cuda", "cpu"]) -> Ranks:
    """The ranks that measure together, where a launcher started several; only the first one speaks.
    Raises ImpossibleError."""
    from lcprof.measure.ranks import Alone, Together, check_gpus

    if place is None:
        return Alone()
    if find_spec("torch") is None:
        from lcprof.measure.device import open_device

        open_device(device)
    if device == "cuda":
        check_gpus(place)
    return Together(place, device)


def _stem(scenarios: Sequence[str], *, bare: bool) -> str:
    """What a run is called: after its scenario, or the folder of several."""
    if not scenarios:
        return "ceilings" if bare else "flags"
    first = Path(scenarios[0])
    return first.stem if len(scenarios) == 1 else first.resolve().parent.name or "several"


def _predictions(
    points: Sequence[Point], sheet: Gpu | None, limit_w: float | None
) -> list[Prediction]:
    """Floors of points and what calibrations expect of them, on the GPU of a data sheet that is
    held to a power limit; beside it what would be expected without any measurement on it."""
    from lcprof.calibrate.predictions import expectations, uncalibrated
    from lcprof.measure.floors import floors
    from lcprof.measure.groups import group_floors
    from lcprof.plan.fits import fits_for, power_for, published_fits

    found = floors([point for point in points if point.ranks == 1], sheet)
    found += group_floors([point for point in points if point.ranks > 1], sheet)
    if sheet is not None:
        power = power_for(sheet, limit_w)
        found += expectations(points, sheet, fits_for(sheet), power)
        found += uncalibrated(points, sheet, published_fits(sheet), power)
    return found


def _measured_status(folder: Path, outcome: Outcome) -> int:
    """What is left to say of a run, and its exit status."""
    from lcprof.measure.record import read_record

    if outcome.stopped:
        left = f"{outcome.left} points are left; --resume goes on" if outcome.left else ""
        print("stopped:", "; ".join(filter(None, (outcome.stopped, left))), file=sys.stderr)
    statuses = [row.status for row in read_record(folder).rows.values()]
    bad = {"wrong", "lost"} & set(statuses)
    return NONE_FITS if bad or "measured" not in statuses else FITS


def _measuring(
    impls: tuple[str, ...],
    only: tuple[str, ...],
    budget: str | None,
    sustained: str | None,
    max_batch: str | None,
    max_context: str | None,
) -> Measuring:
    """What flags say of the points to take. Raises InputError."""
    from lcprof.measure.points import chosen_operations, implementations
    from lcprof.scenario.fields import Duration, Seconds, Tokens
    from lcprof.scenario.measuring import Measuring
    from lcprof.units import parse_count

    # Refused here by the flag's name, whichever device they are for.
    chosen_operations(only)
    implementations(impls, "cuda")
    batch = _read("--max-batch", max_batch, lambda text: parse_count(text, unit="sequences"))
    if batch == 0:
        raise InputError.one("--max-batch", given=max_batch, expected="at least 1")
    return Measuring(
        only=only,
        impl=impls,
        budget=_read("--budget", budget, Seconds.read),
        sustained=_read("--sustained", sustained, Duration.read),
        max_batch=batch,
        max_context=_read("--max-context", max_context, Tokens.read),
    )


def _read(flag: str, text: str | None, read: Callable[[str], T]) -> T | None:
    """A flag's text as `read` has it, which raises ValueError with what it expected."""
    if text is None:
        return None
    try:
        return read(text)
    except ValueError as error:
        raise InputError.one(flag, given=text, expected=str(error)) from None


def _longest(times: Iterable[float | None], default: float | None = None) -> float | None:
    """The longest time that scenarios ask for, as one run measures them all."""
    return max((each for each in times if each is not None), default=default)


def _points(
    asked: Sequence[Asked],
    taken: Sequence[Measuring],
    device: Literal["cuda", "cpu"],
    *,
    grouped: bool,
) -> list[Point]:
    """The points that are taken of each scenario, each key once: those of one device, or `grouped`
    those of several ranks. Raises InputError where a scenario's limits leave nothing."""
    from lcprof.measure.groups import group_points
    from lcprof.measure.points import chosen_operations, implementations, points_of

    found: dict[str, Point] = {}
    for each, how in zip(asked, taken, strict=True):
        cases = [row.case for row in each.rows]
        find = group_points if grouped else points_of
        points = find(
            _within(cases, how),
            impls=implementations(how.impl, device),
            only=chosen_operations(how.only),
            device=device,
        )
        for point in points:
            found.setdefault(point.key, point)
    return list(found.values())


def _within(cases: Sequence[Case], how: Measuring) -> list[Case]:
    """The cases that the limits on sequences and context leave. Raises InputError for none."""
    for flag, most, name in (
        ("--max-batch", how.max_batch, "concurrency"),
        ("--max-context", how.max_context, "context_tokens"),
    ):
        if most is None:
            continue
        sizes = [getattr(case.workload, name) for case in cases]
        cases = [case for case, size in zip(cases, sizes, strict=True) if size <= most]
        if not cases:
            expected = f"at least the least that is planned, {min(sizes):.0f}"
            raise InputError.one(flag, given=f"{most:.0f}", expected=expected)
    return list(cases)


def _scenario_text(
    scenarios: Sequence[str], axes: Mapping[str, tuple[str, ...]], settings: tuple[str, ...]
) -> str:
    """The text that was planned: the files', and what flags changed of it."""
    text = "---\n".join(Path(each).read_text(encoding="utf-8") for each in scenarios)
    flags = [f"--{key} {each}" for key, given in axes.items() for each in given]
    flags += [f"--set {each}" for each in settings]
    return text + "".join(f"# {flag}\n" for flag in flags)


def _print_record(folder: Path) -> None:
    from lcprof.compare.residuals import residuals
    from lcprof.measure.record import read_record
    from lcprof.report.measured import record_page
    from lcprof.report.screen import Screen

    record = read_record(folder)
    found = residuals(record.rows.values())
    Screen(sys.stdout).show(record_page(record, found, shown=SHOWN_ROWS))
    print(f"record: {record.path}")


@click.command()
@click.argument("run")
@click.argument("other", required=False, metavar="[RUN2]")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list")
@click.option("--csv", "csv_path", metavar="FILE", help="also write RUN's rows to a CSV file")
@click.option("--max-error", metavar="SHARE", help="exit 3 when an error is larger: 10%")
def compare(
    run: str, other: str | None, as_json: bool, csv_path: str | None, max_error: str | None
) -> int:
    """Put a run's measurements beside its predictions, worst first; or two runs side by side.

    RUN is a run's folder or its record. Floors are shown, and no limit applies to them.
    """
    import msgspec

    from lcprof.compare import residuals as room
    from lcprof.measure.record import read_record
    from lcprof.report.measured import record_page, runs_page
    from lcprof.report.screen import Screen
    from lcprof.units import FRACTION_EXPECTED, parse_fraction

    limit = None
    if max_error is not None:
        try:
            limit = parse_fraction(max_error)
        except ValueError:
            raise InputError.one(
                "--max-error", given=max_error, expected=FRACTION_EXPECTED
            ) from None
    first = read_record(Path(run))
    if other is None:
        found = room.residuals(first.rows.values())
        sizes = [abs(each.error) for each in room.expectations(found)]
        page, items = record_page(first, found), list[Any](found)
    else:
        second = read_record(Path(other))
        changed = room.changes(first, second)
        sizes = [abs(each.change) for each in changed]
        alone = room.only_in(first, second), room.only_in(second, first)
        page = runs_page((run, other), changed, room.differences(first, second), alone)
        items = list(changed)
    if csv_path:
        from lcprof.compare.table import csv_text
        from lcprof.report.export import write_text

        write_text(csv_path, csv_text(first.rows.values()), where="--csv")
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(items)).decode())
    else:
        Screen(sys.stdout).show(page)
    if limit is None:
        return FITS
    if not sizes:
        print("--max-error: nothing was both predicted and measured", file=sys.stderr)
    return OFF_LIMIT if not sizes or max(sizes) > limit else FITS


CALIBRATE_EPILOG = """\b
Examples:
  lcprof calibrate runs/llama-cuda
  lcprof calibrate runs/one runs/two --hold-out
  lcprof calibrate runs/llama-cuda -o lcprof/catalog/calibrations
Exit status: 0 when something was fitted, 3 when nothing could be, 2 for bad input."""


@click.command(epilog=CALIBRATE_EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--hold-out", is_flag=True, help="fit two thirds of the shapes at most, score the others"
)
@click.option("-o", "target", metavar="PATH", help="a folder, or FILE.yaml; where plans look")
@click.option("--gpu", metavar="NAME", help="which GPU a run was on, where its name does not say")
def calibrate(runs: tuple[str, ...], hold_out: bool, target: str | None, gpu: str | None) -> int:
    """Fit lcprof's and PyTorch's kernels to what runs measured, for plans to come.

    RUN is a run's folder or its record, all on one GPU. `lcprof plan --stack lcprof` on that GPU
    then uses the fits, and says so. Without -o they go where it looks for them: the folder in
    $LCPROF_CALIBRATIONS, else ~/.local/share/lcprof/calibrations.
    """
    import shlex

    from lcprof.calibrate import runs as room
    from lcprof.cost.timing.families import PARAMETERS
    from lcprof.measure.record import read_record
    from lcprof.plan.fits import finder
    from lcprof.report.calibrated import calibrated_page
    from lcprof.report.screen import Screen
    from lcprof.scenario.gpus import load_gpu
    from lcprof.scenario.transport import Calibrations

    if find_spec("scipy") is None:
        raise room.NothingFittedError("no SciPy here, which fits: pip install scipy")
    records = [read_record(Path(run)) for run in runs]
    given = None if gpu is None else load_gpu(gpu, where="--gpu")
    which = room.gpu_of(records, given)
    before = finder(Calibrations(PARAMETERS), which)
    command = shlex.join(["lcprof", *sys.argv[1:]])
    found = room.calibrate(records, which, before=before, command=command, hold_out=hold_out)
    written = _write_calibrations(found.calibrations, target)
    Screen(sys.stdout).show(calibrated_page(found))
    print(*written, sep="\n")
    return FITS


def _write_calibrations(made: Sequence[Calibration], target: str | None) -> list[str]:
    """Writes calibrations where they were asked for, and says where that is and who reads them.
    Raises InputError."""
    from lcprof.scenario.calibrations import (
        FOLDER_VARIABLE,
        calibration_path,
        user_folder,
        write_calibration,
    )

    folder, file = user_folder() if target is None else Path(target), None
    if target is not None and folder.suffix in (".yaml", ".yml"):
        folder, file = folder.parent, folder
        if len(made) > 1:
            stacks = " and ".join(each.stack for each in made)
            expected = f"a folder, for {stacks} have a file each"
            raise InputError.one("-o", given=target, expected=expected)
    lines = []
    for each in made:
        path = file or calibration_path(each.gpu, each.stack, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replaced = " (another one was there)" if path.exists() else ""
            write_calibration(each, path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError.one(
                "-o", given=f"{path}: {reason}", expected="a folder that can be written to"
            ) from None
        lines.append(f"wrote {path}{replaced}")
    stacks = " or ".join(each.stack for each in made)
    use = f"lcprof plan --gpu {made[0].gpu} --stack {stacks}"
    if file is None and folder.absolute() == user_folder().absolute():
        return [*lines, f"{use} uses it from now on"]
    return [*lines, f"{use} uses GPU--STACK.yaml of the folder in ${FOLDER_VARIABLE}"]


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
def doctor(device: str) -> int:
    """Say what this machine can and cannot measure, each with the remedy; 3 when nothing."""
    from lcprof.measure.doctor import open_doctor, possible
    from lcprof.report.measured import doctor_page
    from lcprof.report.screen import Screen

    findings = open_doctor(device).examine()
    Screen(sys.stdout).show(doctor_page(findings))
    return FITS if possible(findings) else IMPOSSIBLE


COMMANDS = (measure, compare, calibrate, doctor)
