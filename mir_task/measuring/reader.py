"""What a model sees of a document, whoever runs its forward: `Reader`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mir_task.capture.decoder import MEDIA, find_decoder, media_token_ids
from mir_task.capture.hooks import HiddenStateCapture
from mir_task.capture.prefill import Prefill
from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.measuring import plan
from mir_task.measuring.calls import Call, token_text, watching_media
from mir_task.measuring.prompts import (
    NothingArrived,
    Template,
    decode_text,
    forms_of,
    probe_for,
    spelled_by,
)
from mir_task.measuring.seen import Outcome, Rejected, Seen, why_unreadable
from mir_task.measuring.sharded import in_step, refuse_unknown_sharding
from mir_task.settings import TOKENS, MeasureSettings


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
        placeholders: what the model's processor takes for media, beside the media tokens.

    Raises:
        MIRError: no text decoder is found, the placement is none of these, or the model is split over
            processes in a way that is not known.
    """

    def __init__(
        self,
        name: str,
        models: Sequence[nn.Module],
        tokenizer: Any,
        settings: MeasureSettings,
        placements: Sequence[str],
        placeholders: Iterable[str] = (),
    ) -> None:
        for model in models:
            refuse_unknown_sharding(model)
        if settings.placement not in (None, *placements):
            have = ", ".join(placements)
            raise MIRError(f"{name} has no mir_placement {settings.placement!r}; it has {have}")
        self.name = name
        self.model, *self._replicas = models
        self.tokenizer = tokenizer
        self.modality = settings.modality
        self.decoder = find_decoder(self.model)
        self.placement: str | None = settings.placement
        """None until the first document has shown what works."""
        self._template: Template | None = None
        """Of the placement's prompts, once the first document and a probe have shown it."""
        self.notes: list[str] = []
        """What a reader of the value should know of the placement."""
        ids = {token_id for kind in MEDIA for token_id in media_token_ids(self.model, kind)}
        marks = {token_text(tokenizer, token_id) for token_id in ids} | set(placeholders)
        self.placeholders = sorted(mark for mark in marks if mark.strip())
        """What stands for a medium in the model's prompts."""
        self._placements = placements
        self._batches = True
        self._capture: HiddenStateCapture | None = None

    elsewhere = "choose another mir_placement"
    """What to do where a text does not stand after its medium."""

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
    def capturing(
        self, layers: Mapping[int, torch.device] | None = None, *, losses: bool = False
    ) -> Iterator[None]:
        """Capture the hidden states of some decoder layers; arguments as `HiddenStateCapture`.

        The model is in evaluation mode inside, and afterwards as it was. Where its parameters are
        sharded over processes, all of them enter, and leave together.
        """
        models = [self.model, *self._replicas]
        training = {module: module.training for model in models for module in model.modules()}
        try:
            for model in models:
                model.eval()
            with (
                in_step(models),
                HiddenStateCapture(
                    self.model, layers, self.modality, self._replicas, losses=losses
                ) as self._capture,
            ):
                yield
        finally:
            for module, mode in training.items():
                module.training = mode

    @contextmanager
    def without_rows(self) -> Iterator[None]:
        """Within `capturing`: what is seen has positions and losses, and no rows."""
        assert self._capture is not None
        self._capture.keeps_rows = False
        try:
            yield
        finally:
            self._capture.keeps_rows = True

    @property
    def model_class(self) -> str:
        """Of the model, for messages and the side file."""
        return type(self.model).__name__

    @property
    def layer_devices(self) -> dict[int, torch.device]:
        """On which each decoder layer runs, by its number; 0 is the decoder's input."""
        return plan.layer_devices(self.decoder)

    @property
    def shape(self) -> plan.Shape:
        """Of the hidden states, as the decoder's input embedding has them."""
        return plan.shape(self.decoder)

    @property
    def batch_size(self) -> int:
        """Documents to run at once."""
        return self.capacity if self._template is not None and self._batches else 1

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
            "model_class": self.model_class,
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
        if self._template is None:
            yield batch[0], self._first(batch[0], probe)
            return
        outcomes = self._outcomes(batch, self._template)
        if len(batch) > 1 and not all(isinstance(outcome, Seen) for outcome in outcomes):
            # Alone, a document has the model to itself and the reason is its own. That holds for those
            # that were seen too: an adapter may have put all of them into one conversation.
            outcomes = [self._outcomes([document], self._template)[0] for document in batch]
            if all(isinstance(outcome, Seen) for outcome in outcomes):
                self._batches = False
                self.notes.append(
                    f"{self.name} does not run the documents of a batch apart, so they run one at a time"
                )
        yield from zip(batch, outcomes, strict=True)

    def _first(self, document: Document, probe: Document | None) -> Outcome:
        """Go through the placements, and keep the first that works on either document."""
        reasons: dict[str, str] = {}
        alike = probe is not None
        for placement in [self.placement] if self.placement else self._placements:
            outcome = self._learn(document, placement)
            if self._template is None and probe is not None:
                other = self._learn(probe, placement)
                if self._template is not None:  # so it was the document, or an accident
                    (outcome,) = self._outcomes([document], self._template)
                else:
                    alike = alike and outcome == other
            if self._template is not None:
                self.notes = [
                    f"{self.name} does not do {tried} ({reason}); the text is placed by {placement}"
                    for tried, reason in reasons.items()
                ]
                return outcome
            assert isinstance(outcome, Rejected)
            reasons[placement] = outcome.reason
            own = outcome.own
        alike = alike and not own
        if len(set(reasons.values())) == 1:
            return Rejected(next(iter(reasons.values())), own, alike)
        tried = "; ".join(f"{placement}: {reason}" for placement, reason in reasons.items())
        return Rejected(f"no placement of the text works ({tried})", own, alike)

    def _learn(self, document: Document, placement: str) -> Outcome:
        """Keep a placement and its template, if the document and a probe in its place show one."""
        if (unreadable := why_unreadable(document)) is not None:
            return unreadable
        call = self._call([document], placement)
        if call.refusal or not call.prefills:
            return Rejected(self._why_nothing(call, [document]), own=bool(call.of_media))
        try:
            probe = probe_for(document.text, self.tokenizer)
            probed = self._call([document._replace(text=probe)], placement)
            if probed.refusal or not probed.prefills:
                return Rejected(self._why_nothing(probed, []))
            own, other = (
                [decode_text(prefill, self.tokenizer) for prefill in of.prefills]
                for of in (call, probed)
            )
            template = Template.of(own, other, spelled_by(self.tokenizer, probe))
        except NothingArrived:
            return Rejected(
                f"no token of the document's own text stands after the {self.modality}: it was put "
                f"before it or dropped; {self.elsewhere}"
            )
        except MIRError as error:
            return Rejected(str(error))
        outcome = self._alone(document, call, template)
        if isinstance(outcome, Seen):
            self.placement, self._template = placement, template
        return outcome

    def _outcomes(self, batch: list[Document], template: Template) -> list[Outcome]:
        """What the model saw of each document of one call."""
        if unreadable := next(filter(None, map(why_unreadable, batch)), None):
            return [unreadable] * len(batch)
        assert self.placement is not None
        call = self._call(batch, self.placement)
        if call.refusal or not call.prefills:
            return [Rejected(self._why_nothing(call, batch), own=bool(call.of_media))] * len(batch)
        if len(batch) == 1:
            return [self._alone(batch[0], call, template)]
        return self._apart(batch, call, template)

    def _alone(self, document: Document, call: Call, template: Template) -> Outcome:
        """Of a call of one document: the first prompt with all of its text, or the template's own."""
        spans = [decode_text(prefill, self.tokenizer) for prefill in call.prefills]
        forms = forms_of(document.text, self.tokenizer)
        found = next((n for n, span in enumerate(spans) if template.whole(span, forms)), None)
        number = min(template.number, len(spans) - 1) if found is None else found
        try:
            arrival = template.arrival(spans[number], forms)
        except MIRError as error:
            return Rejected(str(error))
        # Errors after the prefill, when an adapter reads the answer, do not concern it.
        return Seen(call.prefills[number], spans[number], arrival, call.forwards, call.traps)

    def _apart(self, batch: list[Document], call: Call, template: Template) -> list[Outcome]:
        """Of a call of several: each document's own sequence, where it is no other document's."""
        forms = [forms_of(document.text, self.tokenizer) for document in batch]
        # Of beams, the first.
        prefills = {prefill.token_ids.numpy().tobytes(): prefill for prefill in reversed(call.prefills)}
        found: list[list[Seen]] = [[] for _ in batch]
        for prefill in prefills.values():
            span = decode_text(prefill, self.tokenizer)
            arrivals = {n: a for n, of in enumerate(forms) if (a := template.whole(span, of))}
            for number, arrival in arrivals.items() if len(arrivals) == 1 else ():
                found[number].append(Seen(prefill, span, arrival, call.forwards, call.traps))
        unclear = Rejected("its sequence in the batch cannot be told from the others'")
        return [seen[0] if len(seen) == 1 else unclear for seen in found]

    def _call(self, batch: list[Document], placement: str) -> Call:
        """One call of `send`."""
        capture = self._capture
        assert capture is not None, "documents run within `capturing`"
        of_media, errors, complaints = list[Exception](), list[Exception](), list[str]()
        capture.take()
        capture.failures.clear()
        forwards, steps = capture.forwards, capture.steps
        try:
            with torch.no_grad():
                complaints = self.send([watching_media(d, of_media) for d in batch], placement)
        except Exception as error:  # noqa: BLE001 - reported with the document's id
            errors.append(error)
        ran = (capture.forwards - forwards, capture.steps - steps)
        return Call(capture.take(), ran, [*capture.failures, *of_media, *errors], complaints, of_media)

    def _why_nothing(self, call: Call, batch: list[Document]) -> str:
        if reason := call.reason(document.text for document in batch):
            deaf = not media_token_ids(self.model, self.modality)
            if not deaf or call.refusal or call.of_media:
                return reason
            return (
                f"{type(self.model).__name__} has no token for {self.modality} in its configuration, "
                f"and {self.name} failed on it ({reason}): choose a model and an adapter that take "
                f"{self.modality}, or a task of what they take"
            )
        if call.forwards[0]:
            cause = (
                f"cross-attention, or the {self.modality} was dropped"
                if self.decoder.cross_attends
                else f"the {self.modality} was dropped, or the model reads none"
            )
            return (
                f"{self.model_class} has no {TOKENS[self.modality]} tokens in its text "
                f"decoder's sequence ({cause}), so MIR is not defined on it"
            )
        cause = "; ".join(call.complaints) or "it reported nothing"
        return f"{self.name} ran no forward of its model ({cause})"
