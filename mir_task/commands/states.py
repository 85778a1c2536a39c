"""`mir-task states`: MIR of hidden states that another engine wrote."""

from pathlib import Path
from typing import Any, get_args

import click

from mir_task.commands.options import FOLDER, NEW_FOLDER
from mir_task.settings import Extra

_AT_LEAST_1 = click.IntRange(min=1)
_GIB = click.FloatRange(min=0, min_open=True)


def _ids(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is no list of token ids such as 32000,32001")
    return tuple(int(part) for part in parts)


@click.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=FOLDER)
@click.option("--output_path", type=NEW_FOLDER, help="Write side file and picture into this folder.")
@click.option("--name", help="Name of the set of documents in reports; the manifest's if left out.")
@click.option(
    "--checkpoint",
    type=FOLDER,
    help="Folder of the model's checkpoint, where vLLM's connector wrote the hidden states.",
)
@click.option(
    "--vision_token_ids",
    metavar="IDS",
    callback=_ids,
    help="With --checkpoint: token ids of the image's placeholders, such as 32000, where its "
    "configuration does not name them.",
)
@click.option(
    "--device", help="Device for statistics, such as cpu; a GPU if there is one and it is left out."
)
@click.option(
    "--outliers",
    type=click.Choice(("replace", "drop")),
    default="replace",
    show_default=True,
    help="What is done with tokens of unusual norm, as the key mir_outliers of a task.",
)
@click.option(
    "--groups",
    type=click.IntRange(min=0),
    help="Groups of documents behind the standard error; 0 for none, 5 if left out.",
)
@click.option(
    "--text_rows", type=_AT_LEAST_1, help="Text tokens of a document that count; all if left out."
)
@click.option(
    "--sample_rows",
    type=click.IntRange(0, 1024),
    default=0,
    help="Hidden states of each layer to write beside the side file, for mir-task plot --tokens.",
)
@click.option(
    "--extra",
    "extras",
    type=click.Choice(get_args(Extra)),
    multiple=True,
    help="A further measure of each layer; any number of times.",
)
@click.option(
    "--on_error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="What a document that cannot be measured does to the run.",
)
@click.option(
    "--min_documents", type=_AT_LEAST_1, help="Documents to be measured where others are skipped."
)
@click.option(
    "--host_memory", type=_GIB, help="GiB of the host for statistics; half of what is free if left out."
)
@click.option(
    "--accelerator_memory",
    type=click.FloatRange(min=0),
    help="GiB of each GPU for statistics; half of what is free if left out.",
)
def states(folders: tuple[Path, ...], output_path: Path | None, **options: Any) -> None:
    """MIR of hidden states in each FOLDER, which another engine wrote; docs/states.md has the layout.

    Under torchrun, each process reads its share of the documents.
    """
    from mir_task.states.command import run

    printed = run(folders, output_path, {k: value for k, value in options.items() if value is not None})
    if printed:
        click.echo(printed)
