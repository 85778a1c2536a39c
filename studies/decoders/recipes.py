"""Random recipes of pre-training: 20 arms a decoder, drawn from seeds before any of them ran."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from studies.alignment import connectors

Decoder = Literal["deep", "wide", "smollm2"]
DECODERS: tuple[Decoder, ...] = ("deep", "wide", "smollm2")
SEEDS = {"deep": 200, "wide": 220, "smollm2": 240}
"""Seed of a decoder's first arm; each arm has one of its own."""
ARMS = 20
SEEN = {"deep": 8000, "wide": 8000, "smollm2": 4000}
"""Pictures that most arms of a decoder see: n."""
BRIEF = {"deep": ("colours", "shapes"), "wide": ("colours", "shapes"), "smollm2": ("brief",)}
"""Styles of caption unlike that of the evaluation, "full"."""
OTHER_SEEN = (0, 1 / 4, 1 / 2, 1, 2, 4)
"""Of the first six arms: pictures seen over n."""
SHUFFLED = (0.25, 0.5, 0.5, 0.75, 0.75)
"""Share of captions exchanged among pictures, of arms 10 to 14; arms 15 to 19 have a brief style."""


@dataclass(frozen=True)
class Recipe:
    """A pre-training. Two arms of the same settings are one."""

    decoder: Decoder
    seed: int
    pairs: int
    epochs: int = 1
    style: str = "full"
    shuffled: float = 0.0
    learning_rate: float = 1e-3
    connector: connectors.Kind = "mlp"
    scale: float = 1.0
    matched_norm: bool = False
    unlocked: Literal["connector", "half", "decoder"] = "connector"

    @property
    def seen(self) -> int:
        """Pictures seen, counted once an epoch."""
        return self.pairs * self.epochs

    @property
    def name(self) -> str:
        """Of the arm."""
        return f"{self.decoder}-{self.seed}"


def recipe(decoder: Decoder, number: int) -> Recipe:
    """One of a decoder's arms.

    Arms 0 to 5 see different numbers of pictures with full captions, all others n: 6 to 9 with full
    captions, 10 to 14 with shuffled ones, 15 to 19 with brief ones. All else is drawn at random.
    """
    seed = SEEDS[decoder] + number
    random = np.random.default_rng([seed, 99])
    # Everything is drawn for every arm, so that what one arm does not take changes no other draw.
    epochs = int(random.choice([1, 2, 4], p=[0.5, 0.25, 0.25]))
    rate = float(random.choice([3e-4, 1e-3, 3e-3], p=[0.25, 0.5, 0.25]))
    kind = str(random.choice(["mlp", "linear", "mlp4", "resampler"], p=[0.55, 0.15, 0.15, 0.15]))
    scale = float(random.choice([0.1, 1.0, 8.0], p=[0.2, 0.6, 0.2]))
    matched = bool(random.random() < 0.15)
    unlocked = str(random.choice(["connector", "half", "decoder"], p=[0.7, 0.15, 0.15]))
    style = str(random.choice(BRIEF[decoder]))
    share = OTHER_SEEN[number] if number < len(OTHER_SEEN) else 1
    return Recipe(
        decoder=decoder,
        seed=seed,
        pairs=int(SEEN[decoder] * share) // epochs,
        epochs=epochs,
        style=style if number >= 15 else "full",
        shuffled=SHUFFLED[number - 10] if 10 <= number < 15 else 0.0,
        learning_rate=rate,
        connector=kind,  # type: ignore[arg-type]
        scale=1.0 if matched else scale,
        matched_norm=matched,
        unlocked=unlocked,  # type: ignore[arg-type]
    )


def recipes(decoder: Decoder) -> list[Recipe]:
    """All arms of a decoder, in the order of their seeds."""
    return [recipe(decoder, number) for number in range(ARMS)]


def reference(decoder: Decoder, seed: int, share: float) -> Recipe:
    """The plain recipe that the gate compares at two numbers of pictures; no arm has its seed."""
    return Recipe(decoder, seed, int(SEEN[decoder] * share))


def as_dict(one: Recipe) -> dict[str, object]:
    """For JSON."""
    return dataclasses.asdict(one)
