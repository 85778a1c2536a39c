"""Run documents through an adapter of the harness and count what its model sees."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils import gen_metrics
from loguru import logger
from torch import nn
from tqdm import tqdm

from mir_task.capture import HiddenStateCapture, Prefill, assign, decode_text, missing_text
from mir_task.errors import MIRError
from mir_task.moments import MIRMeter
from mir_task.placement import Document, send, supported


@dataclass
class Measurement:
    """What one process measured of one task."""

    meter: MIRMeter
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per document id: token counts, decoded text span and vision-row rule."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Per document id: why it could not be measured."""
    facts: dict[str, Any] = field(default_factory=dict)
    """About the model and the prompt; the same on every process."""
    seconds: float = 0.0
    """Wall time of the forwards."""

    def merge(self, other: "Measurement") -> None:
        """Add what another process measured of the same task.

        Raises:
            MIRError: the processes measured different models or placed the text differently.
        """
        if other.facts and self.facts and other.facts != self.facts:
            raise MIRError(
                f"the processes do not measure the same thing: {self.facts} and {other.facts}"
            )
        self.meter.merge(other.meter)
        self.documents |= other.documents
        self.skipped |= other.skipped
        self.facts = self.facts or other.facts
        self.seconds = max(self.seconds, other.seconds)


class Rejected(Exception):
    """One document could not be measured; carries the reason."""


def torch_model(lm: lmms) -> nn.Module:
    """The PyTorch model that an adapter holds in this process.

    Raises:
        MIRError: it holds none.
    """
    held = [getattr(lm, "_model", None), *vars(lm).values()]
    for candidate in held:
        if isinstance(candidate, nn.Module):
            unwrap = getattr(getattr(lm, "accelerator", None), "unwrap_model", None)
            return unwrap(candidate) if unwrap else candidate
    raise MIRError(
        f"the adapter {type(lm).__name__} holds no PyTorch model in this process, so there are no "
        "hidden states to read; load the checkpoint with an adapter that runs it in the process: "
        f"{in_process_adapter(lm)}"
    )


# Adapters of the harness that load native transformers checkpoints, by a part of the checkpoint's name.
_IN_PROCESS = {
    "llava": "llava_hf",
    "qwen2.5-vl": "qwen2_5_vl",
    "qwen2-vl": "qwen2_vl",
    "qwen3-vl": "qwen3_vl",
    "internvl": "internvl_hf",
    "gemma-3": "gemma3",
    "idefics2": "idefics2",
    "mistral": "mistral3_vl",
}


def in_process_adapter(lm: lmms) -> str:
    """The `--model` to use instead of an adapter that serves the model elsewhere."""
    names = [value.lower() for value in vars(lm).values() if isinstance(value, str)]
    for part, adapter in _IN_PROCESS.items():
        if any(part in name for name in names):
            return f"--model {adapter}"
    return ", ".join(f"--model {adapter}" for adapter in _IN_PROCESS.values())


def measure(
    lm: lmms,
    documents: Iterable[tuple[str, Document, bool]],
    meter: MIRMeter,
    *,
    placement: str | None,
    skip_failures: bool,
    name: str,
) -> Measurement:
    """Run documents through the adapter and count them.

    Args:
        lm: loaded adapter.
        documents: (id, document, whether it counts) in the order to run.
        meter: counts the documents.
        placement: of the text; the best that the adapter supports where None.
        skip_failures: go on after a document that cannot be measured.
        name: of the task, for the progress bar.

    Raises:
        MIRError: the adapter or model cannot be measured, or a document where failures are not
            skipped, named by its id.
    """
    done = Measurement(meter)
    queue = list(documents)
    started = time.perf_counter()
    with HiddenStateCapture(torch_model(lm)) as capture:
        runner = _Runner(lm, capture, [placement] if placement else list(supported(lm)))
        size = max(int(getattr(lm, "batch_size_per_gpu", 1) or 1), 1)
        with tqdm(total=len(queue), desc=name, disable=lm.rank != 0, unit="doc") as bar:
            while queue:
                batch = _batch(queue, size if runner.settled else 1)
                for (document_id, document, counts), outcome in runner.run(batch):
                    if isinstance(outcome, Rejected):
                        message = f"document {document_id!r}: {outcome}"
                        if not skip_failures:
                            raise MIRError(
                                f"{message}\n(`mir_on_error: skip` in the task leaves such documents "
                                "out and reports them)"
                            )
                        logger.warning(f"{name}: skipped {message}")
                        done.skipped[document_id] = str(outcome)
                    elif counts:
                        _count(done, document_id, document, outcome, capture, runner)
                    bar.update(1)
        done.facts = runner.facts()
    done.seconds = time.perf_counter() - started
    return done


def _batch(queue: list[Any], size: int) -> list[Any]:
    """Take up to `size` documents whose texts cannot be mistaken for one another."""
    batch = [queue.pop(0)]
    while queue and len(batch) < size:
        text = queue[0][1].text
        if any(text in other.text or other.text in text for _, other, _ in batch):
            break
        batch.append(queue.pop(0))
    return batch


def _count(
    done: Measurement,
    document_id: str,
    document: Document,
    prefill: Prefill,
    capture: HiddenStateCapture,
    runner: "_Runner",
) -> None:
    done.meter.update(document_id, prefill.vision_rows, prefill.text_rows, group=document.row)
    done.documents[document_id] = {
        "row": document.row,
        "tokens": int(prefill.real.sum()),
        "vision_tokens": int(prefill.vision.sum()),
        "text_tokens": int(prefill.text.sum()),
        "text_span": decode_text(prefill, runner.tokenizer),
        "vision_rule": prefill.vision_rule,
    }


class _Runner:
    """Sends batches to the adapter and finds each document's prefill."""

    def __init__(self, lm: lmms, capture: HiddenStateCapture, placements: list[str]) -> None:
        self.lm = lm
        self.capture = capture
        self.placements = placements
        self.settled = len(placements) == 1
        self.tokenizer = _tokenizer(lm)
        self.dtype = ""

    def run(self, batch: list[Any]) -> Iterator[tuple[Any, Prefill | Rejected]]:
        """Each item of the batch with its prefill or the reason why it has none."""
        outcomes = self._attempt(batch)
        if not self.settled:
            outcomes = self._settle(batch, outcomes)
        for item, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Rejected) and len(batch) > 1:
                # Alone, a document has the adapter to itself and its reason is its own.
                (outcome,) = self._attempt([item])
            yield item, outcome

    def facts(self) -> dict[str, Any]:
        model = self.capture.model
        return {
            "model_class": type(model).__name__,
            "decoder": self.capture.decoder.name,
            "hidden_dtype": self.dtype,
            "placement": self.placements[0] if self.settled else None,
        }

    def _settle(self, batch: list[Any], first: list[Prefill | Rejected]) -> list[Prefill | Rejected]:
        """Go through the placements on one document, and keep the first that works."""
        reasons: list[str] = []
        outcomes = first
        for number, placement in enumerate(self.placements):
            if number:
                outcomes = self._attempt(batch, placement)
            (outcome,) = outcomes
            if not isinstance(outcome, Rejected):
                for tried, reason in zip(self.placements, reasons, strict=False):
                    logger.warning(
                        f"{type(self.lm).__name__} does not do {tried} ({reason}); "
                        f"the text is placed by {placement}"
                    )
                self.placements, self.settled = [placement], True
                return outcomes
            reasons.append(str(outcome))
        if len(set(reasons)) == 1:
            return outcomes
        tried = "; ".join(f"{p}: {reason}" for p, reason in zip(self.placements, reasons, strict=True))
        return [Rejected(f"no placement of the text works ({tried})")]

    def _attempt(self, batch: list[Any], placement: str | None = None) -> list[Prefill | Rejected]:
        """One call of the adapter: a prefill or a reason for every document of the batch."""
        capture = self.capture
        errors: list[Exception] = []
        items = [_watching_images(document, errors) for _, document, _ in batch]
        if not all(item.text.strip() for item in items):
            return [Rejected("the text is empty; give the document a text or leave it out")]
        capture.take()
        capture.failures.clear()
        forwards = capture.forwards
        with _quiet_adapter() as complaints:
            try:
                send(self.lm, placement or self.placements[0], items)
            except Exception as error:  # noqa: BLE001 - reported with the document's id
                errors.append(error)
        errors = [*capture.failures, *errors]
        if known := [error for error in errors if isinstance(error, MIRError)]:
            return [Rejected(str(known[0]))] * len(items)
        prefills = capture.take()
        if prefills:
            self.dtype = str(prefills[0].vision_rows[0].dtype).removeprefix("torch.")
        found = assign(prefills, dict(enumerate(item.text for item in items)), self.tokenizer)
        ran = capture.forwards > forwards
        return [
            found[n] if n in found else self._missing(item, prefills, errors, complaints, ran)
            for n, item in enumerate(items)
        ]

    def _missing(
        self,
        item: Document,
        prefills: list[Prefill],
        errors: list[Exception],
        complaints: list[str],
        ran: bool,
    ) -> Rejected:
        if errors:
            return Rejected(f"{type(errors[0]).__name__}: {errors[0]}")
        if prefills:
            return Rejected(missing_text(prefills, item.text, self.tokenizer))
        if ran:
            return Rejected(
                f"{type(self.capture.model).__name__} has no vision tokens in its text decoder's "
                "sequence (cross-attention, or the image was dropped), so MIR is not defined on it"
            )
        cause = "; ".join(complaints) or "it reported nothing"
        return Rejected(f"the adapter {type(self.lm).__name__} ran no forward of its model ({cause})")


def _watching_images(document: Document, errors: list[Exception]) -> Document:
    """The document with a note of what goes wrong with its image; adapters may swallow it."""

    def to_image(row: dict[str, Any]) -> list[Any]:
        try:
            return document.to_image(row)
        except Exception as error:
            errors.append(error)
            raise

    return document._replace(to_image=to_image)


def _tokenizer(lm: lmms) -> Any:
    """The adapter's tokenizer, or its processor's.

    Raises:
        MIRError: it has none.
    """
    holders = [
        lm,
        *(getattr(lm, name, None) for name in ("processor", "_processor", "_image_processor")),
    ]
    for holder in holders:
        for name in ("tokenizer", "_tokenizer"):
            tokenizer = getattr(holder, name, None)
            if hasattr(tokenizer, "decode") and hasattr(tokenizer, "encode"):
                return tokenizer
    raise MIRError(
        f"the adapter {type(lm).__name__} has no tokenizer, so the text that its model received "
        "cannot be read back and checked"
    )


@contextlib.contextmanager
def _quiet_adapter() -> Iterator[list[str]]:
    """Keep an adapter's bars and throughput figures out of the run; yields the errors that it logs."""
    complaints: list[str] = []
    history = gen_metrics._THROUGHPUT_METRICS_HISTORY
    recorded = len(history)
    sink = logger.add(lambda message: complaints.append(message.record["message"]), level="ERROR")
    logger.disable(gen_metrics.__name__)
    start_bar = tqdm.__init__

    def hidden_bar(bar: tqdm, *args: Any, **kwargs: Any) -> None:
        start_bar(bar, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = hidden_bar
    try:
        with torch.no_grad():
            yield complaints
    finally:
        tqdm.__init__ = start_bar
        logger.enable(gen_metrics.__name__)
        logger.remove(sink)
        del history[recorded:]
