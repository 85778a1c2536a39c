"""`mir-task states`: MIR of hidden states that another engine wrote."""

from pathlib import Path
from typing import Any, get_args

import click

from mir_task.commands.reports import FOLDER, NEW_PATH
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
@click.option("--output_path", type=NEW_PATH, help="Folder for side file and picture.")
@click.option("--name", help="Of the documents, in reports; the manifest's task if left out.")
@click.option(
    "--checkpoint", type=FOLDER, help="The model's folder, where vLLM's connector wrote the states."
)
@click.option("--vision_token_ids", callback=_ids, help="With --checkpoint, such as 32000.")
@click.option("--device", help="For statistics; the GPU of the process where there is one.")
@click.option("--outliers", type=click.Choice(("replace", "drop")), default="replace", show_default=True)
@click.option("--groups", type=click.IntRange(min=0), help="Of the jackknife behind the standard error.")
@click.option("--text_rows", type=_AT_LEAST_1, help="Text tokens of a document that count.")
@click.option("--sample_rows", type=click.IntRange(0, 1024), default=0, help="Rows to write for plot.")
@click.option("--extra", "extras", type=click.Choice(get_args(Extra)), multiple=True)
@click.option("--on_error", type=click.Choice(("stop", "skip")), default="stop", show_default=True)
@click.option("--min_documents", type=_AT_LEAST_1, help="To be measured where others are skipped.")
@click.option("--host_memory", type=_GIB, help="GiB for statistics, of this process.")
@click.option("--accelerator_memory", type=click.FloatRange(min=0), help="GiB for statistics.")
def states(folders: tuple[Path, ...], output_path: Path | None, **options: Any) -> None:
    """MIR of hidden states in each FOLDER, which another engine wrote; docs/states.md has the layout.

    Under torchrun, each process reads its share of the documents.
    """
    from mir_task.states.command import run

    printed = run(folders, output_path, {k: value for k, value in options.items() if value is not None})
    if printed:
        click.echo(printed)
