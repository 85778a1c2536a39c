"""The command `mir-task`. Exit code 0: done; 1: cannot measure or something failed; 2: usage."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from mir_task._version import __version__
from mir_task.commands import reports
from mir_task.commands.card import card
from mir_task.commands.options import FOLDER, NEW_FILE, NEW_FOLDER, SETTINGS, Group, numbers
from mir_task.commands.reproduce import reproduce
from mir_task.commands.states import states
from mir_task.commands.task_list import tasks
from mir_task.commands.zoo import zoo
from mir_task.errors import did_you_mean
from mir_task.settings import PLACEMENTS, Settings
from mir_task.tasks import mir_keys, packaged_tasks, read_task, tasks_in

_AT_LEAST_1 = click.IntRange(min=1)


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="mir-task")
def main() -> None:
    """MIR, the Modality Integration Rate, of vision-language models.

    Measuring itself is `lmms-eval --tasks mir_coco ...`; these commands prepare it and read what it
    leaves. Options are written with underscores or hyphens alike.
    """


for command in (
    *(card, reports.compare, reports.leaderboard, reports.plot, reports.robustness),
    *(reproduce, states, tasks, zoo),
):
    main.add_command(command)

_include_path = click.option(
    "--include_path", type=FOLDER, help="Folder with YAML files of your own tasks."
)


@main.group(cls=Group)
def data() -> None:
    """Carry the documents of a task to a machine without a network."""


def _config(task: str, include_path: Path | None) -> dict[str, Any]:
    """A task's configuration.

    Raises:
        click.UsageError: there is no such task.
    """
    paths = packaged_tasks()
    if include_path is not None:
        paths |= tasks_in(include_path)
    if task not in paths:
        hint = did_you_mean(task, paths)
        there = (
            "`mir-task tasks` lists them" if include_path is None else f"there are {', '.join(paths)}"
        )
        raise click.UsageError(f"no MIR task {task!r}{hint}; {there}")
    return read_task(paths[task], paths)


@data.command()
@click.argument("task")
@click.option("--to", "folder", type=NEW_FOLDER, required=True, help="Folder that the file goes to.")
@click.option(
    "--documents",
    type=_AT_LEAST_1,
    help="How many documents to write; as many as the task measures if left out.",
)
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

    @click.option(
        "--model",
        metavar="ADAPTER",
        required=True,
        help="Adapter of the harness that loads the model, such as llava_hf; as for lmms-eval.",
    )
    @click.option(
        "--model_args",
        metavar="KEY=VALUE,...",
        default="",
        help="Arguments of the adapter, such as pretrained=PATH,device=cuda; as for lmms-eval.",
    )
    @click.option(
        "--force_simple",
        is_flag=True,
        help="Take the adapter's older, simple kind where it has a chat kind too; as for lmms-eval.",
    )
    @click.option(
        "--task",
        metavar="NAME",
        default="mir_demo",
        show_default=True,
        help="MIR task whose documents run through the model; `mir-task tasks` lists them.",
    )
    @_include_path
    @functools.wraps(command)
    def wrapped(**options: Any) -> None:
        command(_Chosen(*(options.pop(name) for name in _Chosen._fields)), **options)

    return wrapped


@main.command()
@_of_model
@click.option(
    "--placement",
    type=click.Choice(PLACEMENTS),
    help="Where a document's text stands in the prompt; the best that the adapter does if left out.",
)
@click.option("--html", type=NEW_FILE, help="Draw the model's tokens as a page into this file.")
def check(chosen: _Chosen, placement: str | None, html: Path | None) -> None:
    """Say what MIR would measure of a model, on two documents, and whether it can.

    Exit code 1, with the reason, when it cannot.
    """
    from mir_task.harness import check

    config = chosen.config()
    if placement is not None:
        config["mir_placement"] = placement
    report = check.check(chosen.load, config)
    click.echo(check.report_text(report))
    if html is not None:
        check.write_html(report, html)
        click.echo(f"\ntoken strip: {html}")


@main.command()
@_of_model
@click.option(
    "--batch_size",
    type=_AT_LEAST_1,
    default=1,
    show_default=True,
    help="Documents that the adapter runs at once.",
)
@click.option(
    "--sizes",
    metavar="NUMBERS",
    callback=numbers,
    help="How many documents to measure MIR of, such as 10,50,100; if left out those of 1, 5, 10, "
    "50, ..., 1000 of which the task's data has twice as many.",
)
@click.option(
    "--draws",
    type=_AT_LEAST_1,
    default=10,
    show_default=True,
    help="How many random samples to take of each size.",
)
@click.option(
    "--documents",
    type=_AT_LEAST_1,
    help="How many documents to draw the samples from; twice the largest size if left out.",
)
@click.option(
    "--memory",
    type=float,
    help="GiB for hidden states on each device; half of what is free if left out. Where they do not "
    "fit, the documents run again for the other layers.",
)
@click.option("--output_path", type=NEW_FOLDER, help="Also write a JSON file into this folder.")
def samples(chosen: _Chosen, batch_size: int, output_path: Path | None, **options: Any) -> None:
    """How MIR depends on the number of documents, as in the paper's Table 6.

    Runs each document once, and prints mean and range over random samples of each size.
    """
    from mir_task.files import write_json
    from mir_task.harness.samples import samples

    taken = samples(functools.partial(chosen.load, batch_size), chosen.config(), **options)
    click.echo(taken.table())
    if output_path is not None:
        of = {"task": chosen.task, "model": chosen.model, "model_args": chosen.model_args}
        path = output_path / f"samples_{chosen.task}.json"
        click.echo(write_json(path, {**of, **taken.to_dict()}))


@main.command()
@click.argument("folder", type=NEW_FOLDER, default=Path("demo-output"))
def demo(folder: Path) -> None:
    """Measure and rank small models that come with the package, on a CPU in a few minutes.

    Results, logs and the leaderboard's page, board.html, go into FOLDER; demo-output if left out.
    """
    from mir_task.demo.run import run

    run(folder)
