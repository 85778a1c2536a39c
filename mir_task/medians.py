"""Medians of rows that are not kept, from counts of how many lie below some thresholds.

The counts of disjoint sets of rows add up, and those of several sets of thresholds are put together.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from mir_task import halves
from mir_task.halves import Array

_QUANTILES = (0.3, 0.45, 0.5, 0.55, 0.7)
_LIMITS = len(_QUANTILES)
# As many rows as 16 bits can count, which are added up faster than 64.
_MOST = 2**15 - 1


class MedianCounts:
    """How many rows lie at or below each of some thresholds [q, d], and of how many rows."""

    def __init__(self, thresholds: Tensor) -> None:
        self.thresholds = thresholds
        self.below = torch.zeros(thresholds.shape, dtype=torch.int64, device=thresholds.device)
        self.rows = 0

    @classmethod
    def around(cls, rows: Tensor) -> "MedianCounts":
        """With thresholds at quantiles of rows [n, d]."""
        values = rows.float() if rows.element_size() < 4 else rows
        # NumPy's sort takes a quarter of the time of torch's, which keeps the places too.
        ordered = np.sort(values.cpu().T.contiguous().numpy())
        places = [round(quantile * (len(rows) - 1)) for quantile in _QUANTILES]
        return cls(torch.from_numpy(ordered.T[places]).to(rows))

    def count(self, rows: Tensor) -> None:
        """Count rows [n, d]."""
        self.below += _count_below(rows, self.thresholds)
        self.rows += len(rows)

    def share_below(self, values: Tensor) -> Tensor:
        """Share of rows at or below values [d], linear between the thresholds and beyond them."""
        shares = self.below.double() / self.rows
        thresholds = self.thresholds.double()
        cell = (thresholds[1:-1] < values).sum(0, keepdim=True)
        low, high = thresholds.gather(0, cell), thresholds.gather(0, cell + 1)
        start, end = shares.gather(0, cell), shares.gather(0, cell + 1)
        place = (values - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)
        return (start + place * (end - start)).squeeze(0)


def _count_below(rows: Tensor, thresholds: Tensor) -> Tensor:
    """How many rows [n, d] are at or below each of the thresholds [q, d], in each dimension."""
    if rows.device.type != "cpu":
        return torch.stack([(rows <= threshold).sum(0) for threshold in thresholds])
    if rows.dtype != thresholds.dtype:  # of documents that came in another precision
        rows, thresholds = rows.double(), thresholds.double()
    values, limits, count = rows, thresholds + 0, _count  # -0.0 becomes 0.0, which both zeros are below
    if halves.suit(rows):
        values, limits, count = rows.view(torch.int16), limits.view(torch.int16), _count_bits
    counts = np.zeros(thresholds.shape, np.int64)
    for piece in torch.split(values, _MOST):
        few = np.zeros(thresholds.shape, np.int16)
        count(piece.numpy(), limits.numpy(), few)
        counts += few
    return torch.from_numpy(counts)


@numba.njit(nogil=True)
def _count(values: Array, limits: Array, counts: Array) -> None:
    for row in range(len(values)):
        for column in range(values.shape[1]):
            value = values[row, column]
            for limit in range(_LIMITS):
                counts[limit, column] += np.int16(value <= limits[limit, column])


@numba.njit(nogil=True)
def _count_bits(values: Array, limits: Array, counts: Array) -> None:
    """`_count` of half-precision numbers by their bits, which the processor compares faster."""
    ordered = np.empty_like(limits)
    for limit in range(_LIMITS):
        for column in range(limits.shape[1]):
            ordered[limit, column] = halves.ordered(limits[limit, column])
    for row in range(len(values)):
        for column in range(values.shape[1]):
            value = halves.ordered(values[row, column])
            for limit in range(_LIMITS):
                counts[limit, column] += np.int16(value <= ordered[limit, column])


def medians(counts: Sequence[MedianCounts]) -> tuple[Tensor, Tensor]:
    """Median of each dimension [d] over all rows counted, and whether the thresholds reach it [d]."""
    counts = [part for part in counts if part.rows]
    rows = sum(part.rows for part in counts)
    low = torch.stack([part.thresholds[0] for part in counts]).double().amin(0)
    high = torch.stack([part.thresholds[-1] for part in counts]).double().amax(0)

    def share(values: Tensor) -> Tensor:
        total = torch.zeros_like(values)
        for part in counts:
            total += part.share_below(values) * (part.rows / rows)
        return total

    reached = torch.ones_like(low, dtype=torch.bool)
    for part in counts:
        first, last = part.thresholds[0].double(), part.thresholds[-1].double()
        reached &= (share(first) <= 0.5) & (share(last) >= 0.5)
    for _ in range(50):
        middle = (low + high) / 2
        above = share(middle) >= 0.5
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return high, reached
