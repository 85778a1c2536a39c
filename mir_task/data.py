"""Which documents a MIR task measures: sources, pairing, sampling, and copies to carry.

A document is one medium (image, video or audio) and one text. Texts come from the medium's own row, or
from a second source and are then unpaired: the i-th medium drawn goes with the i-th text drawn.

`MIR_TASK_DATA` names a folder that is read before the Hugging Face Hub: for each task its prepared
copy `TASK.parquet` (`mir-task data prepare`), else a folder of each data set under the data set's id.
"""

import functools
import hashlib
import io
import json
import mimetypes
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import av
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
    media={"bytes": datasets.Value("large_binary"), "path": datasets.Value("string")},
    text=datasets.Value("string"),
)
_COLUMNS = {"image": datasets.Image, "video": datasets.Video, "audio": datasets.Audio}
_METADATA_KEY = b"mir_task"
# Settings that a copy does not fix: how many documents are used, and what is done with them.
_FREE = {
    "mir_documents",
    "mir_text_limit",
    "mir_text_rows",
    "mir_placement",
    "mir_outliers",
    "mir_on_error",
    "mir_late_outliers",
    "mir_groups",
    "mir_host_memory",
    "mir_accelerator_memory",
}


class Source(NamedTuple):
    """Where media or texts come from."""

    datasets: tuple[str, ...]
    """Names of one data set, in the order to try."""
    column: str
    split: str
    config: str | None
    id_column: str | None


def documents(task: str, settings: Settings) -> datasets.Dataset:
    """A task's documents in the order of the draw: columns `id`, `media` (undecoded) and `text`.

    Raises:
        MIRError: data that cannot be found or read, a column that is not there or holds another
            modality, fewer rows than documents asked for, or no package that reads audio.
    """
    if settings.mir_modality == "audio":
        _soundfile()
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
    """Write exactly the task's documents to `folder`/TASK.parquet, with their media's bytes.

    Raises:
        MIRError: as `documents`.
    """
    drawn = _draw_documents(task, settings)
    cells = [_with_bytes(cell) for cell in drawn["media"]]
    table = datasets.Dataset.from_dict({**drawn[:], "media": cells}, features=FEATURES).data.table
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
    media = Source(
        _names(s.mir_media_dataset),
        s.mir_media_column,
        s.mir_media_split,
        s.mir_media_config,
        s.mir_media_id,
    )
    ids, rows, path = draw(task, media, count=s.mir_documents, seed=s.mir_seed)
    if s.mir_text_dataset is None:
        _check_column(rows, s.mir_text_column, media)
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
        ids = [f"{media_id}+{text_id}" for media_id, text_id in zip(ids, text_ids, strict=True)]
    for kind, feature in _COLUMNS.items():
        if isinstance(rows.features[media.column], feature):
            _check_modality(f"the column {media.column!r} of {path}", kind, s.mir_modality)
    cells = [_media_cell(cell, path) for cell in rows[media.column]]
    return datasets.Dataset.from_dict(
        {"id": ids, "media": cells, "text": [joined(text) for text in texts]}, features=FEATURES
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
    """The rows of a source, media undecoded, and the path that they came from.

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
        for feature in _COLUMNS.values():
            if isinstance(rows.features[source.column], feature):
                rows = rows.cast_column(source.column, feature(decode=False))
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
    """One text of one document: several captions are stripped and joined by one space."""
    return text if isinstance(text, str) else " ".join(caption.strip() for caption in text or ())


def _media_cell(cell: str | bytes | dict[str, Any], path: str) -> dict[str, Any]:
    """Bytes and path of a file, of which one may be None; a string is a path beside its data set."""
    if isinstance(cell, bytes):
        return {"bytes": cell, "path": None}
    if isinstance(cell, str):
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        return {"bytes": None, "path": str(folder / cell)}
    if isinstance(cell, dict) and (cell.get("bytes") or cell.get("path")):
        return {"bytes": cell.get("bytes"), "path": cell.get("path")}
    raise MIRError(
        f"{path}: a file, or the path of one, has to stand in each row of mir_media_column; found "
        f"{type(cell).__name__} {str(cell)[:60]}"
    )


def _check_modality(name: str, kind: str, modality: str) -> None:
    if kind != modality:
        raise MIRError(
            f"{name} holds {kind} and mir_modality is {modality}; set mir_modality: {kind}, or name "
            f"another mir_media_dataset or mir_media_column"
        )


def _with_bytes(cell: dict[str, Any]) -> dict[str, Any]:
    if cell["bytes"] is not None:
        return cell
    try:
        return {"bytes": Path(cell["path"]).read_bytes(), "path": Path(cell["path"]).name}
    except OSError as error:
        raise MIRError(f"the file {cell['path']} cannot be read ({error})") from error


def _source(cell: dict[str, Any]) -> io.BytesIO | str:
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else str(cell["path"])


def open_media(cell: dict[str, Any], modality: str) -> Image.Image | str | dict[str, Any]:
    """What adapters take for an undecoded cell: an image, the path of a video, or audio.

    Raises:
        MIRError: the file is of another modality, or cannot be read.
    """
    kind = (mimetypes.guess_type(cell["path"] or "")[0] or "").partition("/")[0]
    if kind in _COLUMNS:
        _check_modality(cell["path"], kind, modality)
    if modality == "image":
        return open_image(cell)
    return open_audio(cell) if modality == "audio" else open_video(cell)


def open_video(cell: dict[str, Any]) -> str:
    """The path of a video, which is written to a temporary file where the cell holds its bytes.

    Raises:
        MIRError: the video has no frame that can be read.
    """
    path = cell["path"] or ""
    if cell["bytes"] is not None:
        # Adapters tell videos from images by their ending.
        name = hashlib.sha256(cell["bytes"]).hexdigest() + (Path(path).suffix or ".mp4")
        file = Path(_temporary_videos().name, name)
        if not file.exists():
            file.write_bytes(cell["bytes"])
        path = str(file)
    try:
        with av.open(path) as container:
            next(container.decode(video=0))
    except (av.FFmpegError, OSError, IndexError, StopIteration) as error:
        reason = "it has no frames" if isinstance(error, IndexError | StopIteration) else error
        raise MIRError(f"the video cannot be read ({reason}); replace or leave out the file") from error
    return path


@functools.cache
def _temporary_videos() -> tempfile.TemporaryDirectory[str]:
    """A folder that is gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="mir_task_")


def open_audio(cell: dict[str, Any]) -> dict[str, Any]:
    """Audio as the harness's tasks give it: `array`, float32 [samples], and `sampling_rate` in Hz.

    Channels are averaged.

    Raises:
        MIRError: the file cannot be read or holds no samples, or soundfile is not installed.
    """
    soundfile = _soundfile()
    try:
        samples, rate = soundfile.read(_source(cell), dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:
        reason = getattr(error, "error_string", error)  # without the address of a buffer
        raise MIRError(f"the audio cannot be read ({reason}); replace or leave out the file") from error
    if not len(samples):
        raise MIRError("the audio holds no samples; replace or leave out the file")
    return {"array": samples.mean(axis=1), "sampling_rate": rate}


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # the package, or its library
        raise MIRError(
            f"audio is read with soundfile, which is not there ({error}): pip install 'mir-task[audio]'"
        ) from error
    return soundfile


def open_image(cell: dict[str, Any]) -> Image.Image:
    """The RGB picture of an undecoded image cell, turned as its EXIF says.

    Raises:
        MIRError: the file cannot be read in full.
    """
    # The harness lets Pillow fill up truncated files, which would measure grey areas.
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with Image.open(_source(cell)) as file:
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
