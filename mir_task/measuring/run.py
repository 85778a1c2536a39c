"""Run documents through a model and count what it sees."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from mir_task.capture.hooks import Prefill
from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.measuring.processes import rank, stop_if_another_failed
from mir_task.measuring.prompts import alike
from mir_task.measuring.reader import Reader, Rejected, Seen
from mir_task.result import MIRResult
from mir_task.settings import TOKENS, MeasureSettings


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


@dataclass
class DocumentLog:
    """Which documents were measured, and what was seen on the way."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per document id: token counts, decoded text span, vision-row rule, traps of the adapter."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Per document id: why it could not be measured."""
    facts: dict[str, Any] = field(default_factory=dict)
    """About the model and the prompt; the same on every process."""
    notes: list[str] = field(default_factory=list)
    """Remarks on how the text was placed."""
    seconds: float = 0.0
    """Wall time of the forwards."""

    def merge(self, other: "DocumentLog") -> None:
        """Add what another process, or another pass, measured of the same task.

        Raises:
            MIRError: they measured different models or placed the text differently.
        """
        if other.facts and self.facts and other.facts != self.facts:
            raise MIRError(
                f"the processes do not measure the same thing: {self.facts} and {other.facts}"
            )
        self.skipped |= other.skipped
        seen = self.documents | other.documents
        # What a later pass could not measure counts in none.
        self.documents = {name: each for name, each in seen.items() if name not in self.skipped}
        self.facts = self.facts or other.facts
        self.notes = self.notes or other.notes

    @property
    def traps(self) -> dict[str, int]:
        """What an adapter did beyond one forward a document, and with how many documents."""
        return dict(Counter(trap for each in self.documents.values() for trap in each["traps"]))

    @property
    def caption_loss(self) -> float | None:
        """Mean loss of all documents' caption tokens, in nats; None unless all have one."""
        taken = [document for document in self.documents.values() if "caption_loss" in document]
        if not taken or len(taken) < len(self.documents):
            return None
        tokens = sum(document["caption_tokens"] for document in taken)
        return float(sum(d["caption_loss"] * d["caption_tokens"] for d in taken) / tokens)

    def warnings(self, result: MIRResult, modality: str) -> list[str]:
        """What a reader of the value should know."""
        found = list(self.notes)
        layer, size = result.layers[0], self.facts["hidden_size"]
        for name, tokens in ((TOKENS[modality], layer.vision_tokens), ("text", layer.text_tokens)):
            if tokens <= size:  # n tokens have a covariance of rank n - 1
                found.append(
                    f"{tokens} {name} tokens in {size} dimensions: their covariance is singular. "
                    "The distance is exact for these tokens but biased upwards, so compare it only "
                    "at equal documents, or measure more of them"
                )
        if self.skipped:
            found.append(
                f"{len(self.skipped)} document(s) could not be measured and are left out: "
                f"{_named(self.skipped)}. {reasons(self.skipped.values())}"
            )
        changed = {i: document["text_changes"] for i, document in self.documents.items()}
        if changed := {i: changes for i, changes in changed.items() if changes}:
            found.append(
                f"the text of {len(changed)} document(s) was changed on its way to the model; what "
                f"arrived is measured: {_named(changed)}. Of the first, {next(iter(changed.values()))}"
            )
        cut = [i for i, document in self.documents.items() if document["characters_cut"]]
        if cut:
            found.append(
                f"the text of {len(cut)} document(s) was cut on its way to the model; what arrived is "
                f"measured: {_named(cut)}. Set mir_text_limit (words) to choose the length yourself"
            )
        return found


def reasons(found: Iterable[str]) -> str:
    """Reasons with how many documents have each, the commonest first."""
    counted = Counter(found).most_common()
    parts = [f"{count} of them: {reason}" for reason, count in counted[:3]]
    return "; ".join([*parts, *([f"{len(counted) - 3} more reasons"] if len(counted) > 3 else [])])


def _named(ids: Iterable[str]) -> str:
    names = list(ids)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def run_documents(
    reader: Reader,
    documents: Iterable[Document],
    meter: Meter,
    layers: Mapping[int, torch.device],
    settings: MeasureSettings,
    name: str,
    *,
    bars: bool = True,
) -> DocumentLog:
    """Run documents through the model and count them.

    Args:
        reader: runs the model.
        documents: in the order to run.
        meter: counts the documents.
        layers: numbers of the decoder layers that the meter counts, and where their rows go.
        settings: of the task.
        name: of the task, for the progress bar and messages.
        bars: whether process 0 shows a progress bar.

    Raises:
        MIRError: the model cannot be measured, or a document where failures are not skipped, named by
            its id.
    """
    run = _Counting(meter, settings, name)
    started = time.perf_counter()
    queue = deque(run.within_context(reader, run.without_placeholders(reader, documents)))
    shown = bars and rank() == 0
    with (
        reader.capturing(layers),
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

    def __init__(self, meter: Meter, settings: MeasureSettings, name: str) -> None:
        self.meter = meter
        self.log = DocumentLog()
        self.name = name
        self.skip_failures = settings.on_error == "skip"
        self.text_rows = settings.text_rows
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
        if document.counts:
            self.log.skipped[document.id] = rejected.reason

    def count(self, reader: Reader, document: Document, seen: Seen) -> None:
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
        if not document.counts:
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
            "tokens": tokens,
            "vision_tokens": int(prefill.vision.sum()),
            "text_tokens": len(text_rows[0]),
            "characters_cut": seen.arrival.cut,
            "text_changes": seen.arrival.changes,
            "text_span": seen.span,
            "vision_rule": prefill.vision_rule,
            **_special(prefill),
            "traps": list(seen.traps),
            **_caption(seen, reader.tokenizer),
        }
        for trap in set(seen.traps) - self._logged:
            logger.info(f"{self.name}: {trap}")
        self._logged |= set(seen.traps)

    def without_placeholders(self, reader: Reader, documents: Iterable[Document]) -> list[Document]:
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

    def within_context(self, reader: Reader, documents: Iterable[Document]) -> list[Document]:
        """The documents whose texts alone fit into the model; the others are rejected by name."""
        fitting = list(documents)
        if reader.context is not None:
            long = _longer(reader, fitting, reader.context)
            self._reject_long(long, reader.context)
            fitting = [document for document in fitting if document.id not in long]
        return fitting

    def name_long_documents(
        self, reader: Reader, document: Document, seen: Seen, queue: Iterable[Document]
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
                f"it will cut the text of {len(long)} document(s): {_named(long)}. Set mir_text_limit "
                "(words) to choose the length yourself"
            )

    def _reject_long(self, long: dict[str, Document], context: int) -> None:
        if long and not self.skip_failures:
            raise MIRError(
                f"{len(long)} document(s) are {_beyond(context)}: {_named(long)} {_SKIP_HINT}"
            )
        for document in long.values():
            self.reject(document, Rejected(_beyond(context)))


def _special(prefill: Prefill) -> dict[str, int]:
    """Of the vision tokens, how many are markers or tokens of the vocabulary; nothing where none are."""
    counts = {
        "vision_markers": int(prefill.markers.sum()),
        "vision_discrete": int(prefill.discrete.sum()),
    }
    return {name: count for name, count in counts.items() if count}


def _caption(seen: Seen, tokenizer: Any) -> dict[str, Any]:
    """Loss of a document's own tokens, or nothing where losses were not taken or are not finite."""
    if seen.prefill.text_losses is None:
        return {}
    losses = seen.prefill.text_losses[seen.arrival.tokens(seen.prefill.text_ids, seen.span, tokenizer)]
    if not len(losses) or not losses.isfinite().all():
        return {}
    return {"caption_tokens": len(losses), "caption_loss": float(losses.mean())}


_SKIP_HINT = "(`mir_on_error: skip` in the task leaves such documents out and reports them)"


def _beyond(context: int) -> str:
    return (
        f"longer than the {context} positions that the model was made for; set mir_text_limit (words) "
        "in the task"
    )


def _longer(reader: Reader, documents: Iterable[Document], tokens: int) -> dict[str, Document]:
    # A token is at least a byte, so most texts need no tokenizer to be found short.
    return {
        document.id: document
        for document in documents
        if len(document.text.encode()) > tokens and reader.text_tokens(document.text) > tokens
    }
