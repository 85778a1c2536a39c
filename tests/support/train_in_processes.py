"""Training under the Trainer's DistributedDataParallel with a callback, run by torchrun.

`CHECKPOINT OUTPUT`: a small LLaVA, and a folder that gets what process 0 logged and each result.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments

import mir_task
from mir_task.callback import MIRCallback

DEMO = Path(mir_task.__file__).with_name("demo")


def pairs(count: int) -> list[tuple[Image.Image, str]]:
    images = sorted((DEMO / "images").glob("*.jpg"))[:count]
    texts = [json.loads(line)["text"] for line in (DEMO / "passages.jsonl").open()]
    return [(Image.open(image).convert("RGB"), text) for image, text in zip(images, texts, strict=False)]


def main() -> None:
    checkpoint, output = sys.argv[1], Path(sys.argv[2])
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    model.model.vision_tower.requires_grad_(False)  # its last layer is not used
    processor = AutoProcessor.from_pretrained(checkpoint)

    def collate(rows):
        images, texts = zip(*rows, strict=True)
        prompts = [f"<image>\n{text[:200]}" for text in texts]
        inputs = processor(images=list(images), text=prompts, padding=True, return_tensors="pt")
        return {**inputs, "labels": inputs["input_ids"].clone()}

    arguments = TrainingArguments(
        str(output / "trainer"),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        ddp_backend="gloo",
        gradient_checkpointing=True,
    )
    trainer = Trainer(model, arguments, collate, pairs(8), processing_class=processor)
    # Five documents: not divisible by two processes.
    callback = MIRCallback(trainer, pairs(5), every=2, groups=2)
    trainer.add_callback(callback)
    trainer.train()
    sharded = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    mesh = init_device_mesh("cpu", (trainer.args.world_size,))
    for layer in sharded.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    rank = trainer.args.process_index
    values = {
        "processes": trainer.args.world_size,
        "wrapped": type(trainer.model_wrapped).__name__,
        "results": {step: result.to_dict() for step, result in callback.results.items()},
        "logged": [entry for entry in trainer.state.log_history if "mir" in entry],
        "sharded": mir_task.measure(sharded, processor, pairs(5), bars=False).mir,
        "harness": "lmms_eval" in sys.modules,
    }
    (output / f"rank{rank}.json").write_text(json.dumps(values))
    if rank == 0:
        trainer.model.save_pretrained(output / "trained")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


if __name__ == "__main__":
    main()
