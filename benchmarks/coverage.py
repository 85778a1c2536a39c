"""How often the interval of `mir_stderr` holds the true value: `python -m benchmarks.coverage`.

Documents are drawn from a population in which tokens of one document resemble each other. The truth is
the mean of MIR over all resamples of that size: what the interval speaks of is the spread between draws,
not the bias that few tokens bring, which is printed beside it (against 40 times as many documents).
"""

import math

import torch
from scipy import stats

from benchmarks.timing import threads
from mir_task import MIRMeter

SIZE, TOKENS, RESAMPLES = 32, 24, 500


class Population:
    """Documents of two layers, each with its own shift of both modalities."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.mixing = [torch.randn(SIZE, SIZE, generator=self.generator) / SIZE**0.5 for _ in range(4)]
        self.centres = [0.3 * torch.randn(SIZE, generator=self.generator) for _ in range(4)]

    def rows(self, which: int) -> torch.Tensor:
        """Tokens [24, 32] of one document."""
        common = 0.7 * torch.randn(1, SIZE, generator=self.generator)
        own = torch.randn(TOKENS, SIZE, generator=self.generator)
        return (common + own) @ self.mixing[which] + self.centres[which]

    def measure(self, documents: int, groups: int) -> tuple[float, float | None]:
        """MIR of a draw and its standard error."""
        meter = MIRMeter(groups=groups)
        for number in range(documents):
            meter.update(
                number, [self.rows(0), self.rows(1)], [self.rows(2), self.rows(3)], group=number
            )
        result = meter.compute()
        return result.mir, result.mir_stderr


def main() -> None:
    """Print coverage for some numbers of groups."""
    print(f"threads: {threads()}, {RESAMPLES} resamples of 100 documents")
    limit, _ = Population().measure(4000, 0)
    print("| groups | coverage, Student's t | coverage, 1.96 | mean stderr | true spread | bias |")
    print("|---:|---:|---:|---:|---:|---:|")
    for groups in (5, 10, 20):
        population = Population()
        draws = [population.measure(100, groups) for _ in range(RESAMPLES)]
        values = torch.tensor([value for value, _ in draws])
        errors = torch.tensor([error or math.nan for _, error in draws])
        off = (values - values.mean()).abs()
        student = stats.t.ppf(0.975, groups - 1)
        covered = [(off <= factor * errors).double().mean() for factor in (student, 1.96)]
        print(
            f"| {groups} | {covered[0]:.3f} | {covered[1]:.3f} | {errors.mean():.4f} | "
            f"{values.std():.4f} | {values.mean() - limit:+.4f} |"
        )


if __name__ == "__main__":
    main()
