"""The command `mir-task`. Exit code 0: done; 1: cannot measure or something failed; 2: usage."""

import functools
import sys
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


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Numbers from a text with commas between them."""
    parts = value.split(",") if value else []
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers such as 10,100")
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
    path = write(task, Settings.of(f"task {task}", keys), folder)
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
    "--sizes", callback=_numbers, default=_SIZES, show_default=True, help="Documents of a sample."
)
@click.option(
    "--draws", type=click.IntRange(min=1), default=10, show_default=True, help="Samples of each size."
)
@click.option(
    "--documents", type=click.IntRange(min=1), help="To draw from; twice the largest size if left out."
)
@click.option(
    "--memory",
    type=float,
    help="GiB for rows, where each layer runs; half of what is free if left out. The documents run once "
    "for every few layers whose rows fit.",
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
    taken = sampling.samples(lm, config, sizes=sizes, draws=draws, documents=documents, memory=memory)
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
    from mir_task.records import read_runs
    from mir_task.robustness import tables

    runs = read_runs([folder])
    for path, fault in runs.faults.items():
        click.echo(f"left out {path}: {fault}", err=True)
    text = tables(runs.records, TASK_CONFIGS)
    if not text:
        raise MIRError(f"no side file of a task of mir_robustness is in {folder}: run lmms-eval first")
    click.echo(text)


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A time such as 90, 30m or 8h."""
    if value is None:
        return None
    number, unit = (value[:-1], value[-1]) if value[-1:] in ("s", "m", "h") else (value, "s")
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time such as 90, 30m or 8h") from None


def _variables(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """NAME=VALUE pairs."""
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
    return dict(value.split("=", 1) for value in values)


@main.command(context_settings={"show_default": True})
@click.argument("models", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tasks", default="", help="In the place of those in the file, with commas between.")
@click.option("--output_path", "folder", type=click.Path(path_type=Path), required=True)
@click.option(
    "--launcher",
    type=click.Choice(["none", "torchrun", "accelerate"]),
    default="none",
    help="Of each run.",
)
@click.option("--processes", type=click.IntRange(min=1), default=1, help="Of each run, by the launcher.")
@click.option("--time-limit", callback=_seconds, help="Of each run: seconds, or 30m, or 8h.")
@click.option("--env", multiple=True, callback=_variables, help="NAME=VALUE for each run.")
@click.option("--gpus", default="", help="Such as 0,1: a model on each at a time; one in all without.")
@click.option("--retry-failed", is_flag=True, help="Run again what failed before.")
@click.option("--only", multiple=True, help="Name of a run; others are left alone.")
@click.option("--dry-run", is_flag=True, help="Say what would run.")
@click.option("--print-commands", is_flag=True, help="Print one command a model, for a scheduler.")
def zoo(
    models: Path,
    tasks: str,
    folder: Path,
    launcher: str,
    processes: int,
    time_limit: float | None,
    env: dict[str, str],
    gpus: str,
    retry_failed: bool,
    only: tuple[str, ...],
    dry_run: bool,
    print_commands: bool,
) -> None:
    """Measure each model of MODELS, a file as for lmms-eval's --config, in a process of its own.

    What is finished in the output folder is not run again, so that the same command goes on after
    whatever stopped it. Exit code 1 when a model failed.
    """
    from mir_task import leaderboard as leading
    from mir_task import zoo as keeper
    from mir_task.records import read_runs

    options = keeper.Options(
        launcher=launcher,
        processes=processes,
        time_limit=time_limit,
        environment=env,
        gpus=_parts(gpus),
    )
    runs = keeper.read(models, _parts(tasks))
    if only:
        if unknown := set(only) - {run.name for run in runs}:
            raise click.UsageError(f"no run is named {', '.join(sorted(unknown))} in {models}")
        runs = [run for run in runs if run.name in only]
    if print_commands:
        arguments = [word for word in sys.argv[2:] if word not in ("--print-commands", str(models))]
        click.echo("\n".join(keeper.shell_commands(models, runs, arguments)))
        return
    house = keeper.Zoo(runs, folder, options)
    if dry_run:
        for run in runs:
            known = house.before(run)
            again = known is not None and known.state == "failed before" and retry_failed
            would = "would run" if known is None or again else f"{known.state}: {known.detail}"
            click.echo(f"{run.name}: {would}")
        return
    outcomes = []
    for outcome in house.run(retry_failed=retry_failed):
        outcomes.append(outcome)
        click.echo(keeper.told(outcome, outcomes, len(runs), len(options.gpus)))
    click.echo(keeper.summary(outcomes))
    board = leading.board(read_runs([folder]))
    if board["groups"]:
        click.echo(f"\n{leading.in_markdown(board)}")
    if any("failed" in outcome.state for outcome in outcomes):
        raise SystemExit(1)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


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


def _picture(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """A path whose ending says which kind of picture is meant."""
    from mir_task.plot import ENDINGS

    if value.suffix not in ENDINGS:
        raise click.BadParameter(f"{value} ends in none of {', '.join(ENDINGS)}")
    return value


@main.command()
@click.argument("side_files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--to",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_picture,
    required=True,
    help="Picture to write: .png or .svg.",
)
@click.option(
    "--diagnostic",
    type=click.Choice(
        (
            "share",
            "norm_ratio",
            "centroid_distance",
            "mean_cosine",
            "participation_ratio",
            "effective_rank",
            "cka",
            "mmd2",
        )
    ),
    default="share",
    show_default=True,
    help="What is drawn beside distances and norms.",
)
@click.option(
    "--tokens",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Tokens of a run with mir_sample_rows (.npz), drawn in two dimensions instead.",
)
@click.option(
    "--layers", callback=_numbers, help="Of --tokens; the first, the middle and the last if left out."
)
@click.option(
    "--method",
    type=click.Choice(("pca", "tsne")),
    default="pca",
    show_default=True,
    help="Of --tokens.",
)
def plot(
    side_files: tuple[Path, ...],
    picture: Path,
    diagnostic: str,
    tokens: Path | None,
    layers: tuple[int, ...],
    method: str,
) -> None:
    """Draw the layers of one model or several over each other, from their SIDE_FILES.

    Or, with --tokens, vision and text tokens in two dimensions, as figure 2 of the paper does.
    """
    from mir_task import plot as drawing

    if (tokens is None) == (not side_files):
        raise click.UsageError("give side files, or --tokens FILE.npz")
    if tokens is not None:
        drawing.draw_tokens(tokens, picture, layers=layers, method=method)
    else:
        drawing.draw_side_files(side_files, picture, diagnostic)
    click.echo(picture)


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("demo-output"))
def demo(folder: Path) -> None:
    """Measure a small model, made on the spot, and put everything into FOLDER."""
    from mir_task.demo.run import run

    run(folder)


if __name__ == "__main__":
    main()
