"""A stand-in through the harness, and once more independently."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.standins import parts
from tests.support import evaluate, independent


@dataclass(frozen=True)
class Measured:
    """What a stand-in gave, and what it should."""

    report: dict[str, Any]
    """The side file."""
    wanted: float
    """MIR of the sequences that the stand-in built."""
    tokens: list[tuple[int, int]]
    """Vision and text tokens of these sequences, sorted."""


def measure(family: str, output: Path) -> Measured:
    """Run a family by the name it is registered under.

    Raises:
        MIRError: it cannot be measured.
    """
    from lmms_eval.models import get_model

    parts.built.clear()
    lm = get_model(family).create_from_arg_string("")
    reference = lm.reference  # taken before the harness deletes the adapter's models
    evaluate.evaluate(lm, evaluate.task(), output=output)
    first, _probe, *others = {b.embeds.numpy().tobytes(): b for b in parts.built}.values()
    vision, text, tokens = [], [], []
    for embeds, is_vision in (first, *others):
        with torch.no_grad():
            out = reference(inputs_embeds=embeds[None].clone(), output_hidden_states=True)
        states = [state[0] for state in out.hidden_states[1:]]
        end = int(is_vision.nonzero().max()) + 1
        vision.append([state[is_vision] for state in states])
        text.append([state[end:] for state in states])
        tokens.append((int(is_vision.sum()), len(embeds) - end))
    wanted = independent.mir(independent.pooled(vision), independent.pooled(text))
    return Measured(evaluate.report(output), wanted, sorted(tokens))
