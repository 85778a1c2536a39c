"""All that is to be known of one GPU, in under ten minutes: `python -m benchmarks.gpu`.

`benchmarks.overhead` of the 7B shape; the value on the GPU against the one on the host, of four layers;
the root term; and the metric stage of one layer. `--size 256 --device cpu` tries the script itself on a
machine without a GPU, where its figures say nothing.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.overhead import SHORT, WAYS, checkpoint, measured, show

HOST_LAYERS = 4


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device, documents = options.device, options.documents
    name = torch.cuda.get_device_name(device) if device != "cpu" else "no GPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = checkpoint(Path(folder), options.size, 32 if device != "cpu" else 4, device)
        runs = measured(arguments, {**WAYS, **SHORT}, documents, 1, device)
    show(runs, documents)
    first, *others = (run.measured.result.mir for run in runs.values() if run.measured is not None)
    print(f"largest difference of values: {max(abs(mir - first) for mir in others):.1e}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = checkpoint(Path(folder), options.size, HOST_LAYERS, device)
        ways = {"GPU": {}, "host": {"mir_accelerator_memory": 0.0}}
        runs = measured(arguments, ways, min(documents, 20), 1, device)
    show(runs, min(documents, 20))
    values = [run.measured.result.mir for run in runs.values() if run.measured is not None]
    print(f"GPU and host differ by {abs(values[0] - values[1]):.1e}", flush=True)
    sizes = [str(options.size // 2), str(options.size)]
    for module, more in (("kernel", sizes), ("stage", ["--size", sizes[1]])):
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", *more, "--device", device], check=True
        )


if __name__ == "__main__":
    main()
