"""Hidden states of a model that somebody else runs: `HiddenStateCapture`.

It hooks the model, and keeps one `Prefill` for every sequence of every prefill forward.

Layer k's hidden states are what layer k + 1 receives, and the decoder's output (after the final norm)
for the last layer k = K. So those of "layer 0" are the decoder's input.

Where the vision tokens stand, `mir_task.capture.positions` finds.
"""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mir_task.capture.decoder import Decoder, find_decoder
from mir_task.capture.finder import PositionFinder, keep_all_positions
from mir_task.capture.losses import reads_ahead, with_losses
from mir_task.capture.prefill import PendingForward, Prefill
from mir_task.errors import MIRError


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
        pending = PendingForward(sequences, layers, self.decoder) if found else None
        self._running.pending = pending

    def _keep_layer_input(
        self, decoder: Decoder, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if layer is decoder.layers[0]:
            self._start()
            if self._losses:
                self._running.reads_ahead = reads_ahead(layer, kwargs.get("attention_mask"))
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
        ahead = self._running.reads_ahead
        for row, number in finished.items():
            if logits.shape[1] == len(self.prefills[number].real):
                of_row = ahead[row % len(ahead)] if isinstance(ahead, Tensor) else ahead
                self.prefills[number] = with_losses(self.prefills[number], logits[row], of_row)


class _ThreadState(threading.local):
    """What is kept of the forward that runs in this thread."""

    def __init__(self) -> None:
        self.pending: PendingForward | None = None
        self.finished: dict[int, int] = {}
        """Numbers of the prefills that the decoder's latest forward gave, by their row in the batch."""
        self.reads_ahead: Tensor | bool = False
