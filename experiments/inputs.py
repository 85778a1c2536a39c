"""Question (i): how far MIR moves with what it is measured on. `python -m experiments.inputs`

The pre-trained models of (a) are measured on other images, other texts, another template and other numbers
of documents; beside each stands what changes. Resumable, like `experiments.run`.
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

from experiments import world
from experiments.arms import QUESTIONS
from experiments.run import CHECKPOINTS, RUNS, _start
from experiments.train import EVALUATED, EVALUATION, PLACEHOLDERS, Arm, images, measure, scenes

INPUTS = RUNS.with_name("inputs")
SAMPLES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
Pairs = list[tuple[Image.Image, str]]


def _pairs(drawn: list[world.Scene], seed: tuple[int, ...], detail: world.Detail = "full") -> Pairs:
    pictures = [Image.fromarray(image) for image in images(drawn, seed)]
    return [
        (picture, world.caption(scene, detail)) for picture, scene in zip(pictures, drawn, strict=True)
    ]


def _held_out(seed: tuple[int, ...] = EVALUATION, number: int = EVALUATED) -> Pairs:
    return _pairs(scenes(seed, number, held_out=True), seed)


def _unmatched() -> Pairs:
    pairs = _held_out()
    return [(image, pairs[(row + 1) % len(pairs)][1]) for row, (image, _) in enumerate(pairs)]


def _of_things(number: int) -> Pairs:
    drawn = [scene for scene in scenes((31,), 8 * EVALUATED, held_out=True) if len(scene) == number]
    return _pairs(drawn[:EVALUATED], (31, number))


def _questions() -> Pairs:
    random = np.random.default_rng(32)
    drawn = scenes(EVALUATION, EVALUATED, held_out=True)
    asked = [" ".join(f"{q.text} {q.answer}" for q in world.questions(scene, random)) for scene in drawn]
    return [(image, text) for (image, _), text in zip(_held_out(), asked, strict=True)]


def _detail(detail: world.Detail) -> Pairs:
    return _pairs(scenes(EVALUATION, EVALUATED, held_out=True), EVALUATION, detail)


def _photographs() -> Pairs:
    """Photographs of `mir_demo`, far from anything that the encoder was trained on."""
    from mir_task.sources import PACKAGE

    files = sorted((PACKAGE / "demo" / "images").glob("*.jpg"))
    texts = [text for _, text in _held_out()]
    pictures = [Image.open(file).convert("RGB").resize((world.SIDE, world.SIDE)) for file in files]
    return [(pictures[row % len(pictures)], text) for row, text in enumerate(texts)]


def _empty() -> Pairs:
    """Scenes without a thing."""
    pictures = images([()] * EVALUATED, (33,))
    texts = [text for _, text in _held_out()]
    return [(Image.fromarray(picture), text) for picture, text in zip(pictures, texts, strict=True)]


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
    "text in the user's turn": (_held_out, {"encode": "user"}),
}
"""Pairs and settings of each set of inputs, by what is in it."""


def _user_turn(image: Any, text: str) -> Any:
    from experiments import models

    processor = models.make_processor()
    return processor(
        images=[image], text=f"USER {PLACEHOLDERS and '<image>'} {text} ASSISTANT", return_tensors="pt"
    )


def measure_one(arm: Arm, checkpoints: Path, to: Path) -> str:
    """Measure an arm's pre-trained model on all sets and write them."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    model = arm.model()
    kept = load_file(checkpoints / f"{arm.name}.safetensors")
    model.model.multi_modal_projector.load_state_dict(kept)
    values = {}
    for name, (make, settings) in SETS.items():
        chosen = {"caption_ppl": False}
        if settings:
            chosen["encode"] = _user_turn
        values[name] = _brief(measure(model, make(), **chosen))
    many = _held_out((36,), max(SAMPLES))
    sizes = {number: _brief(measure(model, many[:number], caption_ppl=False)) for number in SAMPLES}
    to.mkdir(parents=True, exist_ok=True)
    unfinished = to / f".{arm.name}.json"
    record = {"arm": arm.name, "sets": values, "samples": sizes}
    unfinished.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    unfinished.rename(to / f"{arm.name}.json")
    spread = [value["mir"] for value in values.values()]
    return f"{arm.name}: MIR from {min(spread):.4f} to {max(spread):.4f}"


def _brief(result: Any) -> dict[str, float | None]:
    values = result.to_dict()
    return {key: values[key] for key in ("mir", "mir_published_fast", "mir_stderr")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--to", type=Path, default=INPUTS, help="folder of the JSON files")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    waiting = [arm for arm in QUESTIONS["a"][1] if not (options.to / f"{arm.name}.json").is_file()]
    _start()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        results = [
            pool.apply_async(measure_one, (arm, options.checkpoints, options.to)) for arm in waiting
        ]
        for result in results:
            print(result.get(), flush=True)


if __name__ == "__main__":
    main()
