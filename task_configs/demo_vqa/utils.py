"""Images of `demo_vqa`, which are those of `mir_demo`."""

from typing import Any

from PIL import Image

from mir_task.documents.media import open_media
from mir_task.documents.sources import PACKAGE


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture that the question is about."""
    return [open_media({"bytes": None, "path": str(PACKAGE / "demo" / doc["image"])}, "image")]
