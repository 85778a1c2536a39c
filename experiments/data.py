"""The held-out scenes as files of the tasks `mir_scenes` and `scenes_vqa`: `python -m experiments.data`."""

import io
import json

import datasets
import numpy as np
from PIL import Image

from experiments import world
from experiments.train import EVALUATED, EVALUATION, images, scenes
from mir_task.settings import TASK_CONFIGS
from mir_task.sources import PACKAGE

IMAGES = PACKAGE / "demo" / "scenes" / "scenes.parquet"
QUESTIONS = TASK_CONFIGS / "scenes" / "questions.jsonl"


def main() -> None:
    """Write both files."""
    drawn = scenes(EVALUATION, EVALUATED, held_out=True)
    random = np.random.default_rng([*EVALUATION, 1])
    IMAGES.parent.mkdir(parents=True, exist_ok=True)
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
    table.to_parquet(IMAGES)
    QUESTIONS.write_text("".join(json.dumps(row) + "\n" for row in questions), "utf-8")


if __name__ == "__main__":
    main()
