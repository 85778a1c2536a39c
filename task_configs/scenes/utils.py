"""Images and scores of `scenes_vqa`; the images are those of `mir_scenes`."""

import functools
from typing import Any

import datasets
from PIL import Image

from mir_task.documents.media import open_media
from mir_task.documents.sources import PACKAGE


@functools.cache
def _images() -> list[dict[str, Any]]:
    table = datasets.load_dataset(
        "parquet", data_files=str(PACKAGE / "demo" / "scenes" / "scenes.parquet"), split="train"
    )
    return list(table.cast_column("image", datasets.Image(decode=False))["image"])


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The scene that the question is about."""
    return [open_media(_images()[doc["scene"]], "image")]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the one word that was said is the answer, for all questions and for those of its kind."""
    right = float(results[0].strip() == doc["answer"])
    return {"accuracy": right, doc["kind"]: right}
