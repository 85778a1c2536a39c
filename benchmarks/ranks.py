"""Wall time of `mir_demo` on 1, 2 and 3 processes of one thread each: `python -m benchmarks.ranks`.

Of a run it is the time that the side file gives: the forwards, and merging and computing.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mir_task.demo.checkpoint import make_llava

REPEATS = 3


def run(checkpoint: Path, output: Path, processes: int) -> dict[str, float]:
    """Seconds and MIR of one run of the command."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node", str(processes), "-m", "lmms_eval", "--tasks", "mir_demo"),
        *("--model", "llava_hf", "--output_path", str(output)),
        *("--model_args", f"pretrained={checkpoint},device=cpu,device_map=cpu"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (side,) = output.rglob("*_mir_mir_demo.json")
    report = json.loads(side.read_text())
    return {**report["seconds"], "mir": report["mir"]}


def main() -> None:
    """Print the table."""
    rows: dict[int, list[dict[str, float]]] = {1: [], 2: [], 3: []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_llava(Path(folder) / "llava", hidden_size=512, layers=6, image_size=224)
        for number in range(REPEATS):
            for processes, runs in rows.items():
                runs.append(run(checkpoint, Path(folder) / f"{number}-{processes}", processes))
    print(f"cores: {os.cpu_count()}\n")
    print("| processes | forwards, s | merging and computing, s | times faster | MIR |")
    print("|---:|---:|---:|---:|---:|")
    totals = {
        n: statistics.median(r["forwards"] + r["metric"] for r in runs) for n, runs in rows.items()
    }
    for processes, runs in rows.items():
        forwards, metric = (statistics.median(r[key] for r in runs) for key in ("forwards", "metric"))
        faster = totals[1] / totals[processes]
        print(f"| {processes} | {forwards:.1f} | {metric:.1f} | {faster:.2f} | {runs[0]['mir']:.8f} |")


if __name__ == "__main__":
    main()
