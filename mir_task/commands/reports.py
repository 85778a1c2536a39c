"""Commands that read what runs left on disk: `compare`, `leaderboard`, `plot`, `robustness`."""

import csv
import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mir_task.commands.options import EITHER, FILE, FOLDER, NEW_FILE, numbers
from mir_task.errors import MIRError, did_you_mean

if TYPE_CHECKING:
    from mir_task.reports.records import Runs

DIAGNOSTICS = (
    *("share", "norm_ratio", "centroid_distance", "mean_cosine", "rms_norm", "trace"),
    *("scale_free_distance", "bures_angle", "participation_ratio", "effective_rank", "cka"),
    *("neighbour_overlap", "token_cosine", "sliced_wasserstein", "mmd2"),
)


def runs_in(folders: Iterable[Path], same_models: Mapping[str, str] | None = None) -> "Runs":
    """What runs left in folders and below; files that cannot be read are named and left out."""
    from mir_task.reports.records import read_runs

    runs = read_runs(folders, same_models)
    for fault in runs.faults:
        click.echo(f"left out: {fault}", err=True)
    return runs


def _pairs(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """NAME=MODEL pairs; a model's name may hold = itself."""
    for value in values:
        if not all(value.partition("=")[::2]):
            raise click.BadParameter(f"{value!r} is not of the form NAME=MODEL")
    return dict(value.split("=", 1) for value in values)


def _check_columns(runs: "Runs", patterns: Iterable[str]) -> None:
    """Raise MIRError for a pattern that no benchmark column of a model with MIR has."""
    models = {record.model.name for record in runs.records}
    columns = sorted({name for of in runs.scores if of.model.name in models for name in of.values})
    for pattern in patterns:
        if not any(fnmatch.fnmatch(name, pattern) for name in columns):
            hint = did_you_mean(pattern.strip("*"), columns)
            there = f"the columns are {', '.join(columns)}" if columns else "there is no column at all"
            raise MIRError(f"--benchmark {pattern!r} is no column of these results{hint}; {there}")


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
        raise MIRError(
            f"no side file of a task of mir_robustness is in {folder.absolute()} or below: run "
            f"`lmms-eval --tasks mir_robustness ... --output_path {folder}` first"
        )
    click.echo(text)


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=FOLDER)
@click.option("--csv", type=NEW_FILE, help="Also write the table into this CSV file, one model a row.")
@click.option("--json", type=NEW_FILE, help="Also write values, curves and details into this JSON file.")
@click.option("--html", type=NEW_FILE, help="Also write a page for the browser, in one file.")
@click.option("--all_runs", is_flag=True, help="Show every run of a model, not its newest alone.")
@click.option(
    "--benchmark",
    "benchmarks",
    metavar="PATTERN",
    multiple=True,
    help="Show the benchmark columns whose names match, such as 'mmbench*'; may be given several "
    "times. All columns if left out.",
)
@click.option(
    "--same_model",
    "same_models",
    metavar="NAME=MODEL",
    multiple=True,
    callback=_pairs,
    help="NAME in the files of another tool is MODEL, as it stands beside its MIR. Any number of times.",
)
def leaderboard(
    folders: tuple[Path, ...],
    all_runs: bool,
    benchmarks: tuple[str, ...],
    same_models: dict[str, str],
    **files: Path | None,
) -> None:
    """Models by MIR beside their benchmark scores, from results in the folders DIR and below.

    Reads what lmms-eval, lm-evaluation-harness and VLMEvalKit have written, and prints Markdown. What
    does not compare is set apart with the reason and ranked by itself.
    """
    from mir_task.files import written_whole
    from mir_task.reports import leaderboard
    from mir_task.reports.records import without_mir

    runs = runs_in(folders, same_models)
    if not runs.records:
        places = ", ".join(str(folder.absolute()) for folder in folders)
        raise MIRError(f"no MIR in {places}: run lmms-eval with a MIR task and --output_path first")
    _check_columns(runs, benchmarks)
    for name in without_mir(runs):
        click.echo(f"no MIR of {name}: if it has another name there, --same_model NAME=MODEL", err=True)
    board = leaderboard.board(runs, all_runs=all_runs, benchmarks=benchmarks or ("*",))
    for ending, file in files.items():
        if file is not None:
            with written_whole(file) as partial:
                partial.write_text(leaderboard.WRITERS[ending](board), encoding="utf-8")
    click.echo(leaderboard.markdown(board))


@click.command()
@click.argument("first", type=EITHER)
@click.argument("second", type=EITHER)
@click.option("--task", metavar="NAME", help="The task to compare, where folders hold several.")
@click.option(
    "--json", "json_file", type=NEW_FILE, help="Also write the comparison into this JSON file."
)
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


def _side_files(path: Path) -> list[Path]:
    """A file, or those of a folder, oldest first."""
    if not path.is_dir():
        return [path]
    found = [record.path for record in runs_in([path]).side_files]
    if not found:
        raise MIRError(f"no side file, <date>_mir_<task>.json, is in {path.absolute()} or below")
    return found


@click.command(context_settings={"show_default": True})
@click.argument("paths", metavar="[SIDE_FILES]...", nargs=-1, type=EITHER)
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
    help="Measure of each layer that is drawn beside distances and norms.",
)
@click.option(
    "--tokens",
    type=FILE,
    help="Draw tokens in two dimensions instead: the .npz file of a run whose task has "
    "`mir_sample_rows`.",
)
@click.option(
    "--layers",
    callback=numbers,
    metavar="NUMBERS",
    help="Decoder layers that --tokens draws, such as 1,16,32, or 0 for what enters the first; the "
    "first, the middle and the last if left out.",
)
@click.option(
    "--method",
    type=click.Choice(("pca", "tsne")),
    default="pca",
    help="How --tokens gets to two dimensions.",
)
@click.option(
    "--labels",
    metavar="NAMES",
    callback=_texts,
    help="Names for the side files, with commas between them; the models' names if left out.",
)
@click.option(
    "--title",
    metavar="TEXT",
    help="What stands above the picture; what all side files have in common if left out.",
)
@click.option(
    "--ordered",
    is_flag=True,
    help="Colour the side files from dark to light, as suits checkpoints in their order.",
)
def plot(
    paths: tuple[Path, ...],
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

    A folder stands for the side files in it and below. Or, with --tokens, vision and text tokens in two
    dimensions, as figure 2 of the paper does.
    """
    from mir_task.reports import plot

    if (tokens is None) == (not paths):
        raise click.UsageError("give side files, or --tokens FILE.npz")
    if tokens is not None and (labels or ordered):
        raise click.UsageError("--labels and --ordered are of side files, not of --tokens")
    if tokens is not None:
        plot.draw_tokens(tokens, picture, layers=layers, method=method, title=title)
    else:
        side_files = [file for path in paths for file in _side_files(path)]
        for label, side_file in zip(labels, side_files, strict=False):
            click.echo(f"{label} = {side_file}", err=True)
        for warning in plot.draw_side_files(
            side_files, picture, diagnostic, labels=labels, title=title, ordered=ordered
        ):
            click.echo(f"warning: {warning}", err=True)
    click.echo(picture)
