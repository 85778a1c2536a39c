"""Peak memory by the number of documents: `python -m benchmarks.memory [N ...]`.

A small LLaVA (8 decoder layers of 512 dimensions, bfloat16) runs on 20 documents of 576 vision tokens
and a long text; N documents are copies of these in turn, as the capture would hand them over. Each way
has a process of its own. Counted is what the process takes at its peak beyond what it takes after eight
documents went the same way and were let go of. What that loads and compiles once, however many documents
and layers follow, is given below the table. The published procedure keeps all hidden states; it is left
out where they would not fit.
"""

import ctypes
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

from benchmarks.published import layer_distance
from benchmarks.timing import threads
from mir_task import MIRMeter
from mir_task.capture import HiddenStateCapture, Prefill
from mir_task.demo.checkpoint import make_llava

PUBLISHED_EACH = 20e6
"""Bytes that the published procedure takes at least for one of these documents."""
WAYS = ("ours", "ours, with standard error (5 groups)", "published")


def memory(name: str) -> int:
    """Bytes of a line of this process's status: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith(name)]
    return 1024 * int(kilobytes)


def settled() -> int:
    """Bytes of this process now, without what was left free, which would hide what comes."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return memory("VmRSS")


def measure(checkpoint: str, way: str, count: int) -> dict[str, float]:
    """Peak bytes of one way, in this process."""
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    threads()
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    source = Path(__file__).parents[1] / "mir_task" / "demo" / "passages.jsonl"
    passages = [json.loads(line)["text"] for line in source.read_text().splitlines()]

    def prefill(number: int) -> Prefill:
        image = Image.effect_noise((336, 336), 10 + number % 50).convert("RGB")
        texts = [passages[(5 * number + n) % len(passages)] for n in range(5)]
        inputs = processor(images=image, text="<image>\n" + " ".join(texts), return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
        model(**inputs)
        (taken,) = capture.take()
        return taken

    with torch.no_grad(), HiddenStateCapture(model) as capture:
        seen = [prefill(number) for number in range(20)]

    def rows(number: int) -> tuple[list[Tensor], list[Tensor]]:
        taken = seen[number % len(seen)]
        return [r.clone() for r in taken.vision_rows], [r.clone() for r in taken.text_rows]

    def value(count: int) -> float:
        if way == "published":
            kept = [rows(number) for number in range(count)]
            layers = range(len(seen[0].text_rows))
            features = (
                [torch.cat([part[of][layer] for part in kept]) for of in (0, 1)] for layer in layers
            )
            return sum(layer_distance(*of_layer) for of_layer in features)
        meter = fill(MIRMeter(groups=0 if way == "ours" else 5), rows, count)
        if meter.needs_second_pass():
            meter = meter.second_pass()
            fill(meter, rows, count)
        return sum(layer.frechet for layer in meter.compute().layers)

    before = settled()
    value(8)
    after = settled()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    result = value(count)
    tokens = sum(len(prefill.text_ids) for prefill in seen) / len(seen)
    return {
        "peak": memory("VmHWM") - after,
        "once": after - before,
        "value": result,
        "text_tokens": tokens,
    }


def fill(
    meter: MIRMeter, rows: Callable[[int], tuple[list[Tensor], list[Tensor]]], count: int
) -> MIRMeter:
    """Count documents."""
    for number in range(count):
        meter.update(number, *rows(number), group=number)
    return meter


def main() -> None:
    """Print the table, or measure one way when called for it."""
    if sys.argv[1:2] == ["--one"]:
        checkpoint, way, count = sys.argv[2:]
        print(json.dumps(measure(checkpoint, way, int(count))))
        return
    counts = [int(argument) for argument in sys.argv[1:]] or [20, 100, 400, 1600]
    print("| documents | ours, MB | of published | with 5 groups, MB | of published | published, MB |")
    print("|---:|---:|---:|---:|---:|---:|")
    once: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_llava(Path(folder), hidden_size=512, layers=8, image_size=336)
        for count in counts:
            peaks = dict.fromkeys(WAYS, math.nan)
            for way in WAYS:
                if way == "published" and count * PUBLISHED_EACH > psutil.virtual_memory().available:
                    continue
                command = [sys.executable, "-m", "benchmarks.memory", "--one", folder, way, str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                measured = json.loads(done.stdout.splitlines()[-1])
                peaks[way] = measured["peak"] / 1e6
                once[way] = measured["once"] / 1e6
            ours, grouped, published = peaks.values()
            print(
                f"| {count} | {ours:.0f} | {ours / published:.3f} | {grouped:.0f} | "
                f"{grouped / published:.3f} | {published:.0f} |",
                flush=True,
            )
    print("once: " + ", ".join(f"{way} {megabytes:.0f} MB" for way, megabytes in once.items()))


if __name__ == "__main__":
    main()
