"""Run documents through a model and count what it sees."""

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from mir_task.capture.prefill import Prefill
from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.measuring.log import DocumentLog, named
from mir_task.measuring.processes import rank, stop_if_another_failed
from mir_task.measuring.prompts import alike
from mir_task.measuring.seen import Caption, Rejected, Seen, why_no_losses
from mir_task.measuring.source import StateSource
from mir_task.settings import MeasureSettings


class Meter(Protocol):
    """What counts documents: a `MIRMeter`, or several."""

    def update(
        self,
        document_id: str,
        vision_rows: Sequence[Tensor],
        text_rows: Sequence[Tensor],
        *,
        group: int = 0,
    ) -> None:
        """As `MIRMeter.update`."""


def run_documents(
    reader: StateSource,
    documents: Iterable[Document],
    meter: Meter,
    layers: Mapping[int, torch.device],
    settings: MeasureSettings,
    name: str,
    *,
    bars: bool = True,
    captions: bool = True,
) -> DocumentLog:
    """Run documents through the model and count them.

    Args:
        reader: runs the model, or reads what one gave.
        documents: in the order to run.
        meter: counts the documents.
        layers: numbers of the decoder layers that the meter counts, and where their rows go.
        settings: of the task.
        name: of the task, for the progress bar and messages.
        bars: whether process 0 shows a progress bar.
        captions: whether losses of captions are measured, as far as the settings ask for them.

    Raises:
        MIRError: the model cannot be measured, or a document where failures are not skipped, named by
            its id.
    """
    losses = captions and settings.measures_captions
    run = _Counting(meter, settings, name, losses=losses)
    gains = captions and settings.measures_gain
    started = time.perf_counter()
    queue = deque(run.within_context(reader, run.without_placeholders(reader, documents)))
    if settings.caption_gain and queue and all(each.to_other_media is None for each in queue):
        raise MIRError(  # before anything runs
            f"no document has another {settings.modality} than the others, so there is no caption gain; "
            "mir_caption_gain: false measures MIR alone"
        )
    shown = bars and rank() == 0
    with (
        reader.capturing(layers, losses=losses),
        tqdm(total=len(queue), desc=name, disable=not shown, unit="doc") as bar,
    ):
        while queue:
            stop_if_another_failed()
            batch = _batch(queue, reader.batch_size)
            for document, outcome in reader.run(batch, probe=queue[0] if queue else None):
                if isinstance(outcome, Seen):
                    run.count(reader, document, outcome)
                    if len(run.log.documents) == 1:
                        run.name_long_documents(reader, document, outcome, queue)
                else:
                    run.reject(document, outcome)
                bar.update(1)
            if gains:
                run.count_gain(reader, batch)
    run.log.notes = reader.notes
    run.log.seconds = time.perf_counter() - started
    return run.log


def _batch(queue: deque[Document], size: int) -> list[Document]:
    """Take up to `size` documents whose texts cannot be mistaken for one another."""
    batch = [queue.popleft()]
    forms = {alike(batch[0].text)}
    while queue and len(batch) < size and (form := alike(queue[0].text)) not in forms:
        forms.add(form)
        batch.append(queue.popleft())
    return batch


class _Counting:
    """What is counted and what is rejected, and whether a rejection ends the run."""

    def __init__(self, meter: Meter, settings: MeasureSettings, name: str, *, losses: bool) -> None:
        self.meter = meter
        self._losses = losses
        self.log = DocumentLog()
        self.name = name
        self.skip_failures = settings.on_error == "skip"
        self.text_rows = settings.text_rows
        self.gain_is_asked_for = bool(settings.caption_gain)
        self._captions: dict[str, Caption] = {}
        """Of the documents of the batch, by id."""
        self._logged: set[str] = set()
        """Traps, each logged once."""

    def reject(self, document: Document, rejected: Rejected) -> None:
        if rejected.alike:
            raise MIRError(
                f"{rejected.reason}; the first documents fail alike, so the cause is the model or the "
                "options that it was loaded with"
            )
        message = f"document {document.id!r}: {rejected.reason}"
        if not self.skip_failures:
            raise MIRError(f"{message} {_SKIP_HINT}")
        logger.warning(f"{self.name}: skipped {message}")
        self.log.skipped[document.id] = rejected.reason

    def count(self, reader: StateSource, document: Document, seen: Seen) -> None:
        prefill = seen.prefill
        tokens = int(prefill.real.sum())
        if reader.context is not None and tokens > reader.context:
            self.reject(document, Rejected(f"{tokens} tokens are {_beyond(reader.context)}"))
            return
        text_tokens = int(prefill.text.sum())
        if self.text_rows is not None and text_tokens < self.text_rows:
            reason = f"{text_tokens} text tokens, {self.text_rows} were asked for: lower mir_text_rows"
            self.reject(document, Rejected(reason))
            return
        text_rows = [rows[: self.text_rows] for rows in prefill.text_rows]
        try:
            self.meter.update(document.id, prefill.vision_rows, text_rows, group=document.row)
        except MIRError as error:
            reason = str(error).removeprefix(f"document {document.id!r}: ")
            self.reject(document, Rejected(reason))
            return
        self.log.facts = self.log.facts or reader.facts(prefill)
        self.log.documents[document.id] = {
            "row": document.row,
            **_digest(document.text),
            "tokens": tokens,
            "vision_tokens": int(prefill.vision.sum()),
            "text_tokens": len(text_rows[0]),
            "characters_cut": seen.arrival.cut,
            "text_changes": seen.arrival.changes,
            "text_span": seen.span,
            "vision_rule": prefill.vision_rule,
            **_special(prefill),
            "traps": list(seen.traps),
        }
        if (caption := Caption.of(seen, reader.tokenizer)) is not None:
            self._captions[document.id] = caption
            loss = {"caption_tokens": len(caption.ids), "caption_loss": float(caption.losses.mean())}
            self.log.documents[document.id] |= loss
        elif self._losses:
            why = why_no_losses(seen, reader.model_class)
            if self.gain_is_asked_for:
                raise MIRError(
                    f"{why}, so its texts have no loss; mir_caption_gain: false measures MIR alone"
                )
            self.log.documents[document.id]["caption_lost"] = why
        for trap in set(seen.traps) - self._logged:
            logger.info(f"{self.name}: {trap}")
        self._logged |= set(seen.traps)

    def count_gain(self, reader: StateSource, batch: Iterable[Document]) -> None:
        """Run the documents of a batch that were counted once more, with the media of others."""
        captions, self._captions = self._captions, {}
        others = [
            document._replace(to_media=document.to_other_media)
            for document in batch
            if document.id in captions and document.to_other_media is not None
        ]
        if not others:
            return
        with reader.without_rows():
            outcomes = list(reader.run(others, probe=None))
        for document, outcome in outcomes:
            own, entry = captions[document.id], self.log.documents[document.id]
            if isinstance(outcome, Seen):
                other = Caption.of(outcome, reader.tokenizer)
                # Where its end was cut, fewer of its tokens may be left.
                count = 0 if other is None else min(len(own.ids), len(other.ids))
                if other is not None and count and own.ids[:count] == other.ids[:count]:
                    entry["caption_gain"] = float((other.losses[:count] - own.losses[:count]).mean())
                    entry["caption_gain_tokens"] = count
                    continue
                outcome = Rejected("its text has other tokens there, or no finite losses")
            # A medium that cannot be read is told of where its own document is to be measured.
            if not (self.skip_failures or outcome.own):
                raise MIRError(
                    f"document {document.id!r} with the {reader.modality} of another: {outcome.reason} "
                    "(`mir_caption_gain: false` in the task measures MIR alone)"
                )
            entry["caption_gain_lost"] = outcome.reason

    def without_placeholders(self, reader: StateSource, documents: Iterable[Document]) -> list[Document]:
        """The documents whose texts the model cannot take for media; the others are rejected by name."""
        kept = []
        for document in documents:
            mark = next((mark for mark in reader.placeholders if mark in document.text), None)
            if mark is not None:
                reason = f"its text holds {mark!r}, which stands for a medium in this model's prompts"
                self.reject(document, Rejected(f"{reason}; take it out of the text"))
            else:
                kept.append(document)
        return kept

    def within_context(self, reader: StateSource, documents: Iterable[Document]) -> list[Document]:
        """The documents whose texts alone fit into the model; the others are rejected by name."""
        fitting = list(documents)
        if reader.context is not None:
            long = _longer(reader, fitting, reader.context)
            self._reject_long(long, reader.context)
            fitting = [document for document in fitting if document.id not in long]
        return fitting

    def name_long_documents(
        self, reader: StateSource, document: Document, seen: Seen, queue: Iterable[Document]
    ) -> None:
        """Say which documents will not fit, now that the first shows what stands beside a text."""
        if seen.arrival.cut:
            return
        beside = int(seen.prefill.real.sum()) - reader.text_tokens(document.text)
        if reader.context is not None and not self.skip_failures:
            long = _longer(reader, queue, reader.context - beside)
            self._reject_long(long, reader.context)
        if reader.kept_tokens is not None and (
            long := _longer(reader, queue, reader.kept_tokens - beside)
        ):
            logger.warning(
                f"{self.name}: the model's own code keeps {reader.kept_tokens} tokens of a sequence; "
                f"it will cut the text of {len(long)} document(s): {named(long)}. Set mir_text_limit "
                "(words) to choose the length yourself"
            )

    def _reject_long(self, long: dict[str, Document], context: int) -> None:
        if long and not self.skip_failures:
            raise MIRError(f"{len(long)} document(s) are {_beyond(context)}: {named(long)} {_SKIP_HINT}")
        for document in long.values():
            self.reject(document, Rejected(_beyond(context)))


def _special(prefill: Prefill) -> dict[str, int]:
    """Of the vision tokens, how many are markers or tokens of the vocabulary; nothing where none are."""
    counts = {
        "vision_markers": int(prefill.markers.sum()),
        "vision_discrete": int(prefill.discrete.sum()),
    }
    return {name: count for name, count in counts.items() if count}


_SKIP_HINT = "(`mir_on_error: skip` in the task leaves such documents out and reports them)"


def _digest(text: str) -> dict[str, str]:
    """What tells a document's text from another; stored states have none of their own."""
    return {"text_sha256": hashlib.sha256(text.encode()).hexdigest()[:16]} if text else {}


def _beyond(context: int) -> str:
    return (
        f"longer than the {context} positions that the model was made for; set mir_text_limit (words) "
        "in the task"
    )


def _longer(reader: StateSource, documents: Iterable[Document], tokens: int) -> dict[str, Document]:
    # A token is at least a byte, so most texts need no tokenizer to be found short.
    return {
        document.id: document
        for document in documents
        if len(document.text.encode()) > tokens and reader.text_tokens(document.text) > tokens
    }
