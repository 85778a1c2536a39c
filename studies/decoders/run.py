"""Run the arms: `python -m studies.decoders.run --decoder deep wide` (resumable).

Processes side by side, on the cores or on one card (`--device cuda --processes 4`). Each arm that is
done is a line of `results/<decoder>.jsonl`, and an arm that has one is not run again. With `--minutes 9`
no arm is begun that would not end in time, by the longest so far: slices for a machine that is lent.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from studies.alignment.run import one_thread
from studies.decoders.recipes import DECODERS, Decoder, Recipe, recipes

RESULTS = Path(__file__).with_name("results")
STATISTICS = Path(__file__).with_name("statistics")
"""Not in the repository: about 30 MB an arm. Their digests are in the arms' lines."""
SLOWEST = 120.0
"""Seconds an arm is taken to need before one has been seen."""


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of arms by the arm's name; a line that was cut off while it was written does not count.

    Args:
        path: of the JSON lines; it need not exist.
    """
    found = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[Recipe(**record["recipe"]).name] = record
    return found


def append(path: Path, record: dict[str, Any]) -> None:
    """Write an arm's line, on a line of its own even where the one before was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def run_one(
    recipe: Recipe, statistics: Path, data: Path | None, device: str, bfloat16: bool
) -> dict[str, Any]:
    """One arm, in a process of its own."""
    import torch

    from studies.decoders import arm

    if device == "cpu":
        torch.set_num_threads(1)
    statistics.mkdir(parents=True, exist_ok=True)
    family = arm.family(recipe.decoder, data, device)
    return arm.run(recipe, family, statistics, device, bfloat16=bfloat16)


def run(
    waiting: list[Recipe],
    results: Path,
    statistics: Path,
    *,
    data: Path | None = None,
    device: str = "cpu",
    bfloat16: bool = False,
    processes: int = 1,
    minutes: float | None = None,
) -> int:
    """Run arms side by side; how many were done.

    Args:
        waiting: arms, in the order in which they are begun.
        results: folder of the JSON lines.
        statistics: folder of the sufficient statistics.
        data: folder of the real decoder's weights and pictures.
        device: "cpu", or a card that all processes share.
        bfloat16: whether products are in bfloat16 where MIR is not measured.
        processes: side by side.
        minutes: of the slice.
    """
    one_thread()
    started, slowest, done = time.perf_counter(), SLOWEST, 0
    queue, running = list(waiting), dict[Future[dict[str, Any]], tuple[Recipe, float]]()

    def minutes_left() -> float:
        return float("inf") if minutes is None else minutes - (time.perf_counter() - started) / 60

    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while queue or running:
            while queue and len(running) < processes and minutes_left() * 60 > slowest:
                recipe = queue.pop(0)
                future = pool.submit(run_one, recipe, statistics, data, device, bfloat16)
                running[future] = recipe, time.perf_counter()
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                recipe, begun = running.pop(future)
                record = future.result()
                append(results / f"{recipe.decoder}.jsonl", record)
                done, seconds = done + 1, time.perf_counter() - begun
                slowest = seconds if slowest == SLOWEST else max(slowest, seconds)
                passed = (time.perf_counter() - started) / 60
                line = f"[{done}/{len(waiting)}, {passed:.1f} min] {recipe.name}: {seconds:.0f} s"
                print(line, flush=True)
    return done


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decoder", nargs="+", choices=DECODERS, default=["deep", "wide"])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, help="of the slice; without end by default")
    parser.add_argument("--device", default="cpu", help="cpu, or the card that all processes share")
    parser.add_argument("--bfloat16", action="store_true", help="faster and less exact products")
    parser.add_argument("--data", type=Path, help="folder of smollm2's weights and pictures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON lines")
    parser.add_argument("--statistics", type=Path, default=STATISTICS)
    parser.add_argument("--arms", nargs="*", help="names, to run these and no others")
    options = parser.parse_args()
    chosen: list[Recipe] = []
    decoders: list[Decoder] = options.decoder
    for decoder in decoders:
        known = read(options.results / f"{decoder}.jsonl")
        every = recipes(decoder)
        named = [one for one in every if not options.arms or one.name in options.arms]
        waiting = [one for one in named if one.name not in known]
        print(
            f"{decoder}: {len(named)} arms, {len(named) - len(waiting)} of them done before", flush=True
        )
        chosen += waiting
    chosen.sort(key=lambda one: -one.seen)  # the long ones first, so that processes end together
    done = run(
        chosen,
        options.results,
        options.statistics,
        data=options.data,
        device=options.device,
        bfloat16=options.bfloat16,
        processes=options.processes,
        minutes=options.minutes,
    )
    if done < len(chosen):
        print(f"{len(chosen) - done} arms are left; the same command goes on with them", flush=True)


if __name__ == "__main__":
    main()
