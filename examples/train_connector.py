"""A connector is trained while MIR is watched: `python examples/train_connector.py [--moca]`.

The world is small enough for two minutes on a CPU: one shape on a grey ground, and a caption that names
its size, colour, form and place. A small LLaVA first learns as text to repeat such a caption; then all
of it is frozen but the connector (and with `--moca` the scales and shifts of its vision tokens), which
learns from pairs to put the image in the place of the first. `MIRCallback` measures 48 held-out pairs.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from mir_task import moca
from mir_task.callback import MIRCallback
from mir_task.demo.checkpoint import make_llava

SIDE = 56
RADII = {"small": 4, "middling": 6, "large": 8}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
FORMS = ("circle", "square", "triangle")
ROWS = {"top": 9, "middle": 28, "bottom": 47}
COLUMNS = {"left": 9, "centre": 28, "right": 47}
HELD_OUT = 48

Pair = tuple[Image.Image, str]


def draw(size: str, colour: str, form: str, row: str, column: str) -> Image.Image:
    """The image of one shape."""
    image = Image.new("RGB", (SIDE, SIDE), "gray")
    pen, x, y, r = ImageDraw.Draw(image), COLUMNS[column], ROWS[row], RADII[size]
    if form == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), colour)
    elif form == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), colour)
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], colour)
    return image


def world() -> list[Pair]:
    """All pairs of an image and its caption, shuffled."""
    names = list(itertools.product(RADII, COLOURS, FORMS, ROWS, COLUMNS))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    caption = "A {} {} {} stands at the {} {} of the image."
    return [(draw(*names[i]), caption.format(*names[i])) for i in order]


class Collator:
    """Batches for the Trainer; the loss is on the caption's tokens."""

    def __init__(self, processor: Any, *, with_images: bool) -> None:
        self.processor = processor
        self.with_images = with_images

    def __call__(self, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        images, captions = zip(*pairs, strict=True)
        if self.with_images:
            texts = [f"<image>\n{caption}</s>" for caption in captions]
            inputs = self.processor(images=list(images), text=texts, padding=True, return_tensors="pt")
        else:
            texts = [f"{caption}\n{caption}</s>" for caption in captions]
            inputs = self.processor.tokenizer(texts, padding=True, return_tensors="pt")
        ignored = (inputs["attention_mask"] == 0) | (
            inputs["input_ids"] == self.processor.image_token_id
        )
        return {**inputs, "labels": inputs["input_ids"].masked_fill(ignored, -100)}


def trainer_of(
    model: Any, processor: Any, pairs: list[Pair], output: str, *, with_images: bool, epochs: int
) -> Trainer:
    """A Trainer of the parameters that are not frozen."""
    arguments = TrainingArguments(
        output,
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        logging_steps=75,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    collator = Collator(processor, with_images=with_images)
    return Trainer(model, arguments, collator, pairs, processing_class=processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moca", action="store_true", help="train scales and shifts of vision tokens")
    parser.add_argument("--epochs", type=int, default=8, help="of the connector")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(0)
    pairs = world()
    with tempfile.TemporaryDirectory() as output:
        folder = make_llava(Path(output) / "llava", hidden_size=128, layers=4, image_size=SIDE)
        model = LlavaForConditionalGeneration.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)

        print("The decoder learns to repeat captions")
        model.requires_grad_(False)
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        trainer_of(model, processor, pairs[HELD_OUT:], output, with_images=False, epochs=8).train()

        print(f"The connector learns from pairs, {'with' if options.moca else 'without'} MoCa")
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
        if options.moca:
            moca.apply(model)
        trainer = trainer_of(
            model, processor, pairs[HELD_OUT:], output, with_images=True, epochs=options.epochs
        )
        callback = MIRCallback(trainer, pairs[:HELD_OUT], every=75, patience=3)
        trainer.add_callback(callback)
        trainer.train()

    first, *_, last = callback.results.values()
    print(f"MIR before training {first.mir:.4f} ± {first.mir_stderr:.4f}")
    print(f"MIR after training  {last.mir:.4f} ± {last.mir_stderr:.4f}")


if __name__ == "__main__":
    main()
