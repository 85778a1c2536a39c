"""The command `mir-task`. Exit code 0: done; 1: cannot measure or something failed; 2: usage."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from mir_task._version import __version__
from mir_task.commands import reports
from mir_task.commands.states import states
from mir_task.commands.zoo import zoo
from mir_task.errors import MIRError
from mir_task.settings import PLACEMENTS, Settings
from mir_task.tasks import mir_keys, packaged_tasks, read_task, tasks_in

_SIZES = "1,5,10,20,50,100,200,500,800,1000"
_AT_LEAST_1 = click.IntRange(min=1)


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


for command in (reports.compare, reports.leaderboard, reports.plot, reports.robustness, states, zoo):
    main.add_command(command)

_include_path = click.option(
    "--include_path", type=reports.FOLDER, help="Folder with YAML files of further tasks."
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
@click.option("--to", "folder", type=reports.NEW_PATH, required=True, help="Folder to write to.")
@click.option("--documents", type=_AT_LEAST_1, help="Number of documents; the task's own if left out.")
@_include_path
def prepare(task: str, folder: Path, documents: int | None, include_path: Path | None) -> None:
    """Write exactly TASK's documents to a small parquet file.

    Carry the folder to a machine without a network and set MIR_TASK_DATA to it: the task then measures
    the same documents there.
    """
    from mir_task.documents.draw import prepare as write

    keys = mir_keys(_config(task, include_path))
    if documents is not None:
        keys["mir_documents"] = documents
    path = write(task, Settings.of(f"task {task}", keys), folder)
    click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


class _Chosen(NamedTuple):
    """A model, and the task whose documents run through it."""

    model: str
    model_args: str
    force_simple: bool
    task: str
    include_path: Path | None

    def config(self) -> dict[str, Any]:
        return _config(self.task, self.include_path)

    def load(self, batch_size: int = 1) -> Any:
        from mir_task.harness.check import load

        return load(self.model, self.model_args, force_simple=self.force_simple, batch_size=batch_size)


def _of_model(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that load a model; the command is given one `_Chosen` for them."""

    @click.option("--model", required=True, help="Adapter of the harness, as for lmms-eval.")
    @click.option("--model_args", default="", help="Its arguments, as for lmms-eval.")
    @click.option("--force_simple", is_flag=True, help="The simple adapter where there is a chat one.")
    @click.option("--task", default="mir_demo", show_default=True, help="Whose documents are used.")
    @_include_path
    @functools.wraps(command)
    def wrapped(**options: Any) -> None:
        command(_Chosen(*(options.pop(name) for name in _Chosen._fields)), **options)

    return wrapped


@main.command()
@_of_model
@click.option(
    "--placement", type=click.Choice(PLACEMENTS), help="Where the text stands; the best if left out."
)
@click.option("--html", type=reports.NEW_FILE, help="Draw the tokens into this file.")
def check(chosen: _Chosen, placement: str | None, html: Path | None) -> None:
    """Say what MIR would measure of a model, on two documents, and whether it can.

    Exit code 1, with the reason, when it cannot.
    """
    from mir_task.harness import check

    config = chosen.config()
    if placement is not None:
        config["mir_placement"] = placement
    report = check.check(chosen.load(), config)
    click.echo(check.report_text(report))
    if html is not None:
        check.write_html(report, html)
        click.echo(f"\ntoken strip: {html}")


@main.command()
@_of_model
@click.option("--batch_size", default=1, show_default=True, help="Of the adapter.")
@click.option(
    "--sizes", callback=reports.numbers, default=_SIZES, show_default=True, help="Documents of a sample."
)
@click.option("--draws", type=_AT_LEAST_1, default=10, show_default=True, help="Samples of each size.")
@click.option("--documents", type=_AT_LEAST_1, help="To draw from; twice the largest size if left out.")
@click.option(
    "--memory",
    type=float,
    help="GiB for rows, where each layer runs; half of what is free if left out. The documents run once "
    "for every few layers whose rows fit.",
)
@click.option("--output_path", type=reports.NEW_PATH, help="Folder for a JSON file.")
def samples(chosen: _Chosen, batch_size: int, output_path: Path | None, **options: Any) -> None:
    """MIR by the number of documents, as in the paper's Table 6, from one set of forwards.

    Prints mean and range over random draws of each size.
    """
    from mir_task.files import write_json
    from mir_task.harness.samples import samples

    taken = samples(chosen.load(batch_size), chosen.config(), **options)
    click.echo(taken.table())
    if output_path is not None:
        of = {"task": chosen.task, "model": chosen.model, "model_args": chosen.model_args}
        path = output_path / f"samples_{chosen.task}.json"
        click.echo(write_json(path, {**of, **taken.to_dict()}))


@main.command()
@click.argument("folder", type=reports.NEW_PATH, default=Path("demo-output"))
def demo(folder: Path) -> None:
    """Measure a small model, made on the spot, and put everything into FOLDER."""
    from mir_task.demo.run import run

    run(folder)
