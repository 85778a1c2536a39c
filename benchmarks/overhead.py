"""What measuring adds to the forwards: `python -m benchmarks.overhead`.

The requests of `mir_demo` through the harness's adapter, against the same adapter on the same prompts
without capture and statistics, on a LLaVA whose forward dominates (2 decoder layers of 1,024 dimensions,
576 vision tokens). With `--size 4096 --layers 33 --device cuda`, on a GPU and in bfloat16, it has the
shape of LLaVA-1.5 7B and one layer more.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.timing import in_turns, threads
from mir_task.demo.checkpoint import make_llava


def main() -> None:
    """Print the times."""
    from lmms_eval.models import get_model

    from mir_task.adapter import Adapter
    from mir_task.harness import MIRTask, adapter_documents, mir_prefill

    def task(groups: int) -> Any:
        keys = {"mir_base": "mir_demo", "mir_documents": documents, "mir_groups": groups}
        made = MIRTask({"task": f"mir_{groups}", **keys})
        made.build_all_requests(rank=0, world_size=1)
        lm.task_dict[made.name] = made.dataset
        return made

    def keep(_: Any, made: Any, whole: Any) -> None:
        made.result, of_distances[made.name] = whole.result, whole.seconds

    def without(made: Any) -> None:
        adapter = Adapter(lm, made.settings)
        with torch.no_grad():
            for document in adapter_documents(made, made.instances):
                adapter.send([document], "assistant_chat")

    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    documents, device = options.documents, options.device
    of_distances: dict[str, float] = {}
    of_seven_billion: dict[str, Any] = {}
    if device != "cpu":
        heads = options.size // 128
        of_seven_billion = {
            "text": {
                "intermediate_size": options.size * 43 // 16,
                "num_attention_heads": heads,
                "num_key_value_heads": heads,
            },
            "vision": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
            },
            "dtype": torch.bfloat16,
            "device": device,
        }
    with tempfile.TemporaryDirectory() as folder:
        make_llava(
            Path(folder),
            hidden_size=options.size,
            layers=options.layers,
            image_size=336,
            **of_seven_billion,
        )
        arguments = f"pretrained={folder},device={device},device_map={device},dtype=auto"
        lm = get_model("llava_hf", False).create_from_arg_string(arguments)
        plain, grouped = task(0), task(5)
        print(f"threads: {threads()}")
        ways = {
            "the adapter alone": lambda: without(plain),
            "with MIR": lambda: mir_prefill(lm, plain.instances),
            "with MIR and its standard error (5 groups)": lambda: mir_prefill(lm, grouped.instances),
        }
        with mock.patch("mir_task.harness._conclude", keep):
            seconds = in_turns(ways, repeats=options.repeats)
        print(f"\n| {documents} documents | seconds | beyond the adapter alone | of which distances |")
        print("|---|---:|---:|---:|")
        tasks = dict(zip(seconds, (None, plain, grouped), strict=True))
        for name, value in seconds.items():
            share = value / seconds["the adapter alone"] - 1
            made = tasks[name]
            distances = "" if made is None else f"{of_distances[made.name]:.2f}"
            print(f"| {name} | {value:.2f} | {share:.1%} | {distances} |")
        layers = plain.result.layers[0]
        print(f"\n{layers.vision_tokens} vision and {layers.text_tokens} text tokens")
        if device != "cpu":
            used, weights = (
                read(device) / 1e9
                for read in (torch.cuda.max_memory_allocated, torch.cuda.memory_allocated)
            )
            print(f"{used:.1f} GB at the peak, {weights:.1f} GB of weights")


if __name__ == "__main__":
    main()
