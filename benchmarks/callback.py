"""What `MIRCallback` adds to a training: `python -m benchmarks.callback [D]`.

Steps of a connector's pre-training through the Trainer (batches of 8, the decoder frozen), and
measurements of 50 pairs between them, on a LLaVA of 2 decoder layers of D = 1,024 dimensions and 576
vision tokens.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import mir_task
from benchmarks.timing import threads
from mir_task.callback import MIRCallback
from mir_task.demo.checkpoint import make_llava

DEMO = Path(mir_task.__file__).with_name("demo")
PAIRS, BATCH, STEPS, EVERY = 50, 8, 9, 500


class Clock(TrainerCallback):
    """Seconds of each step, without what callbacks do between them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self.started)


def pairs() -> list[tuple[Image.Image, str]]:
    """The pictures and passages of the demo."""
    images = sorted((DEMO / "images").glob("*.jpg"))
    texts = [json.loads(line)["text"] for line in (DEMO / "passages.jsonl").open()]
    return [(Image.open(image).convert("RGB"), text) for image, text in zip(images, texts, strict=True)]


def main() -> None:
    """Print the times."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    print(f"threads: {threads()}")
    with tempfile.TemporaryDirectory() as folder:
        make_llava(Path(folder), hidden_size=size, layers=2, image_size=336)
        model = LlavaForConditionalGeneration.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)

    def collate(rows: list[tuple[Image.Image, str]]) -> dict[str, Any]:
        images, texts = zip(*rows, strict=True)
        prompts = [f"<image>\n{text}" for text in texts]
        inputs = processor(images=list(images), text=prompts, padding=True, return_tensors="pt")
        return {**inputs, "labels": inputs["input_ids"].clone()}

    columns = (f"{PAIRS} pairs", "a step, s", "a measurement, s", "in steps", f"of {EVERY} steps")
    print(f"\n| {' | '.join(columns)} |")
    print("|---|---:|---:|---:|---:|")
    for name, groups in (("with standard error (5 groups)", 5), ("without", 0)):
        with tempfile.TemporaryDirectory() as output:
            arguments = TrainingArguments(
                output,
                max_steps=STEPS,
                per_device_train_batch_size=BATCH,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=True,
            )
            held_out, rows = pairs()[:PAIRS], pairs()[PAIRS:]
            trainer = Trainer(model, arguments, collate, rows, processing_class=processor)
            clock = Clock()
            trainer.add_callback(clock)
            trainer.add_callback(MIRCallback(trainer, held_out, every=3, groups=groups))
            trainer.train()
            step = statistics.median(clock.seconds)
            logged = trainer.state.log_history
            measured = statistics.median(e["mir_seconds"] for e in logged if "mir_seconds" in e)
        ratio = measured / step
        print(f"| {name} | {step:.2f} | {measured:.2f} | {ratio:.1f} | {ratio / EVERY:.1%} |")


if __name__ == "__main__":
    main()
