"""The pre-trained models of (a) as checkpoints, and their list: `python -m studies.alignment.family TO`.

Then `mir-task zoo TO/models.yaml --output_path TO/runs`, one `lmms-eval --tasks mir_scenes,scenes_vqa` a
model, and `mir-task leaderboard TO/runs`.
"""

import argparse
from pathlib import Path

import yaml

from studies.alignment import models
from studies.alignment.arms import QUESTIONS
from studies.alignment.run import CHECKPOINTS


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("to", type=Path)
    parser.add_argument("--seed", type=int, help="of the models; all by default")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    entries = []
    for arm in QUESTIONS["a"][1]:
        if options.seed in (None, arm.seed):
            folder = options.to / arm.name
            arm.pretrained(options.checkpoints).save_pretrained(folder)
            models.make_processor().save_pretrained(folder)
            entries.append(
                {
                    "model": "llava_hf",
                    "model_args": f"pretrained={folder},device=cpu,device_map=cpu",
                    "tasks": "mir_scenes,scenes_vqa",
                }
            )
    (options.to / "models.yaml").write_text(yaml.safe_dump(entries), "utf-8")


if __name__ == "__main__":
    main()
