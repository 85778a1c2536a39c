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
# And as many as a byte can.
_BYTE = 128


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
        places = [round(quantile * (len(rows) - 1)) for quantile in _QUANTILES]
        if rows.device.type != "cpu":
            return cls(values.sort(0).values[places].to(rows))
        # NumPy's sort takes a quarter of the time of torch's, which keeps the places too.
        ordered = np.sort(values.T.contiguous().numpy())
        return cls(torch.from_numpy(ordered.T[places]).to(rows))

    def to(self, device: torch.device) -> "MedianCounts":
        """The same on a device."""
        moved = MedianCounts(self.thresholds.to(device))
        moved.below, moved.rows = self.below.to(device), self.rows
        return moved

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
        return torch.stack([_sums(rows <= threshold) for threshold in thresholds])
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


def _sums(mask: Tensor) -> Tensor:
    """How many rows [n, d] of a mask are true in each column, by sums of four bytes in one number."""
    rows, size = len(mask) // _BYTE * _BYTE, mask.shape[1]
    if not rows or size % 4:
        return mask.sum(0)
    packed = mask[:rows].view(torch.int32).view(-1, _BYTE, size // 4)
    sums = packed.sum(1, dtype=torch.int32).view(torch.uint8).view(-1, size)
    return sums.sum(0) + mask[rows:].sum(0)


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


def medians(counts: Sequence[MedianCounts]) -> Tensor:
    """Median of each dimension [d] over all rows counted, in float64 on the CPU.

    As far as the thresholds can tell: where they do not reach it, one of their ends.
    """
    counts = _at_hand(counts)
    # The share below is linear between the thresholds of all counts.
    knots = torch.cat([part.thresholds for part in counts]).double().sort(0).values
    shares = torch.stack([_share_below(counts, knot) for knot in knots])
    cell = (shares[1:-1] < 0.5).sum(0, keepdim=True)
    low, high = knots.gather(0, cell), knots.gather(0, cell + 1)
    start, end = shares.gather(0, cell), shares.gather(0, cell + 1)
    place = ((0.5 - start) / (end - start).clamp(min=torch.finfo(torch.float64).tiny)).clamp(0, 1)
    return (low + place * (high - low)).squeeze(0)


def reached(counts: Sequence[MedianCounts]) -> Tensor:
    """Whether the thresholds of all counts are on both sides of the median of a dimension [d]."""
    counts = _at_hand(counts)
    among = torch.ones(counts[0].thresholds.shape[1], dtype=torch.bool)
    for part in counts:
        first, last = part.thresholds[0].double(), part.thresholds[-1].double()
        among &= (_share_below(counts, first) <= 0.5) & (_share_below(counts, last) >= 0.5)
    return among


def _at_hand(counts: Sequence[MedianCounts]) -> list[MedianCounts]:
    """On the CPU, as the work is small and in many steps; without those of no rows."""
    return [part.to(torch.device("cpu")) for part in counts if part.rows]


def _share_below(counts: Sequence[MedianCounts], values: Tensor) -> Tensor:
    """Share of all rows counted that are at or below values [d]."""
    rows = sum(part.rows for part in counts)
    total = torch.zeros_like(values)
    for part in counts:
        total += part.share_below(values) * (part.rows / rows)
    return total
