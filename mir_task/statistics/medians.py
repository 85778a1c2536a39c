"""Lower medians of each dimension: of rows in memory by selection, of others from counts.

Counts of disjoint sets of rows add up, so several processes find the median of all their rows together
without sending one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

QUANTILES = (0.3, 0.45, 0.5, 0.55, 0.7)
SELECTED_AT_ONCE = (2**23, 2**28)
"""Bytes of rows of which medians are selected at a time, on the host and on an accelerator."""
# As many rows as a byte can count.
_BYTE = 128


def of_rows(parts: Sequence[Tensor]) -> Tensor:
    """Lower median [d], float64, of rows in memory.

    Args:
        parts: of the rows, [n, d] each.
    """
    size, found = parts[0].shape[1], []
    column = sum(map(len, parts)) * parts[0].element_size()
    width = max(SELECTED_AT_ONCE[parts[0].device.type != "cpu"] // max(column, 1), 1)
    for first in range(0, size, width):
        columns = torch.cat([part[:, first : first + width] for part in parts]).T.contiguous()
        found.append(_of_columns(columns).double())
    return torch.cat(found)


def _of_columns(columns: Tensor) -> Tensor:
    """Lower median of each row [d] of a [d, n]."""
    if columns.device.type != "cpu":
        return columns.median(1).values
    middle = (columns.shape[1] - 1) // 2
    # NumPy selects among half-precision numbers by their bits in a fifth of PyTorch's time.
    values = (_keys(columns) if columns.element_size() == 2 else columns).numpy()
    selected = torch.from_numpy(np.partition(values, middle, axis=1)[:, middle].copy())
    return _values(selected, columns.dtype) if columns.element_size() == 2 else selected


class Search:
    """A search by halves for the lower median of rows that several processes hold.

    In each of `rounds` rounds every process counts its rows at or below the middle of what is left; the
    sum of these counts tells the half that holds the median.

    Args:
        parts: rows [n, d] of this process, which may be none.
        count: rows of all processes.
        like: a tensor [d] of the rows' dtype, where to compute.
    """

    def __init__(self, parts: Sequence[Tensor], count: int, like: Tensor) -> None:
        self._parts, self._dtype = parts, like.dtype
        self._wanted = (count + 1) // 2
        most = torch.full_like(like, torch.finfo(like.dtype).max)
        self._low, self._high = (_keys(ends).long() for ends in (-most, most))
        self.rounds = 8 * like.element_size()

    def counts(self) -> Tensor:
        """Rows of this process at or below the middle: int64 [d]."""
        middle = _values(self._middle, self._dtype)
        counts = torch.zeros_like(self._low)
        for part in self._parts:
            counts += count_at_most(part, middle[None])[0]
        return counts

    def narrow(self, counts: Tensor) -> None:
        """Go on with the half that holds the median, by the counts [d] of all processes."""
        below, middle = counts.to(self._low.device) >= self._wanted, self._middle
        self._high = torch.where(below, middle, self._high)
        self._low = torch.where(below, self._low, middle + 1)

    @property
    def median(self) -> Tensor:
        """[d], float64, after all rounds."""
        return _values(self._high, self._dtype).double()

    @property
    def _middle(self) -> Tensor:
        return (self._low & self._high) + ((self._low ^ self._high) >> 1)  # their mean, without overflow


def around(rows: Tensor) -> Tensor:
    """Thresholds [q, d] at quantiles of a sample of rows [n, d], to count all rows by."""
    places = [round(quantile * (len(rows) - 1)) for quantile in QUANTILES]
    return rows.sort(0).values[places]


def count_at_most(rows: Tensor, thresholds: Tensor) -> Tensor:
    """How many rows [n, d] are at or below each threshold [q, d], in each dimension: int64 [q, d]."""
    if rows.dtype != thresholds.dtype:  # of documents that came in another precision
        rows, thresholds = rows.double(), thresholds.double()
    return torch.stack([_sums(rows <= threshold) for threshold in thresholds])


def of_counts(below: Tensor, rows: int, thresholds: Tensor) -> Tensor:
    """Median [d], float64, of rows of which so many are at or below thresholds [q, d].

    Linear between the thresholds, and beyond them as between the outer two; then the nearest number that
    the rows' dtype holds. Those that round to a threshold reach half a step beyond it.
    """
    above = _values(_keys(thresholds) + 1, thresholds.dtype)
    shares, knots = below.double() / rows, (thresholds.double() + above.double()) / 2
    cell = (shares[1:-1] < 0.5).sum(0, keepdim=True)
    low, high = knots.gather(0, cell), knots.gather(0, cell + 1)
    start, end = shares.gather(0, cell), shares.gather(0, cell + 1)
    place = ((0.5 - start) / (end - start).clamp(min=torch.finfo(torch.float64).tiny)).clamp(0, 1)
    # A value at which two thresholds stand is one that many rows have: nothing lies around it.
    after = knots.gather(0, (cell + 2).clamp(max=len(knots) - 1))
    repeated = (cell + 2 < len(knots)) & (high == after)
    first, last = (thresholds.double().gather(0, cell + n) for n in (0, 1))
    between = (low + place * (high - low)).to(thresholds.dtype).double().minimum(last)
    return torch.where(start < 0.5, torch.where(repeated, last, between), first).squeeze(0)


def _sums(mask: Tensor) -> Tensor:
    """How many rows [n, d] of a mask are true in each column, by sums of four bytes in one number."""
    rows, size = len(mask) // _BYTE * _BYTE, mask.shape[1]
    if not rows or size % 4:
        return mask.sum(0)
    packed = mask[:rows].view(torch.int32).view(-1, _BYTE, size // 4)
    sums = packed.sum(1, dtype=torch.int32).view(torch.uint8).view(-1, size)
    return sums.sum(0) + mask[rows:].sum(0)


def _keys(values: Tensor) -> Tensor:
    """Integers of the same width that are ordered as the values are."""
    bits = values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
    return bits ^ ((bits >> (8 * values.element_size() - 1)) & torch.iinfo(bits.dtype).max)


def _values(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of such integers, of any width that holds them."""
    narrow = keys.to({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    bits = narrow ^ ((narrow >> (8 * dtype.itemsize - 1)) & torch.iinfo(narrow.dtype).max)
    return bits.view(dtype)
