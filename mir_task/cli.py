"""The command `mir-task`. Exit code 0: done; 1: cannot measure or something failed; 2: usage."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mir_task import __version__
from mir_task.errors import MIRError
from mir_task.settings import (
    PLACEMENTS,
    TASK_CONFIGS,
    Settings,
    mir_keys,
    packaged_tasks,
    read_task,
    tasks_in,
)

_SIZES = "1,5,10,20,50,100,200,500,800,1000"


def _sizes(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Numbers of documents from a text with commas between them."""
    parts = value.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is no list of sizes such as 10,100")
    return tuple(int(part) for part in parts)


class _Group(click.Group):
    """Commands whose `MIRError` ends in one message and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MIRError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """MIR, the Modality Integration Rate, of vision-language models."""


_include_path = click.option(
    "--include_path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with YAML files of further tasks.",
)


@main.group()
def data() -> None:
    """Documents of the tasks."""


def _config(task: str, include_path: Path | None) -> dict[str, Any]:
    """A task's configuration.

    Raises:
        click.UsageError: there is no such task.
    """
    paths = packaged_tasks()
    if include_path is not None:
        paths |= tasks_in(include_path)
    if task not in paths:
        raise click.UsageError(f"no task {task!r}; there are {', '.join(paths)}")
    return read_task(paths[task], paths)


@data.command()
@click.argument("task")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), required=True, help="Folder to write to."
)
@click.option(
    "--documents", type=click.IntRange(min=1), help="Number of documents; the task's own if left out."
)
@_include_path
def prepare(task: str, folder: Path, documents: int | None, include_path: Path | None) -> None:
    """Write exactly TASK's documents to a small parquet file.

    Carry the folder to a machine without a network and set MIR_TASK_DATA to it: the task then measures
    the same documents there.
    """
    from mir_task.data import prepare as write

    keys = mir_keys(_config(task, include_path))
    if documents is not None:
        keys["mir_documents"] = documents
    path = write(task, Settings.of_task(task, keys), folder)
    click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _of_model(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that load a model and run a task's documents through it."""
    options = (
        click.option("--model", required=True, help="Adapter of the harness, as for lmms-eval."),
        click.option("--model_args", default="", help="Its arguments, as for lmms-eval."),
        click.option(
            "--force_simple", is_flag=True, help="The simple adapter where there is a chat one."
        ),
        click.option("--task", default="mir_demo", show_default=True, help="Whose documents are used."),
        _include_path,
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@main.command()
@_of_model
@click.option(
    "--placement", type=click.Choice(PLACEMENTS), help="Where the text stands; the best if left out."
)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Draw the tokens into this file."
)
def check(
    model: str,
    model_args: str,
    force_simple: bool,
    task: str,
    include_path: Path | None,
    placement: str | None,
    html: Path | None,
) -> None:
    """Say what MIR would measure of a model, on two documents, and whether it can.

    Exit code 1, with the reason, when it cannot.
    """
    from mir_task import check as checking

    config = _config(task, include_path)
    if placement is not None:
        config["mir_placement"] = placement
    lm = checking.load(model, model_args, force_simple=force_simple)
    report = checking.check(lm, config)
    click.echo(checking.in_words(report))
    if html is not None:
        checking.write_html(report, html)
        click.echo(f"\ntoken strip: {html}")


@main.command()
@_of_model
@click.option("--batch_size", default=1, show_default=True, help="Of the adapter.")
@click.option(
    "--sizes", callback=_sizes, default=_SIZES, show_default=True, help="Documents of a sample."
)
@click.option(
    "--draws", type=click.IntRange(min=1), default=10, show_default=True, help="Samples of each size."
)
@click.option(
    "--documents", type=click.IntRange(min=1), help="To draw from; twice the largest size if left out."
)
@click.option("--memory", type=float, help="GiB for statistics; half of what is free if left out.")
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Groups of layers, for each of which the documents run once.",
)
@click.option(
    "--output_path", type=click.Path(file_okay=False, path_type=Path), help="Folder for a JSON file."
)
def samples(
    model: str,
    model_args: str,
    force_simple: bool,
    task: str,
    include_path: Path | None,
    batch_size: int,
    sizes: tuple[int, ...],
    draws: int,
    documents: int | None,
    memory: float | None,
    passes: int,
    output_path: Path | None,
) -> None:
    """MIR by the number of documents, as in the paper's Table 6, from one set of forwards.

    Prints mean and range over random draws of each size.
    """
    from mir_task import check as checking
    from mir_task import samples as sampling
    from mir_task.results import write_json

    config = _config(task, include_path)
    lm = checking.load(model, model_args, force_simple=force_simple, batch_size=batch_size)
    taken = sampling.samples(
        lm, config, sizes=sizes, draws=draws, documents=documents, memory=memory, passes=passes
    )
    click.echo(taken.table())
    if output_path is not None:
        content = {"task": task, "model": model, "model_args": model_args, **taken.to_dict()}
        click.echo(write_json(output_path / f"samples_{task}.json", content))


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def robustness(folder: Path) -> None:
    """How far MIR moves with its input, from the side files in FOLDER and below.

    Of the tasks of the group mir_robustness: each value, and range and standard deviation over each set.
    """
    from mir_task.results import read_reports
    from mir_task.robustness import tables

    reports, faults = read_reports(folder)
    for path, fault in faults.items():
        click.echo(f"left out {path}: {fault}", err=True)
    text = tables(reports, TASK_CONFIGS)
    if not text:
        raise MIRError(f"no side file of a task of mir_robustness is in {folder}: run lmms-eval first")
    click.echo(text)


_file = click.Path(dir_okay=False, path_type=Path)


@main.command()
@click.argument(
    "folders",
    metavar="DIR...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--csv", "csv_file", type=_file, help="Write a row a value into this file.")
@click.option("--json", "json_file", type=_file, help="Write everything into this file.")
@click.option("--html", "html_file", type=_file, help="Write a page that needs nothing else.")
@click.option("--all-runs", is_flag=True, help="Every run, not the newest of each model.")
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    default=("*",),
    help="Columns whose names match, such as 'mmbench*'; all if left out. Any number of times.",
)
def leaderboard(
    folders: tuple[Path, ...],
    csv_file: Path | None,
    json_file: Path | None,
    html_file: Path | None,
    all_runs: bool,
    benchmarks: tuple[str, ...],
) -> None:
    """Models by MIR beside their benchmark scores, from results in the folders DIR and below.

    Prints Markdown. What does not compare is set apart with the reason and ranked by itself.
    """
    from mir_task import leaderboard as leading
    from mir_task.records import read_runs

    runs = read_runs(folders)
    for path, fault in runs.faults.items():
        click.echo(f"left out {path}: {fault}", err=True)
    if not runs.records:
        places = ", ".join(map(str, folders))
        raise MIRError(f"no MIR in {places}: run lmms-eval with a MIR task and --output_path first")
    content = leading.board(runs, all_runs=all_runs, benchmarks=benchmarks)
    for file, written in (
        (csv_file, leading.in_csv),
        (json_file, leading.in_json),
        (html_file, leading.in_html),
    ):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(written(content), encoding="utf-8")
    click.echo(leading.in_markdown(content))


@main.command()
@click.argument("first", type=click.Path(exists=True, path_type=Path))
@click.argument("second", type=click.Path(exists=True, path_type=Path))
@click.option("--task", help="Which task, where folders hold several.")
@click.option("--json", "json_file", type=_file, help="Write everything into this file.")
def compare(first: Path, second: Path, task: str | None, json_file: Path | None) -> None:
    """MIR of SECOND less that of FIRST, and whether the difference can be told from zero.

    Each is a side file, <date>_mir_<task>.json, or a folder with one of the same task. Exit code 1, with
    the reason, where the two do not compare.
    """
    from mir_task import compare as comparing
    from mir_task.results import write_json

    comparison = comparing.compare(*comparing.find(first, second, task))
    click.echo(comparing.in_markdown(comparison))
    if json_file is not None:
        write_json(json_file, comparison.to_dict())


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("demo-output"))
def demo(folder: Path) -> None:
    """Measure a small model, made on the spot, and put everything into FOLDER."""
    from mir_task.demo.run import run

    run(folder)


if __name__ == "__main__":
    main()
