"""How often the interval of `mir-task compare` holds the true difference: `python -m benchmarks.paired`.

Two models see the same documents, whose tokens resemble each other within a document; each maps them by
a mixing of its own and moves the modalities apart by a shift of its own. The truth is the difference on
40 times as many documents.
"""

from pathlib import Path

import torch

from benchmarks.timing import threads
from mir_task import MIRMeter, MIRResult
from mir_task.reports.compare import Comparison, compare
from mir_task.reports.ground import Ground
from mir_task.reports.records import Model, Record

SIZE, TOKENS, DOCUMENTS, GROUPS, RESAMPLES, LAYERS = 16, 48, 100, 5, 200, 2


class Models:
    """Two models of two layers on one stream of documents."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        maps = 2 * LAYERS
        shared = [self._normal(SIZE, SIZE) / SIZE**0.5 for _ in range(maps)]
        own = [[self._normal(SIZE, SIZE) / SIZE**0.5 for _ in range(maps)] for _ in range(2)]
        self.mixings = [[0.9 * s + 0.4 * o for s, o in zip(shared, of, strict=True)] for of in own]
        centres = [0.5 * self._normal(SIZE) for _ in range(maps)]
        self.centres = [centres, [1.05 * centre for centre in centres]]

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def document(self) -> list[list[torch.Tensor]]:
        """Tokens [48, 16] of one document, a list for each model: vision of each layer, then text."""
        latent = [0.7 * self._normal(1, SIZE) + self._normal(TOKENS, SIZE) for _ in range(2 * LAYERS)]
        return [
            [rows @ mixing + centre for rows, mixing, centre in zip(latent, *parts, strict=True)]
            for parts in zip(self.mixings, self.centres, strict=True)
        ]

    def measure(self, documents: int, groups: int) -> list[MIRResult]:
        """MIR of both models on one draw."""
        meters = [MIRMeter(groups=groups) for _ in range(2)]
        for number in range(documents):
            for meter, rows in zip(meters, self.document(), strict=True):
                meter.update(number, rows[:LAYERS], rows[LAYERS:], group=number)
        return [meter.compute() for meter in meters]


def compared(results: list[MIRResult]) -> Comparison:
    """What the command makes of two results."""
    rows = {str(number): number for number in range(DOCUMENTS)}
    ground = Ground("paired", "image", tuple(rows), "whole texts", "none", "replace", LAYERS, SIZE)
    records = [
        Record(Path(), "", Model("", name, frozenset()), "", r.mir, r.mir_stderr, None, ground, r, rows)
        for name, r in zip("ab", results, strict=True)
    ]
    return compare(*records)


def main() -> None:
    """Print how many intervals hold the difference of many documents."""
    print(f"threads: {threads()}, {RESAMPLES} resamples of {DOCUMENTS} documents, {GROUPS} groups")
    models = Models()
    first, second = models.measure(40 * DOCUMENTS, 0)
    truth = second.mir - first.mir
    draws = [compared(models.measure(DOCUMENTS, GROUPS)) for _ in range(RESAMPLES)]
    off = torch.tensor([draw.difference for draw in draws])
    held = sum(low <= truth <= high for low, high in (draw.interval or (0, 0) for draw in draws))
    errors = torch.tensor([draw.error.stderr for draw in draws if draw.error])
    alone = torch.tensor([draw.first.mir_stderr or 0.0 for draw in draws])
    print(
        "| intervals that hold it | difference of 4,000 documents | mean difference | true spread "
        "| mean stderr, paired | stderr of one model |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {held} of {RESAMPLES} | {truth:+.4f} | {off.mean():+.4f} | {off.std():.4f} | "
        f"{errors.mean():.4f} | {alone.mean():.4f} |"
    )


if __name__ == "__main__":
    main()
