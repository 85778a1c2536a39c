"""Documents that cannot be measured, in several processes with a sharded or replicated model.

Run by torchrun with `CHECKPOINT OUTPUT`. Each process writes what it found to `OUTPUT/rank*.json`: by
the way the model is spread, the case and the place of the bad document, a value or a message.
"""

import functools
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from loguru import logger
from PIL import Image
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoProcessor, LlavaForConditionalGeneration

import mir_task
from mir_task.callback import MIRCallback
from mir_task.errors import MIRError
from tests.support import evaluate
from tests.support.train_in_processes import pairs

DOCUMENTS = 5
PLACES = (0, 2, 4)
CASES = {"fsdp2": ("text", "medium", "forward"), "resharded": ("forward",), "ddp": ("text", "forward")}


def spread(model: Any, kind: str) -> Any:
    """A model over the processes; `resharded` gathers its outermost module for every forward anew."""
    if kind == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=True)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parts = model.model
    for module in [parts.multi_modal_projector, *parts.language_model.layers]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, **({"reshard_after_forward": True} if kind == "resharded" else {}))
    return model


class OneBad:
    """Pairs, of which one fails: its text, its medium, or the forward with it."""

    def __init__(self, case: str, place: int, processor: Any) -> None:
        self.pairs = pairs(DOCUMENTS)
        image, text = self.pairs[place]
        bad = {"text": (image, ""), "medium": (image.crop((0, 0, 0, 0)), text), "forward": (image, text)}
        self.pairs[place] = bad[case]
        self.bad_text = text if case == "forward" else None
        self.processor = processor

    def encode(self, image: Image.Image, text: str) -> dict[str, Any]:
        """The inputs of a forward; of the bad document with one placeholder too few."""
        prompt = f"USER: <image>\nASSISTANT: {text}"
        inputs = dict(self.processor(images=image, text=prompt, return_tensors="pt"))
        if text == self.bad_text:
            (place, *_) = (inputs["input_ids"][0] == self.processor.image_token_id).nonzero().flatten()
            for name in ("input_ids", "attention_mask"):
                inputs[name] = torch.cat([inputs[name][:, :place], inputs[name][:, place + 1 :]], dim=1)
        return inputs


def outcome(measure: Any) -> Any:
    try:
        return measure()
    except (MIRError, ValueError) as error:
        return str(error)


def mir_of(*arguments: Any, **options: Any) -> float:
    return mir_task.measure(*arguments, **options).mir


def step_of(model: Any, processor: Any) -> float:
    """Loss of a step of training."""
    ((image, text), *_) = pairs(1)
    inputs = processor(images=image, text=f"<image>\n{text[:100]}", return_tensors="pt")
    loss = model(**inputs, labels=inputs["input_ids"].clone()).loss
    loss.backward()
    model.zero_grad()
    return float(loss)


def by_library(checkpoint: str, kind: str, processor: Any) -> dict[str, Any]:
    model = spread(LlavaForConditionalGeneration.from_pretrained(checkpoint), kind)
    found: dict[str, Any] = {"step before": step_of(model, processor)}
    for case, place, on_error in itertools.product(CASES[kind], PLACES, ("stop", "skip")):
        rows = OneBad(case, place, processor)
        options = {"encode": rows.encode, "on_error": on_error, "groups": 0, "bars": False}
        found[f"{case} {place} {on_error}"] = outcome(
            functools.partial(mir_of, model, processor, rows.pairs, **options)
        )
    found["step after"] = step_of(model, processor)
    return found


def by_callback(checkpoint: str, kind: str, processor: Any) -> dict[str, Any]:
    model = spread(LlavaForConditionalGeneration.from_pretrained(checkpoint), kind)
    found: dict[str, Any] = {}
    for place, on_error in itertools.product(PLACES, ("stop", "skip")):
        rows, values, messages = OneBad("text", place, processor), [], []
        trainer = SimpleNamespace(model=model, processing_class=processor, log=values.append)
        callback = MIRCallback(trainer, rows.pairs, every=1, groups=0, on_error=on_error)
        state, control = SimpleNamespace(global_step=1), SimpleNamespace(should_log=False)
        sink = logger.add(messages.append, level="ERROR", format="{message}")
        callback.on_step_end(None, state, control)
        logger.remove(sink)
        found[f"{place} {on_error}"] = values[0]["mir"] if values else "".join(messages)
    found["step after"] = step_of(model, processor)
    return found


def by_task(checkpoint: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, on_error in itertools.product(PLACES, ("stop", "skip")):
        lm = evaluate.load(checkpoint)  # anew, for the harness deletes the model that it has run
        if kind != "ddp":  # which adapters unwrap for their forwards
            lm._model = spread(lm.model, kind)
            register_fsdp_forward_method(lm._model, "generate")
        task = evaluate.task(mir_documents=DOCUMENTS, mir_groups=0, mir_on_error=on_error)
        rows = task._drawn
        texts = [text if row != place else "" for row, text in enumerate(rows["text"])]
        task._drawn = rows.remove_columns("text").add_column("text", texts)

        def run(lm: Any = lm, task: Any = task) -> Any:
            results = evaluate.evaluate(lm, task, distributed_executor_backend="torchrun")
            return results["results"]["mir_test"]["mir,none"] if results else None

        found[f"{place} {on_error}"] = outcome(run)
    return found


def refused(checkpoint: str, processor: Any) -> dict[str, Any]:
    """What is said of models that are split in other ways."""
    split = LlavaForConditionalGeneration.from_pretrained(checkpoint, tp_plan="auto")
    flat = FullyShardedDataParallel(
        LlavaForConditionalGeneration.from_pretrained(checkpoint), device_id=torch.device("cpu")
    )
    zero = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    zero.lm_head.weight.ds_id = 0  # as DeepSpeed marks what it partitions
    models = {"tensor parallel": split, "fsdp1": flat, "zero3": zero}
    return {
        name: outcome(functools.partial(mir_of, model, processor, pairs(DOCUMENTS)))
        for name, model in models.items()
    }


def main() -> None:
    checkpoint, output = sys.argv[1], Path(sys.argv[2])
    Accelerator()  # connects the processes as the harness does
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(checkpoint)
    found = {
        kind: {
            "library": by_library(checkpoint, kind, processor),
            "callback": by_callback(checkpoint, kind, processor),
            "task": by_task(checkpoint, kind),
        }
        for kind in CASES
    }
    found["refused"] = refused(checkpoint, processor)
    (output / f"rank{dist.get_rank()}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
