"""`mir-task reproduce`: the models of a list measured by the zoo, beside their published values."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from mir_task.commands.options import NEW_FILE, NEW_FOLDER
from mir_task.commands.zoo import run_batch, what_would_run, zoo
from mir_task.commands.zoo_list import Options, Run, entries, run_of
from mir_task.commands.zoo_runs import Zoo
from mir_task.errors import MIRError

if TYPE_CHECKING:
    from mir_task.reports.reproduce import Entry

_WEIGHTS = "{weights}"
_OF_THE_ZOO = {
    *("folder", "launcher", "processes", "time_limit", "environment"),
    *("gpus", "retry_failed", "dry_run"),
}
"""Its parameters that mean the same here."""


def packaged() -> dict[str, Path]:
    """Lists that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(str(files("mir_task") / "zoos")).glob("*.yaml"))}


@click.command()
@click.argument("models", metavar="NAME|FILE")
@click.option(
    "--weights",
    type=NEW_FOLDER,
    help="Folder of checkpoints that were put together from published parts.",
)
@click.option("--only", multiple=True, metavar="NAME", help="Name of an entry; others are left alone.")
@click.option(
    "--json",
    "json_file",
    type=NEW_FILE,
    help="Also write the rows into this JSON file.",
)
def reproduce(
    models: str,
    weights: Path | None,
    only: tuple[str, ...],
    json_file: Path | None,
    folder: Path,
    retry_failed: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Measure the models of a list, and lay the values beside those that were published.

    NAME is `paper`, of MIR's own paper, or `presft`, public checkpoints before fine-tuning; FILE is a
    list of your own. Runs are those of `mir-task zoo`. Exit code 1 when one failed or none was made.
    """
    from mir_task.files import write_json
    from mir_task.reports.records import read_runs
    from mir_task.reports.reproduce import markdown, rows_of

    wanted = _chosen(_read(_path(models)), only, models)
    runs: dict[str, Run] = {}
    absent: dict[str, str] = {}
    for entry in wanted:
        config, why = _with_weights(entry, weights)
        if why:
            absent[entry.name] = why
        else:
            runs[entry.name] = run_of(config, f"{models}: {entry.name}")
    # Entries may be of one run, each with what another source has published of it.
    batch = Zoo(list({run.name: run for run in runs.values()}.values()), folder, Options(**options))
    if dry_run:
        for entry in wanted:
            run = runs.get(entry.name)
            would = run and what_would_run(batch, run, retry_failed=retry_failed)
            click.echo(f"{entry.name}: {would or absent[entry.name]}")
        return
    outcomes = run_batch(batch, retry_failed=retry_failed)
    failed = {outcome.run.name: outcome.detail for outcome in outcomes if "failed" in outcome.state}
    rows = []
    for entry in wanted:
        run = runs.get(entry.name)
        if run is None or run.name in failed:
            why = absent[entry.name] if run is None else f"it failed: {failed[run.name]}"
            rows += rows_of(entry, absent=why)
        else:
            found = read_runs([batch.done(run)]).records
            rows += rows_of(entry, found, "" if found else "its run has no MIR task")
    click.echo(f"\n{markdown(rows)}" if outcomes else markdown(rows))
    if json_file is not None:
        write_json(json_file, [row.plain() for row in rows])
    if failed or all(row.record is None for row in rows):
        raise SystemExit(1)


reproduce.params += [parameter for parameter in zoo.params if parameter.name in _OF_THE_ZOO]


def _path(models: str) -> Path:
    lists = packaged()
    path = lists.get(models, Path(models))
    if not path.is_file():
        raise click.UsageError(f"{models!r} is neither a file nor one of {', '.join(lists)}")
    return path


def _read(path: Path) -> "list[Entry]":
    """The entries of a list.

    Raises:
        MIRError: it cannot be read, or an entry is none.
    """
    from mir_task.reports.reproduce import Entry

    found: dict[str, Entry] = {}
    for number, content in enumerate(entries(path), start=1):
        try:
            entry = Entry.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise MIRError(
                f"{path}: entry {number} cannot be used: {where}{': ' if where else ''}{first['msg']}; "
                f"it is {content!r}"
            ) from error
        if entry.name in found:
            raise MIRError(f"{path}: entry {number} has the name of one before it, {entry.name!r}")
        found[entry.name] = entry
    return list(found.values())


def _chosen(found: "list[Entry]", only: tuple[str, ...], models: str) -> "list[Entry]":
    names = [entry.name for entry in found]
    if unknown := [name for name in only if name not in names]:
        raise click.UsageError(f"{models} has no entry {', '.join(unknown)}; it has {', '.join(names)}")
    return [entry for entry in found if not only or entry.name in only]


def _with_weights(entry: "Entry", weights: Path | None) -> tuple[dict[str, Any], str]:
    """The arguments of an entry's run with --weights put in, or why it cannot run."""
    config = entry.config
    if entry.missing is not None:
        return config, entry.missing
    given = config.get("model_args", "")
    parts = (
        given
        if isinstance(given, dict)
        else dict(part.split("=", 1) for part in str(given).split(",") if "=" in part)
    )
    needed = next((str(value) for value in parts.values() if _WEIGHTS in str(value)), None)
    if needed is None:
        return config, ""
    made = f", made from {', '.join(entry.made_from)}" if entry.made_from else ""
    if weights is None:
        return config, f"needs {needed}{made}: name the folder by --weights"
    path = Path(needed.replace(_WEIGHTS, str(weights)))
    if not path.is_dir():
        return config, f"there is no {path}{made}"

    def put_in(text: Any) -> Any:
        return text.replace(_WEIGHTS, str(weights)) if isinstance(text, str) else text

    if isinstance(given, dict):
        return {**config, "model_args": {key: put_in(value) for key, value in given.items()}}, ""
    return {**config, "model_args": put_in(given)}, ""
