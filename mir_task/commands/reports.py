"""Commands that read what runs left on disk: `compare`, `leaderboard`, `plot`, `robustness`."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mir_task.errors import MIRError

if TYPE_CHECKING:
    from mir_task.reports.records import Runs

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
NEW_PATH = click.Path(file_okay=False, path_type=Path)
DIAGNOSTICS = (
    *("share", "norm_ratio", "centroid_distance", "mean_cosine", "rms_norm", "trace"),
    *("scale_free_distance", "bures_angle", "participation_ratio", "effective_rank", "cka"),
    *("neighbour_overlap", "token_cosine", "sliced_wasserstein", "mmd2"),
)


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Numbers from a text with commas between them; 0 is one of a layer alone."""
    parts = value.split(",") if value else []
    least = 0 if parameter.name == "layers" else 1
    if not all(part.strip().isdecimal() and int(part) >= least for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers such as 10,100")
    return tuple(int(part) for part in parts)


def runs_in(folders: Iterable[Path]) -> "Runs":
    """What runs left in folders and below; files that cannot be read are named and left out."""
    from mir_task.reports.records import read_runs

    runs = read_runs(folders)
    for fault in runs.faults:
        click.echo(f"left out: {fault}", err=True)
    return runs


@click.command()
@click.argument("folder", type=FOLDER)
def robustness(folder: Path) -> None:
    """How far MIR moves with its input, from the side files in FOLDER and below.

    Of the tasks of the group mir_robustness: each value, and range and standard deviation over each set.
    """
    from mir_task.reports.robustness import tables
    from mir_task.tasks import TASK_CONFIGS

    text = tables(runs_in([folder]).records, TASK_CONFIGS)
    if not text:
        raise MIRError(f"no side file of a task of mir_robustness is in {folder}: run lmms-eval first")
    click.echo(text)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=FOLDER)
@click.option("--csv", type=NEW_FILE, help="Write a row a value into this file.")
@click.option("--json", type=NEW_FILE, help="Write everything into this file.")
@click.option("--html", type=NEW_FILE, help="Write a page that needs nothing else.")
@click.option("--all-runs", is_flag=True, help="Every run, not the newest of each model.")
@click.option(
    "--benchmark",
    "benchmarks",
    multiple=True,
    default=("*",),
    help="Columns whose names match, such as 'mmbench*'; all if left out. Any number of times.",
)
def leaderboard(
    folders: tuple[Path, ...], all_runs: bool, benchmarks: tuple[str, ...], **files: Path | None
) -> None:
    """Models by MIR beside their benchmark scores, from results in the folders DIR and below.

    Prints Markdown. What does not compare is set apart with the reason and ranked by itself.
    """
    from mir_task.files import written_whole
    from mir_task.reports import leaderboard

    runs = runs_in(folders)
    if not runs.records:
        places = ", ".join(map(str, folders))
        raise MIRError(f"no MIR in {places}: run lmms-eval with a MIR task and --output_path first")
    board = leaderboard.board(runs, all_runs=all_runs, benchmarks=benchmarks)
    for ending, file in files.items():
        if file is not None:
            with written_whole(file) as partial:
                partial.write_text(leaderboard.WRITERS[ending](board), encoding="utf-8")
    click.echo(leaderboard.markdown(board))


@click.command()
@click.argument("first", type=click.Path(exists=True, path_type=Path))
@click.argument("second", type=click.Path(exists=True, path_type=Path))
@click.option("--task", help="Which task, where folders hold several.")
@click.option("--json", "json_file", type=NEW_FILE, help="Write everything into this file.")
def compare(first: Path, second: Path, task: str | None, json_file: Path | None) -> None:
    """MIR of SECOND less that of FIRST, and whether the difference can be told from zero.

    Each is a side file, <date>_mir_<task>.json, or a folder with one of the same task. Exit code 1, with
    the reason, where the two do not compare.
    """
    from mir_task.files import write_json
    from mir_task.reports import compare

    comparison = compare.compare(*compare.find(first, second, task))
    click.echo(compare.markdown(comparison))
    if json_file is not None:
        write_json(json_file, comparison.to_dict())


def _picture(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    if value.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"{value} ends neither in .png nor in .svg nor in .pdf")
    return value


def _texts(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    """Texts with commas between them; one that holds a comma stands in double quotes."""
    return [text.strip() for text in next(csv.reader([value], skipinitialspace=True))] if value else []


@click.command(context_settings={"show_default": True})
@click.argument("side_files", nargs=-1, type=FILE)
@click.option(
    "--to",
    "picture",
    type=NEW_FILE,
    callback=_picture,
    required=True,
    help="Picture to write: .png, .svg or .pdf.",
)
@click.option(
    "--diagnostic",
    type=click.Choice(DIAGNOSTICS),
    default="share",
    help="What is drawn beside distances and norms.",
)
@click.option(
    "--tokens",
    type=FILE,
    help="Tokens of a run with mir_sample_rows (.npz), drawn in two dimensions instead.",
)
@click.option(
    "--layers",
    callback=numbers,
    help="Of --tokens, 0 for the decoder's input; the first, the middle and the last if left out.",
)
@click.option("--method", type=click.Choice(("pca", "tsne")), default="pca", help="Of --tokens.")
@click.option(
    "--labels", callback=_texts, help="One a side file, such as 'A,B'; else the models' names."
)
@click.option("--title", help="Above the picture; else what all have in common.")
@click.option(
    "--ordered", is_flag=True, help="Colours from dark to light, as of checkpoints in their order."
)
def plot(
    side_files: tuple[Path, ...],
    picture: Path,
    diagnostic: str,
    tokens: Path | None,
    layers: tuple[int, ...],
    method: str,
    labels: list[str],
    title: str | None,
    ordered: bool,
) -> None:
    """Draw the layers of one model or several over each other, from their SIDE_FILES.

    Or, with --tokens, vision and text tokens in two dimensions, as figure 2 of the paper does.
    """
    from mir_task.reports import plot

    if (tokens is None) == (not side_files):
        raise click.UsageError("give side files, or --tokens FILE.npz")
    if tokens is not None and (labels or ordered):
        raise click.UsageError("--labels and --ordered are of side files, not of --tokens")
    if tokens is not None:
        plot.draw_tokens(tokens, picture, layers=layers, method=method, title=title)
    else:
        for warning in plot.draw_side_files(
            side_files, picture, diagnostic, labels=labels, title=title, ordered=ordered
        ):
            click.echo(f"warning: {warning}", err=True)
    click.echo(picture)
