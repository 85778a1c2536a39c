"""`mir-task demo`: the harness on a checkpoint made on the spot, and a leaderboard of three more.

The three are small LLaVAs of `studies/alignment`, which differ in how long their connector was
pre-trained; `mir-task zoo` measures MIR and the accuracy of their answers.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from mir_task.errors import MIRError
from mir_task.progress import last_line, telling

_ACCURACY = "scenes_vqa accuracy"


def run(folder: Path) -> None:
    """Run the demo into `folder`, print the harness's table, the leaderboard, and where the files are.

    Raises:
        MIRError: the harness wrote no results.
    """
    if importlib.util.find_spec("decord") is None:
        raise MIRError(
            "the harness's adapter llava_hf imports decord, which is not installed: "
            "pip install 'mir-task[llava-hf]'"
        )
    with telling("Writing a model with random weights and three small trained ones"):
        from transformers.utils import logging

        from mir_task.demo.checkpoint import make_llava
        from mir_task.demo.models import write_models

        logging.disable_progress_bar()
        checkpoint = make_llava(folder / "llava-demo")
        models = write_models(folder / "scenes")
    random_weights(folder, checkpoint)
    runs = leaderboard(folder / "scenes", models)
    page = folder / "board.html"
    click.echo("\n".join(["", *guide(_board(runs, page), page)]))


def random_weights(folder: Path, checkpoint: Path) -> None:
    """`mir_demo` and a benchmark on a model with random weights, by the harness's command.

    Raises:
        MIRError: the harness wrote no results.
    """
    output, log = folder / "results", folder / "lmms-eval.log"
    before = set(output.rglob("*"))
    command = [
        *("lmms-eval", "--tasks", "mir_demo,demo_vqa", "--model", "llava_hf"),
        *("--model_args", f"pretrained={checkpoint},device=cpu,device_map=cpu"),
        *("--output_path", str(output)),
    ]
    click.echo(f"$ {' '.join(command)}")
    with log.open("w") as lines, telling("lmms-eval", lambda: last_line(log)):
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


def leaderboard(folder: Path, models: Sequence[Path]) -> Path:
    """MIR and accuracy of the three checkpoints, by `mir-task zoo`, which ends with a leaderboard.

    Returns:
        Folder of the results.

    Raises:
        MIRError: a run failed.
    """
    entries = [
        {
            "model": "llava_hf",
            "model_args": f"pretrained={checkpoint},device=cpu,device_map=cpu",
            "tasks": "mir_scenes,scenes_vqa",
        }
        for checkpoint in models
    ]
    (folder / "models.yaml").write_text(yaml.safe_dump(entries), "utf-8")
    command = ["mir-task", "zoo", str(folder / "models.yaml"), "--output_path", str(folder / "runs")]
    click.echo(f"$ {' '.join(command)}")
    if _run([sys.executable, "-m", "mir_task", *command[1:]], check=False).returncode:
        raise MIRError(f"{' '.join(command)} failed")
    return folder / "runs"


def _board(runs: Path, page: Path) -> dict[str, Any]:
    """The leaderboard of some results as plain values, which is also written as a page."""
    values = page.with_suffix(".json")
    command = ["mir-task", "leaderboard", str(runs), "--html", str(page), "--json", str(values)]
    with telling(f"$ {' '.join(command)}"):
        start = [sys.executable, "-m", "mir_task"]
        done = _run([*start, *command[1:]], check=False, capture_output=True, text=True)
    if done.returncode:
        raise MIRError(f"{' '.join(command)} failed: {done.stderr}")
    return dict(json.loads(values.read_text("utf-8")))


def guide(board: Mapping[str, Any], page: Path) -> list[str]:
    """Three lines: what to look at, why rank 1 is what it is, and what to do next."""
    rows = board["groups"][0]["rows"]

    def order(value: Callable[[Any], float]) -> list[str]:
        return [Path(row["model"]).name for row in sorted(rows, key=value, reverse=True)]

    by_mir, by_gain = order(lambda row: -row["mir"]), order(lambda row: row["caption_gain"])
    by_accuracy = order(lambda row: row["benchmarks"][_ACCURACY])
    gains = ", ".join(f"{row['caption_gain']:.4f}" for row in rows)
    right = {True: "as their accuracy does", False: "otherwise than their accuracy"}
    return [
        f"Look at {page.absolute()} in a browser: three models by MIR, beside caption gain and the "
        "accuracy of their answers.",
        f"Rank 1 is {by_mir[0]!r} because its vision tokens lie nearest to the text tokens (MIR "
        f"{rows[0]['mir']:.4f}), though by accuracy it is number {by_accuracy.index(by_mir[0]) + 1} of "
        f"{len(rows)}: MIR orders these models {right[by_mir == by_accuracy]}, and caption gain "
        f"({gains}; higher is better) {right[by_gain == by_accuracy]}.",
        "Next, your own model: `mir-task check --model llava_hf --model_args pretrained=PATH` says what "
        "would be measured, `mir-task tasks` lists the tasks, and `lmms-eval --tasks mir_scenes "
        "--model llava_hf --model_args pretrained=PATH --output_path out` measures it.",
    ]


def _run(command: Sequence[str], **options: object) -> "subprocess.CompletedProcess[str]":
    # Several threads stand in each other's way in models this small.
    environment: Mapping[str, str] = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, **options)  # type: ignore[call-overload, no-any-return]
