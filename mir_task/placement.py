"""Where a document's text stands in the prompt, as requests to an adapter of the harness."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

GENERATION = {"max_new_tokens": 1, "do_sample": False, "temperature": 0, "num_beams": 1}
_TYPES: dict[type, str] = {str: "video", dict: "audio"}  # of the parts of a chat message


class Document(NamedTuple):
    """A document as the adapter asks for it."""

    id: str
    task: str
    """Name of the task, under which the adapter finds the rows of the data set."""
    split: str
    row: int
    """Index of the document's row in the split."""
    text: str
    to_media: Callable[[dict[str, Any]], list[Any]]
    """From a row of the split to its images, paths of videos, or audio (samples and their rate)."""
    counts: bool = True
    """False for the copies with which processes are filled up: run, but not counted."""


def supported(lm: lmms) -> tuple[str, ...]:
    """Placements worth trying on an adapter, best first."""
    if lm.is_simple:
        return ("assistant_loglikelihood", "user_generate")
    return ("assistant_chat", "user_generate")


def send(lm: lmms, placement: str, documents: list[Document]) -> None:
    """Have the adapter run its forwards on the documents; its answers are not used.

    Raises:
        Exception: whatever the adapter raises.
    """
    requests = [_instance(lm, placement, document) for document in documents]
    getattr(lm, requests[0].request_type)(requests)


def _instance(lm: lmms, placement: str, document: Document) -> Instance:
    # Adapters change their generation arguments in place, so each request gets its own.
    generation: dict[str, Any] = {**GENERATION, "until": ["\n\n"]}
    rest = (document.row, document.task, document.split)
    method: str
    arguments: tuple[Any, ...]
    if placement == "assistant_loglikelihood":
        method, arguments = "loglikelihood", ("", document.text, document.to_media, *rest)
    elif lm.is_simple:
        method, arguments = "generate_until", (document.text, generation, document.to_media, *rest)
    else:
        messages = _messages(document, in_assistant_turn=placement == "assistant_chat")
        method, arguments = "generate_until", (document.text, messages, generation, *rest)
    metadata = {"task": document.task, "doc_id": document.row, "repeats": 1}
    return Instance(request_type=method, arguments=arguments, idx=0, metadata=metadata)


def _messages(
    document: Document, *, in_assistant_turn: bool
) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    text = {"type": "text", "text": document.text}

    def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
        user = [
            {"type": _TYPES.get(type(medium), "image"), "url": medium}
            for medium in document.to_media(row)
        ]
        if not in_assistant_turn:
            return [{"role": "user", "content": [*user, text]}]
        return [
            {"role": "user", "content": user},
            {"role": "assistant", "content": [text]},
        ]

    return messages
