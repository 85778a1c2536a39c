"""What measuring adds to the forwards: `python -m benchmarks.overhead`.

The requests of `mir_demo` through the harness's adapter, against the same adapter on the same prompts
without capture and statistics, on a LLaVA whose forward dominates (2 decoder layers of 1,024 dimensions,
576 vision tokens). With `--size 4096 --layers 32 --device cuda` it has the shape of LLaVA-1.5 7B, in
bfloat16; there the documents also run with 5 GiB for statistics, as a card of 24 GB has.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.timing import in_turns, threads
from mir_task.demo.checkpoint import make_llava
from mir_task.measuring.passes import Measurement

ALONE = "the adapter alone"
WAYS: dict[str, dict[str, Any]] = {
    "MIR, no standard error": {"mir_groups": 0},
    "MIR by default (5 groups)": {},
}
SHORT = {"MIR by default, 5 GiB for statistics": {"mir_accelerator_memory": 5.0}}


class Run(NamedTuple):
    """What one way took."""

    seconds: float
    measured: Measurement | None
    """What was measured; None of the adapter alone."""
    peak: float
    """Bytes on the accelerator."""


def checkpoint(folder: Path, size: int, layers: int, device: str) -> str:
    """Arguments of the adapter for a LLaVA of that shape in a folder."""
    of_seven_billion: dict[str, Any] = {}
    if device != "cpu":
        heads = max(size // 128, 1)
        of_seven_billion = {
            "text": {
                "intermediate_size": size * 43 // 16,
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
    make_llava(folder, hidden_size=size, layers=layers, image_size=336, **of_seven_billion)
    return f"pretrained={folder},device={device},device_map={device},dtype=auto"


def measured(
    arguments: str, ways: dict[str, dict[str, Any]], documents: int, repeats: int, device: str
) -> dict[str, Run]:
    """The adapter alone and with MIR in several ways, taken in turns."""
    from lmms_eval.models import get_model

    from mir_task.harness import MIRTask
    from mir_task.harness.adapter import Adapter
    from mir_task.harness.requests import adapter_documents, mir_prefill

    lm = get_model("llava_hf", False).create_from_arg_string(arguments)
    found: dict[str, Measurement] = {}
    peaks: dict[str, float] = {}

    def task(name: str, keys: dict[str, Any]) -> Any:
        made = MIRTask({"task": name, "mir_base": "mir_demo", "mir_documents": documents, **keys})
        made.build_all_requests(rank=0, world_size=1)
        lm.task_dict[made.name] = made.dataset
        return made

    def keep(_: Any, made: Any, measured: Measurement, run: Any) -> None:
        made.result, found[made.name] = measured.result, measured

    def watched(name: str, run: Callable[[], object]) -> Callable[[], None]:
        def way() -> None:
            if device == "cpu":
                run()
                return
            torch.cuda.reset_peak_memory_stats()
            run()
            torch.cuda.synchronize()
            peaks[name] = torch.cuda.max_memory_allocated()

        return way

    def without(made: Any) -> None:
        adapter = Adapter(lm, made.settings)
        with torch.no_grad():
            for document in adapter_documents(made, made.instances):
                adapter.send([document], "assistant_chat")

    tasks = {name: task(f"mir_{n}", keys) for n, (name, keys) in enumerate(ways.items())}
    plain = next(iter(tasks.values()))
    runs = {ALONE: watched(ALONE, lambda: without(plain))}
    for name, made in tasks.items():
        runs[name] = watched(name, lambda made=made: mir_prefill(lm, made.instances))
    with mock.patch("mir_task.harness.requests._conclude", keep):
        seconds = in_turns(runs, repeats=repeats)
    found = {name: found[made.name] for name, made in tasks.items()}
    return {n: Run(taken, found.get(n), peaks.get(n, 0.0)) for n, taken in seconds.items()}


def show(runs: dict[str, Run], documents: int) -> None:
    """Print a table."""
    print(
        f"\n| {documents} documents | seconds | times the adapter | forwards | distances | passes | GB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, run in runs.items():
        ratio, cells = run.seconds / runs[ALONE].seconds, ["", "", ""]
        if run.measured is not None:
            passes = ", ".join(f"{len(p['layers'])} {p['keeps']}" for p in run.measured.plan["passes"])
            cells = [f"{run.measured.log.seconds:.2f}", f"{run.measured.seconds:.2f}", passes]
        peak = f"{run.peak / 1e9:.1f}" if run.peak else ""
        print(f"| {name} | {run.seconds:.2f} | {ratio:.2f} | {' | '.join(cells)} | {peak} |")
    for name, run in runs.items():
        if run.measured is not None:
            stderr = run.measured.result.mir_stderr
            print(f"{name}: MIR {run.measured.result.mir:.9f}, standard error {stderr}")


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"threads: {threads()}, torch {torch.__version__}")
    ways = WAYS if options.device == "cpu" else {**WAYS, **SHORT}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        arguments = checkpoint(Path(folder), options.size, options.layers, options.device)
        runs = measured(arguments, ways, options.documents, options.repeats, options.device)
    show(runs, options.documents)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
