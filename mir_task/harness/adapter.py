"""One loaded adapter of the harness as a `Reader`: the model that it holds, and requests to it."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

from accelerate.utils import extract_model_from_parallel
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils import gen_metrics
from loguru import logger
from torch import nn
from tqdm import tqdm

from mir_task import moca
from mir_task.capture.decoder import find_decoder
from mir_task.documents.document import Document, messages
from mir_task.errors import MIRError
from mir_task.measuring.calls import media_marks
from mir_task.measuring.reader import Reader
from mir_task.settings import MeasureSettings

GENERATION = {"max_new_tokens": 1, "do_sample": False, "temperature": 0, "num_beams": 1}

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
    models = [extract_model_from_parallel(part) for part in _parts(lm) if isinstance(part, nn.Module)]
    readers = [model for model in models if _has_decoder(model)]
    for model in readers or models:
        same = {id(other): other for other in readers if type(other) is type(model)}
        return list(same.values()) or [model]
    if _has_lost_its_model(lm):
        raise MIRError(
            f"the adapter {type(lm).__name__} has no model any more: the harness deletes it at the end "
            "of an evaluation; load the adapter anew for each"
        )
    raise MIRError(
        f"the adapter {type(lm).__name__} holds no PyTorch model in this process, so there are no "
        "hidden states to read; load the checkpoint with an adapter that runs it in the process: "
        f"{_in_process_adapter(lm)}"
    )


def _has_lost_its_model(lm: lmms) -> bool:
    """Whether the model that its class speaks of is gone, as after `lmms.clean`."""
    try:
        return isinstance(getattr(type(lm), "model", None), property) and lm.model is None
    except AttributeError:
        return True


def _in_process_adapter(lm: lmms) -> str:
    names = [value.lower() for value in vars(lm).values() if isinstance(value, str)]
    for part, adapter in _IN_PROCESS.items():
        if any(part in name for name in names):
            return f"--model {adapter}"
    return ", ".join(f"--model {adapter}" for adapter in _IN_PROCESS.values())


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


def _processors(lm: lmms) -> list[Any]:
    return [getattr(lm, name, None) for name in ("processor", "_processor", "_image_processor")]


def find_tokenizer(lm: lmms) -> Any:
    """The adapter's tokenizer, or that of its processor or model, under whatever name it keeps it.

    Raises:
        MIRError: it has none.
    """
    for holder in (lm, *_processors(lm), *_parts(lm)):
        named = [name for name in getattr(holder, "__dict__", {}) if name.endswith("tokenizer")]
        for name in ("tokenizer", "_tokenizer", *named):
            tokenizer = getattr(holder, name, None)
            if hasattr(tokenizer, "decode") and hasattr(tokenizer, "encode"):
                return tokenizer
    raise MIRError(
        f"the adapter {type(lm).__name__} has no tokenizer, so the text that its model received "
        "cannot be read back and checked"
    )


class Adapter(Reader):
    """Runs documents through a loaded adapter of the harness.

    Args:
        lm: the loaded adapter.
        settings: what is measured and how.

    Raises:
        MIRError: the adapter holds no model or tokenizer, or a model without a text decoder.
        Exception: of an adapter that loads its model only now.
    """

    def __init__(self, lm: lmms, settings: MeasureSettings) -> None:
        self.lm = lm
        placements = ("assistant_loglikelihood", "user_generate")
        if not lm.is_simple:
            placements = ("assistant_chat", "user_generate")
        models = torch_models(lm)
        for model in models:
            moca.restore(model)
        super().__init__(
            f"the adapter {type(lm).__name__}",
            models,
            find_tokenizer(lm),
            settings,
            placements,
            [mark for processor in _processors(lm) for mark in media_marks(processor)],
        )

    @property
    def capacity(self) -> int:
        """The adapter's batch size."""
        return max(int(getattr(self.lm, "batch_size_per_gpu", 1) or 1), 1)

    def send(self, documents: list[Document], placement: str) -> list[str]:
        """One call of the adapter; its answers are not used. Returns the errors that it logs."""
        requests = [_instance(self.lm, placement, self.modality, document) for document in documents]
        with _quiet() as complaints:
            getattr(self.lm, requests[0].request_type)(requests)
        return complaints


def _instance(lm: lmms, placement: str, modality: str, document: Document) -> Instance:
    # Adapters change their generation arguments in place, so each request gets its own.
    generation: dict[str, Any] = {**GENERATION, "until": ["\n\n"]}
    rest = (document.row, document.task, document.split)
    method: str
    arguments: tuple[Any, ...]
    if placement == "assistant_loglikelihood":
        method, arguments = "loglikelihood", ("", document.text, document.to_media, *rest)
    elif lm.is_simple:
        method, arguments = "generate_until", (document.text, generation, document.to_media, *rest)
    else:
        conversation = functools.partial(messages, document, placement, modality)
        method, arguments = "generate_until", (document.text, conversation, generation, *rest)
    metadata = {"task": document.task, "doc_id": document.row, "repeats": 1}
    return Instance(request_type=method, arguments=arguments, idx=0, metadata=metadata)


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep an adapter's bars and throughput figures out of the run; yields the errors that it logs."""
    complaints: list[str] = []
    history = gen_metrics._THROUGHPUT_METRICS_HISTORY
    recorded = len(history)
    sink = logger.add(lambda message: complaints.append(message.record["message"]), level="ERROR")
    with _hidden_bars():
        logger.disable(gen_metrics.__name__)
        try:
            yield complaints
        finally:
            logger.enable(gen_metrics.__name__)
            logger.remove(sink)
            del history[recorded:]


_bars = threading.Lock()
_hiding: list[int] = []
"""Threads that hide their bars."""
_plain: list[Any] = []
"""How bars start, while a thread hides its own."""


@contextlib.contextmanager
def _hidden_bars() -> Iterator[None]:
    """Hide the progress bars of this thread; the last thread puts back how bars start."""
    thread = threading.get_ident()

    def start(bar: tqdm, *args: Any, **kwargs: Any) -> None:
        if threading.get_ident() in _hiding:
            kwargs["disable"] = True
        _plain[0](bar, *args, **kwargs)

    with _bars:
        if not _hiding:
            _plain[:] = [tqdm.__init__]
            tqdm.__init__ = start
        _hiding.append(thread)
    try:
        yield
    finally:
        with _bars:
            _hiding.remove(thread)
            if not _hiding:
                tqdm.__init__ = _plain[0]
