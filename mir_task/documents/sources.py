"""Where the rows of a data set are read from: the Hub, its copy in a folder, or files of one's own."""

import mimetypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import datasets

from mir_task.errors import MIRError
from mir_task.settings import Settings

PACKAGE = Path(__file__).parents[1]
DATA_ROOT = "MIR_TASK_DATA"
_COLUMNS = {"image": datasets.Image, "video": datasets.Video, "audio": datasets.Audio}


class Source(NamedTuple):
    """Where media or texts come from: the settings `mir_media_*` or `mir_text_*` of a task."""

    task: str
    role: str
    """`media` or `text`."""
    datasets: tuple[str, ...]
    """Names of one data set, in the order to try."""
    column: str
    split: str
    config: str | None
    id_column: str | None

    @classmethod
    def of(cls, task: str, role: str, settings: Settings) -> "Source":
        """The source of a task's media or texts."""
        values = settings.model_dump()
        keys = ("dataset", "column", "split", "config", "id")
        names, *rest = (values[f"{role}_{key}"] for key in keys)
        return cls(task, role, (names,) if isinstance(names, str) else tuple(names), *rest)


class Rows(NamedTuple):
    """The rows of a source, media undecoded."""

    source: Source
    path: str
    """Where they were read from."""
    table: datasets.Dataset
    numbers: dict[str, int]
    """Number of the first row of each id."""

    def of(self, ids: Iterable[str]) -> datasets.Dataset:
        """The rows of these ids, in their order."""
        return self.table.select([self.numbers[row_id] for row_id in ids])

    def check_column(self, column: str, key: str) -> None:
        """Raise MIRError unless the rows have the column that the setting `key` names."""
        if column not in self.table.column_names:
            raise MIRError(
                f"task {self.source.task}: {key} is {column!r}, which {self.path} does not have; it has "
                f"{', '.join(self.table.column_names)}"
            )


def load(source: Source) -> Rows:
    """The rows of a source.

    Raises:
        MIRError: no name of the data set can be read, or a column is not in it.
    """
    failures = []
    for name in source.datasets:
        path = _local(name)
        try:
            table, own_id = _read(path, source)
        except (OSError, ConnectionError, ValueError) as error:
            if isinstance(error, MIRError):
                raise
            failures.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        rows = Rows(source, path, table, {})
        rows.check_column(source.column, f"mir_{source.role}_column")
        id_column = source.id_column or own_id
        if id_column is not None:
            rows.check_column(id_column, f"mir_{source.role}_id")
        for feature in _COLUMNS.values():
            if isinstance(table.features[source.column], feature):
                table = table.cast_column(source.column, feature(decode=False))
        for number, row_id in enumerate(range(len(table)) if id_column is None else table[id_column]):
            rows.numbers.setdefault(str(row_id), number)
        return rows._replace(table=table)
    raise MIRError(
        f"task {source.task}: mir_{source.role}_dataset {' or '.join(source.datasets)}, configuration "
        f"{source.config or 'default'}, split {source.split} cannot be read ({'; '.join(failures)}). "
        f"Where there is a network, make a copy with `mir-task data prepare {source.task} --to DIR`, "
        f"carry DIR here and set {DATA_ROOT}=DIR"
    )


def modality_of(rows: Rows) -> str | None:
    """What the media column holds, where its type says so."""
    kinds = (k for k, f in _COLUMNS.items() if isinstance(rows.table.features[rows.source.column], f))
    return next(kinds, None)


_FILES = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tar": "webdataset",
}


def _read(path: str, source: Source) -> tuple[datasets.Dataset, str | None]:
    """One split, without fetching the files of the others, and the column that names its rows.

    Raises:
        FileNotFoundError: there is no such data set.
        ConnectionError: the Hub cannot be reached.
        MIRError: there is no such split.
    """
    if (builder := _FILES.get(Path(path).suffix)) is not None:
        table = datasets.load_dataset(builder, data_files=path, split="train")
        return table, "__key__" if builder == "webdataset" else None
    if Path(path).is_dir() and (listed := _listed(Path(path), source)) is not None:
        return listed, "id"
    files = datasets.load_dataset_builder(path, source.config).config.data_files
    if not files:  # a copy in the cache of the Hub's client, read offline
        return datasets.load_dataset(path, source.config, split=source.split), None
    if source.split not in files:
        raise MIRError(
            f"task {source.task}: mir_{source.role}_split is {source.split!r}, which {path} does not "
            f"have; it has {', '.join(files)}"
        )
    table = datasets.load_dataset(
        path,
        source.config,
        data_files={source.split: list(files[source.split])},
        split=source.split,
        verification_mode="no_checks",
    )
    return table, None


def _listed(folder: Path, source: Source) -> datasets.Dataset | None:
    """The files of a plain folder, a row each: path or text, and as `id` the name without its ending.

    None where the folder holds a data set in files of its own.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if any(path.suffix in _FILES or path.suffix == ".arrow" for path in paths):
        return None
    wanted = _COLUMNS if source.role == "media" else ("text",)
    chosen = [path for path in paths if _kind(path) in wanted]
    if not chosen:
        kinds = " or ".join(wanted)
        raise MIRError(
            f"task {source.task}: mir_{source.role}_dataset {folder} holds no {kinds} files among its "
            f"{len(paths)} files"
        )
    ids = [str(path.relative_to(folder).with_suffix("")) for path in chosen]
    names = (str(path.relative_to(folder)) for path in chosen)
    cells = list(names) if source.role == "media" else [_text(path) for path in chosen]
    return datasets.Dataset.from_dict({"id": ids, source.column: cells})


def _kind(path: Path) -> str:
    if path.suffix == ".story":
        return "text"
    return (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]


def _text(path: Path) -> str:
    """A text file's content; of the stories that the published script reads, what it takes of them."""
    text = path.read_text("utf-8")
    return text.partition("@highlight")[0].strip() if path.suffix == ".story" else text


def _local(name: str) -> str:
    """Where to read a data set from: this package, the data root, or as named."""
    if name.startswith("mir_task:"):
        return str(PACKAGE / name.removeprefix("mir_task:"))
    root = os.environ.get(DATA_ROOT)
    if root and (Path(root) / name).is_dir():
        return str(Path(root) / name)
    return name
