"""What the effective ranks add to the metric stage of one layer: `python -m benchmarks.effective_rank`.

Tokens of `benchmarks.stage` through `MIRMeter`, on one thread. The first documents alone are there
because sums over tokens take the least time then. Both ways run back to back; processor time, and
the median of their ratios.
"""

import statistics
import time
from unittest import mock

import torch

from benchmarks.stage import DOCUMENTS, SIZE, TEXT, VISION, features
from mir_task import MIRMeter

REPEATS = 5


def main() -> None:
    """Print the times and their ratio."""
    torch.set_num_threads(1)
    vision, text = features(0, VISION), features(1, TEXT)

    def seconds(documents: int, groups: int) -> float:
        started = time.process_time()
        meter = MIRMeter(groups=groups)
        for number in range(documents):
            meter.update(number, [vision[number]], [text[number]], group=number)
        meter.compute()
        return time.process_time() - started

    print(f"torch {torch.__version__}, {SIZE} dimensions")
    print("| documents | tokens | groups | seconds without | with | added |")
    print("|---:|---:|---:|---:|---:|---:|")
    for documents, groups in ((DOCUMENTS, 5), (DOCUMENTS, 0), (10, 5), (10, 0), (2, 0), (1, 0)):
        pairs = []
        for _ in range(REPEATS + 1):
            with mock.patch("mir_task.metric.effective_rank", return_value=0.0):
                without = seconds(documents, groups)
            pairs.append((without, seconds(documents, groups)))
        counted = pairs[1:]  # the first round warms up
        without, full = (statistics.median(column) for column in zip(*counted, strict=True))
        added = statistics.median(b / a - 1 for a, b in counted)
        tokens = documents * (VISION + TEXT)
        print(
            f"| {documents} | {tokens} | {groups} | {without:.2f} | {full:.2f} | {added:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
