"""The command line. The only room that talks to a terminal user.

Commands import what they need when they run, so that a cold `lcprof plan` starts fast.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lcprof import __version__
from lcprof.errors import InputError, LcprofError, nearest
from lcprof.flags import Asked, answers, axis_options, flag_of, plan_asked

if TYPE_CHECKING:
    from lcprof.domain.engine import Engine
    from lcprof.measure.record import Record
    from lcprof.plan.row import Row

FITS, BROKEN_PIPE, BAD_INPUT, NONE_FITS, INTERRUPTED = 0, 1, 2, 3, 130

PLAN_EPILOG = """\b
Examples:
  lcprof plan scenarios/smoke.yaml
  lcprof plan --model llama-3.1-8b --gpu h200-sxm --context 1M --kv bf16 --kv fp8
  lcprof plan --model llama-3.1-70b --gpu h100-sxm --gpus 8 --context 32K,128K --json
  lcprof plan --model llama-3.1-8b --gpu h200-sxm --context 128K --engine vllm
Exit status: 0 when a row fits, 3 when none does, 2 for bad input."""

REPORT_EPILOG = """\b
Examples:
  lcprof report scenarios/smoke.yaml -o page.html
  lcprof report scenarios/smoke.yaml --kv fp8 --markdown
  lcprof report runs/llama-cuda -o page.html
  lcprof report scenarios/smoke.yaml runs/smoke-cpu
Exit status: 0 when a row fits or a point was measured, 3 when none does or was, 2 for bad input."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (sys.argv by default) and returns the exit status."""
    from lcprof.cli_measure import COMMANDS

    for command in COMMANDS:
        cli.add_command(command)
    if sys.stdout is None:
        # Closed by the caller; it stays open for as long as the process lives.
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    try:
        status = cli.main(
            None if arguments is None else list(arguments), "lcprof", standalone_mode=False
        )
        sys.stdout.flush()
    except InputError as error:
        return _refuse(str(fault) for fault in error.faults)
    except LcprofError as error:
        _refuse([str(error)])
        return NONE_FITS
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return BAD_INPUT
    except click.ClickException as error:
        return _refuse([error.format_message()])
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; the interpreter's own flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        return _refuse([f"standard output: {error.strerror or error}"])
    return status if isinstance(status, int) else FITS


def _refuse(messages: Iterable[str]) -> int:
    for message in messages:
        line = " ".join(message.split())
        print("error:", "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return BAD_INPUT


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """What does long context cost? Bytes, FLOPs and what fits, without a GPU."""


@cli.command(epilog=PLAN_EPILOG)
@click.argument("scenario", required=False, metavar="[SCENARIO.yaml]")
@axis_options
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="any scenario key")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list of rows")
@click.option("--csv", "csv_path", metavar="FILE", help="also write the rows to a CSV file")
@click.option(
    "--explain",
    is_flag=False,
    flag_value="",
    metavar="[COLUMN]",
    help="print formulas, values and sources of what is computed, or of one column",
)
@click.option("--engine", metavar="NAME", help="launch line and reservation: vllm, sglang, trtllm")
@click.option("--hypothetical", is_flag=True, help="times even of what does not fit")
@click.option("--html", "html_path", metavar="PAGE", help="also write the page of a report")
@click.option("--markdown", is_flag=True, help="print Markdown, as for a pull request")
def plan(
    scenario: str | None,
    settings: tuple[str, ...],
    as_json: bool,
    csv_path: str | None,
    explain: str | None,
    engine: str | None,
    hypothetical: bool,
    html_path: str | None,
    markdown: bool,
    **axes: tuple[str, ...],
) -> int:
    """Plan a scenario: does it fit, what does it cost, what would change that.

    Flags override the file. Any of them takes several values, repeated or separated by commas;
    the plan is then a table with a row for every combination.
    """
    if explain and scenario is None and explain.endswith((".yaml", ".yml")):
        # `--explain FILE`: the optional COLUMN was left out.
        scenario, explain = explain, ""
    if as_json and explain is not None:
        raise click.UsageError("--json and --explain cannot be given together")
    if engine is not None and explain is not None:
        raise click.UsageError("--engine and --explain cannot be given together")
    if markdown and (as_json or explain is not None or engine is not None):
        raise click.UsageError("--markdown stands alone, without --json, --explain or --engine")
    from lcprof.pages import engine_called, page_record
    from lcprof.scenario.schema import COMBINATIONS_LIMIT

    given = () if scenario is None else (scenario,)
    command = _command("plan", given, axes, settings, hypothetical=hypothetical)
    serving = engine_called(engine) if engine is not None else None
    column = explain or ""
    if serving is not None:
        axes["stack"] = axes["stack"] or (serving.name,)
    asked = plan_asked(scenario, axes, settings, hypothetical=hypothetical, wide=True)
    rows = asked.rows
    if as_json and asked.wide is not None:
        expected = f"at most {COMBINATIONS_LIMIT:,} for --json; --csv FILE writes all"
        raise InputError.one("--json", given=f"{asked.planned:,} rows", expected=expected)

    from lcprof.report import export

    if csv_path:
        _write_rows(asked, csv_path)
    if html_path:
        whole = shlex.join([*command, "--html", html_path])
        _write_page(page_record(asked, (), whole), html_path, where="--html")
    if as_json:
        print(export.json_text(rows, _engine_records(rows, serving)))
    elif explain is not None:
        _print_explanations(rows, column)
    elif markdown:
        _print_markdown(asked, ())
    else:
        _print_page(asked, serving)
    return FITS if asked.fitting else NONE_FITS


@cli.command(epilog=REPORT_EPILOG)
@click.argument("sources", nargs=-1, required=True, metavar="SCENARIO.yaml|RUN...|RECORD.json")
@axis_options
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="any scenario key")
@click.option("-o", "--to", metavar="PAGE", help="named after the first source by default")
@click.option("--open", "opened", is_flag=True, help="show the page in a browser")
@click.option("--csv", "as_csv", is_flag=True, help="also write each table, to PAGE-tables/")
@click.option("--record", "record_path", metavar="FILE", help="also write what rebuilds the page")
@click.option("--date", default="", metavar="TEXT", help="a date to print; none by default")
@click.option("--markdown", is_flag=True, help="print Markdown in place of writing a page")
@click.option("--hypothetical", is_flag=True, help="times even of what does not fit")
def report(
    sources: tuple[str, ...],
    settings: tuple[str, ...],
    to: str | None,
    opened: bool,
    as_csv: bool,
    record_path: str | None,
    date: str,
    markdown: bool,
    hypothetical: bool,
    **axes: tuple[str, ...],
) -> int:
    """Write the page of a plan, of runs, or of both: one HTML file that opens offline.

    RUN is a folder that `lcprof measure` wrote, or its record. Of a RECORD.json that --record
    wrote, the same page is built again without planning.
    """
    from lcprof.measure.record import read_record as read_run
    from lcprof.pages import page_record
    from lcprof.report import export
    from lcprof.report.html.record import read_record, table_csv, write_record

    scenario, runs, built = _sorted_sources(sources)
    flagged = bool(settings or any(axes.values()))
    if built is not None and (markdown or flagged):
        raise click.UsageError("a record is built as it is; flags need its scenario")
    if scenario is None and built is None and flagged:
        raise click.UsageError("a run is shown as it was measured; flags need a scenario")
    asked = None
    if built is not None:
        record = read_record(Path(built))
    else:
        command = _command("report", sources, axes, settings, hypothetical=hypothetical)
        measured = [read_run(run) for run in runs]
        if scenario is not None:
            asked = plan_asked(scenario, axes, settings, hypothetical=hypothetical, wide=True)
        if markdown:
            return _print_markdown(asked, measured)
        record = page_record(asked, measured, shlex.join(command), date)
    page = to or f"{Path(sources[0]).absolute().stem}.html"
    _write_page(record, page, where="--to", source=built)
    if record_path:
        export.write_text(record_path, write_record(record), where="--record")
    if as_csv:
        folder = Path(f"{page.removesuffix('.html')}-tables")
        tables = {f"{name}.csv": table_csv(table) for name, table in record["tables"].items()}
        export.write_folder(folder, tables, where="--csv")
        if asked is not None:
            _write_rows(asked, str(folder / "plan.csv"))
    print(page)
    if opened:
        import webbrowser

        webbrowser.open(Path(page).resolve().as_uri())
    return FITS if _says_yes(record["tables"]) else NONE_FITS


def _sorted_sources(sources: Sequence[str]) -> tuple[str | None, list[Path], str | None]:
    """The scenario, the runs and the record of a page among what was given. Raises InputError."""
    scenarios: list[str] = []
    runs: list[Path] = []
    built: list[str] = []
    for source in sources:
        path = Path(source)
        if path.suffix == ".json":
            built.append(source)
        elif path.suffix == ".jsonl" or path.is_dir():
            runs.append(path)
        else:
            scenarios.append(source)
    if built and len(sources) > 1:
        expected = "a RECORD.json alone, since it holds a whole page"
        raise InputError.one("lcprof report", given=" ".join(sources), expected=expected)
    if len(scenarios) > 1:
        expected = "one scenario at most, and runs (folders, or their record.jsonl)"
        raise InputError.one("lcprof report", given=" ".join(scenarios), expected=expected)
    return next(iter(scenarios), None), runs, next(iter(built), None)


def _says_yes(tables: Mapping[str, Any]) -> bool:
    """Whether a page's answer is yes: a row fits or, of runs alone, a point was measured."""
    if "rows" in tables:
        return bool(tables["about"]["columns"]["rows_fitting"][0])
    return any(tables["runs"]["columns"]["measured"])


@cli.command()
@click.argument("kind", required=False, type=click.Choice(["models", "gpus", "kv"]))
@click.argument("name", required=False)
def catalog(kind: str | None, name: str | None) -> None:
    """List what is known by name, or show one entry with its sources.

    `lcprof catalog models PATH` shows how a config.json of your own is read.
    """
    from lcprof.report import catalog as pages
    from lcprof.report.screen import Screen

    screen = Screen(sys.stdout)
    if name is None:
        for each in (kind,) if kind else ("models", "gpus", "kv"):
            screen.show(_catalog_list(each, screen, titled=kind is None))
    elif kind == "models":
        from lcprof.domain.kv.dense import Dense
        from lcprof.plan.estimate import token_bytes
        from lcprof.scenario.models import load_model, model_card

        model = load_model(name, where="lcprof catalog models")
        try:
            card = model_card(name)
        except InputError:
            card = None
        screen.show(pages.model_page(model, card, token_bytes(model, Dense())))
    elif kind == "gpus":
        from lcprof.scenario.gpus import gpu_card

        screen.show(pages.gpu_page(gpu_card(name)))
    else:
        screen.show(pages.kv_page(_strategy(name)))


@cli.command()
@click.option("--gpu", metavar="NAME", help="per framework on one GPU, in place of all pooled")
def accuracy(gpu: str | None) -> None:
    """Show how far predictions were from published measurements, on held-out groups."""
    from lcprof.report.accuracy import accuracy_page
    from lcprof.report.screen import Screen
    from lcprof.scenario.accuracy import load_accuracy, on_gpu, pooled

    scores = load_accuracy()
    found = pooled(scores) if gpu is None else on_gpu(scores, gpu, where="--gpu")
    Screen(sys.stdout).show(accuracy_page(found))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a scenario, for editors."""
    import json

    from lcprof.scenario.schema import scenario_schema

    print(json.dumps(scenario_schema(), indent=2))


def _print_explanations(rows: Sequence[Row], column: str) -> None:
    from lcprof.plan.explain import ACCOUNTS, explain, missing
    from lcprof.report.explain import explanation_page
    from lcprof.report.screen import Screen

    if column and column not in ACCOUNTS:
        expected = f"a column with a formula; {nearest(column, ACCOUNTS) or ', '.join(ACCOUNTS)}"
        raise InputError.one("--explain", given=column, expected=expected)
    found = [explain(row) for row in rows]
    if column and not any(each.column == column for row in found for each in row):
        expected = f"a number that there is: {missing(rows[0], column)}"
        raise InputError.one("--explain", given=column, expected=expected)
    screen = Screen(sys.stdout)
    for row, explanations in zip(rows, found, strict=True):
        chosen = [each for each in explanations if column in ("", each.column)]
        screen.show(explanation_page(row, chosen, titled=len(rows) > 1))


def _engine_records(rows: Sequence[Row], engine: Engine | None) -> list[dict[str, Any]]:
    if engine is None:
        return []
    from lcprof.report.engine import engine_answer, engine_record

    return [engine_record(engine_answer(row, engine)) for row in rows]


def _print_page(asked: Asked, engine: Engine | None) -> None:
    from lcprof.report.console import row_label, show_plan, subject
    from lcprof.report.screen import Screen

    screen = Screen(sys.stdout)
    row = subject(asked.rows)
    if asked.wide is not None:
        screen.paste(
            [
                f"{asked.planned:,} rows were planned, {asked.fitting:,} fit. Below are "
                f"{len(asked.rows)} of them: the first,",
                "the best of each kind, and those that rank first. --csv FILE writes all.",
                "",
            ]
        )
    show_plan(asked.rows, answers(row, asked), asked.question, screen)
    if engine is not None:
        from lcprof.report.engine import engine_answer, show_engine
        from lcprof.report.table import varying

        several = len(asked.rows) > 1
        label = row_label(row, varying(asked.rows)) if several else ""
        show_engine(engine_answer(row, engine), screen, label)


def _write_rows(asked: Asked, path: str) -> None:
    """Every planned row as CSV."""
    from lcprof.report import export

    if asked.wide is None:
        export.write_text(path, export.csv_text(asked.rows), where="--csv")
    else:
        from lcprof.plan.wide import frames

        export.write_frames(path, frames(asked.wide), where="--csv")


def _write_page(
    record: Mapping[str, Any], path: str, *, where: str, source: str | None = None
) -> None:
    from lcprof.report import export
    from lcprof.report.html.page import html_page

    try:
        page = html_page(record)
    except (LookupError, TypeError, ValueError, ArithmeticError):
        # Only a record from a file can lack a column or hold a value of another kind.
        if source is None:
            raise
        expected = "a record that lcprof report wrote, with all its columns"
        raise InputError.one(source, given="a damaged table", expected=expected) from None
    export.write_text(path, page, where=where)


def _print_markdown(asked: Asked | None, runs: Sequence[Record]) -> int:
    """Prints a plan, runs, or both; the exit status says whether a row fits or, of runs alone, a
    point was measured."""
    from lcprof.report.screen import Screen

    parts, good = [], False
    if asked is not None:
        from lcprof.plan.choice import chosen
        from lcprof.report.markdown import markdown_page

        row = chosen(asked.rows)
        said = answers(row, asked)
        parts.append(markdown_page(asked.rows, said, asked.question, asked.planned))
        good = bool(row.estimate.fits)
    if runs:
        from lcprof.report.run_markdown import run_markdown

        parts.append(run_markdown(runs))
        rows = [row for run in runs for row in run.rows.values()]
        good = good or (asked is None and any(row.status == "measured" for row in rows))
    Screen(sys.stdout).paste("\n".join(parts).splitlines())
    return FITS if good else NONE_FITS


def _command(
    name: str,
    sources: Sequence[str],
    axes: Mapping[str, tuple[str, ...]],
    settings: tuple[str, ...],
    *,
    hypothetical: bool,
) -> list[str]:
    """The words that plan or show the same again."""
    words = ["lcprof", name, *sources]
    words += [
        word for key, texts in axes.items() for text in texts for word in (flag_of(key), text)
    ]
    words += [word for setting in settings for word in ("--set", setting)]
    return [*words, "--hypothetical"] if hypothetical else words


def _catalog_list(kind: str, screen: Any, *, titled: bool) -> list[Any]:
    from lcprof.report import catalog as pages

    if kind == "models":
        from lcprof.scenario.models import model_card, model_names

        return pages.model_list([model_card(name) for name in model_names()], titled=titled)
    if kind == "gpus":
        from lcprof.scenario.gpus import gpu_names, load_gpu

        gpus = [load_gpu(name, where="lcprof catalog gpus") for name in gpu_names()]
        return pages.gpu_list(gpus, titled=titled)
    from lcprof.domain.kv import STRATEGIES

    return pages.kv_list(STRATEGIES, titled=titled)


def _strategy(name: str) -> Any:
    from lcprof.domain.kv import STRATEGIES

    kinds = {strategy.kind: strategy for strategy in STRATEGIES}
    if name not in kinds:
        hint = nearest(name, kinds) or "one of " + ", ".join(kinds)
        raise InputError.one("lcprof catalog kv", given=name, expected=f"a KV strategy; {hint}")
    return kinds[name]
