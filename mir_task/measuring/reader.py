"""What a model sees of a document, whoever runs its forward: `Reader`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from mir_task.capture.decoder import find_decoder
from mir_task.capture.hooks import HiddenStateCapture, Prefill
from mir_task.capture.texts import assign, longest_beginning
from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.settings import TOKENS, MeasureSettings


class Seen(NamedTuple):
    """What the model saw of one document."""

    prefill: Prefill
    characters_cut: int
    """Characters of the text's end (without white space) that did not arrive."""
    forwards: tuple[int, int]
    """Prefill forwards and decode steps of the call."""
    traps: tuple[str, ...] = ()
    """What was done beyond one forward, of no effect on what is measured."""


class Rejected(NamedTuple):
    """Why one document could not be measured."""

    reason: str


Outcome = Seen | Rejected


class Reader:
    """Runs documents through a loaded model under capture.

    A subclass says how a document gets into the model (`send`), and which placements of its text are
    worth trying.

    Args:
        name: of what runs the model, for messages.
        models: the model, and its replicas on other devices.
        tokenizer: of the model.
        settings: what is measured and how.
        placements: of the text, best first; the first that works is kept.

    Raises:
        MIRError: no text decoder is found.
    """

    def __init__(
        self,
        name: str,
        models: Sequence[nn.Module],
        tokenizer: Any,
        settings: MeasureSettings,
        placements: Sequence[str],
    ) -> None:
        self.name = name
        self.model, *self._replicas = models
        self.tokenizer = tokenizer
        self.modality = settings.modality
        self.decoder = find_decoder(self.model)
        self.placement: str | None = settings.placement
        """None until the first document has shown what works."""
        self.notes: list[str] = []
        """What a reader of the value should know of the placement."""
        self._placements = placements
        self._losses = settings.caption_ppl
        self._batches = True
        self._capture: HiddenStateCapture | None = None

    def send(self, documents: list[Document], placement: str) -> list[str]:
        """Run the model's forwards on documents, and return what went wrong without an exception.

        Raises:
            Exception: whatever the model or its processor raises.
        """
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """Documents that one call of `send` runs at once."""
        return 1

    @contextmanager
    def capturing(self, layers: Mapping[int, torch.device] | None = None) -> Iterator[None]:
        """Capture the hidden states of some decoder layers; arguments as `HiddenStateCapture`."""
        with HiddenStateCapture(
            self.model, layers, self.modality, self._replicas, losses=self._losses
        ) as self._capture:
            yield

    @property
    def batch_size(self) -> int:
        """Documents to run at once."""
        return self.capacity if self.placement is not None and self._batches else 1

    @property
    def context(self) -> int | None:
        """Positions that the model was made for; None where its configuration does not say."""
        return getattr(self.decoder.config, "max_position_embeddings", None)

    @property
    def kept_tokens(self) -> int | None:
        """Positions after which the model's own code cuts a sequence; None where it does not say."""
        config = getattr(self.model, "config", None)
        return getattr(config, "tokenizer_model_max_length", None)

    def text_tokens(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def facts(self, prefill: Prefill) -> dict[str, Any]:
        """What the side file says of the model; the same for every document and process."""
        return {
            "model_class": type(self.model).__name__,
            "decoder": self.decoder.name,
            "hidden_size": prefill.text_rows[0].shape[1],
            "hidden_dtype": str(prefill.text_rows[0].dtype).removeprefix("torch."),
            "placement": self.placement,
        }

    def see(self, document: Document, probe: Document | None) -> Seen:
        """What the model sees of one document; `probe` as in `run`.

        Raises:
            MIRError: it cannot be measured, with the reason.
        """
        ((_, outcome),) = self.run([document], probe)
        if isinstance(outcome, Rejected):
            raise MIRError(f"document {document.id!r}: {outcome.reason}")
        return outcome

    def run(self, batch: list[Document], probe: Document | None) -> Iterator[tuple[Document, Outcome]]:
        """Each document of a batch with what the model saw of it, or why it cannot be measured.

        Args:
            batch: up to `batch_size` documents.
            probe: another document, to tell a placement that does not work from a document that fails.
        """
        if self.placement is None:
            outcomes = self._settle(batch[0], probe)
        else:
            outcomes = self._attempt(batch, self.placement)
        if len(batch) > 1 and not all(isinstance(outcome, Seen) for outcome in outcomes):
            # Alone, a document has the model to itself and the reason is its own. That holds for those
            # that were seen too: an adapter may have put all of them into one conversation.
            outcomes = [self._attempt([document], self.placement)[0] for document in batch]
            if all(isinstance(outcome, Seen) for outcome in outcomes):
                self._batches = False
                self.notes.append(
                    f"{self.name} does not run the documents of a batch apart, so they run one at a time"
                )
        yield from zip(batch, outcomes, strict=True)

    def _settle(self, document: Document, probe: Document | None) -> list[Outcome]:
        """Go through the placements, and keep the first that works on either document."""
        reasons: dict[str, str] = {}
        for placement in self._placements:
            (outcome,) = self._attempt([document], placement)
            if isinstance(outcome, Rejected) and probe is not None:
                (probed,) = self._attempt([probe], placement)
                if isinstance(probed, Seen):  # so it was the document, or an accident
                    (outcome,) = self._attempt([document], placement)
                    self.placement = placement
            if isinstance(outcome, Seen) or self.placement:
                self.placement = placement
                self.notes = [
                    f"{self.name} does not do {tried} ({reason}); the text is placed by {placement}"
                    for tried, reason in reasons.items()
                ]
                return [outcome]
            reasons[placement] = outcome.reason
        if len(set(reasons.values())) == 1:
            return [Rejected(next(iter(reasons.values())))]
        tried = "; ".join(f"{placement}: {reason}" for placement, reason in reasons.items())
        return [Rejected(f"no placement of the text works ({tried})")]

    def _attempt(self, batch: list[Document], placement: str | None) -> list[Outcome]:
        """One call of `send`."""
        capture = self._capture
        assert placement is not None
        assert capture is not None, "documents run within `capturing`"
        if not all(document.text.strip() for document in batch):
            reason = "the text is empty; give the document a text or leave it out"
            return [Rejected(reason)] * len(batch)
        errors, complaints = list[Exception](), list[str]()
        capture.take()
        capture.failures.clear()
        forwards, steps = capture.forwards, capture.steps
        try:
            with torch.no_grad():
                complaints = self.send([_watching_media(d, errors) for d in batch], placement)
        except Exception as error:  # noqa: BLE001 - reported with the document's id
            errors.append(error)
        errors = [*capture.failures, *errors]
        if known := [error for error in errors if isinstance(error, MIRError)]:
            return [Rejected(str(known[0]))] * len(batch)
        prefills = capture.take()
        # Fewer sequences than documents: an adapter has put several into one conversation.
        apart = len({prefill.token_ids.numpy().tobytes() for prefill in prefills}) >= len(batch)
        found = {} if not apart else assign(prefills, {d.id: d.text for d in batch}, self.tokenizer)
        ran = (capture.forwards - forwards, capture.steps - steps)
        traps = _traps(prefills, *ran, errors)
        outcomes: list[Outcome] = []
        for document in batch:
            if document.id in found:
                outcomes.append(Seen(found[document.id], 0, ran, traps))
            elif prefills and len(batch) == 1:
                # Errors after the prefill, when an adapter reads the answer, do not concern it.
                outcomes.append(self._partly(prefills, document, ran, traps))
            else:
                reason = self._why_nothing(errors, complaints, ran=capture.forwards > forwards)
                outcomes.append(Rejected(reason))
        return outcomes

    def _partly(
        self,
        prefills: list[Prefill],
        document: Document,
        forwards: tuple[int, int],
        traps: tuple[str, ...],
    ) -> Outcome:
        """The prefill that holds the beginning of the document's text."""
        prefill, arrived, total = longest_beginning(prefills, document.text, self.tokenizer)
        # A few characters turn up in any text, so they are no sign of this one.
        if arrived < min(total, 8):
            return Rejected(
                f"no token of the document's own text stands after the {self.modality}: it was put "
                "before it or dropped; choose another mir_placement"
            )
        return Seen(prefill, total - arrived, forwards, traps)

    def _why_nothing(self, errors: list[Exception], complaints: list[str], *, ran: bool) -> str:
        if errors:
            return f"{type(errors[0]).__name__}: {errors[0]}"
        if ran:
            return (
                f"{type(self.model).__name__} has no {TOKENS[self.modality]} tokens in its text "
                f"decoder's sequence (cross-attention, or the {self.modality} was dropped), so MIR is "
                "not defined on it"
            )
        cause = "; ".join(complaints) or "it reported nothing"
        return f"{self.name} ran no forward of its model ({cause})"


def _traps(
    prefills: list[Prefill], forwards: int, steps: int, errors: list[Exception]
) -> tuple[str, ...]:
    """What happened in one call beyond one forward a document."""
    found = []
    if forwards > 1:
        found.append(f"{forwards} prefill forwards; the first that holds the document's text counts")
    if steps:
        found.append(f"{steps} decode steps after it: the adapter generates more tokens than asked for")
    ids = Counter(tuple(prefill.token_ids.tolist()) for prefill in prefills)
    if copies := max(ids.values(), default=0) - 1:
        found.append(f"{copies} more sequence(s) with the same tokens (beams); one counts")
    for error in errors:
        found.append(f"an error after the prefill: {type(error).__name__}: {error}")
    return tuple(found)


def _watching_media(document: Document, errors: list[Exception]) -> Document:
    """The document with a note of what goes wrong with its medium; adapters may swallow it."""

    def to_media(row: dict[str, Any]) -> list[Any]:
        try:
            return document.to_media(row)
        except Exception as error:
            errors.append(error)
            raise

    return document._replace(to_media=to_media)
