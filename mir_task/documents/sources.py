"""Where the rows of a data set are read from: files and folders, or the Hub and its copies."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from mir_task.documents.cells import Cell, check_modality, field, file_of, id_of, text_of
from mir_task.documents.folders import kind_of_file, read_folder
from mir_task.documents.tables import ENDINGS, Table, kind_of, matching, read_table
from mir_task.errors import MIRError, did_you_mean
from mir_task.settings import DATA_ROOT, Column, Settings

PACKAGE = Path(__file__).parents[1]
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""A name that the Hub can have."""
_FEATURES = {"image": datasets.Image, "video": datasets.Video, "audio": datasets.Audio}


class Source(NamedTuple):
    """Where media or texts come from: the settings `media_*` or `text_*` of a task."""

    task: str
    role: str
    """`media` or `text`."""
    kind: str
    """What its files hold: the modality, or `text`."""
    datasets: tuple[str, ...]
    """Names of one data set, in the order to try."""
    column: str
    split: str
    config: str | None
    id_column: str | None
    data_set: bool = False
    """Whether a folder is a copy of a data set: a split or a configuration is named."""

    @classmethod
    def of(cls, task: str, role: str, settings: Settings) -> "Source":
        """The source of a task's media or texts."""
        values = settings.model_dump()
        names, split, config, id_column = (
            values[f"{role}_{key}"] for key in ("dataset", "split", "config", "id")
        )
        column = settings.media_column if role == "media" else Column.of(settings.text_column).column
        kind = settings.modality if role == "media" else "text"
        names = (names,) if isinstance(names, str) else tuple(names)
        data_set = bool({f"{role}_split", f"{role}_config"} & settings.model_fields_set)
        return cls(task, role, kind, names, column, split, config, id_column, data_set)


class Rows(NamedTuple):
    """The rows of a source, media undecoded."""

    source: Source
    path: str
    """Where they were read from."""
    table: Table
    numbers: dict[str, int]
    """Number of the row of each id."""
    named: bool
    """Whether ids are names, and not the numbers of the rows."""

    def check_column(self, column: str, key: str) -> tuple[str, list[str]]:
        """The column that the setting `key` names, and the field in it, as of `caption.en`.

        Raises:
            MIRError: the rows do not have it.
        """
        name, *rest = column.split(".")
        if column in self.table.columns:
            name, rest = column, []
        if name not in self.table.columns:
            raise MIRError(
                f"task {self.source.task}: {key} is {column!r}, which {self.path} does not have"
                f"{did_you_mean(name, self.table.columns)}; it has {', '.join(self.table.columns)}"
            )
        return name, rest

    def texts(self, ids: Iterable[str], column: str, *, as_str: bool) -> list[str | MIRError]:
        """The text of each id, or why it is none."""
        name, rest = self.check_column(column, "mir_text_column")

        def read(cell: Any) -> str:
            return text_of(field(cell, rest), as_str=as_str)

        return self._read(ids, name, "mir_text_column", read)

    def media(self, ids: Iterable[str]) -> list[Cell | MIRError]:
        """The file of each id, undecoded, or why it is none."""
        name, rest = self.check_column(self.source.column, "mir_media_column")
        folder = Path(self.path) if Path(self.path).is_dir() else Path(self.path).parent
        return self._read(ids, name, "mir_media_column", lambda cell: file_of(field(cell, rest), folder))

    def _read(self, ids: Iterable[str], column: str, key: str, read: Any) -> list[Any]:
        rows = [self.numbers[row_id] for row_id in ids]
        found: list[Any] = []
        for row, cell in zip(rows, self.table.cells(column, rows), strict=True):
            place = f"{key}: {self.path}, {self.table.place(row)}"
            try:
                found.append(MIRError(f"{place}: {cell}") if isinstance(cell, MIRError) else read(cell))
            except MIRError as error:
                found.append(MIRError(f"{place}, {column!r} holds {error}"))
        return found


class _Hub(Table):
    """Rows of a data set that `datasets` reads, as stored: media are undecoded, in lists as well."""

    def __init__(self, table: datasets.Dataset) -> None:
        self._features = dict(table.features)
        self._table = table.with_format("arrow")
        self.columns = table.column_names

    def __len__(self) -> int:
        return len(self._table)

    def cells(self, column: str, rows: Sequence[int] | None = None) -> list[Any]:
        """As `Table.cells`."""
        table = self._table.select_columns(column)
        cells: list[Any] = (table if rows is None else table.select(rows))[:][column].to_pylist()
        return cells

    def place(self, row: int) -> str:
        """As `Table.place`."""
        return f"row {row}"

    def kind(self, column: str) -> str | None:
        """As `Table.kind`."""
        kinds = (k for k, of in _FEATURES.items() if isinstance(self._features.get(column), of))
        return next(kinds, None)


def load(source: Source) -> Rows:
    """The rows of a source.

    Raises:
        MIRError: no name of the data set can be read, or a column is not in it, or ids that are none.
    """
    failures = []
    for name in source.datasets:
        try:
            path = _path_of(name)
            local = _read_local(path, name, source)
            table = _read_hub(path, source) if local is None else local
        except MIRError as error:
            raise MIRError(f"{_named(source, str(error))}") from error
        except (OSError, ConnectionError, ValueError) as error:
            failures.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        rows = _with_ids(source, path, table)
        if source.role == "media" and (kind := table.kind(source.column)) is not None:
            check_modality(f"the column {source.column!r} of {path}", kind, source.kind)
        return rows
    looked_at = " or ".join(str(Path(name).absolute()) for name in source.datasets)
    raise MIRError(
        f"{_named(source, ' or '.join(source.datasets))}, configuration {source.config or 'default'}, "
        f"split {source.split} cannot be read: there is no file or folder {looked_at}"
        f"{_near(Path(source.datasets[0]).absolute(), others=False)}, {_in_data_root(source)}, and the "
        f"Hugging Face Hub does not give it ({'; '.join(failures)}). A relative path starts in the "
        "folder that the command runs in, so write it whole. Of a data set on the Hub, make a copy "
        f"where there is a network, with `mir-task data prepare {source.task} --to DIR`, carry DIR here "
        f"and set {DATA_ROOT}=DIR"
    )


def _with_ids(source: Source, path: str, table: Table) -> Rows:
    """The rows with ids, which name one row each; of the Hub the first row of an id counts."""
    id_column = source.id_column or table.own_id
    rows = Rows(source, path, table, {}, id_column is not None)
    rows.check_column(source.column, f"mir_{source.role}_column")
    if id_column is None:
        rows.numbers.update((str(row), row) for row in range(len(table)))
        return rows
    key = f"mir_{source.role}_id"
    name, rest = rows.check_column(id_column, key)
    for row, cell in enumerate(table.cells(name)):
        try:
            row_id = id_of(field(cell, rest))
        except MIRError as error:
            raise MIRError(
                f"task {source.task}: {key}: {path}, {table.place(row)}, {name!r} holds {error}"
            ) from None
        if row_id in rows.numbers and not isinstance(table, _Hub):
            first, second = table.place(rows.numbers[row_id]), table.place(row)
            raise MIRError(
                f"task {source.task}: {key}: {path}, {second} has the id {row_id!r} of {first}: an id "
                "names one row"
            )
        rows.numbers.setdefault(row_id, row)
    return rows


def _named(source: Source, name: str) -> str:
    return f"task {source.task}: mir_{source.role}_dataset {name}"


def _path_of(name: str) -> str:
    """Where to read a data set from: this package, the data root, or as named."""
    if name.startswith("mir_task:"):
        return str(PACKAGE / name.removeprefix("mir_task:"))
    path = Path(name).expanduser()
    here = str(path.absolute()) if path.exists() or _is_local(name) else name
    return _under_data_root(name) or here


def _under_data_root(name: str) -> str | None:
    """The folder of a data set in the data root, where there is one and no path of that name here.

    Raises:
        MIRError: the variable names no folder, and the name is of no path.
    """
    root = os.environ.get(DATA_ROOT)
    if not root or Path(name).exists() or _is_local(name):
        return None
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise MIRError(
            f"{name} is looked for in {DATA_ROOT} first, which is {root!r}, and there is no folder "
            f"{folder}{_near(folder)}. Set the variable to the folder that `mir-task data prepare TASK "
            "--to DIR` wrote to, or unset it"
        )
    return str(folder / name) if (folder / name).is_dir() else None


def _in_data_root(source: Source) -> str:
    """What was looked for in the folder that the variable names, in words."""
    root = os.environ.get(DATA_ROOT)
    if not root:
        return f"{DATA_ROOT} is not set"
    folder = Path(root).expanduser().absolute()
    names = [f"{source.task}.parquet", *source.datasets]
    there = sorted(path.name for path in folder.iterdir())[:5]
    return (
        f"{DATA_ROOT}, {folder}, holds none of {', '.join(names)} (it holds "
        f"{', '.join(there) or 'nothing'})"
    )


def _read_local(path: str, name: str, source: Source) -> Table | None:
    """The rows of a file, a pattern of files or a plain folder; None where the name is a data set's.

    Raises:
        MIRError: they cannot be read, or the name is a path that is not there.
    """
    paths = matching(path)
    if paths and not paths[0].is_dir():
        if kind_of(paths[0].name) is None:
            raise MIRError(f"{name} is neither a folder nor a file of {', '.join(ENDINGS)}")
        return read_table(paths)
    if not Path(path).is_dir():
        if _is_local(name):
            looked_at = "" if name == path else f" (looked for at {path})"
            raise MIRError(f"{name} is not there{looked_at}{_near(Path(path))}")
        return None
    if source.data_set or _under_data_root(name) == path:
        return None
    return read_folder(Path(path), source.kind, source.column)


def _is_local(name: str) -> bool:
    """Whether a name is of a path here, and not of a data set of the Hub."""
    return (
        name.startswith(("/", "~", ".", "mir_task:"))
        or kind_of(name) is not None
        or kind_of_file(name) is not None
        or not _ID.fullmatch(name)
        or (len(Path(name).parts) > 1 and Path(name).parent.is_dir())
    )


def _near(path: Path, *, others: bool = True) -> str:
    """What lies where a path was looked for, nearest names first.

    Args:
        path: that is not there.
        others: whether names that are not near are worth telling.
    """
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    there = sorted(other.name for other in parent.iterdir() if not other.name.startswith("."))
    close = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5) or there[: 5 * others]
    return f": {parent.resolve()} holds {', '.join(close)}" if close else ""


def _read_hub(path: str, source: Source) -> Table:
    """One split, without fetching the files of the others.

    Raises:
        FileNotFoundError: there is no such data set.
        ConnectionError: the Hub cannot be reached.
        MIRError: there is no such split, or a folder holds files and no rows.
    """
    builder = datasets.load_dataset_builder(path, source.config)
    files = builder.config.data_files
    if Path(path).is_dir() and isinstance(builder, FolderBasedBuilder):
        raise MIRError(
            f"{path} holds files and no rows: leave out mir_{source.role}_split and "
            f"mir_{source.role}_config to read it as a folder (null, where a mir_base names them)"
        )
    if not files:  # a copy in the cache of the Hub's client, read offline
        return _Hub(datasets.load_dataset(path, source.config, split=source.split))
    if source.split not in files:
        raise MIRError(
            f"{path}: mir_{source.role}_split is {source.split!r}, which it does not have; it has "
            f"{', '.join(files)}"
        )
    table = datasets.load_dataset(
        path,
        source.config,
        data_files={source.split: list(files[source.split])},
        split=source.split,
        verification_mode="no_checks",
    )
    return _Hub(table)
