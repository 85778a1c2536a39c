"""A document, and where its text stands in the prompt."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Document(NamedTuple):
    """One document to measure, as whoever runs the model asks for it."""

    id: str
    row: int
    """Position in the draw, and index of the document's row in the split."""
    text: str
    to_media: Callable[[dict[str, Any]], list[Any]]
    """From a row of the split to its images, paths of videos, or audio (samples and their rate)."""
    task: str = ""
    """Name of the harness's task, under which its adapter finds the rows of the data set."""
    split: str = ""
    fault: str | None = None
    """Why its row cannot be measured, where it cannot."""
    to_other_media: Callable[[dict[str, Any]], list[Any]] | None = None
    """As `to_media`, the medium of another document; None where there is none."""


def messages(
    document: Document, placement: str, modality: str, row: dict[str, Any]
) -> list[dict[str, Any]]:
    """The conversation of `assistant_chat` or `user_generate`, as chat templates take it.

    Args:
        document: with its text.
        placement: of the text: a turn of the assistant after the medium, or the user's turn.
        modality: of the medium.
        row: of the split, for `document.to_media`.
    """
    text = {"type": "text", "text": document.text}
    user: list[dict[str, Any]] = [{"type": modality, "url": medium} for medium in document.to_media(row)]
    if placement == "user_generate":
        return [{"role": "user", "content": [*user, text]}]
    return [{"role": "user", "content": user}, {"role": "assistant", "content": [text]}]
