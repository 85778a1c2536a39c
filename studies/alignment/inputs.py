"""Question (i): how far MIR moves with what it is measured on: `python -m studies.alignment.inputs`.

The pre-trained models of (a) are measured on other images, other texts, another template and other
numbers of documents. Resumable, like `studies.alignment.run`.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from studies.alignment import models, world
from studies.alignment.arms import QUESTIONS
from studies.alignment.run import CHECKPOINTS, RUNS, one_thread
from studies.alignment.train import (
    EVALUATED,
    EVALUATION,
    Arm,
    figures,
    images,
    measure,
    pairs_of,
    scenes,
)

INPUTS = RUNS.with_name("inputs")
SAMPLES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
Pairs = list[tuple[Image.Image, str]]


def _held_out(seed: tuple[int, ...] = EVALUATION, number: int = EVALUATED) -> Pairs:
    return pairs_of(scenes(seed, number, held_out=True), seed)


def _unmatched() -> Pairs:
    pairs = _held_out()
    return [(image, pairs[(row + 1) % len(pairs)][1]) for row, (image, _) in enumerate(pairs)]


def _of_things(number: int) -> Pairs:
    drawn = [scene for scene in scenes((31,), 8 * EVALUATED, held_out=True) if len(scene) == number]
    return pairs_of(drawn[:EVALUATED], (31, number))


def _questions() -> Pairs:
    random = np.random.default_rng(32)
    drawn = scenes(EVALUATION, EVALUATED, held_out=True)
    asked = [" ".join(f"{q.text} {q.answer}" for q in world.questions(scene, random)) for scene in drawn]
    return [(image, text) for (image, _), text in zip(_held_out(), asked, strict=True)]


def _detail(detail: world.Detail) -> Pairs:
    return pairs_of(scenes(EVALUATION, EVALUATED, held_out=True), EVALUATION, detail)


def _photographs() -> Pairs:
    """Photographs of `mir_demo`, far from anything that the encoder was trained on."""
    from mir_task.documents.sources import PACKAGE

    files = sorted((PACKAGE / "demo" / "images").glob("*.jpg"))
    texts = [text for _, text in _held_out()]
    pictures = [Image.open(file).convert("RGB").resize((world.SIDE, world.SIDE)) for file in files]
    return [(pictures[row % len(pictures)], text) for row, text in enumerate(texts)]


def _empty() -> Pairs:
    """Scenes without a thing."""
    pictures = images([()] * EVALUATED, (33,))
    texts = [text for _, text in _held_out()]
    return [(Image.fromarray(picture), text) for picture, text in zip(pictures, texts, strict=True)]


def _user_turn(image: Any, text: str) -> Any:
    """Another template: the text in the user's turn."""
    processor = models.make_processor()
    return processor(images=[image], text=f"USER <image> {text} ASSISTANT", return_tensors="pt")


SETS: dict[str, tuple[Callable[[], Pairs], dict[str, Any]]] = {
    "own captions": (_held_out, {}),
    "other scenes (seed 1)": (lambda: _held_out((34,)), {}),
    "other scenes (seed 2)": (lambda: _held_out((35,)), {}),
    "two things": (lambda: _of_things(2), {}),
    "four things": (lambda: _of_things(4), {}),
    "no things": (_empty, {}),
    "photographs": (_photographs, {}),
    "captions of other images": (_unmatched, {}),
    "captions without size and place": (lambda: _detail("colours"), {}),
    "captions of shapes alone": (lambda: _detail("shapes"), {}),
    "questions and answers": (_questions, {}),
    "text in the user's turn": (_held_out, {"encode": _user_turn}),
}
"""Pairs and settings of each set of inputs, by what is in it."""


def measure_one(arm: Arm, checkpoints: Path, to: Path) -> str:
    """Measure an arm's pre-trained model on all sets and write them."""
    import torch

    torch.set_num_threads(1)
    model = arm.pretrained(checkpoints)
    values = {}
    for name, (make, settings) in SETS.items():
        values[name] = figures(measure(model, make(), caption_ppl=False, **settings))
    many = _held_out((36,), max(SAMPLES))
    sizes = {number: figures(measure(model, many[:number], caption_ppl=False)) for number in SAMPLES}
    to.mkdir(parents=True, exist_ok=True)
    unfinished = to / f".{arm.name}.json"
    record = {"arm": arm.name, "sets": values, "samples": sizes}
    unfinished.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    unfinished.rename(to / f"{arm.name}.json")
    spread = [value["mir"] for value in values.values()]
    return f"{arm.name}: MIR from {min(spread):.4f} to {max(spread):.4f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--to", type=Path, default=INPUTS, help="folder of the JSON files")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    waiting = [arm for arm in QUESTIONS["a"][1] if not (options.to / f"{arm.name}.json").is_file()]
    one_thread()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        results = [
            pool.apply_async(measure_one, (arm, options.checkpoints, options.to)) for arm in waiting
        ]
        for result in results:
            print(result.get(), flush=True)


if __name__ == "__main__":
    main()
