"""MIR of a local checkpoint, without the harness: `python examples/measure_checkpoint.py FOLDER`.

Without a folder it makes a small random checkpoint first. The pairs are the images and passages that
`mir_demo` measures.
"""

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import mir_task
from mir_task.demo.checkpoint import make_llava

DEMO = Path(mir_task.__file__).with_name("demo")


class Pairs:
    """Images and texts, opened when they are measured."""

    def __init__(self) -> None:
        self.images = sorted((DEMO / "images").glob("*.jpg"))
        self.texts = [json.loads(line)["text"] for line in (DEMO / "passages.jsonl").open()]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Image.Image, str]:
        return Image.open(self.images[number]).convert("RGB"), self.texts[number]


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = sys.argv[1] if len(sys.argv) > 1 else make_llava(Path(made))
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
        processor = AutoProcessor.from_pretrained(folder)
    result = mir_task.measure(model, processor, Pairs())
    print(f"MIR {result.mir:.4f} ± {result.mir_stderr:.4f}")
    for layer in result.layers:
        print(f"layer {layer.layer}: {layer.frechet:.4f}, norm ratio {layer.norm_ratio:.2f}")


if __name__ == "__main__":
    main()
