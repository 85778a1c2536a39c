"""Which documents a MIR task measures: sources, pairing, sampling, and copies to carry.

A document is one image and one text. Texts come from the image's own row, or from a second source
and are then unpaired: the i-th image drawn goes with the i-th text drawn.

`MIR_TASK_DATA` names a folder that is read before the Hugging Face Hub: for each task its prepared
copy `TASK.parquet` (`mir-task data prepare`), else a folder of each data set under the data set's id.
"""

import hashlib
import io
import json
import mimetypes
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow.parquet
from PIL import Image, ImageFile, ImageOps

from mir_task.errors import MIRError
from mir_task.settings import Settings

PACKAGE = Path(__file__).parent
DATA_ROOT = "MIR_TASK_DATA"
FEATURES = datasets.Features(
    id=datasets.Value("string"),
    image=datasets.Image(decode=False),
    text=datasets.Value("string"),
)
_METADATA_KEY = b"mir_task"
# Settings that a copy does not fix: how many documents are used, and what is done with them.
_FREE = {
    "mir_documents",
    "mir_text_limit",
    "mir_placement",
    "mir_outliers",
    "mir_on_error",
    "mir_late_outliers",
    "mir_groups",
}


class Source(NamedTuple):
    """Where images or texts come from."""

    datasets: tuple[str, ...]
    """Names of one data set, in the order to try."""
    column: str
    split: str
    config: str | None
    id_column: str | None


def documents(task: str, settings: Settings) -> datasets.Dataset:
    """A task's documents in the order of the draw: columns `id`, `image` (undecoded) and `text`.

    Raises:
        MIRError: data that cannot be found or read, a column that is not there, or fewer rows than
            documents asked for.
    """
    copy = _copy_of(task)
    drawn = _draw_documents(task, settings) if copy is None else _read_copy(copy, task, settings)
    if settings.mir_text_limit is None:
        return drawn
    limited = [first_words(text, settings.mir_text_limit) for text in drawn["text"]]
    return drawn.remove_columns("text").add_column("text", limited)


def first_words(text: str, count: int) -> str:
    """The beginning of a text that holds `count` words, as it stands there."""
    words = list(re.finditer(r"\S+", text))
    return text if len(words) <= count else text[: words[count - 1].end()]


def prepare(task: str, settings: Settings, folder: Path) -> Path:
    """Write exactly the task's documents to `folder`/TASK.parquet, with their images' bytes.

    Raises:
        MIRError: as `documents`.
    """
    drawn = _draw_documents(task, settings)
    cells = [_with_bytes(cell) for cell in drawn["image"]]
    table = datasets.Dataset.from_dict({**drawn[:], "image": cells}, features=FEATURES).data.table
    fixed = settings.model_dump_json(exclude=_FREE).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA_KEY: fixed})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}.parquet"
    partial = folder / f".{task}.parquet.partial"
    pyarrow.parquet.write_table(table, partial)
    os.replace(partial, path)
    return path


def _copy_of(task: str) -> Path | None:
    root = os.environ.get(DATA_ROOT)
    path = Path(root or ".") / f"{task}.parquet"
    return path if root and path.is_file() else None


def _read_copy(path: Path, task: str, settings: Settings) -> datasets.Dataset:
    again = f"make it anew with `mir-task data prepare {task} --to {path.parent}`"
    fixed = json.loads((pyarrow.parquet.read_schema(path).metadata or {}).get(_METADATA_KEY, b"null"))
    if fixed != json.loads(settings.model_dump_json(exclude=_FREE)):
        raise MIRError(f"{path} was made for other settings of {task}; {again}")
    rows = datasets.Dataset.from_parquet(str(path), features=FEATURES, keep_in_memory=True)
    if len(rows) < settings.mir_documents:
        raise MIRError(
            f"{path} holds {len(rows)} documents, {settings.mir_documents} were asked for; {again}"
        )
    return rows.select(range(settings.mir_documents))


def _draw_documents(task: str, settings: Settings) -> datasets.Dataset:
    s = settings
    images = Source(
        _names(s.mir_image_dataset),
        s.mir_image_column,
        s.mir_image_split,
        s.mir_image_config,
        s.mir_image_id,
    )
    ids, rows, path = draw(task, images, count=s.mir_documents, seed=s.mir_seed)
    if s.mir_text_dataset is None:
        _check_column(rows, s.mir_text_column, images)
        texts = rows[s.mir_text_column]
    else:
        source = Source(
            _names(s.mir_text_dataset),
            s.mir_text_column,
            s.mir_text_split,
            s.mir_text_config,
            s.mir_text_id,
        )
        text_ids, text_rows, _ = draw(task, source, count=s.mir_documents, seed=s.mir_seed)
        texts = text_rows[source.column]
        ids = [f"{image_id}+{text_id}" for image_id, text_id in zip(ids, text_ids, strict=True)]
    cells = [_image_cell(cell, path) for cell in rows[images.column]]
    return datasets.Dataset.from_dict(
        {"id": ids, "image": cells, "text": [joined(text) for text in texts]}, features=FEATURES
    )


def draw(task: str, source: Source, *, count: int, seed: int) -> tuple[list[str], datasets.Dataset, str]:
    """Ids and rows of the first `count` rows in the order of a hash of (seed, row id), and their path.

    Of rows with one id the first stands for all. The place of a row depends on no other row, so draws
    are nested in `count` and equal on every machine.

    Raises:
        MIRError: as `documents`.
    """
    rows, path = load(task, source)
    column = range(len(rows)) if source.id_column is None else rows[source.id_column]
    first: dict[str, int] = {}
    for index, row_id in enumerate(column):
        first.setdefault(str(row_id), index)
    if len(first) < count:
        raise MIRError(
            f"{path} has {len(first)} different rows, {count} documents were asked for: "
            "lower mir_documents"
        )
    ids = in_draw_order(first, seed)[:count]
    return ids, rows.select([first[row_id] for row_id in ids]), path


def in_draw_order(ids: Iterable[str], seed: int) -> list[str]:
    """Ids in the order of a hash of (seed, id): a random order, the same on every machine."""
    return sorted(ids, key=lambda i: hashlib.sha256(f"{seed}\0{i}".encode()).digest())


def load(task: str, source: Source) -> tuple[datasets.Dataset, str]:
    """The rows of a source, images undecoded, and the path that they came from.

    Raises:
        MIRError: no name of the data set can be read, or a column is not in it.
    """
    failures = []
    for name in source.datasets:
        path = _local(name)
        try:
            rows = _load_split(path, source)
        except (OSError, ConnectionError, ValueError) as error:
            if isinstance(error, MIRError):
                raise
            failures.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        for column in filter(None, (source.column, source.id_column)):
            _check_column(rows, column, source)
        if isinstance(rows.features[source.column], datasets.Image):
            rows = rows.cast_column(source.column, datasets.Image(decode=False))
        return rows, path
    raise MIRError(
        f"{task}: data set {' or '.join(source.datasets)}, configuration {source.config or 'default'}, "
        f"split {source.split} cannot be read ({'; '.join(failures)}). Where there is a network, make "
        f"a copy with `mir-task data prepare {task} --to DIR`, carry DIR here and set {DATA_ROOT}=DIR"
    )


_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def _load_split(path: str, source: Source) -> datasets.Dataset:
    """One split, without fetching the files of the others.

    Raises:
        FileNotFoundError: there is no such data set.
        ConnectionError: the Hub cannot be reached.
        MIRError: there is no such split.
    """
    if (builder := _FILES.get(Path(path).suffix)) is not None:
        return datasets.load_dataset(builder, data_files=path, split="train")
    files = datasets.load_dataset_builder(path, source.config).config.data_files
    if not files:  # a copy in the cache of the Hub's client, read offline
        return datasets.load_dataset(path, source.config, split=source.split)
    if source.split not in files:
        raise MIRError(f"{path} has no split {source.split!r}; it has {', '.join(files)}")
    return datasets.load_dataset(
        path,
        source.config,
        data_files={source.split: list(files[source.split])},
        split=source.split,
        verification_mode="no_checks",
    )


def _local(name: str) -> str:
    """Where to read a data set from: this package, the data root, or as named."""
    if name.startswith("mir_task:"):
        return str(PACKAGE / name.removeprefix("mir_task:"))
    root = os.environ.get(DATA_ROOT)
    if root and (Path(root) / name).is_dir():
        return str(Path(root) / name)
    return name


def _names(name: str | tuple[str, ...]) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name


def _check_column(rows: datasets.Dataset, column: str, source: Source) -> None:
    if column not in rows.column_names:
        raise MIRError(
            f"{source.datasets[0]} has no column {column!r}; it has {', '.join(rows.column_names)}"
        )


def joined(text: str | list[str] | None) -> str:
    """One text of one image: several captions are stripped and joined by one space."""
    return text if isinstance(text, str) else " ".join(caption.strip() for caption in text or ())


def _image_cell(cell: str | dict[str, Any], path: str) -> dict[str, Any]:
    """Image cell of the `datasets` form; a string is a path relative to its data set."""
    if isinstance(cell, dict):
        return cell
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return {"bytes": None, "path": str(folder / cell)}


def _with_bytes(cell: dict[str, Any]) -> dict[str, Any]:
    if cell["bytes"] is not None:
        return cell
    try:
        return {"bytes": Path(cell["path"]).read_bytes(), "path": Path(cell["path"]).name}
    except OSError as error:
        raise MIRError(f"the image {cell['path']} cannot be read ({error})") from error


def open_visual(cell: dict[str, Any]) -> Image.Image | str:
    """The picture of an undecoded image cell, or the path of a video as adapters take it."""
    path = cell["path"] or ""
    if cell["bytes"] is None and (mimetypes.guess_type(path)[0] or "").startswith("video/"):
        if not Path(path).is_file():
            raise MIRError(f"there is no video {path}")
        return path
    return open_image(cell)


def open_image(cell: dict[str, Any]) -> Image.Image:
    """The RGB picture of an undecoded image cell, turned as its EXIF says.

    Raises:
        MIRError: the file cannot be read in full.
    """
    # The harness lets Pillow fill up truncated files, which would measure grey areas.
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        source = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]
        with Image.open(source) as file:
            image = to_rgb(ImageOps.exif_transpose(file))
            # Image processors take a side of 1 or 3 pixels for the colour channels.
            return image if min(image.size) > 3 else ImageOps.scale(image, 4, Image.Resampling.NEAREST)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MIRError(f"the image cannot be read ({error}); replace or leave out the file") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB: 16-bit grey scaled to 8, transparent areas on white."""
    if image.mode.startswith("I") and np.asarray(image).max() > 255:  # Pillow would clip the rest
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
