"""What one prefill forward leaves of each sequence: `Prefill`."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mir_task.capture.decoder import Decoder
from mir_task.capture.positions import Positions
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


class PendingForward:
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
        """Of the sequences with vision tokens, in the order of the batch."""
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


def _rows(hidden: Tensor, places: Tensor, device: torch.device) -> Tensor:
    rows = hidden.detach()[places]
    return rows if rows.device == device else rows.to(device)
