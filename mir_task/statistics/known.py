"""What a first pass over the tokens of one layer and modality tells the second."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mir_task.statistics import medians


class Bounds(NamedTuple):
    """Norms between which a token is no outlier: median - 3 std and median + 3 std."""

    low: float
    high: float

    @classmethod
    def of(cls, norms: Tensor) -> "Bounds":
        """From the norms [n] of all tokens: lower median and unbiased standard deviation."""
        middle, spread = float(norms.median()), 3 * float(norms.std()) if len(norms) > 1 else 0.0
        return cls(middle - spread, middle + spread)

    def inside(self, norms: Tensor) -> Tensor:
        """True where a norm [n] is within the bounds."""
        return (norms >= self.low) & (norms <= self.high)


class Group(NamedTuple):
    """The tokens of one group of documents."""

    tokens: int
    outliers: int
    norms: float
    """Sum of their raw L2 norms."""


class Known(NamedTuple):
    """What is known of the tokens of one layer and modality after the first pass, on every process."""

    bounds: Bounds
    groups: Mapping[int, Group]
    centre: Tensor
    """float64 [d], near the mean: medians of the sample."""
    thresholds: Tensor
    """[q, d] around the medians, in the dtype of the rows."""
    sample: Tensor | None = None
    """Raw float32 rows [n, d] of the sample on the CPU, lowest priority first, where asked for."""

    @classmethod
    def of(cls, norms: Mapping[int, Tensor], sample: Tensor, *, keep: int = 0) -> "Known":
        """What the first pass tells.

        Args:
            norms: [n] of all tokens by group of documents, on the CPU.
            sample: rows [n, d] of these tokens, lowest priority first.
            keep: rows of the sample to keep.
        """
        bounds = Bounds.of(torch.cat(list(norms.values())))
        groups = {
            group: Group(len(n), int((~bounds.inside(n)).sum()), float(n.sum()))
            for group, n in sorted(norms.items())
        }
        thresholds = medians.around(sample)
        centre = thresholds[len(medians.QUANTILES) // 2].double()
        return cls(bounds, groups, centre, thresholds, sample[:keep].float().cpu() if keep else None)

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(group.tokens for group in self.groups.values())

    @property
    def outliers(self) -> int:
        """Tokens out of bounds."""
        return sum(group.outliers for group in self.groups.values())

    def without(self, left_out: int | None) -> Group:
        """All tokens but those of one group."""
        kept = [part for group, part in self.groups.items() if group != left_out]
        return (
            Group(*(sum(numbers) for numbers in zip(*kept, strict=True))) if kept else Group(0, 0, 0.0)
        )
