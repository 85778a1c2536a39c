"""Run the study: `python -m studies.alignment.run` (resumable; `--questions a` for some of it).

One-thread processes side by side; each arm's JSON is written when the arm is done, and an arm that has
one is not run again. Pre-trained connectors are kept in `--checkpoints` for the evaluation inputs.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

from studies.alignment.arms import QUESTIONS, arms
from studies.alignment.train import Arm

RUNS = Path(__file__).with_name("results") / "runs"
CHECKPOINTS = Path(__file__).with_name("checkpoints")


def run_one(arm: Arm, runs: Path, checkpoints: Path) -> str:
    """Run an arm and write its JSON; a line that says how it went."""
    import torch
    from safetensors.torch import save_file

    from studies.alignment import train

    torch.set_num_threads(1)
    record, model = train.run(arm)
    checkpoints.mkdir(parents=True, exist_ok=True)
    save_file(model.model.multi_modal_projector.state_dict(), checkpoints / f"{arm.name}.safetensors")
    runs.mkdir(parents=True, exist_ok=True)
    unfinished = runs / f".{arm.name}.json"
    unfinished.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    unfinished.rename(runs / f"{arm.name}.json")
    scores = " ".join(f"{budget}: {score['all']:.3f}" for budget, score in record["accuracy"].items())
    seconds = sum(record["seconds"].values())
    return f"{arm.name}: MIR {record['mir']['mir']:.4f}, accuracy after SFT {scores}, {seconds:.0f} s"


def one_thread() -> None:
    """Have the processes that are started from here on use one thread each for BLAS and OpenMP."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", default="".join(QUESTIONS), help="letters; all by default")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the JSON files")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()
    chosen = arms(options.questions)
    waiting = [arm for arm in chosen if not (options.runs / f"{arm.name}.json").is_file()]
    print(f"{len(chosen)} arms, {len(chosen) - len(waiting)} of them done before", flush=True)
    one_thread()
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        results = [
            pool.apply_async(run_one, (arm, options.runs, options.checkpoints)) for arm in waiting
        ]
        for number, result in enumerate(results, start=1):
            line = result.get()
            minutes = (time.perf_counter() - started) / 60
            print(f"[{number}/{len(waiting)}, {minutes:.0f} min] {line}", flush=True)


if __name__ == "__main__":
    main()
