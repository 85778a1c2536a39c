"""What a decoder and the modules around it are given, by the names that models give it."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mir_task.capture.decoder import MEDIA
from mir_task.errors import MIRError

_POSITIONAL = ("input_ids", "attention_mask")
_POSITION_MASK = re.compile(r"(image|vis|video|audio)\w*_pos(ition)?_masks?")
"""Of masks [batch, L] by which models are told where media stand; `vis`: visual, vision."""

Arguments = Mapping[str, Any]


def kept(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of the arguments of a module around the decoder, those that may tell positions."""
    given = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
    return {
        name: value
        for name, value in given.items()
        if isinstance(value, Tensor) and (name in _POSITIONAL or _POSITION_MASK.fullmatch(name))
    }


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a module by their names, further ones included."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**bound.get("kwargs", {}), **bound}


def cached_length(given: Arguments) -> int:
    """Positions that the key-value cache among a decoder's arguments already holds."""
    # Named `cache` from transformers 5.24 on, which takes the old name among further arguments.
    past = given.get("cache") or given.get("past_key_values")
    if past is None:
        return 0
    if hasattr(past, "get_seq_length"):
        return int(past.get_seq_length())
    return int(past[0][0].shape[-2]) if len(past) else 0


def first_of_shape(given: Iterable[Arguments], name: str, shape: tuple[int, ...]) -> Tensor | None:
    """The outermost argument of that name and shape; inner modules may have rewritten it."""
    for candidates in given:
        value = candidates.get(name)
        if isinstance(value, Tensor) and tuple(value.shape) == shape:
            return value.detach().cpu()
    return None


def position_mask(given: Sequence[Arguments], modality: str, shape: tuple[int, ...]) -> Tensor | None:
    """The outermost mask of where a modality's tokens stand, if the model is given one: [batch, L]."""
    kinds = {"vis" if kind == "image" else kind for kind in MEDIA[modality]} | set(MEDIA[modality])
    for name in dict.fromkeys(name for candidates in given for name in candidates):
        match = _POSITION_MASK.fullmatch(name)
        if match and match[1] in kinds:
            return first_of_shape(given, name, shape)
    return None


def padding(given: Sequence[Arguments], shape: tuple[int, ...]) -> Tensor | None:
    """The attention mask [batch, L] of a decoder's sequences, if there is one.

    Raises:
        MIRError: the only masks leave out positions and are of another length.
    """
    found = first_of_shape(given, "attention_mask", shape)
    for value in (candidates.get("attention_mask") for candidates in given) if found is None else ():
        if isinstance(value, Tensor) and value.dim() == 2 and not value.bool().all():
            raise MIRError(
                f"the attention mask leaves out some of its {value.shape[1]} positions, but the decoder "
                f"runs on {shape[1]}, so nothing tells which of them are padding: run one sequence at a "
                "time, without padding"
            )
    return found
