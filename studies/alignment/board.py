"""Arms of the study once more from their seeds, with caption gain, as a leaderboard.

`python -m studies.alignment.board` pre-trains those that `results/gain.json` lacks (resumable), measures
MIR, caption loss and gain, and writes `results/board.md`, `board.csv` and `board.html` with the
accuracies that are stored. Not all arms: one seed, and no more than 8,000 pairs, if nothing else is
asked for.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from studies.alignment.arms import arms
from studies.alignment.run import RUNS, one_thread
from studies.alignment.train import Arm

RESULTS = RUNS.parent
GAINS = RESULTS / "gain.json"
DOCUMENTS = 200


def gain_of(arm: Arm) -> tuple[str, dict[str, Any]]:
    """An arm's name, and its figures after the same pre-training."""
    import torch

    from studies.alignment import train

    torch.set_num_threads(1)
    model = arm.model()
    train.pretrain(model, arm)
    result = train.measure(model, train.held_out_pairs(), caption_gain=True).to_dict()
    names = ("mir", "caption_loss", "caption_gain", "caption_gain_stderr")
    return arm.name, {name: result[name] for name in names}


def write_board(gains: dict[str, dict[str, Any]]) -> None:
    """The leaderboard of the arms that have a gain, by the command's own functions."""
    from mir_task.reports.leaderboard import WRITERS, board, markdown
    from mir_task.reports.records import read_runs

    with tempfile.TemporaryDirectory() as folder:
        for name, gain in gains.items():
            _write_run(Path(folder), name, gain)
        content = board(read_runs([Path(folder)]))
    for row in content["groups"][0]["rows"]:
        row["file"] = f"runs/{row['model']}.json"
    (RESULTS / "board.md").write_text(f"# Arms with caption gain\n\n{markdown(content)}\n", "utf-8")
    for ending in ("csv", "html"):
        (RESULTS / f"board.{ending}").write_text(WRITERS[ending](content), "utf-8")


def _write_run(folder: Path, name: str, gain: dict[str, Any]) -> None:
    """An arm as the harness would have left it."""
    record = json.loads((RUNS / f"{name}.json").read_text("utf-8"))
    side_file = {
        **record["mir"],
        **{key: value for key, value in gain.items() if key != "mir"},
        "task": "mir_scenes",
        "model": "mir_task.measure",
        "model_args": "",
        "model_name": name,
        "adapter": "mir_task.measure",
        "model_class": "LlavaForConditionalGeneration",
        "hidden_size": 128,
        "hidden_dtype": "float32",
        "placement": "assistant_chat",
        "settings": {},
        "documents": [{"id": str(row), "row": row} for row in range(DOCUMENTS)],
        "versions": {},
    }
    scores = {
        f"accuracy after SFT on {budget}": record["accuracy"][budget]["all"]
        for budget in ("1000", "4000")
    }
    results = {
        "results": {"scenes_vqa": {f"{name},none": value for name, value in scores.items()}},
        "higher_is_better": {"scenes_vqa": dict.fromkeys(scores, True)},
        "config": {"model": "mir_task.measure", "model_args": ""},
        "model_name": name,
    }
    run = folder / name
    run.mkdir()
    start = f"seed{record['arm']['seed']}"
    (run / f"{start}_mir_mir_scenes.json").write_text(json.dumps(side_file), "utf-8")
    (run / f"{start}_results.json").write_text(json.dumps(results), "utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--most_pairs", type=int, default=8000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    gains = json.loads(GAINS.read_text("utf-8")) if GAINS.is_file() else {}
    chosen = [arm for arm in arms() if arm.seed in options.seeds and arm.pairs <= options.most_pairs]
    waiting = [arm for arm in chosen if arm.name not in gains]
    print(f"{len(chosen)} arms, {len(chosen) - len(waiting)} of them done before", flush=True)
    one_thread()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name, gain in pool.imap_unordered(gain_of, waiting):
            gains[name] = gain
            GAINS.write_text(json.dumps(dict(sorted(gains.items())), indent=1) + "\n", "utf-8")
            print(f"[{len(gains)}] {name}: {gain}", flush=True)
    write_board(gains)


if __name__ == "__main__":
    main()
