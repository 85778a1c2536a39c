"""`mir-task zoo` killed at random instants: `python -m benchmarks.kills [TIMES]`.

Three small models on a few documents. The command gets SIGKILL after a random time, is started again,
and so on; whenever a batch gets whole, its values are laid beside those of an undisturbed one and the
next batch begins in a new folder.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from mir_task.demo.checkpoint import make_llava

LONGEST = 45.0
"""Seconds until a kill at most; about as long as a batch takes."""


def command(models: Path, output: Path) -> list[str]:
    """That goes on with a batch."""
    return [
        sys.executable,
        "-m",
        "mir_task.commands.cli",
        "zoo",
        str(models),
        "--output_path",
        str(output),
    ]


def values(output: Path) -> dict[str, float]:
    """MIR by model."""
    reports = [json.loads(path.read_text()) for path in output.rglob("*_mir_mir_demo.json")]
    return {Path(report["model_name"]).name: report["mir"] for report in reports}


def main() -> None:
    """Print a line for each kill, and whether the values are the same."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        entries = []
        for seed in range(3):
            checkpoint = root / f"model-{seed}"
            make_llava(checkpoint, hidden_size=32, layers=2, image_size=56, seed=seed)
            arguments = f"pretrained={checkpoint},device=cpu,device_map=cpu"
            entries.append(
                {"model": "llava_hf", "model_args": arguments, "tasks": "mir_demo", "limit": 4}
            )
        models = root / "models.yaml"
        models.write_text(yaml.safe_dump(entries))
        subprocess.run(command(models, root / "whole"), check=True, capture_output=True)
        wanted = values(root / "whole")
        batch, same = 0, 0
        for number in range(1, times + 1):
            output = root / f"batch-{batch}"
            process = subprocess.Popen(
                command(models, output), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            instant = generator.uniform(0, LONGEST)
            started = time.monotonic()
            try:
                process.wait(instant)
                what = f"whole after {time.monotonic() - started:.0f} s"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                what = f"killed after {instant:.1f} s"
            print(f"{number:2d}  batch {batch}: {what}", flush=True)
            if process.returncode == 0:
                same += values(output) == wanted
                batch += 1
        output = root / f"batch-{batch}"
        subprocess.run(command(models, output), check=True, capture_output=True)
        same += values(output) == wanted
        print(f"\n{same} of {batch + 1} batches have the values of the undisturbed one")


if __name__ == "__main__":
    main()
