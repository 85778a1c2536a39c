"""What the study asks, and the arms that answer: fixed before any accuracy was looked at.

(l) alone was added when the others were half done. A question's arms differ in one thing. All that is
not named is as `Arm` has it: 4,000 pairs, one epoch, full captions, a peak learning rate of 1e-3, and
LLaVA-1.5's connector alone unlocked.
"""

import itertools

from studies.alignment.train import Arm

SEEDS = (0, 1, 2)
SIZES = (0, 1000, 2000, 4000, 8000, 16_000, 32_000)
"""Pairs of (a). The first is the untrained connector."""


def _each(**changes: object) -> list[Arm]:
    return [Arm(seed=seed, **changes) for seed in SEEDS]  # type: ignore[arg-type]


def _all(*settings: dict[str, object]) -> list[Arm]:
    return [arm for changes in settings for arm in _each(**changes)]


QUESTIONS: dict[str, tuple[str, list[Arm]]] = {
    "a": ("data scale", _all(*({"pairs": pairs} for pairs in SIZES))),
    "b": (
        "caption detail",
        _all(
            *(
                {"pairs": pairs, "detail": detail}
                for pairs in (4000, 8000)
                for detail in ("shapes", "colours", "full")
            )
        ),
    ),
    "c": (
        "recipe",
        _all(
            *({"learning_rate": rate} for rate in (1e-4, 1e-3, 3e-3, 1e-2)),
            {"warmup": 0.3},
        ),
    ),
    "d": (
        "what is unlocked",
        _all(*({"unlocked": part} for part in ("connector", "encoder", "half", "decoder"))),
    ),
    "e": (
        "connector and its output norm",
        _all(
            *({"connector": kind} for kind in ("linear", "mlp", "mlp4", "resampler")),
            {"scale": 0.1},
            {"matched_norm": True},
        ),
    ),
    "f": (
        "MoCa",
        _all(*({"pairs": pairs, "moca": moca} for pairs in (4000, 8000) for moca in (False, True))),
    ),
    "h": (
        "two epochs on little data",
        _all(*({"pairs": pairs, "epochs": epochs} for pairs in (1000, 4000) for epochs in (1, 2))),
    ),
    "l": (
        "vision norms far above those of text at first, as in LLaVA-1.5",
        _all(*({"pairs": pairs, "scale": 8.0} for pairs in (0, 1000, 4000, 16_000))),
    ),
}
"""Title and arms of each question that takes pre-trainings of its own; (g), (i), (j), (k) read those."""


def arms(questions: str = "".join(QUESTIONS)) -> list[Arm]:
    """The arms of some questions, each once; of each question those of many pairs first."""
    lists = [sorted(QUESTIONS[letter][1], key=lambda arm: -arm.pairs) for letter in questions]
    return list({arm.name: arm for arm in itertools.chain(*lists)}.values())
