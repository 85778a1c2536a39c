"""What became of a document's text on its way to the model: known from a probe, never looked for.

The prompts of two texts share all that is not the text. So a reader sends its first document once more,
with a probe in the place of its text: what stands alike before both is the template before a text, and
what follows the probe is the template after it. Between the two, in every prompt of that placement,
stands what has arrived of the document's text.
"""

import difflib
import string
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from mir_task.capture.positions import NO_TOKEN
from mir_task.capture.prefill import Prefill
from mir_task.errors import MIRError


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""


def decode_text(prefill: Prefill, tokenizer: Tokenizer) -> str:
    """The decoded text span: what stands after the last medium, special tokens included."""
    return _decode(prefill.text_ids, tokenizer)


def spelled_by(tokenizer: Tokenizer, text: str) -> str:
    """A text as its tokenizer gives it back: in lower case, with unknown words, ..."""
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))


# Share of characters that a text and what became of it have in common at least; less is another text.
_ALIKE = 0.5


class NothingArrived(MIRError):
    """A text was put before the medium, or dropped."""


class Arrival(NamedTuple):
    """What has arrived of a document's text.

    Characters count without white space, which templates and tokenizers change.
    """

    start: int
    """First character in the decoded text span."""
    end: int
    """Character behind the last."""
    cut: int
    """Characters of the text's end that did not arrive."""
    changes: str
    """What differs in the middle, in words; empty where nothing does."""

    def tokens(self, ids: Sequence[int], span: str, tokenizer: Tokenizer) -> slice:
        """The fewest of the text positions that write it, of their token ids and decoded span.

        A token that also writes a part of the template counts where the text needs it.
        """
        before, through = squashed(span)[: self.start], squashed(span)[: self.end]
        first, last = 0, len(ids)
        for count in range(1, len(ids) + 1):
            beginning = squashed(_decode(ids[:count], tokenizer))
            if len(beginning) > len(before):
                break
            if before.startswith(beginning):
                first = count
        while last > first and squashed(_decode(ids[: last - 1], tokenizer)).startswith(through):
            last -= 1
        return slice(first, last)


class Template(NamedTuple):
    """What stands around a text in the prompts of one placement, after the last medium.

    White space is left out everywhere: chat templates strip texts, and some tokenizers write more of it
    into a sequence that ends in a special token.
    """

    before: str
    after: str
    number: int
    """Which of the prompts of a call holds the text."""

    @classmethod
    def of(cls, prompts: Iterable[str], probed: Iterable[str], probe: str) -> "Template":
        """From the text spans of a document's call, and of the same with a probe as its text.

        Args:
            prompts: of the document.
            probed: of the probe.
            probe: as its tokenizer spells it. It begins otherwise than the document's text.

        Raises:
            NothingArrived: the text was put before the medium, or dropped.
            MIRError: more than the text differs.
        """
        probe = squashed(probe)
        for number, pair in enumerate(zip(prompts, probed, strict=False)):
            own, other = map(squashed, pair)
            if own == other:
                continue
            before = own[: _shared(own, other)]
            rest = other[len(before) :]
            if rest.casefold().startswith(probe.casefold()):
                return cls(before, rest[len(probe) :], number)
            raise MIRError(
                f"the prompt holds {_shortened(rest)!r} where the text {probe!r} was sent, and nothing "
                "tells which part of a prompt is the document's text"
            )
        raise NothingArrived

    def whole(self, span: str, forms: Sequence[str]) -> Arrival | None:
        """Where a text span holds all of a text and nothing else; None where it does not.

        Args:
            span: decoded.
            forms: of the text, as `forms_of` gives them.
        """
        found = self._text(squashed(span))
        if found is None or found[0] not in forms:
            return None
        return Arrival(len(self.before), len(self.before) + len(found[0]), 0, "")

    def arrival(self, span: str, forms: Sequence[str]) -> Arrival:
        """What a text span holds of a text: arguments as of `whole`.

        Raises:
            MIRError: the span is of another template, or holds nothing of the text, or another one.
        """
        place = self._text(squashed(span))
        if place is None:
            raise MIRError(
                "the prompt around its text is another than that of the first document, so nothing "
                "tells which part of it is the text"
            )
        (found, ended), start = place, len(self.before)
        if not found:
            raise NothingArrived("nothing of its text arrived after the medium: it was dropped")
        for form in forms:
            # Where the sequence was cut, a part of the template may be left behind the text.
            if (form if ended else form + self.after).startswith(found):
                taken = min(len(found), len(form))
                return Arrival(start, start + taken, len(form) - taken, "")
        likeness = difflib.SequenceMatcher(None, alike(forms[0]), alike(found), autojunk=False).ratio()
        if likeness < _ALIKE:
            raise MIRError(f"{_shortened(found)!r} arrived in the place of its text")
        return Arrival(start, start + len(found), 0, _changes(forms[0], found))

    def _text(self, span: str) -> tuple[str, bool] | None:
        """The text in a span without white space, and whether the template follows it to its end.

        None where the span is of another template.
        """
        if not span.startswith(self.before):
            return None
        rest = span[len(self.before) :]
        ended = rest.endswith(self.after)
        return (rest[: len(rest) - len(self.after)] if ended else rest), ended


def forms_of(text: str, tokenizer: Tokenizer) -> list[str]:
    """A text as it is and as its tokenizer spells it, without white space."""
    return [squashed(text), squashed(spelled_by(tokenizer, text))]


def probe_for(text: str, tokenizer: Tokenizer) -> str:
    """A short text whose first character, as spelled, another text does not hold, or begins with.

    Raises:
        MIRError: the tokenizer begins all such texts as it begins this one.
    """
    forms = [form.casefold().strip() for form in (text, spelled_by(tokenizer, text))]
    probes = [f"{character} probe" for character in string.digits + string.ascii_uppercase + "#%&*+=@^~"]
    for excluded in ("".join(forms), "".join(form[:1] for form in forms)):
        for probe in probes:
            spelled = spelled_by(tokenizer, probe).casefold().strip()
            if spelled and spelled[0] not in excluded:
                return probe
    raise MIRError(
        f"the tokenizer begins every text as it begins {text[:40]!r}, so whether that arrives cannot be "
        "told: its vocabulary may lack the words of this text"
    )


def alike(text: str) -> str:
    """A form that is equal for texts that differ in white space, case or Unicode forms alone."""
    return squashed(unicodedata.normalize("NFKC", text).casefold())


def _shared(one: str, other: str) -> int:
    """Characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def squashed(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())


def _changes(wanted: str, found: str, most: int = 3) -> str:
    """The first differences of two texts, in words."""
    codes = difflib.SequenceMatcher(None, wanted, found, autojunk=False).get_opcodes()
    parts = [
        f"{_shortened(wanted[a:b])!r} became {_shortened(found[c:d])!r}"
        for kind, a, b, c, d in codes
        if kind != "equal"
    ]
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return "; ".join(parts[:most]) + more


def _shortened(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _decode(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return str(tokenizer.decode([i for i in ids if i != NO_TOKEN]))
