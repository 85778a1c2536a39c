"""One loaded adapter of the harness: the model that it holds, and what the model sees of a document."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils import gen_metrics
from loguru import logger
from torch import nn
from tqdm import tqdm

from mir_task.capture import HiddenStateCapture, Prefill, assign, longest_beginning
from mir_task.decoder import find_decoder
from mir_task.errors import MIRError
from mir_task.placement import Document, send, supported
from mir_task.settings import TOKENS

# Adapters that load native transformers checkpoints in the process, by a part of the checkpoint's name.
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

# Loads the model of the one adapter (cosmos_wm) that otherwise waits for its first request. Nothing in
# its structure says that a model is to come, and a request could go out to a server.
_LOAD = "_ensure_transformers_reasoner"


class Seen(NamedTuple):
    """What the model saw of one document."""

    prefill: Prefill
    characters_cut: int
    """Characters of the text's end (without white space) that did not arrive."""
    forwards: tuple[int, int]
    """Prefill forwards and decode steps of the adapter's call."""
    traps: tuple[str, ...] = ()
    """What the adapter did beyond one forward, of no effect on what is measured."""


class Rejected(NamedTuple):
    """Why one document could not be measured."""

    reason: str


Outcome = Seen | Rejected


def torch_models(lm: lmms) -> list[nn.Module]:
    """The PyTorch model that an adapter holds in this process, and its replicas on other devices.

    Raises:
        MIRError: it holds none.
        Exception: of an adapter that loads its model only now.
    """
    if load := getattr(lm, _LOAD, None):
        try:
            load()
        except ValueError as error:
            raise MIRError(f"{type(lm).__name__} cannot load a model: {error}") from error
    unwrap = getattr(getattr(lm, "accelerator", None), "unwrap_model", lambda model: model)
    models = [unwrap(part) for part in _parts(lm) if isinstance(part, nn.Module)]
    readers = [model for model in models if _has_decoder(model)]
    for model in readers or models:
        same = {id(other): other for other in readers if type(other) is type(model)}
        return list(same.values()) or [model]
    raise MIRError(
        f"the adapter {type(lm).__name__} holds no PyTorch model in this process, so there are no "
        "hidden states to read; load the checkpoint with an adapter that runs it in the process: "
        f"{_in_process_adapter(lm)}"
    )


def _in_process_adapter(lm: lmms) -> str:
    names = [value.lower() for value in vars(lm).values() if isinstance(value, str)]
    for part, adapter in _IN_PROCESS.items():
        if any(part in name for name in names):
            return f"--model {adapter}"
    return ", ".join(f"--model {adapter}" for adapter in _IN_PROCESS.values())


def capturing(
    lm: lmms, layers: Mapping[int, torch.device] | None = None, modality: str = "image"
) -> HiddenStateCapture:
    """Capture of the model that an adapter holds, to be entered; arguments as `HiddenStateCapture`.

    Raises:
        MIRError: the adapter holds no model, or one without a text decoder.
        Exception: of an adapter that loads its model only now.
    """
    model, *replicas = torch_models(lm)
    return HiddenStateCapture(model, layers, modality, replicas)


def _has_decoder(model: nn.Module) -> bool:
    with contextlib.suppress(MIRError):
        return bool(find_decoder(model))
    return False


def _parts(lm: lmms) -> Iterator[Any]:
    """What an adapter holds, then what its workers and wrappers of a model hold."""
    own = {"_model": getattr(lm, "_model", None), **vars(lm)}
    yield from own.values()
    for name, value in own.items():
        workers = value.values() if isinstance(value, dict) else value
        if not isinstance(value, list | tuple | dict):
            workers = [value] if "model" in name else []
        for worker in workers:
            yield worker
            if not isinstance(worker, nn.Module):
                yield from getattr(worker, "__dict__", {}).values()


def find_tokenizer(lm: lmms) -> Any:
    """The adapter's tokenizer, or that of its processor or model, under whatever name it keeps it.

    Raises:
        MIRError: it has none.
    """
    processors = (getattr(lm, name, None) for name in ("processor", "_processor", "_image_processor"))
    for holder in (lm, *processors, *_parts(lm)):
        named = [name for name in getattr(holder, "__dict__", {}) if name.endswith("tokenizer")]
        for name in ("tokenizer", "_tokenizer", *named):
            tokenizer = getattr(holder, name, None)
            if hasattr(tokenizer, "decode") and hasattr(tokenizer, "encode"):
                return tokenizer
    raise MIRError(
        f"the adapter {type(lm).__name__} has no tokenizer, so the text that its model received "
        "cannot be read back and checked"
    )


class Adapter:
    """Runs documents through a loaded adapter under capture.

    Args:
        lm: the loaded adapter.
        capture: of its model, entered.
        placement: of the text; the first that works of those the adapter may support where None.
    """

    def __init__(self, lm: lmms, capture: HiddenStateCapture, placement: str | None) -> None:
        self.lm = lm
        self.capture = capture
        self.tokenizer = find_tokenizer(lm)
        self.placement = placement
        """None until the first document has shown what works."""
        self._batches = True
        self.notes: list[str] = []
        """What a reader of the value should know of the placement."""

    @property
    def batch_size(self) -> int:
        """Documents to run at once."""
        if self.placement is None or not self._batches:
            return 1
        return max(int(getattr(self.lm, "batch_size_per_gpu", 1) or 1), 1)

    @property
    def context(self) -> int | None:
        """Positions that the model was made for; None where its configuration does not say."""
        return getattr(self.capture.decoder.config, "max_position_embeddings", None)

    @property
    def kept_tokens(self) -> int | None:
        """Positions after which the model's own code cuts a sequence; None where it does not say."""
        config = getattr(self.capture.model, "config", None)
        return getattr(config, "tokenizer_model_max_length", None)

    def text_tokens(self, text: str) -> int:
        """Tokens of a text alone."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def facts(self, prefill: Prefill) -> dict[str, Any]:
        """What the side file says of the model; the same for every document and process."""
        return {
            "model_class": type(self.capture.model).__name__,
            "decoder": self.capture.decoder.name,
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
            probe: another document, to tell a placement that the adapter does not do from a document
                that fails.
        """
        if self.placement is None:
            outcomes = self._settle(batch[0], probe)
        else:
            outcomes = self._attempt(batch, self.placement)
        if len(batch) > 1 and not all(isinstance(outcome, Seen) for outcome in outcomes):
            # Alone, a document has the adapter to itself and the reason is its own. That holds for those
            # that were seen too: the adapter may have put all of them into one conversation.
            outcomes = [self._attempt([document], self.placement)[0] for document in batch]
            if all(isinstance(outcome, Seen) for outcome in outcomes):
                self._batches = False
                self.notes.append(
                    f"{type(self.lm).__name__} does not run the documents of a batch apart, so they run "
                    "one at a time"
                )
        yield from zip(batch, outcomes, strict=True)

    def _settle(self, document: Document, probe: Document | None) -> list[Outcome]:
        """Go through the placements, and keep the first that works on either document."""
        reasons: dict[str, str] = {}
        for placement in supported(self.lm):
            (outcome,) = self._attempt([document], placement)
            if isinstance(outcome, Rejected) and probe is not None:
                (probed,) = self._attempt([probe], placement)
                if isinstance(probed, Seen):  # so it was the document, or an accident
                    (outcome,) = self._attempt([document], placement)
                    self.placement = placement
            if isinstance(outcome, Seen) or self.placement:
                self.placement = placement
                self.notes = [
                    f"{type(self.lm).__name__} does not do {tried} ({reason}); the text is placed by "
                    f"{placement}"
                    for tried, reason in reasons.items()
                ]
                return [outcome]
            reasons[placement] = outcome.reason
        if len(set(reasons.values())) == 1:
            return [Rejected(next(iter(reasons.values())))]
        tried = "; ".join(f"{placement}: {reason}" for placement, reason in reasons.items())
        return [Rejected(f"no placement of the text works ({tried})")]

    def _attempt(self, batch: list[Document], placement: str | None) -> list[Outcome]:
        """One call of the adapter."""
        assert placement is not None
        if not all(document.text.strip() for document in batch):
            reason = "the text is empty; give the document a text or leave it out"
            return [Rejected(reason)] * len(batch)
        capture, errors = self.capture, list[Exception]()
        capture.take()
        capture.failures.clear()
        forwards, steps = capture.forwards, capture.steps
        with _quiet() as complaints:
            try:
                send(self.lm, placement, [_watching_media(d, errors) for d in batch])
            except Exception as error:  # noqa: BLE001 - reported with the document's id
                errors.append(error)
        errors = [*capture.failures, *errors]
        if known := [error for error in errors if isinstance(error, MIRError)]:
            return [Rejected(str(known[0]))] * len(batch)
        prefills = capture.take()
        # Fewer sequences than documents: the adapter has put several into one conversation.
        apart = len({prefill.token_ids.numpy().tobytes() for prefill in prefills}) >= len(batch)
        found = {} if not apart else assign(prefills, {d.id: d.text for d in batch}, self.tokenizer)
        ran = (capture.forwards - forwards, capture.steps - steps)
        traps = _traps(prefills, *ran, errors)
        outcomes: list[Outcome] = []
        for document in batch:
            if document.id in found:
                outcomes.append(Seen(found[document.id], 0, ran, traps))
            elif prefills and len(batch) == 1:
                # Errors after the prefill, when the adapter reads the answer, do not concern it.
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
                f"no token of the document's own text stands after the {self.capture.modality}: the "
                "adapter put the text before it or dropped it; choose another mir_placement"
            )
        return Seen(prefill, total - arrived, forwards, traps)

    def _why_nothing(self, errors: list[Exception], complaints: list[str], *, ran: bool) -> str:
        if errors:
            return f"{type(errors[0]).__name__}: {errors[0]}"
        if ran:
            modality = self.capture.modality
            return (
                f"{type(self.capture.model).__name__} has no {TOKENS[modality]} tokens in its text "
                f"decoder's sequence (cross-attention, or the {modality} was dropped), so MIR is not "
                "defined on it"
            )
        cause = "; ".join(complaints) or "it reported nothing"
        return f"the adapter {type(self.lm).__name__} ran no forward of its model ({cause})"


def _traps(
    prefills: list[Prefill], forwards: int, steps: int, errors: list[Exception]
) -> tuple[str, ...]:
    """What happened in one call of the adapter beyond one forward a document."""
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


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
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
