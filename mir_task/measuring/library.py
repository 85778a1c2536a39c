"""MIR of a model that is at hand, without the harness: `mir_task.measure`."""

import contextlib
import functools
import inspect
import itertools
import pickle
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import recursively_apply
from loguru import logger
from PIL import Image
from torch import nn

from mir_task.capture.decoder import reading_part
from mir_task.documents.document import Document, messages
from mir_task.documents.others import other_row
from mir_task.documents.pictures import as_seen, picture_of
from mir_task.errors import MIRError
from mir_task.measuring.calls import media_marks
from mir_task.measuring.found import Check
from mir_task.measuring.passes import measure_together
from mir_task.measuring.plan import device_of
from mir_task.measuring.processes import all_gather, on_every_rank, rank, world_size
from mir_task.measuring.reader import Reader
from mir_task.result import MIRResult
from mir_task.settings import MeasureSettings

Pair = tuple[Any, str]
Encode = Callable[[Any, str], Mapping[str, Any]]


def measure(
    model: nn.Module,
    processor: Any,
    pairs: Iterable[Pair],
    *,
    encode: Encode | None = None,
    name: str = "mir",
    bars: bool = True,
    **settings: Any,
) -> MIRResult:
    """MIR of a Hugging Face vision-language model.

    The conversation is that of the harness's chat adapters: the medium in the user's turn, the text in
    the assistant's (`placement="assistant_chat"`), so the value is theirs. One forward a document, and
    one to see where a text stands, in evaluation mode and without gradients. Afterwards the model and
    the random number generators are as they were, so that it can be called between two steps of
    training. Where torch.distributed runs, every process must call it with all of the pairs; each
    measures its share, and all return the result of all.

    Args:
        model: with a text decoder; may be wrapped by DistributedDataParallel or `torch.compile`.
        processor: of the model, with a chat template; its tokenizer is enough where `encode` is given.
        pairs: of a medium and a text: a PIL image, an array of uint8 [height, width, 3] or the path of
            an image, the path of a video, or audio as the processor takes it. A sequence is read one
            pair at a time.
        encode: from a medium and a text to the keyword arguments of the model's forward, a batch of
            one, for models without a chat template or to measure another prompt.
        name: for progress bars and messages.
        bars: whether to show progress bars.
        settings: as the keys of a MIR task, without their `mir_`: `modality`, `placement`, `outliers`,
            `groups`, `text_rows`, `caption_ppl`, `caption_gain`, `on_error`, `min_documents`, `extras`,
            `host_memory`, `accelerator_memory`.

    Raises:
        MIRError: on every process alike, when the model, a setting or a document does not do.
    """
    with in_keywords():
        chosen = MeasureSettings.of(name, {"placement": "assistant_chat"} | settings, prefix="")
        pairs = pairs if hasattr(pairs, "__getitem__") else list(pairs)
        inner = reading_part(_unwrapped(model))
        read = _reader_of(chosen.modality, encode)
        with on_every_rank():
            own = _told(pairs, read) if world_size() > 1 else None
        if own is not None and len(of_all := dict.fromkeys(all_gather(own))) > 1:
            sizes = ", ".join(str(size) for size, _ in of_all)
            raise MIRError(
                f"pairs differ from process to process ({sizes} pairs, or other texts): pass all of "
                "them to each, in one order; each process measures its share"
            )
        with on_every_rank():
            documents = list(_share(pairs, read))
        make = functools.partial(_Processor, inner, processor, chosen, encode)
        with undisturbed(inner):
            measured = measure_together(make, documents, chosen, name, bars=bars, words=of_keywords)
    if rank() == 0:
        for warning in measured.log.warnings(measured.result, chosen.modality):
            logger.warning(f"{name}: {of_keywords(warning)}")
    return measured.result


def check(
    model: nn.Module,
    processor: Any,
    pairs: Iterable[Pair],
    *,
    encode: Encode | None = None,
    **settings: Any,
) -> Check:
    """What `measure` would count of a model's sequences, and which rule found it, on two pairs.

    Nothing of the model changes. `print` of what is returned is for a person to read.

    Args:
        model: as of `measure`.
        processor: as of `measure`.
        pairs: of which the first two are run.
        encode: as of `measure`.
        settings: as of `measure`, of which `modality` matters.

    Raises:
        MIRError: MIR cannot be measured, with the reason that `measure` gives.
    """
    with in_keywords():
        chosen = MeasureSettings.of("check", {"placement": "assistant_chat"} | settings, prefix="")
        inner = reading_part(_unwrapped(model))
        reader = _Processor(inner, processor, chosen, encode)
        some = list(itertools.islice(pairs, 2))
        read = _reader_of(chosen.modality, encode)
        documents = [_document(some, row, read) for row in range(len(some))]
        if not documents:
            raise MIRError("check: no pair was given; pass one or two pairs of a medium and a text")
        with undisturbed(inner), reader.capturing():
            seen = [reader.see(*both) for both in zip(documents, documents[::-1], strict=True)]
        return Check.of(reader, seen)


def of_keywords(message: str) -> str:
    """A message in the names of this function's arguments, not in those of a task's keys."""
    message = re.sub(r"[Ss]et mir_text_limit \(words\)[\w ]*", "pass shorter texts", message)
    for name in MeasureSettings.model_fields:
        message = re.sub(rf"\bmir_{name}: (\w+)", rf"{name}=\1", message)
        message = re.sub(rf"\bmir_{name}\b", name, message)
    message = message.replace(
        "the options that it was loaded with", "what `encode` or its processor makes"
    )
    return message.replace(" in the task ", " ").replace("the adapter", "the processor")


@contextlib.contextmanager
def in_keywords() -> Iterator[None]:
    """Put messages of what is inside in the names of keyword arguments."""
    try:
        yield
    except MIRError as error:
        raise MIRError(of_keywords(str(error))) from error


class _Processor(Reader):
    """Runs documents through a model by its processor's chat template, or by a function."""

    elsewhere = "let `encode`, or the processor's chat template, put it behind the medium"

    def __init__(
        self, model: nn.Module, processor: Any, settings: MeasureSettings, encode: Encode | None
    ) -> None:
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "decode"):
            raise MIRError(
                f"{type(processor).__name__} has no tokenizer, so the text that the model received "
                "cannot be read back and checked: pass the model's processor or tokenizer"
            )
        if encode is None and not getattr(processor, "chat_template", None):
            raise MIRError(
                f"{type(processor).__name__} has no chat template: pass the processor of a model with "
                "one, set processor.chat_template, or pass encode, a function from a medium and a text "
                "to the arguments of the model's forward"
            )
        super().__init__(
            f"the processor {type(processor).__name__}",
            [model],
            tokenizer,
            settings,
            ("assistant_chat", "user_generate"),
            media_marks(processor),
        )
        self._processor = processor
        self._encode = encode
        parameters = inspect.signature(model.forward).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        # No cache is needed after a prefill, and of the logits none.
        options = {"use_cache": False, "logits_to_keep": 1}
        self._options = {name: value for name, value in options.items() if name in parameters}
        if takes_all:
            self._options["use_cache"] = False

    def send(self, documents: list[Document], placement: str) -> list[str]:
        """One forward of the model; the documents are one."""
        (document,) = documents
        if self._encode is not None:
            (medium,) = document.to_media({})
            inputs = self._encode(medium, document.text)
        else:
            inputs = self._processor.apply_chat_template(
                messages(document, placement, self.modality, {}),
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
            )
        weight = next(self.decoder.embedding.parameters())
        device, dtype = device_of(self.decoder.embedding), getattr(self.model, "dtype", weight.dtype)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        self.model(**{**self._options, **recursively_apply(moved, dict(inputs))})
        return []


def _reader_of(modality: str, encode: Encode | None) -> Callable[[Any], Any]:
    """From a medium as it was passed to what a processor takes; `encode` takes what it likes."""
    if encode is not None:
        return lambda medium: as_seen(medium) if isinstance(medium, Image.Image) else medium
    if modality == "image":
        return picture_of
    return lambda medium: str(medium) if isinstance(medium, Path) else medium


def _told(pairs: Any, read: Callable[[Any], Any]) -> tuple[int, tuple[str, ...]]:
    """What tells lists of pairs from one another: their number, and the first, middle and last text."""
    rows = (0, len(pairs) // 2, len(pairs) - 1) if len(pairs) else ()
    return len(pairs), tuple(_document(pairs, row, read).text for row in rows)


def _share(pairs: Any, read: Callable[[Any], Any]) -> Iterator[Document]:
    """This process's documents."""
    for row in range(rank(), len(pairs), world_size()):
        yield _document(pairs, row, read)


def _document(pairs: Any, row: int, read: Callable[[Any], Any]) -> Document:
    pair = pairs[row]
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], str):
        raise MIRError(f"pairs[{row}] is {type(pair).__name__}, not (medium, text)")
    other = functools.partial(_other_medium, pairs, row, read) if len(pairs) > 1 else None
    to_media = functools.partial(_medium, pairs, row, read)
    return Document(str(row), row, pair[1], to_media, to_other_media=other)


def _medium(pairs: Any, number: int, read: Callable[[Any], Any], row: Any) -> list[Any]:
    return [read(pairs[number][0])]


def _other_medium(pairs: Any, number: int, read: Callable[[Any], Any], row: Any) -> list[Any]:
    own = pairs[number][0]
    other = other_row(number, len(pairs), 0, lambda n: _are_one(pairs[n][0], own))
    if other is None:
        raise MIRError(f"all {len(pairs)} pairs hold one medium, so no other can take its place")
    return _medium(pairs, other, read, row)


def _are_one(medium: Any, other: Any) -> bool:
    if isinstance(medium, Image.Image) and isinstance(other, Image.Image):
        return medium.size == other.size and medium.tobytes() == other.tobytes()
    try:
        return medium is other or pickle.dumps(medium) == pickle.dumps(other)
    except (TypeError, AttributeError, pickle.PickleError):  # not of plain data
        return False


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model whose forward needs no other process, uncompiled.

    accelerate's function unwraps FullyShardedDataParallel too, whose forward gathers the parameters.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return _unwrapped(model.module)
    return model


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Afterwards the model and the random number generators are as before.

    Of the model that is each module's mode, its buffers, which rotary embeddings of some models grow,
    and what its forward notes on it, such as the `rope_deltas` of Qwen's models.
    """
    buffers = {module: dict(module._buffers) for module in model.modules()}
    contents = [
        (held, held.clone())
        for of_module in buffers.values()
        for held in of_module.values()
        if held is not None and not held.is_meta
    ]
    noted = {
        module: {key: value for key, value in vars(module).items() if not key.startswith("_")}
        for module in model.modules()
    }
    used = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in used), "cuda")
    indices = [device.index for device in used]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what others may draw from
    with torch.random.fork_rng(devices=indices, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
            for module, of_module in buffers.items():
                module._buffers.clear()
                module._buffers.update(of_module)
            with torch.no_grad():
                for held, content in contents:
                    held.copy_(content)
            for module, values in noted.items():
                for key in [key for key in vars(module) if not key.startswith("_")]:
                    if key not in values:
                        delattr(module, key)
                vars(module).update(values)
