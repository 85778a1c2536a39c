"""Losses of a sequence's text tokens, from the logits of the forward that gave its hidden states."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mir_task.capture.positions import NO_TOKEN
from mir_task.capture.prefill import Prefill


def reads_ahead(layer: nn.Module, mask: Any) -> Tensor | bool:
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


def with_losses(prefill: Prefill, logits: Tensor, ahead: Tensor | bool) -> Prefill:
    """A sequence with the losses of its text tokens, or none where one of them was read ahead.

    Args:
        prefill: the sequence.
        logits: [L, vocabulary].
        ahead: what `reads_ahead` tells of it: [L - 1], or one for all.
    """
    if isinstance(ahead, Tensor):
        before = prefill.text.nonzero().squeeze(1) - 1
        ahead = bool(ahead[before.to(ahead.device)].any())
    losses = None if ahead else _text_losses(logits, prefill)
    return dataclasses.replace(prefill, text_losses=losses, reads_ahead=ahead)


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
