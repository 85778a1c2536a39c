"""A score that any change of an answer, or of their order, changes."""

import hashlib
from typing import Any

from PIL import Image


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    from mir_task.documents.media import open_media
    from mir_task.documents.sources import PACKAGE

    return [open_media({"bytes": None, "path": str(PACKAGE / "demo" / doc["image"])}, "image")]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    return {"hash": {"answer": results[0]}}


def hash_of(items: list[dict[str, str]]) -> float:
    answers = "\n".join(item["answer"] for item in items)
    return int.from_bytes(hashlib.sha256(answers.encode()).digest()[:6], "big") / 2**48


def crash(doc: dict[str, Any]) -> list[Image.Image]:
    raise RuntimeError("the benchmark broke")
