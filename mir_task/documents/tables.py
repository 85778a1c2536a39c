"""Files of rows, read as they are written: CSV, TSV, JSON lines and lists, parquet, webdataset shards.

Nothing is guessed: all fields of CSV are texts, nothing stands for a missing value, and what does not
fit is refused with its line.
"""

import csv
import glob
import gzip
import io
import json
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet

from mir_task.documents.cells import shown
from mir_task.errors import MIRError

Row = dict[str, Any]


class Table:
    """Rows of cells by column name."""

    columns: Sequence[str] = ()
    own_id: str | None = None
    """Column that names the rows, where the format has one."""

    def __len__(self) -> int:
        """Number of rows."""
        raise NotImplementedError

    def cells(self, column: str, rows: Sequence[int] | None = None) -> list[Any]:
        """Cells of a column, of some rows or of all.

        A cell is None where a row does not have it, and a MIRError where it cannot be read.
        """
        raise NotImplementedError

    def place(self, row: int) -> str:
        """Where a row stands, for messages."""
        raise NotImplementedError

    def kind(self, column: str) -> str | None:
        """What a column holds (`image`, `video`, `audio`), where its type says so."""
        return None


class Listed(Table):
    """Rows in memory.

    Args:
        rows: cells by column.
        places: where each row stands, for messages.
        own_id: column that names them.
    """

    def __init__(self, rows: Sequence[Row], places: Sequence[str], own_id: str | None = None) -> None:
        self._rows, self._places, self.own_id = rows, places, own_id
        self.columns = list(dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self._rows)

    def cells(self, column: str, rows: Sequence[int] | None = None) -> list[Any]:
        """As `Table.cells`."""
        return [self._rows[row].get(column) for row in (range(len(self)) if rows is None else rows)]

    def place(self, row: int) -> str:
        """As `Table.place`."""
        return self._places[row]


class _Parquet(Table):
    """Parquet files, of which a column is read when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [pyarrow.parquet.ParquetFile(path) for path in paths]
        self.columns = self._files[0].schema_arrow.names
        self._name = paths[0].name if len(paths) == 1 else f"the {len(paths)} files"

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self._files)

    def cells(self, column: str, rows: Sequence[int] | None = None) -> list[Any]:
        """As `Table.cells`."""
        wanted = range(len(self)) if rows is None else rows
        found: dict[int, Any] = {}
        start = 0
        for file in self._files:
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                inside: Sequence[int] = range(start, end)
                if rows is not None:
                    inside = [row for row in wanted if start <= row < end]
                if inside:  # one group of rows is in memory at a time
                    cells = file.read_row_group(group, columns=[column])[column]
                    taken = cells.take(pyarrow.array([row - start for row in inside])).to_pylist()
                    found.update(zip(inside, taken, strict=True))
                start = end
        return [found[row] for row in wanted]

    def place(self, row: int) -> str:
        """As `Table.place`."""
        return f"row {row + 1} of {self._name}"

    def kind(self, column: str) -> str | None:
        """As `Table.kind`, from what `datasets` notes of its features."""
        noted = (self._files[0].schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        feature = json.loads(noted).get("info", {}).get("features", {}).get(column, {})
        name = str(feature.get("_type", "")).lower() if isinstance(feature, dict) else ""
        return name if name in ("image", "video", "audio") else None


class _Shards(Table):
    """Samples of webdataset shards: files that share a name up to the first dot."""

    own_id = "__key__"

    def __init__(self, paths: Sequence[Path]) -> None:
        self._samples: dict[str, dict[str, tuple[Path, tarfile.TarInfo]]] = {}
        for path in paths:
            with tarfile.open(path) as shard:
                for member in shard:
                    name = PurePosixPath(member.name)
                    key, _, ending = name.name.partition(".")
                    if not member.isfile() or not key or is_hidden(name):
                        continue
                    fields = self._samples.setdefault(str(name.parent / key), {})
                    if ending in fields:
                        raise MIRError(f"{path}: the sample {key!r} has two files .{ending}")
                    fields[ending] = path, member
        self._keys = list(self._samples)
        endings = dict.fromkeys(ending for fields in self._samples.values() for ending in fields)
        self.columns = ["__key__", *endings]

    def __len__(self) -> int:
        return len(self._keys)

    def cells(self, column: str, rows: Sequence[int] | None = None) -> list[Any]:
        """As `Table.cells`."""
        keys = self._keys if rows is None else [self._keys[row] for row in rows]
        if column == "__key__":
            return list(keys)
        return [self._content(key, column) for key in keys]

    def _content(self, key: str, ending: str) -> Any:
        if ending not in self._samples[key]:
            return None
        path, member = self._samples[key][ending]
        with tarfile.open(path) as shard:
            file = shard.extractfile(member)
            content = b"" if file is None else file.read()
        last, name = ending.rpartition(".")[2].lower(), f"{path}: {member.name}"
        if last not in ("txt", "text", "caption", "json"):
            return content
        try:
            text = decoded(content, name)
            return _parsed(text, name) if last == "json" else text
        except MIRError as error:
            return error

    def place(self, row: int) -> str:
        """As `Table.place`."""
        return f"the sample {self._keys[row]!r}"


def is_hidden(path: PurePath) -> bool:
    """Whether a path is of the system or of a program, not of the data."""
    return any(part.startswith(".") or part in ("__MACOSX", "__pycache__") for part in path.parts)


def decoded(content: bytes, name: str) -> str:
    """UTF-8 as text, without its mark.

    Raises:
        MIRError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MIRError(
            f"{name} is not UTF-8 (byte 0x{content[error.start]:02x} in line {line}): save it as UTF-8"
        ) from None


def _delimited(text: str, name: str, delimiter: str) -> Listed:
    """Rows of texts, of which those in quotes may hold the delimiter, and lines.

    Raises:
        MIRError: rows of different lengths, or quotes that may be of the texts as well.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, places, header, spans_lines = [], [], list[str](), ""
    try:
        for fields in reader:
            if not fields:
                continue
            if not header:
                header = fields
                if doubled := next((field for field in fields if fields.count(field) > 1), None):
                    raise MIRError(f"{name} has two columns {doubled!r}")
                continue
            if len(fields) != len(header):
                raise MIRError(
                    f"{name}, line {reader.line_num}: {len(fields)} fields, the header has "
                    f"{len(header)}; a field that holds {delimiter!r} stands in quotes"
                )
            rows.append(dict(zip(header, fields, strict=True)))
            places.append(f"line {reader.line_num}")
            if not spans_lines:
                spans_lines = next((each for each in fields if re.search(r"[\r\n]", each)), "")
    except csv.Error as error:
        raise MIRError(f"{name}, line {reader.line_num}: {error}") from None
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line]
    widths = {line.count(delimiter) + 1 for line in lines}
    if spans_lines and len(header) > 1 and widths == {len(header)}:
        raise MIRError(
            f"{name} can be read in two ways: every line has {len(header)} fields, and by its quotes "
            f"one field spans lines, {shown(spans_lines)}. Write it as JSON lines, or double the quotes "
            "that are of the texts and put such texts in quotes"
        )
    return Listed(rows, places)


def _json_lines(text: str, name: str) -> Listed:
    numbered = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = [_object(_parsed(line, f"{name}, line {n}"), f"{name}, line {n}") for n, line in numbered]
    return Listed(rows, [f"line {n}" for n, _ in numbered])


def _json_list(text: str, name: str) -> Listed:
    content = _parsed(text, name)
    if not isinstance(content, list):
        raise MIRError(f"{name} holds one {type(content).__name__}, not a list of rows")
    rows = [_object(row, f"{name}, row {n}") for n, row in enumerate(content, start=1)]
    return Listed(rows, [f"row {n}" for n in range(1, len(rows) + 1)])


class _Written(float):
    """A number of JSON that is shown as it was written: 2.50."""

    def __new__(cls, text: str) -> "_Written":
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text, parse_float=_Written)
    except (ValueError, RecursionError) as error:
        raise MIRError(f"{name} is no JSON: {error}") from None


def _object(value: Any, name: str) -> Row:
    if not isinstance(value, dict):
        raise MIRError(f"{name} holds {type(value).__name__}, not a row of named fields")
    return value


_TEXTS: dict[str, Callable[[str, str], Listed]] = {
    ".csv": lambda text, name: _delimited(text, name, ","),
    ".tsv": lambda text, name: _delimited(text, name, "\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
}
ENDINGS = (*_TEXTS, ".parquet", ".tar")
"""Of files of rows; texts and shards may end in .gz beside."""


def kind_of(name: str) -> str | None:
    """The ending of a file of rows in lower case, without .gz; None of other files."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    if suffixes[-1:] == [".tgz"]:
        return ".tar"
    if suffixes[-1:] == [".gz"]:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes and suffixes[-1] in ENDINGS else None


def matching(name: str) -> list[Path]:
    """The file of that name, or where there is none, the files of that pattern, in natural order."""
    if Path(name).exists():
        return [Path(name)]
    found = (Path(path) for path in glob.glob(name, recursive=True))
    return natural_order(path for path in found if not path.is_dir())  # a broken link is told of later


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sorted with numbers by their size: 2 before 10."""

    def key(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", str(path))
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]

    return sorted(paths, key=key)


def read_table(paths: Sequence[Path]) -> Table:
    """The rows of a file, or of several of one kind.

    Raises:
        MIRError: a file cannot be read as what its ending says.
    """
    name, kind = str(paths[0]), kind_of(paths[0].name)
    if other := next((path for path in paths if kind_of(path.name) != kind), None):
        raise MIRError(f"one name means files of several kinds, {name} and {other}: name one kind")
    try:
        if kind == ".parquet":
            return _Parquet(paths)
        if kind == ".tar":
            return _Shards(paths)
        assert kind is not None
        if len(paths) > 1:
            raise MIRError(f"{len(paths)} files {kind} in one name: name one file")
        content = paths[0].read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        table = _TEXTS[kind](decoded(content, name), name)
    except MIRError:
        raise
    except (OSError, EOFError, ValueError, tarfile.TarError, pyarrow.ArrowException) as error:
        raise MIRError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    if not len(table):
        raise MIRError(f"{name} holds no rows")
    return table
