"""What ships with the package: `python -m studies.alignment.data`, once the arms that it takes have run.

The held-out scenes as files of the tasks `mir_scenes` and `scenes_vqa`, and for the demo a checkpoint
with an untrained connector, and connectors of little and of much pre-training to put in its place.
"""

import io
import json

import datasets
import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from mir_task.demo.models import SCENES
from mir_task.tasks import TASK_CONFIGS
from studies.alignment import language, world
from studies.alignment.run import CHECKPOINTS
from studies.alignment.train import EVALUATED, EVALUATION, Arm, images, scenes

CONNECTORS = {"little": 1000, "much": 32_000}
"""Pairs of pre-training by the name of the demo's connector."""
QUESTIONS = TASK_CONFIGS / "scenes" / "questions.jsonl"


def write_scenes() -> None:
    """The files of both tasks."""
    drawn = scenes(EVALUATION, EVALUATED, held_out=True)
    random = np.random.default_rng([*EVALUATION, 1])
    rows, questions = [], []
    for number, (scene, image) in enumerate(zip(drawn, images(drawn, EVALUATION), strict=True)):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "png", optimize=True)
        rows.append({"id": f"s{number:03}", "image": {"bytes": png.getvalue(), "path": None}})
        rows[-1] |= {detail: world.caption(scene, detail) for detail in ("full", "colours", "shapes")}
        questions += [
            {"scene": number, "kind": q.kind, "question": q.text, "answer": q.answer}
            for q in world.questions(scene, random)
        ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(SCENES / "scenes.parquet")
    QUESTIONS.write_text("".join(json.dumps(row) + "\n" for row in questions), "utf-8")


def write_checkpoints() -> None:
    """One checkpoint, and the connectors of two more."""
    untrained = Arm(seed=0, pairs=0).model()
    untrained.save_pretrained(SCENES / "untrained")
    # The names of transformers 4, which 5 reads too.
    weights = SCENES / "untrained" / "model.safetensors"
    old = "vision_tower.vision_model."
    parts = {name.replace("vision_tower.", old): part for name, part in load_file(weights).items()}
    save_file(parts, weights, metadata={"format": "pt"})
    words = {"words": language.WORDS, "chat_template": language.CHAT_TEMPLATE}
    (SCENES / "words.json").write_text(json.dumps(words, indent=0) + "\n", "utf-8")
    for name, pairs in CONNECTORS.items():
        kept = load_file(CHECKPOINTS / f"{Arm(seed=0, pairs=pairs).name}.safetensors")
        save_file(kept, SCENES / f"{name}.safetensors")


def main() -> None:
    """Write all of it."""
    SCENES.mkdir(parents=True, exist_ok=True)
    write_scenes()
    write_checkpoints()


if __name__ == "__main__":
    main()
