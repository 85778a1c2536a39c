"""Hooks that tell, while a model runs, where the vision tokens of its decoder's sequences stand."""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mir_task.capture import arguments
from mir_task.capture.decoder import MEDIA, Decoder, media_token_ids
from mir_task.capture.positions import NO_TOKEN, Positions, equal_rows, locate
from mir_task.capture.streams import refuse_streams
from mir_task.errors import MIRError

Hook = Callable[..., None]


@dataclass
class Forward:
    """One forward of a decoder, from its call on."""

    step: bool
    """Whether it continues a key-value cache, so that nothing is looked for."""
    arguments: dict[str, Any]
    """Of the decoder, until the positions are known."""
    sequences: list[Positions] | None = None
    """Of the batch, as soon as they are known: in the first layer at the latest."""
    _vision: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, init=False)

    def vision(self, device: torch.device) -> tuple[Tensor, ...]:
        """The vision positions of the batch as two indices, of sequences and of positions in them.

        Args:
            device: for the indices, int64 [vision tokens]; the same as for the hidden states.
        """
        if device not in self._vision:
            assert self.sequences is not None
            mask = torch.stack([sequence.vision for sequence in self.sequences])
            self._vision[device] = tuple(index.to(device) for index in mask.nonzero(as_tuple=True))
        return self._vision[device]


class _Embedded:
    """What was embedded for a forward of the decoder that is to come or running."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        """Token ids [n] of each call of the input embedding."""
        self.rows: list[Tensor] = []
        """Rows [n, d] of each call of the block around it, where the decoder has one."""


class _RunningForward(threading.local):
    """What is known of the forward that runs in this thread."""

    def __init__(self) -> None:
        self.forward: Forward | None = None
        self.outer_arguments: dict[int, dict[str, Tensor]] = {}
        """Of the modules around the decoder, by their depth."""
        self.embedded = _Embedded()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        # Nothing runs in a copy of a model; and no copy of a thread's own could be made.
        return type(self), ()


def _unguarded(hook: Hook) -> Hook:
    return hook


class PositionFinder:
    """Hooks that tell, while a model runs, where the vision tokens of its decoder's sequences stand.

    Args:
        model: whose configuration names the ids of media tokens.
        modality: whose tokens count as vision: "image", "video" (the same as "image") or "audio".
        lasting: for hooks that stay on a model which trains and answers. Token ids are enough where
            the configuration names them; a forward in which nothing tells vision from text is an
            error; what was embedded is forgotten when the thread's next forward of the decoder ends;
            and a step is a forward that adds a single position to the cache, because a later turn of
            a conversation may bring an image.
        guard: wraps every hook, which raises into the model otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        modality: str = "image",
        *,
        lasting: bool = False,
        guard: Callable[[Hook], Hook] = _unguarded,
    ) -> None:
        self._lasting = lasting
        self._guard = guard
        self._vision_ids = media_token_ids(model, modality)
        self._modality = modality
        self._media_ids = {token_id for kind in MEDIA for token_id in media_token_ids(model, kind)}
        self._handles: list[RemovableHandle] = []
        self._embedded_anywhere = _Embedded()
        self._running = _RunningForward()

    @property
    def forward(self) -> Forward | None:
        """Of a decoder, in this thread; None while none runs."""
        return self._running.forward

    @contextlib.contextmanager
    def again(self, forward: Forward | None) -> Iterator[None]:
        """Return to an earlier forward, for the time in which a part of it is computed once more."""
        before, self._running.forward = self._running.forward, forward
        try:
            yield
        finally:
            self._running.forward = before

    def attach(self, model: nn.Module, decoder: Decoder) -> None:
        """Hook a decoder and the modules of `model` around it."""
        for depth, module in enumerate(decoder.around(model)):
            self._before(module, functools.partial(self._note_outer, depth))
        self._before(decoder.embedding, self._note_embedding)
        if decoder.block is not None:
            note = self._guard(self._note_block)
            self._handles.append(decoder.block.register_forward_hook(note))
        self._before(decoder.module, functools.partial(self._begin, decoder))
        self._handles += keep_all_positions(decoder.module)
        for module in (*decoder.before, decoder.layers[0]):
            self._before(module, functools.partial(self._enter_layers, decoder))
        end = self._guard(self._end)
        self._handles.append(decoder.module.register_forward_hook(end, always_call=True))

    def _before(self, module: nn.Module, hook: Hook) -> None:
        self._handles.append(module.register_forward_pre_hook(self._guard(hook), with_kwargs=True))

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forget()

    def forget(self) -> None:
        """Forget what broken-off forwards left, and all that was embedded."""
        self._running = _RunningForward()
        self._embedded_anywhere = _Embedded()

    @property
    def _embedded(self) -> _Embedded:
        # Adapters that build embeddings do so long before the forward, or in another thread. What
        # stays on a model cannot keep them all, nor know which of another thread's are no longer needed.
        return self._running.embedded if self._lasting else self._embedded_anywhere

    @property
    def embedded_ids(self) -> list[Tensor]:
        """Ids that were embedded for a forward of the decoder that is to come or running."""
        return self._embedded.ids

    def _note_outer(
        self, depth: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # What stands at this depth or below is of a forward that broke off.
        outer = {d: held for d, held in self._running.outer_arguments.items() if d < depth}
        outer[depth] = arguments.kept(args, kwargs)
        self._running.outer_arguments = outer

    def _note_embedding(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else next(iter(kwargs.values()))
        if ids.dim() > 2:
            raise MIRError(
                f"the input embedding is given {ids.shape[-1]} token ids for each position, whose rows "
                "are added up (of text and of the codes of audio, say): no position is of one modality, "
                "so MIR is not defined on the model"
            )
        self.embedded_ids.append(ids.detach().flatten())

    def _note_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        rows = (output[0] if isinstance(output, tuple) else output).detach().flatten(0, -2)
        # A copy, as the decoder may write into it.
        self._embedded.rows.append(rows.clone())

    def _begin(
        self, decoder: Decoder, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._running.forward = None
        given = arguments.named(module, args, kwargs)
        embeds = given.get("inputs_embeds")
        step = arguments.cached_length(given) > 0
        if step and self._lasting:
            step = (given["input_ids"] if embeds is None else embeds).shape[1] == 1
        self._running.forward = Forward(step, {} if step else given)
        if embeds is not None and not step and decoder.block is None:
            self._locate(decoder, embeds)

    def _enter_layers(
        self, decoder: Decoder, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        forward = self.forward
        if forward is None or forward.sequences is not None:
            return
        given = [forward.arguments.get(name) for name in ("input_ids", "inputs_embeds")]
        if (tokens := next((each for each in given if each is not None), None)) is not None:
            # The decoder embeds by itself, and may merge image features by itself.
            states = args[0] if args else kwargs.get("hidden_states")
            if layer is not decoder.layers[0] and (
                not isinstance(states, Tensor)
                or states.dim() != 3
                or states.shape[:2] != tokens.shape[:2]
            ):
                return  # another list of as many modules
            assert isinstance(states, Tensor)
            if states.dim() > 3:
                refuse_streams(states.shape, tokens.shape[:2], decoder)
            self._locate(decoder, states)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running = self._running
        running.forward, running.outer_arguments, running.embedded = None, {}, _Embedded()

    def _locate(self, decoder: Decoder, embeds: Tensor) -> None:
        """Tell the positions of a prefill apart by what enters the first layer."""
        forward = self._running.forward
        assert forward is not None
        outer = [*self._running.outer_arguments.values(), forward.arguments]
        shape = tuple(embeds.shape[:2])
        real = arguments.padding(outer, shape)
        ids = arguments.first_of_shape(outer, "input_ids", shape)
        mask = arguments.position_mask(outer, self._modality, shape)
        # Provenance compares all rows, too slow for every step of a training.
        known = self._lasting and (mask is not None or (ids is not None and bool(self._vision_ids)))
        origin = None if known else self._provenance(decoder, embeds, ids)
        if self._lasting and not known and origin is None:
            raise MIRError(
                f"{decoder.name or 'the decoder'} received embeddings of {shape[1]} positions, and "
                "neither their token ids nor what its input embedding embedded are known, so nothing "
                "tells vision tokens from text: pass input_ids of that length to the model, or embed "
                "the text with the model's own input embedding right before, in the same thread"
            )
        if self._lasting and origin is not None and (origin == NO_TOKEN).all():
            raise MIRError(
                f"no row that {decoder.name or 'the decoder'} received is what its input embedding "
                "gives, so nothing tells vision tokens from text: train without noise on the "
                "embeddings (NEFTune), or pass input_ids of the length of the embeddings to the model"
            )
        forward.sequences = [
            locate(
                real=torch.ones(shape[1], dtype=torch.bool) if real is None else real[row].bool(),
                outer_ids=None if ids is None else ids[row],
                mask=None if mask is None else mask[row].bool(),
                embedded_ids=None if origin is None else origin[row],
                vision_ids=self._vision_ids,
                media_ids=self._media_ids,
            )
            for row in range(shape[0])
        ]
        forward.arguments = {}

    @torch.no_grad()
    def _provenance(self, decoder: Decoder, embeds: Tensor, given: Tensor | None) -> Tensor | None:
        """Token id [batch, L] whose embedding each row is, or NO_TOKEN.

        Args:
            decoder: whose input embedding was seen at work, or was not: then None is returned.
            embeds: rows [batch, L, d] that enter the decoder.
            given: token ids [batch, L] if known; of several ids of one embedding, the one that is given.
        """
        if not self.embedded_ids:
            return None
        ids = torch.cat([ids.to(embeds.device) for ids in self.embedded_ids])
        if decoder.block is not None:
            # Its rows depend on where a token stands: one of them for each that was embedded.
            if sum(map(len, self._embedded.rows)) != len(ids):  # embeddings were made outside of it
                return None
            tables = torch.cat(self._embedded.rows).to(embeds)
            scales = [1]
        else:
            ids = torch.unique(ids)
            # Looked up anew: the module's own output may have been overwritten in place since.
            table = decoder.embedding.forward(ids)
            # MiniCPM-V scales what the module gives before the decoder sees it.
            scales = sorted({1, getattr(decoder.config, "scale_emb", 1)})
            tables = torch.cat([(table * scale).to(embeds.dtype) for scale in scales])
        if tables.shape[-1] != embeds.shape[-1]:
            return torch.full(embeds.shape[:2], NO_TOKEN)
        found = equal_rows(embeds.detach().flatten(0, 1), tables)
        origin = torch.where(found < 0, NO_TOKEN, ids.repeat(len(scales))[found])
        if given is not None and decoder.block is None:
            wanted = given.to(ids).flatten()
            places = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1) + found // len(ids) * len(
                ids
            )
            alike = (ids[places % len(ids)] == wanted) & (tables[places] == tables[found]).all(1)
            origin = torch.where((found >= 0) & alike, wanted, origin)
        return origin.cpu().reshape(embeds.shape[:2])


def keep_all_positions(module: nn.Module) -> list[RemovableHandle]:
    """Have a module that can leave positions out of its last parts leave out none.

    Models do so in `generate`, where only the last position's logits are wanted: most before their
    output embedding, Gemma 4 in its decoder's last layers. What they answer stays the same, for no
    position needs those parts of another.
    """
    if "logits_to_keep" not in inspect.signature(module.forward).parameters:
        return []
    return [module.register_forward_pre_hook(_all_logits, with_kwargs=True)]


def _all_logits(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "logits_to_keep": 0}
