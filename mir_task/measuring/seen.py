"""What became of one document: what the model saw of it, or why it cannot be measured."""

from typing import Any, NamedTuple

from torch import Tensor

from mir_task.capture.prefill import Prefill
from mir_task.documents.document import Document
from mir_task.measuring.prompts import Arrival


class Seen(NamedTuple):
    """What the model saw of one document."""

    prefill: Prefill
    span: str
    """Decoded: what stands after the last medium, special tokens included."""
    arrival: Arrival
    """What has arrived of the text."""
    forwards: tuple[int, int]
    """Prefill forwards and decode steps of the call."""
    traps: tuple[str, ...] = ()
    """What was done beyond one forward, of no effect on what is measured."""


class Rejected(NamedTuple):
    """Why one document could not be measured."""

    reason: str
    own: bool = False
    """Whether the cause is the document's own row or medium."""
    alike: bool = False
    """Whether another document failed alike, so that the cause is the model's or its options'."""


Outcome = Seen | Rejected


def why_unreadable(document: Document) -> Rejected | None:
    """Why a document cannot be measured by any model, if it cannot."""
    if document.fault is not None:
        return Rejected(document.fault, own=True)
    if not document.text.strip():
        return Rejected("the text is empty; give the document a text or leave it out", own=True)
    return None


class Caption(NamedTuple):
    """The tokens of a document's own text, as the model had them."""

    ids: list[int]
    losses: Tensor
    """float32 [tokens], in nats."""

    @classmethod
    def of(cls, seen: Seen, tokenizer: Any) -> "Caption | None":
        """None where there are no losses, or some are not finite."""
        if seen.prefill.text_losses is None:
            return None
        own = seen.arrival.tokens(seen.prefill.text_ids, seen.span, tokenizer)
        losses = seen.prefill.text_losses[own]
        if not len(losses) or not losses.isfinite().all():
            return None
        return cls(seen.prefill.text_ids[own], losses)


def why_no_losses(seen: Seen, model_class: str) -> str:
    """Why there is no `Caption` of what a model saw, where losses were asked for."""
    if seen.prefill.reads_ahead:
        return (
            f"in {model_class} tokens of the text attend to those after them (a prefix language model) "
            "and are not predicted"
        )
    return f"the forwards of {model_class} return no logits, or some that are not finite"
