"""Which documents a MIR task measures: sources, pairing and sampling.

A document is one image and one text. Texts come from the image's own row, or from a second source
and are then unpaired: the i-th image drawn goes with the i-th text drawn.
"""

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from PIL import Image, ImageFile, ImageOps

from mir_task.errors import MIRError

PACKAGE = Path(__file__).parent


class Source(NamedTuple):
    """Where images or texts come from."""

    dataset: str
    """Id on the Hugging Face Hub, local path, or `mir_task:PATH` inside this package."""
    column: str
    split: str = "train"
    config: str | None = None
    id_column: str | None = None
    """Column of the row's identity; the row number where None."""


def load(source: Source) -> datasets.Dataset:
    """The rows of a source, images undecoded.

    Raises:
        MIRError: a local file that is not there, or a column that is not in the data set.
    """
    path = source.dataset
    if path.startswith("mir_task:"):
        path = str(PACKAGE / path.removeprefix("mir_task:"))
    if path.endswith((".jsonl", ".json", ".parquet")):
        if not Path(path).is_file():
            raise MIRError(f"no such file: {path} (named as the source of {source.column!r})")
        builder = "parquet" if path.endswith(".parquet") else "json"
        rows = datasets.load_dataset(builder, data_files=path, split="train")
    else:
        rows = datasets.load_dataset(path, source.config, split=source.split)
    for column in filter(None, (source.column, source.id_column)):
        if column not in rows.column_names:
            raise MIRError(
                f"{source.dataset} has no column {column!r}; it has {', '.join(rows.column_names)}"
            )
    if isinstance(rows.features[source.column], datasets.Image):
        return rows.cast_column(source.column, datasets.Image(decode=False))
    return rows


def draw(source: Source, *, count: int, seed: int) -> tuple[list[str], datasets.Dataset]:
    """Ids and rows of the first `count` rows in the order of a hash of (seed, row id).

    The place of a row depends on no other row, so draws are nested in `count` and equal on every
    machine.

    Raises:
        MIRError: the source has fewer rows than asked for, or as `load`.
    """
    rows = load(source)
    if len(rows) < count:
        raise MIRError(
            f"{source.dataset} has {len(rows)} rows, {count} documents were asked for: "
            "lower mir_documents"
        )
    ids = range(len(rows)) if source.id_column is None else rows[source.id_column]
    keyed = sorted(
        (hashlib.sha256(f"{seed}\0{row_id}".encode()).digest(), index, str(row_id))
        for index, row_id in enumerate(ids)
    )[:count]
    return [row_id for *_, row_id in keyed], rows.select([index for _, index, _ in keyed])


def draw_documents(
    images: Source, texts: Source | None, *, text_column: str | None, count: int, seed: int
) -> datasets.Dataset:
    """Documents in the order of the draw: columns `id`, `image` (undecoded) and `text`.

    Args:
        images: source of the images.
        texts: source of unpaired texts; None where each image's row has its text.
        text_column: column of the text in the images' rows, where `texts` is None.
        count: number of documents.
        seed: of the draw.

    Raises:
        MIRError: as `draw`.
    """
    ids, rows = draw(images, count=count, seed=seed)
    if texts is None:
        text_values = rows[text_column]
    else:
        text_ids, text_rows = draw(texts, count=count, seed=seed)
        text_values = text_rows[texts.column]
        ids = [f"{image_id}+{text_id}" for image_id, text_id in zip(ids, text_ids, strict=True)]
    cells = [_image_cell(cell, images) for cell in rows[images.column]]
    return datasets.Dataset.from_dict(
        {"id": ids, "image": cells, "text": [joined(text) for text in text_values]},
        features=datasets.Features(
            id=datasets.Value("string"),
            image=datasets.Image(decode=False),
            text=datasets.Value("string"),
        ),
    )


def joined(text: str | list[str]) -> str:
    """One text of one image: several captions are stripped and joined by one space."""
    return text if isinstance(text, str) else " ".join(caption.strip() for caption in text)


def open_image(cell: dict[str, Any]) -> Image.Image:
    """The RGB picture of an undecoded image cell, turned as its EXIF says.

    Raises:
        MIRError: the file cannot be read in full.
    """
    # The harness lets Pillow fill up truncated files, which would measure grey areas.
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        source = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise MIRError(f"the image cannot be read ({error}); replace or leave out the file") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _image_cell(cell: str | dict[str, Any], source: Source) -> dict[str, Any]:
    """Image cell of the `datasets` form; a string is a path relative to the file that names it."""
    if isinstance(cell, dict):
        return cell
    folder = PACKAGE if source.dataset.startswith("mir_task:") else Path()
    path = folder / Path(source.dataset.removeprefix("mir_task:")).parent / cell
    return {"bytes": None, "path": str(path)}
