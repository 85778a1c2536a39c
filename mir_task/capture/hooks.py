"""Hidden states of a model that somebody else runs: `HiddenStateCapture`.

It hooks the model, and keeps one `Prefill` for every sequence of every prefill forward.

Layer k's hidden states are what layer k + 1 receives, and the decoder's output (after the final norm)
for the last layer k = K. So those of "layer 0" are the decoder's input.

Where the vision tokens stand, `mir_task.capture.positions` finds.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from mir_task.capture.decoder import Decoder, find_decoder
from mir_task.capture.finder import PositionFinder, keep_all_positions
from mir_task.capture.positions import NO_TOKEN, Positions
from mir_task.capture.streams import refuse_streams
from mir_task.errors import MIRError


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
    markers: Tensor
    """bool [L]: of the vision positions, marks beside placeholders that the model learned."""
    discrete: Tensor
    """bool [L]: of the vision positions, tokens of the vocabulary (the codes of a quantised image)."""
    vision_rule: str
    """Which rules found the vision positions, joined by "+": "token_ids", "mask", "provenance"."""
    vision_rows: tuple[Tensor, ...]
    """K tensors [vision tokens, d], in the model's dtype, on the devices asked for."""
    text_rows: tuple[Tensor, ...]
    """K tensors [text tokens, d], in the model's dtype, on the devices asked for."""
    text_losses: Tensor | None = None
    """float32 [text tokens], in nats: minus the log-probability that the model gave to each, where
    asked for, where its forward returns logits, and unless `reads_ahead`."""
    reads_ahead: bool = False
    """Whether a text token attends to the next one, which is then not predicted."""

    @property
    def text_ids(self) -> list[int]:
        """Token ids of the text positions, in order."""
        return self.token_ids[self.text].tolist()


class HiddenStateCapture:
    """Context manager that keeps the prefills of a model while somebody else runs it.

    Hooks are registered on entry and gone after exit. They never raise into the model, whose caller
    may swallow exceptions: what goes wrong, in a hook or in the model's own `generate` or `chat`, is
    kept in `failures`. The model may run in several threads at once.

    Args:
        model: of any class, with a text decoder and an input embedding.
        layers: 1-based numbers of the decoder layers whose rows are kept, and the device on which; 0
            for the decoder's input. Layers 1 to K, on the CPU, where None.
        modality: whose tokens count as vision: "image", "video" (the same as "image") or "audio".
        replicas: further copies of the model that may run in its place.
        losses: whether the losses of the text tokens are kept too. The model then computes the logits
            of all positions.

    Raises:
        MIRError: no text decoder is found.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[int, torch.device] | None = None,
        modality: str = "image",
        replicas: Sequence[nn.Module] = (),
        *,
        losses: bool = False,
    ) -> None:
        self.model = model
        self._losses = losses
        self.modality = modality
        self.decoder = find_decoder(model)
        self._copies = [(model, self.decoder), *((copy, find_decoder(copy)) for copy in replicas)]
        self._layers = layers or dict.fromkeys(
            range(1, len(self.decoder.layers) + 1), torch.device("cpu")
        )
        self.keeps_rows = True
        """Whether prefills have rows; without, they tell positions and losses alone."""
        self.prefills: list[Prefill] = []
        self.failures: list[Exception] = []
        self.forwards = 0
        """Prefill forwards seen, those without a vision token included."""
        self.steps = 0
        """Decode steps seen."""
        self._finder = PositionFinder(model, modality, guard=self._guarded)
        self._handles: list[RemovableHandle] = []
        self._watched: list[tuple[nn.Module, str, Any]] = []
        self._running = _ThreadState()

    def __enter__(self) -> Self:
        try:
            for model, decoder in self._copies:
                self._hook(model, decoder)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _hook(self, model: nn.Module, decoder: Decoder) -> None:
        for module in decoder.around(model):
            for method in ("generate", "chat"):
                self._watch(module, method)
            if self._losses:
                self._handles += keep_all_positions(module)
                self._handles.append(module.register_forward_hook(self._guarded(self._note_losses)))
        self._finder.attach(model, decoder)
        self._before(decoder.module, self._begin)
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
        self._running = _ThreadState()
        self._finder.detach()

    def take(self) -> list[Prefill]:
        """Prefills kept since the last call, oldest first; forgets what broken-off forwards left."""
        taken, self.prefills = self.prefills, []
        self._running = _ThreadState()
        self._finder.forget()
        return taken

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                hook(*arguments)
            except Exception as error:  # noqa: BLE001 - re-raised by whoever reads `failures`
                self._running.pending = None
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

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self._finder.forward
        if forward is not None and forward.step:
            self.steps += 1
        else:
            self.forwards += 1
        self._start()

    def _start(self) -> None:
        """Keep rows from here on, if the positions of vision tokens are known already."""
        forward = self._finder.forward
        sequences = [] if forward is None else forward.sequences or []
        found = any(sequence.vision.any() for sequence in sequences)
        layers = self._layers if self.keeps_rows else {}
        pending = _PendingForward(sequences, layers, self.decoder) if found else None
        self._running.pending = pending

    def _keep_layer_input(
        self, decoder: Decoder, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if layer is decoder.layers[0]:
            self._start()
            if self._losses:
                self._running.reads_ahead = _reads_ahead(layer, kwargs.get("attention_mask"))
        if (pending := self._running.pending) is not None:
            pending.keep(args[0] if args else kwargs["hidden_states"])

    def _finish(self, decoder: Decoder, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running = self._running
        pending, running.pending = running.pending, None
        if pending is not None:
            pending.keep(output[0] if isinstance(output, tuple) else output.last_hidden_state)
            if pending.number != len(decoder.layers):
                raise MIRError(
                    f"{decoder.name} ran {pending.number} of its "
                    f"{len(decoder.layers)} layers in one forward"
                )
            self._running.finished = {
                row: number for number, row in enumerate(pending.sequences, start=len(self.prefills))
            }
            self.prefills += pending.prefills()

    @torch.no_grad()
    def _note_losses(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Add the losses to the prefills of the forward, at the innermost module that gives logits."""
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            return
        finished, self._running.finished = self._running.finished, {}
        for row, number in finished.items():
            prefill = self.prefills[number]
            if logits.shape[1] == len(prefill.real):
                ahead = self._running.reads_ahead
                of_row = ahead[row % len(ahead)] if isinstance(ahead, Tensor) else ahead
                before = prefill.text.nonzero().squeeze(1) - 1
                if isinstance(of_row, Tensor):
                    of_row = bool(of_row[before.to(of_row.device)].any())
                losses = None if of_row else _text_losses(logits[row], prefill)
                self.prefills[number] = dataclasses.replace(
                    prefill, text_losses=losses, reads_ahead=of_row
                )


class _ThreadState(threading.local):
    """What is kept of the forward that runs in this thread."""

    def __init__(self) -> None:
        self.pending: _PendingForward | None = None
        self.finished: dict[int, int] = {}
        """Numbers of the prefills that the decoder's latest forward gave, by their row in the batch."""
        self.reads_ahead: Tensor | bool = False


class _PendingForward:
    """Hidden states of the sequences of the forward that is running."""

    def __init__(
        self, sequences: list[Positions], layers: Mapping[int, torch.device], decoder: Decoder
    ) -> None:
        self.sequences = {
            row: sequence for row, sequence in enumerate(sequences) if sequence.vision.any()
        }
        self.number = -1
        """Of the layer whose hidden states came last; the first are the decoder's input, of layer 0."""
        self._shape = len(sequences), len(sequences[0].real)
        self._decoder = decoder
        self.hidden_states: list[dict[int, tuple[Tensor, Tensor]]] = []
        self._layers = layers
        self._indices: dict[torch.device, dict[int, tuple[Tensor, Tensor]]] = {}

    def keep(self, hidden: Tensor) -> None:
        """Keep the next layer's hidden states [batch, L, d] of vision and text positions."""
        self.number += 1
        refuse_streams(hidden.shape, self._shape, self._decoder)
        if self.number not in self._layers:
            return
        for sequence in self.sequences.values():
            if hidden.shape[1] != len(sequence.real):
                raise MIRError(
                    f"{hidden.shape[1]} of the {len(sequence.real)} positions are left after decoder "
                    f"layer {self.number}: the model drops positions on the way, so MIR is not "
                    "defined on its layers"
                )
        device = self._layers[self.number]
        self.hidden_states.append(
            {
                row: (_rows(hidden[row], vision, device), _rows(hidden[row], text, device))
                for row, (vision, text) in self._indices_on(hidden.device).items()
            }
        )

    def _indices_on(self, device: torch.device) -> dict[int, tuple[Tensor, Tensor]]:
        """Of the vision and text tokens of each sequence, sent to a device once for all its layers."""
        if device not in self._indices:
            masks = [mask for s in self.sequences.values() for mask in (s.vision, s.text)]
            places = [mask.nonzero().squeeze(1) for mask in masks]
            moved = torch.split(torch.cat(places).to(device), [len(part) for part in places])
            self._indices[device] = dict(
                zip(self.sequences, zip(moved[::2], moved[1::2], strict=True), strict=True)
            )
        return self._indices[device]

    def prefills(self) -> list[Prefill]:
        return [
            Prefill(
                token_ids=sequence.token_ids,
                real=sequence.real,
                vision=sequence.vision,
                text=sequence.text,
                markers=sequence.markers & sequence.vision,
                discrete=sequence.discrete & sequence.vision,
                vision_rule=sequence.rule,
                vision_rows=tuple(layer[row][0] for layer in self.hidden_states),
                text_rows=tuple(layer[row][1] for layer in self.hidden_states),
            )
            for row, sequence in self.sequences.items()
        ]


def _reads_ahead(layer: nn.Module, mask: Any) -> Tensor | bool:
    """Whether positions attend to the ones after them [1 or batch, L - 1], or all do or none.

    Args:
        layer: of the decoder.
        mask: that it is given: 4-dimensional, of truth values or of what is added to scores; or another
            that leaves the future to the layer's own attention.
    """
    if isinstance(mask, Tensor) and mask.ndim == 4:
        following = mask[:, 0].diagonal(1, -2, -1)
        return following if following.dtype == torch.bool else following > -1
    own = [getattr(part, "is_causal", None) for part in layer.modules()]
    return False in own and True not in own


def _text_losses(logits: Tensor, prefill: Prefill) -> Tensor | None:
    """Losses [text tokens] by the logits [L, vocabulary] of the positions before."""
    positions = prefill.text.nonzero().squeeze(1)
    ids = prefill.token_ids[positions].to(logits.device)
    if len(ids) == 0 or (ids == NO_TOKEN).any():
        return None
    losses = [  # all at once, the float32 copy of a long text's logits would be larger than the logits
        functional.cross_entropy(logits[some - 1].float(), targets, reduction="none")
        for some, targets in zip(torch.split(positions, 256), torch.split(ids, 256), strict=True)
    ]
    return torch.cat(losses).cpu()


def _rows(hidden: Tensor, places: Tensor, device: torch.device) -> Tensor:
    rows = hidden.detach()[places]
    return rows if rows.device == device else rows.to(device)
