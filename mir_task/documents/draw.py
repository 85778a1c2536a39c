"""Which documents a MIR task measures: sources, pairing, sampling, and copies to carry.

A document is one medium (image, video or audio) and one text. Texts come from the medium's own row, or
from a second source: by the id of the row, or crossed, the i-th medium drawn with the i-th text drawn.

`MIR_TASK_DATA` names a folder that is read before the Hugging Face Hub: for each task its prepared
copy `TASK.parquet` (`mir-task data prepare`), else a folder of each data set under the data set's id.
"""

import hashlib
import heapq
import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from mir_task.documents.media import open_media, soundfile_package, with_bytes
from mir_task.documents.sources import Rows, Source, load
from mir_task.errors import MIRError
from mir_task.files import written_whole
from mir_task.settings import DATA_ROOT, Column, Settings

FEATURES = datasets.Features(
    id=datasets.Value("string"),
    media={"bytes": datasets.Value("large_binary"), "path": datasets.Value("string")},
    text=datasets.Value("string"),
    fault=datasets.Value("string"),
)
_METADATA_KEY = b"mir_task"
_SOURCE = re.compile(r"mir_(modality|seed|pairing|media_.+|text_(dataset|config|split|column|id))")
"""Settings that a copy fixes: which documents there are, in which order."""


def documents(task: str, settings: Settings) -> datasets.Dataset:
    """A task's documents in the order of the draw.

    Columns are `id`, `media` (undecoded), `text`, and `fault`: why a row cannot be measured, or None.

    Raises:
        MIRError: data that cannot be found or read, a column that is not there or holds another
            modality, fewer rows than documents asked for, or no package that reads audio.
    """
    if settings.modality == "audio":
        soundfile_package()
    copy = _copy_of(task)
    try:
        drawn = _draw_documents(task, settings) if copy is None else _read_copy(copy, task, settings)
    except MIRError:
        raise
    except Exception as error:  # of whatever reads the data
        raise MIRError(
            f"task {task}: its data cannot be read ({type(error).__name__}: {error}); "
            f"mir_media_dataset is {settings.media_dataset}, mir_text_dataset {settings.text_dataset}"
        ) from error
    if settings.text_limit is None:
        return drawn
    limited = [first_words(text, settings.text_limit) for text in drawn["text"]]
    return drawn.remove_columns("text").add_column("text", limited)


def first_words(text: str, count: int) -> str:
    """The beginning of a text that holds `count` words, as it stands there."""
    words = list(re.finditer(r"\S+", text))
    return text if len(words) <= count else text[: words[count - 1].end()]


def prepare(task: str, settings: Settings, folder: Path) -> Path:
    """Write exactly the task's documents to `folder`/TASK.parquet, with their media's bytes.

    Raises:
        MIRError: as `documents`.
    """
    drawn = _draw_documents(task, settings)
    if settings.on_error == "stop" and (fault := next(filter(None, drawn["fault"]), None)):
        raise MIRError(f"task {task}: {fault}")
    cells = []
    for row in drawn:
        cell = row["media"]
        if row["fault"] is None:
            cell = with_bytes(cell)
            open_media(cell, settings.modality)  # so that nothing but media is carried along
        cells.append(cell)
    table = datasets.Dataset.from_dict({**drawn[:], "media": cells}, features=FEATURES).data.table
    fixed = json.dumps(_fixed(settings)).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA_KEY: fixed})
    path = folder / f"{task}.parquet"
    with written_whole(path) as partial:
        pyarrow.parquet.write_table(table, partial)
    return path


def available(task: str, settings: Settings) -> int:
    """How many documents a task's data holds.

    Raises:
        MIRError: as `documents`.
    """
    copy = _copy_of(task)
    if copy is not None:
        return int(pyarrow.parquet.read_metadata(copy).num_rows)
    media = load(Source.of(task, "media", settings))
    if settings.text_dataset is None:
        return len(media.numbers)
    text = load(Source.of(task, "text", settings))
    if settings.pairing == "by_id":
        return len(media.numbers.keys() & text.numbers.keys())
    return min(len(media.numbers), len(text.numbers))


def _fixed(settings: Settings) -> dict[str, Any]:
    return {key: value for key, value in settings.keys().items() if _SOURCE.fullmatch(key)}


def _copy_of(task: str) -> Path | None:
    root = os.environ.get(DATA_ROOT)
    path = Path(root or ".").expanduser().absolute() / f"{task}.parquet"
    return path if root and path.is_file() else None


def _read_copy(path: Path, task: str, settings: Settings) -> datasets.Dataset:
    again = f"make it anew with `mir-task data prepare {task} --to {path.parent}`"
    fixed = json.loads((pyarrow.parquet.read_schema(path).metadata or {}).get(_METADATA_KEY, b"null"))
    if fixed != _fixed(settings):
        raise MIRError(f"{path} was made for other settings of {task}; {again}")
    table = pyarrow.parquet.read_table(path)
    if "fault" not in table.column_names:  # of an earlier version
        table = table.append_column("fault", pyarrow.nulls(len(table), pyarrow.string()))
    rows = datasets.Dataset(table.replace_schema_metadata(None)).cast(FEATURES)
    if len(rows) < settings.documents:
        raise MIRError(
            f"{path} holds {len(rows)} documents, {settings.documents} were asked for; {again}"
        )
    return rows.select(range(settings.documents))


def _draw_documents(task: str, settings: Settings) -> datasets.Dataset:
    media = load(Source.of(task, "media", settings))
    text = media if settings.text_dataset is None else load(Source.of(task, "text", settings))
    column = Column.of(settings.text_column)
    text.check_column(column.column, "mir_text_column")
    if text is media:
        ids = text_ids = _drawn(media, media.numbers, settings)
    elif settings.pairing == "by_id":
        if media.named != text.named:
            without, role = (text, "text") if media.named else (media, "media")
            raise MIRError(
                f"task {task}: mir_pairing is by_id, and {without.path} has no ids, so its rows are "
                f"numbered, while the other source has names: set mir_{role}_id to the column of its ids"
            )
        ids = text_ids = _drawn(media, [i for i in media.numbers if i in text.numbers], settings)
    else:
        ids = _drawn(media, media.numbers, settings)
        # Of equal ids, such as row numbers, one order would cross nothing.
        salt = "text" if media.numbers.keys() & text.numbers.keys() else ""
        text_ids = _drawn(text, text.numbers, settings, salt)
    cells, texts = media.media(ids), text.texts(text_ids, column.column, as_str=column.kind == "str")
    if text is not media and settings.pairing == "crossed":
        ids = [f"{media_id}+{text_id}" for media_id, text_id in zip(ids, text_ids, strict=True)]
    rows = [
        {
            "id": row_id,
            "media": {"bytes": None, "path": None} if isinstance(cell, MIRError) else cell,
            "text": "" if isinstance(text, MIRError) else text,
            "fault": next((str(part) for part in (cell, text) if isinstance(part, MIRError)), None),
        }
        for row_id, cell, text in zip(ids, cells, texts, strict=True)
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _drawn(rows: Rows, ids: Collection[str], settings: Settings, salt: str = "") -> list[str]:
    """The first ids in the order of the draw, as many as documents are asked for.

    Of rows with one id the first stands for all. The place of a row depends on no other row, so draws
    are nested in their size and equal on every machine.
    """
    count, source = settings.documents, rows.source
    if len(ids) < count:
        having = " that have a text of their id" if len(ids) < len(rows.numbers) else ""
        raise MIRError(
            f"task {source.task}: mir_documents asks for {count}, and mir_{source.role}_dataset "
            f"{rows.path} has {len(ids)} different rows{having}: lower mir_documents, or add rows"
        )
    return in_draw_order(ids, f"{salt}{settings.seed}", count)


def in_draw_order(ids: Iterable[str], seed: int | str, count: int) -> list[str]:
    """The first ids in the order of a hash of (seed, id): random, and the same on every machine."""
    return heapq.nsmallest(count, ids, key=lambda i: hashlib.sha256(f"{seed}\0{i}".encode()).digest())
