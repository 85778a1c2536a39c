"""Decoders that carry several streams of states for each token, on which MIR is not defined.

Hyper-connections and AltUp widen the one residual stream of a decoder to several, which each layer
mixes. The paper defines MIR on one state for each token and layer. The mean of the streams, or the stream
that the output is read from, would each be another metric, so such models are refused.
"""

from collections.abc import Sequence

from mir_task.errors import MIRError


def refuse_streams(shape: Sequence[int], sequences: Sequence[int], width: int) -> None:
    """Raise where states are not one of each token.

    Args:
        shape: of the states that a layer receives or the decoder returns.
        sequences: batch and L, the positions of a sequence.
        width: d of the states elsewhere in the decoder.

    Raises:
        MIRError: the shape is not [batch, any length, d].
    """
    if len(shape) == 3 and shape[-1] == width:
        return
    if len(shape) == 4:
        streams = shape[2] if list(shape[:2]) == list(sequences) else shape[0]
    else:
        streams = max(shape[-1], width) // min(shape[-1], width)
    raise MIRError(
        f"the decoder's layers pass on {streams} streams of states for each token, as with "
        "hyper-connections or AltUp; MIR and MoCa are defined on one state for each token and layer, "
        "and the paper says nothing of several"
    )
