"""What may stand in a row: a text, an id, a file; anything else is named with its row."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mir_task.errors import MIRError

Cell = dict[str, Any]
"""`bytes` and `path` of a file, of which one may be None."""
# No path is that long, but a picture in base64 is.
_LONGEST_PATH = 1024


def field(cell: Any, names: Sequence[str]) -> Any:
    """A part of nested objects and lists: `("conversations", "1", "value")`.

    Raises:
        MIRError: there is no such part.
    """
    for name in names:
        if isinstance(cell, Mapping) and name in cell:
            cell = cell[name]
        elif isinstance(cell, Sequence) and not isinstance(cell, str | bytes) and name.isdecimal():
            if int(name) >= len(cell):
                raise MIRError(f"a list of {len(cell)}, which has no {name}")
            cell = cell[int(name)]
        else:
            raise MIRError(f"{shown(cell)}, which has no {name!r}")
    return cell


def text_of(cell: Any, *, as_str: bool = False) -> str:
    """A text: a string, or a list of strings, which are stripped and joined by one space.

    Args:
        cell: what stands there.
        as_str: whether numbers count as texts.

    Raises:
        MIRError: anything else.
    """
    if isinstance(cell, list | tuple) and all(isinstance(part, str) for part in cell):
        return " ".join(part.strip() for part in cell)
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        if as_str:
            return str(cell)
        raise MIRError(f"{shown(cell)}, no text; `{{column: NAME, as: str}}` takes numbers")
    if isinstance(cell, Mapping):
        raise MIRError(f"{shown(cell)}, no text; NAME.{next(iter(cell), 'field')} selects a field")
    if isinstance(cell, list | tuple) and cell and isinstance(cell[0], Mapping):
        raise MIRError(f"{shown(cell)}, no text; NAME.0.{next(iter(cell[0]), 'field')} selects a field")
    raise MIRError(f"{shown(cell)}, no text")


def id_of(cell: Any) -> str:
    """An id as written: a string, in composed Unicode, or a whole number.

    Raises:
        MIRError: anything else.
    """
    if isinstance(cell, str) and cell:
        return unicodedata.normalize("NFC", cell)
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    raise MIRError(f"{shown(cell)}, no id: an id is a text or a whole number")


def file_of(cell: Any, folder: Path) -> Cell:
    """A file: its bytes, its path beside the data, or both as `{"bytes": ..., "path": ...}`.

    Raises:
        MIRError: anything else.
    """
    if isinstance(cell, bytes):
        return {"bytes": cell, "path": None}
    if isinstance(cell, str) and cell:
        if len(cell) > _LONGEST_PATH:
            raise MIRError(
                f"{shown(cell)}, no path; decode base64 into bytes (parquet) or write the files"
            )
        return {"bytes": None, "path": str(folder / Path(cell).expanduser())}
    if isinstance(cell, Mapping) and (cell.get("bytes") or cell.get("path")):
        content, path = cell.get("bytes"), cell.get("path")
        if content is None:
            return file_of(path, folder)
        if isinstance(content, bytes) and isinstance(path, str | None):
            return {"bytes": content, "path": path}
    raise MIRError(f"{shown(cell)}, no file and no path of one")


def check_modality(name: str, kind: str, modality: str) -> None:
    """Raise MIRError where what is called `name` holds another modality than the task's."""
    if kind != modality:
        raise MIRError(
            f"{name} holds {kind} and mir_modality is {modality}; set mir_modality: {kind}, or name "
            f"another mir_media_dataset or mir_media_column"
        )


def shown(cell: Any, length: int = 60) -> str:
    """Type and beginning of a value, for messages."""
    if cell is None:
        return "nothing (null)"
    if isinstance(cell, str) and len(cell) > length:
        return f"a text of {len(cell):,} characters, {cell[:length]!r}…"
    written = repr(cell)
    name = "float" if isinstance(cell, float) else type(cell).__name__
    return f"{name} {written[:length]}{'…' if len(written) > length else ''}"
