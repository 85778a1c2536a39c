"""One call of what runs a model, with some documents: what came of it, and why nothing did."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from mir_task.capture.prefill import Prefill
from mir_task.documents.document import Document
from mir_task.errors import MIRError

_MARK = re.compile(r"<[|/]?\w*(image|video|audio|img)\w*[|]?>|\[IMG\]", re.IGNORECASE)


class Call(NamedTuple):
    """What one call of `send` gave."""

    prefills: list[Prefill]
    forwards: tuple[int, int]
    """Prefill forwards and decode steps."""
    errors: list[Exception]
    complaints: list[str]
    """Errors that were logged."""
    of_media: list[Exception]
    """Those of the errors that came while a medium was read."""

    @property
    def refusal(self) -> MIRError | None:
        """What this package itself found wrong."""
        return next((error for error in self.errors if isinstance(error, MIRError)), None)

    @property
    def traps(self) -> tuple[str, ...]:
        """What happened in one call beyond one forward a document."""
        found, (forwards, steps) = [], self.forwards
        if forwards > 1:
            found.append(f"{forwards} prefill forwards; the first that holds the document's text counts")
        if steps:
            found.append(
                f"{steps} decode steps after it: the adapter generates more tokens than asked for"
            )
        ids = Counter(tuple(prefill.token_ids.tolist()) for prefill in self.prefills)
        if copies := max(ids.values(), default=0) - 1:
            found.append(f"{copies} more sequence(s) with the same tokens (beams); one counts")
        found += [f"an error after the prefill: {type(e).__name__}: {e}" for e in self.errors]
        return tuple(found)

    def reason(self, texts: Iterable[str]) -> str | None:
        """Why nothing can be measured of these texts, as far as an error or a log tells."""
        if self.refusal:
            return str(self.refusal)
        marks = (_MARK.search(text) for text in texts)
        found = next((mark[0] for mark in marks if mark), None)
        hint = f" (its text holds {found!r}, which the adapter may take for a medium)" if found else ""
        return f"{type(self.errors[0]).__name__}: {self.errors[0]}{hint}" if self.errors else None


def media_marks(processor: Any) -> list[str]:
    """What a processor of Hugging Face takes for media in a text."""
    names = (f"{name}_token" for name in ("image", "video", "audio", "boi", "boa"))
    marks = (getattr(processor, name, None) for name in names)
    return [mark for mark in marks if isinstance(mark, str)]


def token_text(tokenizer: Any, token_id: int) -> str:
    """A token as text; empty where the vocabulary does not have it."""
    try:
        return str(tokenizer.decode([token_id]))
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):  # no token of its vocabulary
        return ""


def watching_media(document: Document, errors: list[Exception]) -> Document:
    """The document with a note of what goes wrong with its medium; adapters may swallow it."""

    def to_media(row: dict[str, Any]) -> list[Any]:
        try:
            return document.to_media(row)
        except Exception as error:
            errors.append(error)
            raise

    return document._replace(to_media=to_media)
