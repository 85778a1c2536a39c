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
    "--sizes", callback=_numbers, default=_SIZES, show_default=True, help="Documents of a sample."
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
    from mir_task.results import read_report

    if (tokens is None) == (not side_files):
        raise click.UsageError("give side files, or --tokens FILE.npz")
    if tokens is not None:
        drawing.draw_tokens(tokens, picture, layers=layers, method=method)
    else:
        drawing.draw_reports({path: read_report(path) for path in side_files}, picture, diagnostic)
    click.echo(picture)


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("demo-output"))
def demo(folder: Path) -> None:
    """Measure a small model, made on the spot, and put everything into FOLDER."""
    from mir_task.demo.run import run

    run(folder)


if __name__ == "__main__":
    main()
