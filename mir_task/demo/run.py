"""`mir-task demo`: the harness on a checkpoint made on the spot, and a leaderboard of three more.

The three are small LLaVAs of `studies/alignment`, which differ in how long their connector was
pre-trained; `mir-task zoo` measures MIR and the accuracy of their answers.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import yaml

from mir_task.demo.checkpoint import make_llava
from mir_task.demo.models import write_models
from mir_task.errors import MIRError


def run(folder: Path) -> None:
    """Run the demo into `folder`, print the harness's table, the leaderboard, and where the files are.

    Raises:
        MIRError: the harness wrote no results.
    """
    from transformers.utils import logging

    if importlib.util.find_spec("decord") is None:
        raise MIRError(
            "the harness's adapter llava_hf imports decord, which is not installed: "
            "pip install 'mir-task[llava-hf]'"
        )
    logging.disable_progress_bar()
    random_weights(folder)
    leaderboard(folder / "scenes")


def random_weights(folder: Path) -> None:
    """`mir_demo` and a benchmark on a model with random weights, by the harness's command.

    Raises:
        MIRError: the harness wrote no results.
    """
    checkpoint, output, log = folder / "llava-demo", folder / "results", folder / "lmms-eval.log"
    make_llava(checkpoint)
    before = set(output.rglob("*"))
    command = [
        *("lmms-eval", "--tasks", "mir_demo,demo_vqa", "--model", "llava_hf"),
        *("--model_args", f"pretrained={checkpoint},device=cpu,device_map=cpu"),
        *("--output_path", str(output)),
    ]
    click.echo(f"$ {' '.join(command)}")
    with log.open("w") as lines:
        # The harness of this very environment, activated or not; it exits with 0 after most failures.
        start = [sys.executable, "-m", "lmms_eval"]
        _run([*start, *command[1:]], stdout=lines, stderr=subprocess.STDOUT, check=False)
    text = log.read_text(errors="replace")
    written = sorted(path for path in output.rglob("*") if path.is_file() and path not in before)
    if not any(path.name.endswith("_results.json") for path in written):
        raise MIRError(f"{text[-3000:]}\nthe harness wrote no results; its log is {log}")
    table = itertools.takewhile(
        lambda line: line.startswith("|"),
        itertools.dropwhile(lambda line: not line.startswith("|"), text.splitlines()),
    )
    click.echo("\n".join(["", *table, "", "Written:", *(f"  {path}" for path in [*written, log]), ""]))


def leaderboard(folder: Path) -> None:
    """MIR and accuracy of the three checkpoints, by `mir-task zoo`, which ends with a leaderboard.

    Raises:
        MIRError: a run failed.
    """
    entries = [
        {
            "model": "llava_hf",
            "model_args": f"pretrained={checkpoint},device=cpu,device_map=cpu",
            "tasks": "mir_scenes,scenes_vqa",
        }
        for checkpoint in write_models(folder)
    ]
    (folder / "models.yaml").write_text(yaml.safe_dump(entries), "utf-8")
    command = ["mir-task", "zoo", str(folder / "models.yaml"), "--output_path", str(folder / "runs")]
    click.echo(f"$ {' '.join(command)}")
    if _run([sys.executable, "-m", "mir_task", *command[1:]], check=False).returncode:
        raise MIRError(f"{' '.join(command)} failed")


def _run(command: Sequence[str], **options: object) -> "subprocess.CompletedProcess[bytes]":
    # Several threads stand in each other's way in models this small.
    environment: Mapping[str, str] = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, **options)  # type: ignore[call-overload, no-any-return]
