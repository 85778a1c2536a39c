"""Which prefill holds a document's text, and which of its tokens write it.

Found by the text that the model received, so neither the order of calls nor the batching of the caller
matters.
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from mir_task.capture.hooks import Prefill
from mir_task.capture.positions import NO_TOKEN

Key = TypeVar("Key")


class Tokenizer(Protocol):
    """What `assign` needs of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""


def decode_text(prefill: Prefill, tokenizer: Tokenizer) -> str:
    """The decoded text span: what stands after the last medium, special tokens included."""
    return str(tokenizer.decode([i for i in prefill.text_ids if i != NO_TOKEN]))


def assign(
    prefills: Sequence[Prefill], texts: Mapping[Key, str], tokenizer: Tokenizer
) -> dict[Key, Prefill]:
    """For each document the first prefill whose text span holds the document's text.

    White space is not compared: tokenizers and chat templates change it. A document whose text no
    span holds in full is left out; `longest_beginning` tells how much of it arrived.
    """
    spans = [_squashed(decode_text(prefill, tokenizer)) for prefill in prefills]
    assigned: dict[Key, Prefill] = {}
    for key, text in texts.items():
        forms = _written_forms(text, tokenizer)
        for prefill, span in zip(prefills, spans, strict=True):
            if any(form in span for form in forms):
                assigned[key] = prefill
                break
    return assigned


def longest_beginning(
    prefills: Sequence[Prefill], text: str, tokenizer: Tokenizer
) -> tuple[Prefill, int, int]:
    """The prefill that holds the longest beginning of a text, the beginning's length and the text's.

    Lengths are in characters without white space.
    """
    best, length = prefills[0], 0
    form = _squashed(text)
    for prefill in prefills:
        span = _squashed(decode_text(prefill, tokenizer))
        while length < len(form) and form[: length + 1] in span:
            best, length = prefill, length + 1
    return best, length, len(form)


def _squashed(text: str) -> str:
    return "".join(text.split())


def _written_forms(text: str, tokenizer: Tokenizer) -> set[str]:
    """The text as it is and as its own tokenizer gives it back (lower case, unknown words, ...)."""
    round_trip = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    return {form for form in (_squashed(text), _squashed(round_trip)) if form}


def own_tokens(prefill: Prefill, text: str, tokenizer: Tokenizer) -> slice:
    """The tokens of the text positions that write a document's text, or the beginning that arrived.

    A token that also writes a part of the template counts where the text needs it.
    """
    ids, span = prefill.text_ids, _squashed(decode_text(prefill, tokenizer))
    _, length, _ = longest_beginning([prefill], text, tokenizer)
    whole = (form for form in _written_forms(text, tokenizer) if form in span)
    written = next(whole, _squashed(text)[:length])

    def holds(start: int, end: int) -> bool:
        part = [token for token in ids[start:end] if token != NO_TOKEN]
        return written in _squashed(tokenizer.decode(part))

    start = bisect.bisect_left(range(len(ids)), True, key=lambda n: not holds(n, len(ids))) - 1
    end = bisect.bisect_left(range(len(ids)), True, lo=start, key=lambda n: holds(start, n))
    return slice(start, end)
