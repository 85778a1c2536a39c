"""A world of rendered scenes, their captions in several lengths, and questions with exact answers.

A scene is two to four things on a grid of nine cells; no two of them share a shape or a colour. Whether
it is held out depends on the scene alone, so no image or full caption of training shows one that is.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

CELL = 16
SIDE = 3 * CELL
"""Pixels of an image's side."""
PATCH = 8
NOISE = 0.06
"""Standard deviation of the noise on every pixel and channel, in units of full intensity."""

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring", "bar", "moon")
PLACES = ("topleft", "top", "topright", "left", "centre", "right", "bottomleft", "bottom", "bottomright")
COUNTS = ("two", "three", "four")
KINDS = ("colour", "shape", "size", "where", "at", "count", "exists")
"""Of questions."""

Detail = Literal["full", "colours", "shapes"]
"""Of a caption: all there is, no size and no place, or shapes alone."""

_RGB = np.array(
    [
        (220, 40, 40),
        (40, 180, 60),
        (50, 80, 230),
        (240, 220, 50),
        (160, 50, 190),
        (60, 210, 220),
        (250, 250, 250),
        (10, 10, 10),
    ],
    dtype=np.float32,
)


class Thing(NamedTuple):
    """One thing; numbers are places in the lists of words above."""

    cell: int
    size: int
    colour: int
    shape: int

    def words(self, detail: Detail = "full") -> str:
        """What a caption says of it."""
        size, colour, shape = SIZES[self.size], COLOURS[self.colour], SHAPES[self.shape]
        if detail == "full":
            return f"a {size} {colour} {shape} at {PLACES[self.cell]}"
        return f"a {colour} {shape}" if detail == "colours" else f"a {shape}"


Scene = tuple[Thing, ...]
"""In the order of the cells."""


class Question(NamedTuple):
    """A question, its kind, and its answer of one word."""

    kind: str
    text: str
    answer: str


def scenes(seed: int | Sequence[int], *, held_out: bool) -> Iterator[Scene]:
    """Scenes without end."""
    random = np.random.default_rng(seed)
    while True:
        number = int(random.integers(2, 5))
        columns = (
            np.sort(random.permutation(9)[:number]),
            random.integers(0, 2, number),
            random.permutation(8)[:number],
            random.permutation(8)[:number],
        )
        scene = tuple(Thing(*row) for row in np.stack(columns, 1).tolist())
        if is_held_out(scene) is held_out:
            yield scene


def is_held_out(scene: Scene) -> bool:
    """Whether a scene is for evaluation alone, as one in eight is."""
    return zlib.crc32(caption(sorted(scene)).encode()) % 8 == 0


def caption(things: Sequence[Thing], detail: Detail = "full") -> str:
    """Caption of a scene, in the order of the things given."""
    return " , ".join(thing.words(detail) for thing in things) + " ."


def questions(scene: Scene, random: np.random.Generator) -> list[Question]:
    """One question of each kind, in the order of `KINDS`."""
    return [question(scene, kind, random) for kind in KINDS]


def question(scene: Scene, kind: str, random: np.random.Generator) -> Question:
    """A question of a kind: half of "exists" ask for what is absent, an eighth of "at" for nothing."""
    thing = scene[random.integers(len(scene))]
    shape = SHAPES[thing.shape]
    absent = random.random() < 0.5
    match kind:
        case "colour":
            return Question(kind, f"what colour is the {shape}", COLOURS[thing.colour])
        case "shape":
            return Question(kind, f"what shape is {COLOURS[thing.colour]}", shape)
        case "size":
            return Question(kind, f"what size is the {shape}", SIZES[thing.size])
        case "where":
            return Question(kind, f"where is the {shape}", PLACES[thing.cell])
        case "at":
            empty = sorted(set(range(9)) - {each.cell for each in scene})
            # One in eight asks for an empty cell.
            if random.random() < 0.125:
                return Question(kind, f"what is at {PLACES[random.choice(empty)]}", "nothing")
            return Question(kind, f"what is at {PLACES[thing.cell]}", shape)
        case "count":
            return Question(kind, "how many things", COUNTS[len(scene) - 2])
        case "exists":
            others = sorted(set(range(8)) - {each.shape for each in scene})
            asked = SHAPES[random.choice(others)] if absent else shape
            return Question(kind, f"is there a {asked}", "no" if absent else "yes")
    raise ValueError(f"no questions of kind {kind}")


def _masks() -> np.ndarray:
    """Where a shape is [size, shape, CELL, CELL]."""
    y, x = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
    masks = []
    for r in (4.5, 7.5):
        distance = np.hypot(x, y)
        inside = (abs(x) <= r) & (abs(y) <= r)
        masks += [
            distance <= r,
            inside & (abs(x) <= 0.85 * r) & (abs(y) <= 0.85 * r),
            inside & (abs(x) <= (y + r) / 2),
            inside & ((abs(x) <= 0.3 * r) | (abs(y) <= 0.3 * r)),
            abs(x) + abs(y) <= r,
            (distance <= r) & (distance >= 0.55 * r),
            inside & (abs(y) <= 0.35 * r),
            (distance <= r) & (np.hypot(x - 0.5 * r, y) >= 0.75 * r),
        ]
    return np.array(masks).reshape(2, 8, CELL, CELL)


_MASKS = _masks()


def render(scene: Scene, seed: int | Sequence[int]) -> np.ndarray:
    """Image [SIDE, SIDE, 3] of a scene, uint8, on a grey of random brightness with noise on top.

    Args:
        scene: what stands where.
        seed: of the ground and the noise.
    """
    random = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), 255 * random.uniform(0.3, 0.7), dtype=np.float32)
    for thing in scene:
        row, column = divmod(thing.cell, 3)
        cell = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        cell[_MASKS[thing.size, thing.shape]] = _RGB[thing.colour]
    image += random.normal(0, 255 * NOISE, image.shape).astype(np.float32)
    return image.clip(0, 255).round().astype(np.uint8)
