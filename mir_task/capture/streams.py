"""Decoders that carry several streams of states for each token, on which MIR is not defined.

Hyper-connections and AltUp widen the one residual stream of a decoder to several, which each layer
mixes. The paper defines MIR on one state for each token and layer. The mean of the streams, or the
stream that the output is read from, would each be another metric, so such models are refused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mir_task.capture.decoder import Decoder
from mir_task.errors import MIRError


def refuse_streams(shape: Sequence[int], sequences: Sequence[int], decoder: Decoder) -> None:
    """Raise where states are not one of each token.

    Args:
        shape: of the states that a layer receives or the decoder returns: [batch, L, d] as a rule.
        sequences: batch and L, the positions of a sequence.
        decoder: whose configuration may say d.

    Raises:
        MIRError: they have a dimension more, or are a multiple of d wide.
    """
    if len(shape) > 3:
        streams = shape[2] if list(shape[:2]) == list(sequences) else shape[0]
    else:
        streams, rest = divmod(shape[-1], getattr(decoder.config, "hidden_size", None) or shape[-1])
        if streams < 2 or rest:
            return
    raise MIRError(
        f"the decoder's layers pass on {streams} streams of states for each token, as with "
        "hyper-connections or AltUp; MIR and MoCa are defined on one state for each token and layer, "
        "and the paper says nothing of several"
    )


def refuse_streams_of(decoder: Decoder) -> None:
    """Raise where a decoder's first layer would receive several streams, seen from two tokens.

    No layer runs. A decoder that cannot be called with token ids alone is let pass.

    Raises:
        MIRError: it would.
    """
    states = _first_states(decoder)
    if states is not None:
        refuse_streams(states.shape, (1, 2), decoder)


class _Reached(Exception):
    """The first layer was reached."""


@torch.no_grad()
def _first_states(decoder: Decoder) -> Tensor | None:
    """What the first layer receives of two tokens; None where the decoder takes no ids."""
    seen: list[Tensor] = []

    def stop(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    device = next(decoder.embedding.parameters()).device
    with decoder.layers[0].register_forward_pre_hook(stop, with_kwargs=True):
        try:
            decoder.module(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device))
        except Exception:  # noqa: BLE001 - what it needs besides is its own; forwards tell
            return seen[0] if seen else None
    return None
