"""From the forwards of any decoder-based model to the hidden states of vision and text tokens.

`HiddenStateCapture` hooks a model while somebody else runs it, and keeps one `Prefill` for every
sequence of every prefill forward. `assign` finds each document's prefill by the text that the model
received, so neither the order of calls nor the batching of the caller matters.

Layer k's hidden states are what layer k + 1 receives, and the decoder's output (after the final norm)
for the last layer k = K.

Vision rows are those of the task's modality: images and videos, or audio. They are found twice where
the model allows it:

* by token ids: the placeholders that the processor expanded, `input_ids == image_token_id`;
* by provenance: a row of the decoder's `inputs_embeds` is text exactly when the input-embedding
  module gives that very row for a token id of this forward.

Where a sequence holds media of several kinds (a video with its sound), both rules are of all of them
together; only the ids tell the kinds apart.
"""

import bisect
import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mir_task.errors import MIRError

Key = TypeVar("Key")

NO_TOKEN = -1
"""Stands in `Prefill.token_ids` where the model embedded no token."""

# Adapters may show an image as a video, or a video as images, so these two are one kind.
_MEDIA = {"image": ("image", "video"), "video": ("image", "video"), "audio": ("audio",)}


@dataclass(frozen=True)
class Decoder:
    """The text decoder of a model."""

    name: str
    """Path of the module in the model."""
    module: nn.Module
    layers: nn.ModuleList
    embedding: nn.Module
    """The input-embedding module."""
    config: Any
    """Of the decoder, with its `num_hidden_layers`."""


@dataclass(frozen=True)
class Prefill:
    """One sequence of one prefill forward: L positions, K layers that were asked for."""

    token_ids: Tensor
    """int64 [L]; `NO_TOKEN` where the model embedded no token."""
    real: Tensor
    """bool [L]: not padding."""
    vision: Tensor
    """bool [L]: came from the vision side, or from audio where that is the modality."""
    text: Tensor
    """bool [L]: real and after the last position of any medium."""
    vision_rule: str
    """Which rule found the vision positions: "token_ids", "provenance" or "token_ids+provenance"."""
    vision_rows: tuple[Tensor, ...]
    """K tensors [vision tokens, d], in the model's dtype, on the devices asked for."""
    text_rows: tuple[Tensor, ...]
    """K tensors [text tokens, d], in the model's dtype, on the devices asked for."""

    @property
    def text_ids(self) -> list[int]:
        """Token ids of the text positions, in order."""
        return self.token_ids[self.text].tolist()


def _reader(model: nn.Module) -> tuple[str, nn.Module]:
    """The part of a model that reads images and text, and its path.

    An omni model has a second decoder that speaks, which structure alone cannot tell from the first.
    """
    thinker = getattr(model, "thinker", None)
    return ("thinker", thinker) if isinstance(thinker, nn.Module) else ("", model)


def find_decoder(model: nn.Module) -> Decoder:
    """The module that owns the text decoder's layers and an input embedding.

    Found by structure: `get_decoder()` returns the whole model in several releases of transformers, and
    models of other packages name their parts and configurations as they like.

    Raises:
        MIRError: no module, or more than one, fits.
    """
    prefix, reader = _reader(model)
    around = _text_config(getattr(reader, "config", None))
    found = []
    for name, module in reader.named_modules(prefix=prefix):
        embedding = _input_embedding(module)
        for config in (around, _text_config(getattr(module, "config", None))):
            count = getattr(config, "num_hidden_layers", None)
            layers = [c for c in module.children() if isinstance(c, nn.ModuleList) and len(c) == count]
            if embedding is not None and len(layers) == 1:
                found.append(Decoder(name, module, layers[0], embedding, config))
                break
    # Towers of other modalities embed their positions, and may have as many layers.
    tokens = _token_embedding(reader)
    for is_texts in (lambda d: d.embedding is tokens, _embeds_a_vocabulary):
        if len(found) > 1:
            found = [decoder for decoder in found if is_texts(decoder)] or found
    if len(found) != 1:
        names = ", ".join(decoder.name for decoder in found) or "none"
        raise MIRError(
            f"{type(model).__name__}: looked for one module with an input embedding and as many decoder "
            f"layers as its configuration says, found {names}; MIR is defined on the layers of a single "
            "text decoder"
        )
    return found[0]


def _text_config(config: Any) -> Any:
    """The part of a Hugging Face configuration that speaks of the text decoder."""
    if hasattr(config, "get_text_config"):
        return config.get_text_config(decoder=True)
    return getattr(config, "text_config", config)


def _embeds_a_vocabulary(decoder: Decoder) -> bool:
    rows = getattr(decoder.embedding, "num_embeddings", 0)
    return bool(rows >= getattr(decoder.config, "vocab_size", 1))


def _input_embedding(module: nn.Module) -> nn.Module | None:
    """The input embedding that a module owns, wrapped by an adapter of PEFT or not."""
    named = getattr(module, "embed_tokens", None)
    if isinstance(named, nn.Module):
        return named
    own = [child for child in module.children() if isinstance(child, nn.Embedding)]
    return max(own, key=lambda embedding: embedding.num_embeddings, default=None)


def _token_embedding(model: Any) -> Any:
    """The input embedding that a model names as its own, if it does."""
    with contextlib.suppress(AttributeError, NotImplementedError):
        return model.get_input_embeddings()
    return None


def media_token_ids(model: nn.Module, modality: str) -> set[int]:
    """Ids that stand for a modality's tokens in expanded `input_ids`, as the configuration names them.

    Args:
        model: with a Hugging Face configuration; without one there are no ids.
        modality: "image", "video" (both mean images and videos) or "audio".
    """
    config = getattr(_reader(model)[1], "config", None)
    tower = getattr(config, "audio_config" if modality == "audio" else "vision_config", None)
    for part in (config, tower):  # Phi-4 names them in the configurations of its towers
        ids = {
            getattr(part, f"{name}_token_{suffix}", None)
            for name in _MEDIA[modality]
            for suffix in ("id", "index")
        }
        if known := {token_id for token_id in ids if isinstance(token_id, int) and token_id >= 0}:
            return known
    return set()


class HiddenStateCapture:
    """Context manager that keeps the prefills of a model while somebody else runs it.

    Hooks are registered on entry and gone after exit. They never raise into the model, whose caller
    may swallow exceptions: what goes wrong, in a hook or in the model's own `generate` or `chat`, is
    kept in `failures`. The model may run in several threads at once.

    Args:
        model: of any class, with a text decoder and an input embedding.
        layers: 1-based numbers of the decoder layers whose rows are kept, and the device on which;
            all layers, on the CPU, where None.
        modality: whose tokens count as vision: "image", "video" (the same as "image") or "audio".
        replicas: further copies of the model that may run in its place.

    Raises:
        MIRError: no text decoder is found.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[int, torch.device] | None = None,
        modality: str = "image",
        replicas: Sequence[nn.Module] = (),
    ) -> None:
        self.model = model
        self.modality = modality
        self.decoder = find_decoder(model)
        self._copies = [(model, self.decoder), *((copy, find_decoder(copy)) for copy in replicas)]
        self._layers = layers or dict.fromkeys(
            range(1, len(self.decoder.layers) + 1), torch.device("cpu")
        )
        self.prefills: list[Prefill] = []
        self.failures: list[Exception] = []
        self.forwards = 0
        """Prefill forwards seen, those without a vision token included."""
        self.steps = 0
        """Decode steps seen."""
        self._vision_ids = media_token_ids(model, modality)
        self._media_ids = {token_id for kind in _MEDIA for token_id in media_token_ids(model, kind)}
        self._signature = inspect.signature(self.decoder.module.forward)
        self._handles: list[RemovableHandle] = []
        self._watched: list[tuple[nn.Module, str, Any]] = []
        self._embedded_ids: list[Tensor] = []
        self._flight = _Flight()

    def __enter__(self) -> Self:
        try:
            for model, decoder in self._copies:
                self._hook(model, decoder)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _hook(self, model: nn.Module, decoder: Decoder) -> None:
        parts = decoder.name.split(".")
        around = [model.get_submodule(".".join(parts[:n])) for n in range(len(parts))]
        for depth, ancestor in enumerate(around):
            self._before(ancestor, functools.partial(self._note_outer, depth))
            for method in ("generate", "chat"):
                self._watch(ancestor, method)
        self._before(decoder.embedding, self._note_embedding)
        self._before(decoder.module, functools.partial(self._begin, decoder))
        if "logits_to_keep" in self._signature.parameters:
            hook = decoder.module.register_forward_pre_hook(_keep_all_positions, with_kwargs=True)
            self._handles.append(hook)
        for layer in decoder.layers:
            self._before(layer, functools.partial(self._keep_layer_input, decoder))
        finish = self._guarded(functools.partial(self._finish, decoder))
        self._handles.append(decoder.module.register_forward_hook(finish))

    def _before(self, module: nn.Module, hook: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_pre_hook(self._guarded(hook), with_kwargs=True))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module, method, own in reversed(self._watched):
            del module.__dict__[method]
            if own is not None:
                module.__dict__[method] = own
        self._watched.clear()
        self._forget()

    def take(self) -> list[Prefill]:
        """Prefills kept since the last call, oldest first; forgets what broken-off forwards left."""
        taken, self.prefills = self.prefills, []
        self._forget()
        return taken

    def _forget(self) -> None:
        self._flight = _Flight()
        self._embedded_ids.clear()

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                hook(*arguments)
            except Exception as error:  # noqa: BLE001 - re-raised by whoever reads `failures`
                self._flight.pending = None
                self.failures.append(error)

        return guarded

    def _watch(self, module: nn.Module, method: str) -> None:
        run = getattr(module, method, None)
        if run is None:
            return

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            except Exception as error:
                if error not in self.failures:
                    self.failures.append(error)
                raise

        self._watched.append((module, method, module.__dict__.get(method)))
        module.__dict__[method] = watched

    def _note_outer(
        self, depth: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # What stands at this depth or below is of a forward that broke off.
        outer = {d: held for d, held in self._flight.outer_arguments.items() if d < depth}
        named = {**dict(zip(("input_ids", "attention_mask"), args, strict=False)), **kwargs}
        kept = {name: named.get(name) for name in ("input_ids", "attention_mask")}
        outer[depth] = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
        self._flight.outer_arguments = outer

    def _note_embedding(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Kept until `take`: adapters that build embeddings do so long before the forward, or elsewhere.
        ids = args[0] if args else kwargs["input"]
        self._embedded_ids.append(ids.detach().flatten())

    def _begin(
        self, decoder: Decoder, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        flight = self._flight
        arguments = self._signature.bind_partial(*args, **kwargs).arguments
        flight.pending, flight.arguments = None, {}
        if _cached_length(arguments.get("past_key_values")) > 0:
            self.steps += 1
            return
        self.forwards += 1
        flight.arguments = arguments
        if arguments.get("inputs_embeds") is not None:
            self._start(decoder, arguments["inputs_embeds"])

    def _start(self, decoder: Decoder, embeds: Tensor) -> None:
        """Tell the positions of a prefill apart by what enters the first layer."""
        flight = self._flight
        outer = [*flight.outer_arguments.values(), flight.arguments]
        shape = tuple(embeds.shape[:2])
        real = _first_of_shape(outer, "attention_mask", shape)
        ids = _first_of_shape(outer, "input_ids", shape)
        origin = self._provenance(decoder, embeds)
        sequences = []
        for row in range(shape[0]):
            sequence = _locate(
                real=torch.ones(shape[1], dtype=torch.bool) if real is None else real[row].bool(),
                outer_ids=None if ids is None else ids[row],
                embedded_ids=None if origin is None else origin[row],
                vision_ids=self._vision_ids,
                media_ids=self._media_ids,
            )
            sequences.append(sequence)
        if any(sequence.vision.any() for sequence in sequences):
            flight.pending = _PendingForward(sequences, self._layers)

    @torch.no_grad()
    def _provenance(self, decoder: Decoder, embeds: Tensor) -> Tensor | None:
        """Token id [batch, L] that the input embedding maps to each row, or NO_TOKEN."""
        if not self._embedded_ids:
            return None
        ids = torch.unique(torch.cat([ids.to(embeds.device) for ids in self._embedded_ids]))
        # Looked up anew: the module's own output may have been overwritten in place since.
        table = decoder.embedding.forward(ids)
        id_of_row: dict[bytes, int] = {}
        # MiniCPM-V scales what the module gives before the decoder sees it.
        for scale in {1, getattr(decoder.config, "scale_emb", 1)}:
            rows = _row_bytes((table * scale).to(embeds.dtype))
            id_of_row |= dict(zip(rows, ids.tolist(), strict=True))
        found = [id_of_row.get(row, NO_TOKEN) for row in _row_bytes(embeds.flatten(0, 1))]
        return torch.tensor(found).reshape(embeds.shape[:2])

    def _keep_layer_input(
        self, decoder: Decoder, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        flight = self._flight
        if layer is not decoder.layers[0]:
            if flight.pending is not None:
                flight.pending.keep(hidden)
        elif flight.arguments.get("input_ids") is not None:
            # The decoder embeds by itself, and may merge image features by itself.
            self._start(decoder, hidden)

    def _finish(self, decoder: Decoder, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        flight = self._flight
        pending, flight.pending = flight.pending, None
        if pending is not None:
            pending.keep(output[0] if isinstance(output, tuple) else output.last_hidden_state)
            if pending.layers_run != len(decoder.layers):
                raise MIRError(
                    f"{decoder.name} ran {pending.layers_run} of its "
                    f"{len(decoder.layers)} layers in one forward"
                )
            self.prefills += pending.prefills()
        flight.arguments, flight.outer_arguments = {}, {}


class _Flight(threading.local):
    """What is known of the forward that runs in this thread."""

    def __init__(self) -> None:
        self.pending: _PendingForward | None = None
        self.arguments: dict[str, Any] = {}
        """Of the decoder."""
        self.outer_arguments: dict[int, dict[str, Tensor]] = {}
        """Of the modules around it, by their depth."""


@dataclass(frozen=True)
class _Sequence:
    """Where the tokens of one sequence stand: all tensors [L], on the CPU."""

    token_ids: Tensor
    real: Tensor
    media: Tensor
    vision: Tensor
    rule: str

    @property
    def text(self) -> Tensor:
        positions = torch.arange(len(self.real))
        return self.real & (positions > positions[self.media].max())


class _PendingForward:
    """Hidden states of the sequences of the forward that is running."""

    def __init__(self, sequences: list[_Sequence], layers: Mapping[int, torch.device]) -> None:
        self.sequences = {
            row: sequence for row, sequence in enumerate(sequences) if sequence.vision.any()
        }
        self.layers_run = 0
        self.hidden_states: list[dict[int, tuple[Tensor, Tensor]]] = []
        self._layers = layers

    def keep(self, hidden: Tensor) -> None:
        """Keep the next layer's hidden states [batch, L, d] of vision and text positions."""
        self.layers_run += 1
        if self.layers_run not in self._layers:
            return
        for sequence in self.sequences.values():
            if hidden.shape[1] != len(sequence.real):
                raise MIRError(
                    f"{hidden.shape[1]} of the {len(sequence.real)} positions are left after decoder "
                    f"layer {self.layers_run}: the model drops positions on the way, so MIR is not "
                    "defined on its layers"
                )
        device = self._layers[self.layers_run]
        self.hidden_states.append(
            {
                row: (
                    _rows(hidden[row], sequence.vision, device),
                    _rows(hidden[row], sequence.text, device),
                )
                for row, sequence in self.sequences.items()
            }
        )

    def prefills(self) -> list[Prefill]:
        return [
            Prefill(
                token_ids=sequence.token_ids,
                real=sequence.real,
                vision=sequence.vision,
                text=sequence.text,
                vision_rule=sequence.rule,
                vision_rows=tuple(layer[row][0] for layer in self.hidden_states),
                text_rows=tuple(layer[row][1] for layer in self.hidden_states),
            )
            for row, sequence in self.sequences.items()
        ]


def _keep_all_positions(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Have a decoder that can leave positions out of its last layers leave out none.

    Gemma 4 in transformers does so in `generate`, where only the last position's logits are wanted.
    What it answers stays the same, for no position needs the last layers of another.
    """
    return args, {**kwargs, "logits_to_keep": 0}


def _rows(hidden: Tensor, mask: Tensor, device: torch.device) -> Tensor:
    return hidden.detach()[mask.nonzero().squeeze(1).to(hidden.device)].to(device)


def _row_bytes(rows: Tensor) -> list[bytes]:
    """The bytes of each row [n, d], by which equal rows are equal keys."""
    raw = rows.detach().cpu().contiguous().view(torch.uint8).numpy()
    return [row.tobytes() for row in raw]


def _cached_length(past: Any) -> int:
    """Positions that a key-value cache already holds."""
    if past is None:
        return 0
    if hasattr(past, "get_seq_length"):
        return int(past.get_seq_length())
    return int(past[0][0].shape[-2]) if len(past) else 0


def _first_of_shape(
    arguments: Iterable[Mapping[str, Any]], name: str, shape: tuple[int, ...]
) -> Tensor | None:
    """The outermost argument of that name and shape; inner modules may have rewritten it."""
    for candidates in arguments:
        value = candidates.get(name)
        if isinstance(value, Tensor) and tuple(value.shape) == shape:
            return value.detach().cpu()
    return None


def _locate(
    *,
    real: Tensor,
    outer_ids: Tensor | None,
    embedded_ids: Tensor | None,
    vision_ids: set[int],
    media_ids: set[int],
) -> _Sequence:
    """Positions of all media in one sequence by each rule that applies, and those of them that count.

    Raises:
        MIRError: both rules apply and differ.
    """
    found = {}
    counts = torch.ones_like(real)  # without ids no row tells its kind, and a document holds one
    if outer_ids is not None:
        by_ids = _among(outer_ids, media_ids) & real
        if by_ids.any():
            found["token_ids"] = by_ids
            counts = _among(outer_ids, vision_ids)
    if embedded_ids is not None:
        found["provenance"] = (embedded_ids == NO_TOKEN) & real
        if not found["provenance"].any():  # placeholders embedded as any token: no vision rows at all
            found.pop("token_ids", None)
    if len(found) == 2 and not torch.equal(*found.values()):
        differing = (found["token_ids"] != found["provenance"]).nonzero().flatten()
        raise MIRError(
            f"the media-token ids mark {int(found['token_ids'].sum())} positions, the rows that "
            f"did not come from the input embedding are {int(found['provenance'].sum())}; they "
            f"differ at {len(differing)} positions, first at {int(differing[0])}: the model adds or "
            "changes rows by a rule that this package does not know, so please report the model"
        )
    media = next(iter(found.values()), torch.zeros_like(real))
    ids = embedded_ids if outer_ids is None else outer_ids
    return _Sequence(
        token_ids=torch.full_like(real, NO_TOKEN, dtype=torch.int64) if ids is None else ids,
        real=real,
        media=media,
        vision=media & counts,
        rule="+".join(found) or "none",
    )


def _among(ids: Tensor, wanted: set[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(wanted), dtype=torch.int64))


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
