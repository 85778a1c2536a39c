"""Does the outcome move with pre-training? `python -m studies.decoders.gate --decoder deep`.

Models of the plain recipe with no pictures and with the most that any arm sees, of seeds that no arm
has: accuracy after fine-tuning has to rise by ten standard errors, over held-out pictures.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from studies.alignment.run import one_thread
from studies.decoders.recipes import DECODERS, OTHER_SEEN, Recipe, reference
from studies.decoders.run import RESULTS

SEEDS = (100, 101, 102)
STANDARD_ERRORS = 10


def score_of(
    recipe: Recipe, data: Path | None, device: str, *, bfloat16: bool = False
) -> dict[str, Any]:
    """Outcome of a recipe, in float32 or with the products of bfloat16."""
    import torch

    from studies.decoders import arm

    if device == "cpu":
        torch.set_num_threads(1)
    family = arm.family(recipe.decoder, data, device)
    reader, _ = arm.pretrain(recipe, family, device, bfloat16=bfloat16)
    with arm.products(device, bfloat16=bfloat16):
        return {
            "seen": recipe.seen,
            "seed": recipe.seed,
            "caption_loss": arm.caption_figures(reader, family, "full")[0]["caption_loss"],
            **arm.outcome(reader, recipe, family),
        }


def rise(before: list[list[int]], after: list[list[int]], questions: int) -> tuple[float, float]:
    """Rise of accuracy, and its standard error over pictures.

    Args:
        before: right or wrong of each question [seed][question].
        after: the same after more pre-training.
        questions: that each picture has, which stand together.
    """
    change = np.mean(after, 0) - np.mean(before, 0)
    pictures = change.reshape(-1, questions).mean(1)
    return float(pictures.mean()), float(pictures.std(ddof=1) / len(pictures) ** 0.5)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", choices=DECODERS, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 1, max(OTHER_SEEN)], help="of n")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="faster and less exact products")
    parser.add_argument("--data", type=Path, help="folder of smollm2's weights and pictures")
    options = parser.parse_args()
    shares = sorted(options.shares)
    chosen = [
        reference(options.decoder, seed, share) for share in shares[::-1] for seed in options.seeds
    ]
    one_thread()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        one = functools.partial(
            score_of, data=options.data, device=options.device, bfloat16=options.bfloat16
        )
        futures = [pool.submit(one, recipe) for recipe in chosen]
        for future in as_completed(futures):
            shown = {key: each for key, each in future.result().items() if not key.endswith("bits")}
            print(json.dumps(shown), flush=True)
        found = [future.result() for future in futures]
    verdict: dict[str, Any] = {"decoder": options.decoder, "bfloat16": options.bfloat16}
    questions = 1 if options.decoder == "smollm2" else 7
    for kind in ("", "prior_corrected_"):
        bits: dict[int, list[list[int]]] = {}
        for one in found:
            if kind + "bits" in one:
                bits.setdefault(one["seen"], []).append(one.pop(kind + "bits"))
        if bits:
            sizes = sorted(bits)
            points, error = rise(bits[sizes[0]], bits[sizes[-1]], questions)
            verdict |= {f"{kind}rise": points, f"{kind}stderr": error}
            verdict[f"{kind}standard_errors"] = points / error
    RESULTS.mkdir(exist_ok=True)
    record = {**verdict, "runs": found}
    (RESULTS / f"gate-{options.decoder}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(verdict))
    if verdict["standard_errors"] < STANDARD_ERRORS:
        sys.exit(f"below the gate of {STANDARD_ERRORS} standard errors")


if __name__ == "__main__":
    main()
