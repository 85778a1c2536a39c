"""A small model measured by the package, and once more from what plain hooks see."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import mir_task
from mir_task import MIRError, moca
from tests.architectures import Call, Small, small
from tests.support import independent

PAIRS = [
    (1, "Three boats lie on the mud below the quay, waiting for the tide to come back."),
    (2, "Nobody bought the violin, and the shop closed at noon."),
    (3, "A grey cat sleeps on the wall of the garden."),
]
"""Numbers of media, and texts."""


def arguments(row: Small, model: nn.Module) -> dict[str, Any]:
    """Of `mir_task.measure` and `mir_task.check`."""
    return {
        "model": model,
        "processor": small.tokenizer(),
        "pairs": PAIRS,
        "encode": lambda number, text: row.encode(model, number, text),
        "modality": row.modality,
    }


def measured(row: Small, model: nn.Module) -> float:
    """MIR by the package.

    Raises:
        MIRError: it refuses the model.
    """
    return mir_task.measure(**arguments(row, model), groups=0, bars=False).mir


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


def states(row: Small, model: nn.Module, call: Call) -> list[Tensor]:
    """One tensor [L, d] a decoder layer: what the next one receives, and what the decoder returns."""
    decoder = model.get_submodule(row.decoder or row.layers.rpartition(".")[0])
    seen: list[Tensor] = []

    def keep_input(_: Any, args: Any, kwargs: Any) -> None:
        seen.append((args or [kwargs["hidden_states"]])[0][0].detach().clone())

    def keep_output(_: Any, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output.last_hidden_state)[0].detach())

    with contextlib.ExitStack() as stack:
        for layer in list(model.get_submodule(row.layers))[1:]:
            stack.enter_context(layer.register_forward_pre_hook(keep_input, with_kwargs=True))
        stack.enter_context(decoder.register_forward_hook(keep_output))
        run(model, call)
    return seen


@torch.no_grad()
def run(model: nn.Module, call: Call) -> None:
    """A forward of the part that reads."""
    dtype = next(model.parameters()).dtype
    inputs = {key: t.to(dtype) if t.is_floating_point() else t for key, t in call.items()}
    try:
        getattr(model, "thinker", model)(**inputs)
    except AttributeError as error:
        if "image_outputs" not in str(error):  # Llama 4 of transformers 5.24, after its decoder has run
            raise


@contextlib.contextmanager
def with_moca(model: nn.Module) -> Iterator[None]:
    """With MoCa whose parameters are random.

    Raises:
        MIRError: it cannot be applied.
    """
    moca.apply(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".moca." in name:
                parameter += torch.randn(parameter.shape, generator=generator) / 2
    yield
    moca.remove(model)


def moca_works(row: Small, model: nn.Module) -> str:
    """What is wrong with MoCa on a model; empty where nothing is, or why it is refused."""

    def last() -> Tensor:
        return states(row, model, row.encode(model, *PAIRS[0]))[-1]

    before, keys = last(), model.state_dict().keys()
    try:
        moca.apply(model)
    except MIRError as error:
        return str(error)
    faults = [] if last().equal(before) else ["it changes the model at once"]
    moca.remove(model)
    with with_moca(model):
        faults += ["it has no effect"] if last().equal(before) else []
    if not last().equal(before) or model.state_dict().keys() != keys:
        faults.append("its removal leaves something")
    return ", ".join(faults)
