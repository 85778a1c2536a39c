"""`mir-task tasks`: which MIR tasks there are, what each measures, and what data it needs."""

import os
from pathlib import Path
from typing import Any

import click

from mir_task.commands.options import FOLDER
from mir_task.settings import DATA_ROOT, Settings
from mir_task.tasks import (
    TASK_CONFIGS,
    benchmarks_in,
    description,
    groups_in,
    mir_keys,
    read_task,
    tasks_in,
)

Names = str | tuple[str, ...]
"""Of one data set, in the order to try."""
_PAIRED = {True: "paired", False: "unpaired"}


@click.command()
@click.option("--include_path", type=FOLDER, help="List the MIR tasks of this folder too.")
def tasks(include_path: Path | None) -> None:
    """List the MIR tasks: what each measures, the data that it needs, and whether it runs offline.

    `lmms-eval --tasks NAME` measures one, or all tasks of a group. A task runs offline where its data is
    in the package, on this disk, or in the folder that the variable MIR_TASK_DATA names.
    """
    folders = [TASK_CONFIGS, *([] if include_path is None else [include_path])]
    paths = {name: path for folder in folders for name, path in tasks_in(folder).items()}
    rows = [("task", "documents", "offline", "what it measures, and on which data")]
    rows += [_row(name, path, read_task(path, paths)) for name, path in sorted(paths.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[3]]))
    click.echo("\nGroups, of which lmms-eval --tasks runs all:")
    for folder in folders:
        for group, members in groups_in(folder).items():
            click.echo(f"  {group}: {', '.join(members)}")
    click.echo(f"Benchmarks beside them, offline too: {', '.join(benchmarks_in(TASK_CONFIGS))}")
    click.echo(
        "\nTo run a task offline that says no: `mir-task data prepare TASK --to DIR` where there is a "
        f"network, then carry DIR and set {DATA_ROOT}=DIR."
    )


def _row(name: str, path: Path, config: dict[str, Any]) -> tuple[str, str, str, str]:
    settings = Settings.of(f"task {name} of {path.absolute()}", mir_keys(config))
    about = description(path) or f"{settings.modality} and text, {_PAIRED[settings.is_paired]}."
    sources = dict.fromkeys(_every(names)[0] for names in _sources(settings))
    offline = "yes" if _is_offline(name, settings) else "no"
    return name, str(settings.documents), offline, f"{about} [{' + '.join(sources)}]"


def _is_here(names: Names) -> bool:
    """Whether the rows are in the package or are a path on this disk."""
    return any(
        name.startswith("mir_task:") or Path(name).expanduser().exists() for name in _every(names)
    )


def _sources(settings: Settings) -> list[Names]:
    text = settings.text_dataset
    return [settings.media_dataset] if text is None else [settings.media_dataset, text]


def _every(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _is_offline(task: str, settings: Settings) -> bool:
    """Whether its data is in the package, on this disk, or in the folder of the variable."""
    sources = _sources(settings)
    if all(map(_is_here, sources)):
        return True
    root = Path(os.environ.get(DATA_ROOT) or os.devnull)
    return (root / f"{task}.parquet").is_file() or all(
        _is_here(names) or any((root / name).is_dir() for name in _every(names)) for names in sources
    )
