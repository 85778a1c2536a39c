"""What measuring adds to the forwards: `python -m benchmarks.overhead [D [DOCUMENTS]]`.

The requests of `mir_demo` through the harness's adapter, against the same adapter on the same prompts
without capture and statistics, on a LLaVA whose forward dominates (2 decoder layers of D = 1,024
dimensions, 576 vision tokens).
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

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

    def without(made: Any) -> None:
        adapter = Adapter(lm, made.settings)
        with torch.no_grad():
            for document in adapter_documents(made, made.instances):
                adapter.send([document], "assistant_chat")

    size, documents = (int(value) for value in (*sys.argv[1:], *("1024", "100")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        make_llava(Path(folder), hidden_size=size, layers=2, image_size=336)
        arguments = f"pretrained={folder},device=cpu,device_map=cpu"
        lm = get_model("llava_hf", False).create_from_arg_string(arguments)
        plain, grouped = task(0), task(5)
        print(f"threads: {threads()}")
        ways = {
            "the adapter alone": lambda: without(plain),
            "with MIR": lambda: mir_prefill(lm, plain.instances),
            "with MIR and its standard error (5 groups)": lambda: mir_prefill(lm, grouped.instances),
        }
        seconds = in_turns(ways, repeats=3)
        print(f"\n| {documents} documents | seconds | beyond the adapter alone |")
        print("|---|---:|---:|")
        for name, value in seconds.items():
            share = value / seconds["the adapter alone"] - 1
            print(f"| {name} | {value:.2f} | {share:.1%} |")
        layers = plain.result.layers[0]
        print(f"\n{layers.vision_tokens} vision and {layers.text_tokens} text tokens")


if __name__ == "__main__":
    main()
