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
Exit status: 0 when a row fits, 3 when none does, 2 for bad input."""


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
    command = _command("plan", scenario, axes, settings, hypothetical=hypothetical)
    serving = _engine(engine) if engine is not None else None
    column = explain or ""
    if serving is not None:
        axes["stack"] = axes["stack"] or (serving.name,)
    asked = plan_asked(scenario, axes, settings, hypothetical=hypothetical)
    rows = asked.rows

    from lcprof.report import export

    if csv_path:
        export.write_text(csv_path, export.csv_text(rows), where="--csv")
    if html_path:
        whole = shlex.join([*command, "--html", html_path])
        _write_page(_report_record(asked, whole, ""), html_path, where="--html")
    if as_json:
        print(export.json_text(rows, _engine_records(rows, serving)))
    elif explain is not None:
        _print_explanations(rows, column)
    elif markdown:
        _print_markdown(asked)
    else:
        _print_page(asked, serving)
    return FITS if any(row.estimate.fits for row in rows) else NONE_FITS


@cli.command(epilog=REPORT_EPILOG)
@click.argument("source", metavar="SCENARIO.yaml|RECORD.json")
@axis_options
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="any scenario key")
@click.option("-o", "--to", metavar="PAGE", help="SCENARIO.html by default")
@click.option("--open", "opened", is_flag=True, help="show the page in a browser")
@click.option("--csv", "as_csv", is_flag=True, help="also write each table, to PAGE-tables/")
@click.option("--record", "record_path", metavar="FILE", help="also write what rebuilds the page")
@click.option("--date", default="", metavar="TEXT", help="a date to print; none by default")
@click.option("--markdown", is_flag=True, help="print Markdown in place of writing a page")
@click.option("--hypothetical", is_flag=True, help="times even of what does not fit")
def report(
    source: str,
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
    """Write the page of a plan: one HTML file that opens offline, for a capacity review.

    Of a record that --record wrote, the same page is built again without planning.
    """
    from lcprof.report import export
    from lcprof.report.html.record import read_record, table_csv, write_record

    if source.endswith(".json"):
        if markdown or settings or any(axes.values()):
            raise click.UsageError("a record is built as it is; flags need its scenario")
        record = read_record(Path(source))
    else:
        command = _command("report", source, axes, settings, hypothetical=hypothetical)
        asked = plan_asked(source, axes, settings, hypothetical=hypothetical)
        if markdown:
            _print_markdown(asked)
            return FITS if any(row.estimate.fits for row in asked.rows) else NONE_FITS
        record = _report_record(asked, shlex.join(command), date)
    page = to or f"{Path(source).stem}.html"
    _write_page(record, page, where="--to")
    if record_path:
        export.write_text(record_path, write_record(record), where="--record")
    if as_csv:
        folder = Path(f"{page.removesuffix('.html')}-tables")
        tables = {f"{name}.csv": table_csv(table) for name, table in record["tables"].items()}
        export.write_folder(folder, tables, where="--csv")
    print(page)
    if opened:
        import webbrowser

        webbrowser.open(Path(page).resolve().as_uri())
    return FITS if record["tables"]["about"]["columns"]["rows_fitting"][0] else NONE_FITS


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


def _engine(name: str) -> Engine:
    from lcprof.scenario.engines import load_engine

    return load_engine(name, where="--engine")


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
    show_plan(asked.rows, answers(row, asked), asked.question, screen)
    if engine is not None:
        from lcprof.report.engine import engine_answer, show_engine
        from lcprof.report.table import varying

        several = len(asked.rows) > 1
        label = row_label(row, varying(asked.rows)) if several else ""
        show_engine(engine_answer(row, engine), screen, label)


def _command(
    name: str,
    source: str | None,
    axes: Mapping[str, tuple[str, ...]],
    settings: tuple[str, ...],
    *,
    hypothetical: bool,
) -> list[str]:
    """The words that plan the same again."""
    words = ["lcprof", name, *([source] if source is not None else [])]
    words += [
        word for key, texts in axes.items() for text in texts for word in (flag_of(key), text)
    ]
    words += [word for setting in settings for word in ("--set", setting)]
    return [*words, "--hypothetical"] if hypothetical else words


def _report_record(asked: Asked, command: str, date: str) -> dict[str, Any]:
    """The record of a page: the row to decide on, what to change, how engines would serve it."""
    from lcprof.domain.engine import ENGINES
    from lcprof.plan.choice import chosen
    from lcprof.plan.study import GRID_GPUS
    from lcprof.report.engine import engine_answer
    from lcprof.report.html import record
    from lcprof.scenario.gpus import load_gpu

    row = chosen(asked.rows)
    about = record.Asked(question=asked.question, note=asked.note, command=command, date=date)
    engines = [engine_answer(row, _engine(name)) for name in ENGINES]
    gpus = [load_gpu(name, where="lcprof report") for name in GRID_GPUS]
    return record.record_of(asked.rows, answers(row, asked), engines, gpus, about)


def _write_page(record: Mapping[str, Any], path: str, *, where: str) -> None:
    from lcprof.report import export
    from lcprof.report.html.page import html_page

    export.write_text(path, html_page(record), where=where)


def _print_markdown(asked: Asked) -> None:
    from lcprof.plan.choice import chosen
    from lcprof.report.markdown import markdown_page
    from lcprof.report.screen import Screen

    row = chosen(asked.rows)
    text = markdown_page(asked.rows, answers(row, asked), asked.question)
    Screen(sys.stdout).paste(text.splitlines())


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
