"""Folders of media or of texts: one row a file, whatever else lies beside it."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mir_task.documents.tables import Table, decoded, is_hidden, natural_order
from mir_task.errors import MIRError
from mir_task.files import files_below

KINDS = {
    "image": (
        *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm"),
        *(".tif", ".tiff", ".webp"),
    ),
    "video": (
        *(".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv"),
        *(".webm", ".wmv"),
    ),
    "audio": (".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"),
    "text": (".txt", ".story"),
}
"""Endings of files by what they hold, in any case; the same on every machine."""
_OF_A_PROJECT = {
    "readme",
    "license",
    "licence",
    "notice",
    "changelog",
    "requirements",
    "copying",
    "authors",
}
"""Names of texts that are about a folder and not in it."""


def kind_of_file(name: str) -> str | None:
    """What a file holds by its ending; None where it does not say."""
    ending = Path(name).suffix.lower()
    return next((kind for kind, endings in KINDS.items() if ending in endings), None)


class Files(Table):
    """Files of a folder, of which texts are read when they are asked for.

    Args:
        folder: that paths start in.
        paths: of the files by id, in their order.
        kind: of `KINDS`.
        column: of a file's path in the folder, or its text; `id` is the other.
    """

    own_id = "id"

    def __init__(self, folder: Path, paths: Mapping[str, Path], kind: str, column: str) -> None:
        self._folder, self._kind = folder, kind
        self._ids, self._paths = list(paths), list(paths.values())
        self.columns = ["id", column]

    def __len__(self) -> int:
        return len(self._ids)

    def cells(self, column: str, rows: Sequence[int] | None = None) -> list[Any]:
        """As `Table.cells`."""
        chosen = range(len(self)) if rows is None else rows
        if column == "id":
            return [self._ids[row] for row in chosen]
        return [self._cell(self._paths[row]) for row in chosen]

    def _cell(self, path: Path) -> str | MIRError:
        if self._kind != "text":
            return str(path)
        try:
            return _text(self._folder / path)
        except MIRError as error:
            return error

    def place(self, row: int) -> str:
        """As `Table.place`."""
        return f"the file {self._paths[row]}"


def read_folder(folder: Path, kind: str, column: str) -> Files:
    """The files of one kind in a folder and below, in natural order.

    Links to files and folders are followed. Hidden files, those of systems, and texts such as README.txt
    are left out.

    Args:
        folder: with files.
        kind: of `KINDS`.
        column: for a file's path in the folder, or its text.

    Returns:
        `id` is the path without its ending.

    Raises:
        MIRError: no such file, two of one id, or a folder in it that cannot be read.
    """
    paths = natural_order(path.relative_to(folder) for path in files_below(folder))
    seen = [path for path in paths if not is_hidden(path)]
    chosen = [path for path in seen if kind_of_file(path.name) == kind and not _of_a_project(path, kind)]
    if not chosen:
        others = ", ".join(str(path) for path in seen[:3])
        raise MIRError(
            f"{folder} holds no {kind} files ({', '.join(KINDS[kind])}) among its {len(seen)} files"
            + (f": {others}{', …' if len(seen) > 3 else ''}" if others else "")
        )
    rows: dict[str, Path] = {}
    for path in chosen:
        name = unicodedata.normalize("NFC", str(path.with_suffix("")))
        if name in rows:
            raise MIRError(
                f"{folder} holds {rows[name]} and {path}, which are one id: rename one of them"
            )
        rows[name] = path
    return Files(folder, rows, kind, column)


def _of_a_project(path: Path, kind: str) -> bool:
    return kind == "text" and path.stem.lower() in _OF_A_PROJECT


def _text(path: Path) -> str:
    """A text file's content; of the stories that the published script reads, what it takes of them.

    Raises:
        MIRError: the file cannot be read, or is not UTF-8.
    """
    try:
        text = decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise MIRError(f"{path} cannot be read: {error}") from error
    return text.partition("@highlight")[0].strip() if path.suffix.lower() == ".story" else text
