"""A small model measured by the package, and once more from what plain hooks see."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mir_task
from tests.architectures import Call, Small, small
from tests.support import independent

PAIRS = [
    (1, "Three boats lie on the mud below the quay, waiting for the tide to come back."),
    (2, "Nobody bought the violin, and the shop closed at noon."),
    (3, "A grey cat sleeps on the wall of the garden."),
]
"""Numbers of media, and texts."""


def states(row: Small, model: nn.Module, call: Call) -> list[Tensor]:
    """One tensor [L, d] a decoder layer: what the next one receives, and what the decoder returns."""
    path = row.layers
    decoder = model.get_submodule(row.decoder or path.rpartition(".")[0])
    seen: list[Tensor] = []

    def keep_input(_: Any, args: Any, kwargs: Any) -> None:
        seen.append((args or [kwargs["hidden_states"]])[0][0].detach().clone())

    def keep_output(_: Any, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output.last_hidden_state)[0].detach())

    later = list(model.get_submodule(path))[1:]
    handles = [layer.register_forward_pre_hook(keep_input, with_kwargs=True) for layer in later]
    handles.append(decoder.register_forward_hook(keep_output))
    try:
        run(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def run(model: nn.Module, call: Call) -> Any:
    """A forward of the part that reads; Llama 4's ends in an error after its decoder has run."""
    dtype = next(model.parameters()).dtype
    inputs = {key: t.to(dtype) if t.is_floating_point() else t for key, t in call.items()}
    try:
        return getattr(model, "thinker", model)(**inputs)
    except AttributeError as error:
        if "image_outputs" not in str(error):
            raise


def expected(row: Small, model: nn.Module) -> float:
    """MIR by the independent computation."""
    vision, text = [], []
    for number, words in PAIRS:
        call = row.encode(model, number, words)
        layers = states(row, model, call)
        is_vision = row.vision_of(model, call)
        after = torch.arange(len(is_vision)) > is_vision.nonzero().max()
        vision.append([state[is_vision].float() for state in layers])
        text.append([state[after].float() for state in layers])
    return independent.mir(independent.pooled(vision), independent.pooled(text))


def measured(row: Small, model: nn.Module) -> Any:
    """By `mir_task.measure`."""
    return mir_task.measure(
        model,
        small.tokenizer(),
        PAIRS,
        encode=lambda number, text: row.encode(model, number, text),
        modality=row.modality,
        groups=0,
        bars=False,
    )
