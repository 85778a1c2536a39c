"""Run `mir_demo` and `demo_vqa` on a checkpoint made on the spot: `python -m mir_task.demo`."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from transformers.utils import logging as transformers_logging

from mir_task.demo.checkpoint import make_llava


def run(folder: Path) -> int:
    """Run the demo into `folder`, print the harness's table and where the files are.

    Returns:
        0 when done, 1 when the harness wrote no results.
    """
    checkpoint, output, log = folder / "llava-demo", folder / "results", folder / "lmms-eval.log"
    transformers_logging.disable_progress_bar()
    make_llava(checkpoint)
    shutil.rmtree(output, ignore_errors=True)
    command = [
        *("lmms-eval", "--tasks", "mir_demo,demo_vqa", "--model", "llava_hf"),
        *("--model_args", f"pretrained={checkpoint},device=cpu,device_map=cpu"),
        *("--output_path", str(output)),
    ]
    print("$", " ".join(command), flush=True)
    # The harness as the command of this very environment, activated or not.
    program = [sys.executable, "-m", "lmms_eval", *command[1:]]
    with log.open("w") as lines:
        subprocess.run(
            program,
            stdout=lines,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,  # the harness exits with 0 whatever happens
        )
    text = log.read_text(errors="replace")
    written = sorted(path for path in output.rglob("*") if path.is_file())
    if not any(path.name.endswith("_results.json") for path in written):
        print(text[-5000:], f"\nThe harness wrote no results; its log is {log}", file=sys.stderr)
        return 1
    table = [line for line in text.splitlines() if line.startswith("|")]
    print("", *table[: _rows(table)], "", sep="\n")
    print("Written:", *written, log, sep="\n  ")
    return 0


def _rows(table: list[str]) -> int:
    """Lines of the first table: those as wide as its first line."""
    return next((n for n, line in enumerate(table) if len(line) != len(table[0])), len(table))


def main() -> int:
    """Command line: where to put checkpoint, results and log."""
    parser = argparse.ArgumentParser(prog="python -m mir_task.demo", description=run.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-output"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    return run(folder)


if __name__ == "__main__":
    sys.exit(main())
