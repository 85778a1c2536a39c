"""What was found of the tokens that a model saw, in words: for `check` and `mir-task check`."""

from typing import NamedTuple

from mir_task.capture.prefill import Prefill
from mir_task.measuring.reader import Reader
from mir_task.measuring.seen import Seen
from mir_task.settings import TOKENS

_MASK = "by the mask of positions that the model was given"
_RULES = {
    "token_ids": "by their token ids alone: the input embedding was not seen at work",
    "mask": f"{_MASK}: rows are changed before the first layer",
    "provenance": "by provenance alone: the model was given no expanded placeholders",
    "token_ids+provenance": "by token ids and by provenance, which agree",
    "mask+provenance": f"{_MASK} and by provenance, which agree",
}


def found_by(prefill: Prefill) -> str:
    """Which rules found the vision tokens of a sequence, and what is special about them."""
    parts = [_RULES[prefill.vision_rule]]
    if markers := int(prefill.markers.sum()):
        parts.append(f"{markers} of them are markers: learned rows beside the placeholders")
    if discrete := int(prefill.discrete.sum()):
        parts.append(f"{discrete} of them are discrete: tokens of the vocabulary")
    return "; ".join(parts)


class FoundTokens(NamedTuple):
    """The tokens of one document's sequence."""

    vision: int
    """Of the modality."""
    text: int
    """Counted: after the last medium."""
    other: int
    """Not counted: before or between the media, or of another medium."""
    found_by: str
    """Which rules found the vision tokens, in words."""
    span: str
    """The decoded text that is counted."""


class Check(NamedTuple):
    """What `mir_task.measure` would measure of a model; its text is for a person to read."""

    model: str
    decoder: str
    tokens: str
    """What the tokens that are compared with text are called."""
    documents: list[FoundTokens]

    @classmethod
    def of(cls, reader: Reader, seen: list[Seen]) -> "Check":
        """From the documents that a reader saw."""
        facts = reader.facts(seen[0].prefill)
        return cls(
            model=facts["model_class"],
            decoder=(
                f"{facts['decoder'] or 'the model itself'}: {len(seen[0].prefill.text_rows)} layers of "
                f"{facts['hidden_size']} dimensions, {facts['hidden_dtype']}"
            ),
            tokens=TOKENS[reader.modality],
            documents=[
                FoundTokens(
                    vision=int(prefill.vision.sum()),
                    text=int(prefill.text.sum()),
                    other=int((prefill.real & ~prefill.vision & ~prefill.text).sum()),
                    found_by=found_by(prefill),
                    span=span,
                )
                for prefill, span, *_ in seen
            ],
        )

    def __str__(self) -> str:
        lines = [f"model    {self.model}", f"decoder  {self.decoder}"]
        for number, document in enumerate(self.documents):
            lines += [
                "",
                f"pair     {number}",
                f"{self.tokens:8} {document.vision} tokens, found {document.found_by}",
                f"text     {document.text} tokens counted, {document.other} not",
                f"span     {document.span!r}",
            ]
        return "\n".join(lines)
