"""Peak memory by the number of documents: `python -m benchmarks.memory [N ...]`.

A small LLaVA (8 decoder layers of 512 dimensions, bfloat16) runs on 20 documents of 576 vision tokens
and a long text; N documents are copies of these in turn, as the capture would hand them over. Each way
has a process of its own. Counted is what the process takes at its peak beyond what it takes after eight
documents went the same way and were freed. "In passes" has `ROOM` GiB for statistics, so that a second
pass over the documents adds up what does not fit as rows; its standard error has 5 groups. What the
planner reckons with is given beside it. The published procedure keeps all hidden states; it is left out
where they would not fit.
"""

import ctypes
import json
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
from mir_task.capture.hooks import HiddenStateCapture
from mir_task.capture.prefill import Prefill
from mir_task.demo.checkpoint import make_llava
from mir_task.measuring.plan import HOST, Room, Shape, plan
from mir_task.statistics.memory import GIB

PUBLISHED_EACH = 20e6
"""Bytes that the published procedure takes at least for one of these documents."""
ROOM = 0.25
WAYS = ("in passes", "rows kept", "published")
SIZE, LAYERS = 512, 8


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
        meter = fill(MIRMeter(groups=5, memory=ROOM if way == "in passes" else None), rows, count)
        if meter.needs_second_pass():
            meter = fill(meter.second_pass(), rows, count)
        return sum(layer.frechet for layer in meter.compute().layers)

    value(8)
    after = settled()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    result = value(count)
    tokens = sum(len(prefill.text_ids) for prefill in seen) / len(seen)
    return {
        "peak": memory("VmHWM") - after,
        "value": result,
        "text_tokens": tokens,
    }


def fill(
    meter: MIRMeter, rows: Callable[[int], tuple[list[Tensor], list[Tensor]]], count: int
) -> MIRMeter:
    """Count documents."""
    for number in range(count):
        meter.update(number, *rows(number))
    return meter


def planned(tokens: int) -> dict[str, float]:
    """Bytes that the planner reckons with, of each way."""
    shape, devices = Shape(SIZE, 2), dict.fromkeys(range(1, LAYERS + 1), HOST)
    _, passes = plan(devices, shape, Room(ROOM, 0), 5, tokens)
    # Beside what is kept: norms, one layer's computation, the document that is at hand, twice, and the
    # ends of pages of 2 MB.
    more = 8 * LAYERS * tokens + shape.computing(5, HOST) + 2 * LAYERS * (shape.rows(1300) + 2**21)
    rows = LAYERS * shape.rows(tokens)
    # The first pass fills the room before rows of the highest layers go.
    in_passes = max(min(rows, ROOM * GIB), *(each.bytes[HOST] for each in passes))
    return {"in passes": in_passes + more, "rows kept": rows + more}


def main() -> None:
    """Print the table, or measure one way when called for it."""
    if sys.argv[1:2] == ["--one"]:
        checkpoint, way, count = sys.argv[2:]
        print(json.dumps(measure(checkpoint, way, int(count))))
        return
    counts = [int(argument) for argument in sys.argv[1:]] or [20, 100, 400, 1600]
    print("| documents | tokens | in passes, MB | planned | rows kept, MB | planned | published, MB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        make_llava(Path(folder), hidden_size=SIZE, layers=LAYERS, image_size=336)
        for count in counts:
            peaks: dict[str, float] = {}
            tokens = 0
            for way in WAYS:
                if way != "in passes" and count * PUBLISHED_EACH > psutil.virtual_memory().available / 2:
                    continue
                command = [sys.executable, "-m", "benchmarks.memory", "--one", folder, way, str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                measured = json.loads(done.stdout.splitlines()[-1])
                peaks[way] = measured["peak"]
                tokens = round(count * (576 + measured["text_tokens"]))
            reckoned = planned(tokens)
            cells = [
                *(x for way in WAYS[:2] for x in (peaks.get(way), reckoned[way])),
                peaks.get("published"),
            ]
            shown = ("" if cell is None else f"{cell / 1e6:.0f}" for cell in cells)
            print(f"| {count} | {tokens} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
