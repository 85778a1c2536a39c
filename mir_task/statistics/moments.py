"""Second moments of rows by group of documents, as sums that add up over passes and processes."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from mir_task.metric.frechet import Gaussian
from mir_task.metric.precision import full_precision

# Columns of a block of the second moment. Narrower ones hold less of the upper half, but their
# products are slower.
_WIDTH = 256
_MOST_BLOCKS = 8
CHUNK = 4096
"""Rows that are converted at a time."""
# Relative error of entries of a covariance whose products are summed in float32.
_SINGLE_PRECISION = 1e-6


class Moments:
    """Count, sum [d] and lower half of the sum of products [d, d] of rows about a centre, by group.

    All of it is float64 and stands in one tensor, so that groups, passes and processes are put together
    by adding.

    Args:
        centre: [d], near the mean of all rows: sums about it lose nothing.
        groups: of documents.
        products: dtype in which rows are multiplied: float64, or float32 on devices that hardly
            multiply float64.
    """

    def __init__(self, centre: Tensor, groups: int, products: torch.dtype = torch.float64) -> None:
        self.products = products
        self.centre = centre.to(products).double()
        self.numbers = torch.zeros(
            groups, numbers_of(len(centre)), dtype=torch.float64, device=centre.device
        )

    @full_precision()
    def add(self, group: int, rows: Tensor, inside: Tensor) -> None:
        """Count those rows [n, d] of one group where `inside` [n] is true."""
        count, total, blocks = self._parts(group)
        centre = self.centre.to(self.products)
        for chunk, kept in zip(torch.split(rows, CHUNK), torch.split(inside, CHUNK), strict=True):
            # Rows that are left out become zero: choosing the others would wait for an accelerator.
            centred = (
                chunk.to(self.products).sub_(centre) if chunk.dtype != self.products else chunk - centre
            )
            centred.mul_(kept[:, None])
            count += kept.sum()
            total += centred.sum(0, dtype=torch.float64)
            for (first, end), block in blocks:
                if self.products == torch.float64:
                    block.addmm_(centred[:, first:].T, centred[:, first:end])
                else:
                    block += centred[:, first:].T @ centred[:, first:end]

    def add_repeated(self, group: int, row: Tensor, times: int) -> None:
        """Count one row [d] so many times."""
        count, total, blocks = self._parts(group)
        offset = row.double() - self.centre
        count += times
        total += times * offset
        for (first, end), block in blocks:
            block.addr_(offset[first:], offset[first:end], alpha=times)

    def counts(self) -> list[int]:
        """Rows of each group."""
        return [round(count) for count in self.numbers[:, 0].tolist()]

    def gaussian(self, left_out: int | None = None) -> Gaussian:
        """Mean and covariance (n - 1) of all rows, or of all but one group's."""
        numbers = self.numbers.sum(0)
        if left_out is not None:
            numbers -= self.numbers[left_out]
        count, total, blocks = _split(numbers, len(self.centre))
        mean = total / count
        covariance = self.centre.new_empty(len(mean), len(mean))
        for (first, end), block in blocks:
            block.addr_(total[first:], mean[first:end], alpha=-1).div_(count - 1)
            covariance[first:, first:end] = block
            covariance[first:end, end:] = block[end - first :].T
            square = block[: end - first]  # its upper half may differ from the lower one by rounding
            covariance[first:end, first:end] = (square + square.T) / 2
        precision = _SINGLE_PRECISION if self.products == torch.float32 else 0.0
        return Gaussian(self.centre + mean, covariance, None, precision)

    def _parts(self, group: int) -> tuple[Tensor, Tensor, list[tuple[tuple[int, int], Tensor]]]:
        return _split(self.numbers[group], len(self.centre))


def numbers_of(size: int) -> int:
    """Numbers that one group's moments hold, of rows of that size."""
    return 1 + size + sum((size - first) * (end - first) for first, end in _blocks(size))


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    """Columns (first, end) of the blocks in which the lower half of a [size, size] is kept."""
    count = min(max(size // _WIDTH, 1), _MOST_BLOCKS)
    return itertools.pairwise(size * n // count for n in range(count + 1))


def _split(numbers: Tensor, size: int) -> tuple[Tensor, Tensor, list[tuple[tuple[int, int], Tensor]]]:
    """Count, sum and blocks of columns (from the diagonal down) as views of one group's numbers."""
    shapes = [(size - first, end - first) for first, end in _blocks(size)]
    parts = torch.split(numbers[1 + size :], [rows * columns for rows, columns in shapes])
    blocks = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    return numbers[:1], numbers[1 : 1 + size], list(zip(_blocks(size), blocks, strict=True))
