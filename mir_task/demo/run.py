"""Run `mir_demo` and `demo_vqa` on a checkpoint made on the spot: `mir-task demo`."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import click

from mir_task.demo.checkpoint import make_llava
from mir_task.errors import MIRError


def run(folder: Path) -> None:
    """Run the demo into `folder`, print the harness's table and where the files are.

    Raises:
        MIRError: the harness wrote no results.
    """
    from transformers.utils import logging

    if importlib.util.find_spec("decord") is None:
        raise MIRError(
            "the harness's adapter llava_hf imports decord, which is not installed: "
            "pip install 'mir-task[llava-hf]'"
        )
    checkpoint, output, log = folder / "llava-demo", folder / "results", folder / "lmms-eval.log"
    logging.disable_progress_bar()
    make_llava(checkpoint)
    before = set(output.rglob("*"))
    command = [
        *("lmms-eval", "--tasks", "mir_demo,demo_vqa", "--model", "llava_hf"),
        *("--model_args", f"pretrained={checkpoint},device=cpu,device_map=cpu"),
        *("--output_path", str(output)),
    ]
    click.echo(f"$ {' '.join(command)}")
    with log.open("w") as lines:
        subprocess.run(
            # The harness of this very environment, activated or not.
            [sys.executable, "-m", "lmms_eval", *command[1:]],
            stdout=lines,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,  # the harness exits with 0 whatever happens
        )
    text = log.read_text(errors="replace")
    written = sorted(path for path in output.rglob("*") if path.is_file() and path not in before)
    if not any(path.name.endswith("_results.json") for path in written):
        raise MIRError(f"{text[-3000:]}\nthe harness wrote no results; its log is {log}")
    table = itertools.takewhile(
        lambda line: line.startswith("|"),
        itertools.dropwhile(lambda line: not line.startswith("|"), text.splitlines()),
    )
    click.echo("\n".join(["", *table, "", "Written:", *(f"  {path}" for path in [*written, log])]))
