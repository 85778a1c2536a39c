"""Times of several ways in one process, taken in turns."""

import os
import statistics
import time
from collections.abc import Callable

import torch


def threads() -> int:
    """Set torch's threads to the cores at hand and return their number."""
    torch.set_num_threads(os.cpu_count() or 1)
    return torch.get_num_threads()


def in_turns(
    ways: dict[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    again: bool = False,
) -> dict[str, float]:
    """Median seconds of each way, after one round that is not counted, the ways taken in turns.

    With `again`, each runs twice in a row and the second run counts, as of layer after layer: what ran
    before leaves memory and threads as they suit it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            if again:
                way()
            started = clock()
            way()
            if number:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
