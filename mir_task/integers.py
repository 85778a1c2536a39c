"""Second moments of half-precision rows as sums of integers, where AMX multiplies bytes in tiles.

Each column is written in 16 bits, in steps of a power of two that its largest number needs: float16 and
bfloat16 have 11 and 8 bits, so what is within a sixteenth of the largest stays as it is, and the rest is
off by half a step at most, to either side. Means and variances take back what was rounded off; in the
other covariances it averages out. High and low bytes are multiplied apart and summed in int32 without
rounding, so that no centring is needed, however far from zero the mean is. The three products take less
than half as long as one of float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from mir_task import halves
from mir_task.halves import Array

MOST_ROWS = 1 << 15
"""Sums of two products of bytes, of 2^14 at most, of so many rows stay within int32."""
# Rows that are turned to bytes at a time: sums of so many are exact in float32.
_PIECE = 1 << 9
# As many numbers of a column lie side by side in a line of the cache.
_STRIP = 16


def suit(rows: Tensor) -> bool:
    """Whether the moments of rows [n, d] are to be had this way, and sooner than in float32."""
    return halves.suit(rows) and _tiles()


@functools.cache
def _tiles() -> bool:
    """AMX: without it products of bytes are slower, and on the oldest processors not exact."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of later torch only
    return bool(known.get("amx_int8")) and hasattr(torch, "_int_mm")


def add(
    rows: Tensor,
    places: Tensor,
    count: int,
    mean: Tensor,
    scatter: Sequence[Tensor],
    blocks: Sequence[tuple[int, int]],
) -> int:
    """Add rows to a mean [d] and a sum of outer products about it, and return the new count.

    Args:
        rows: [n, d] in float16 or bfloat16.
        places: [k] of those that count.
        count: of rows so far.
        mean: of them, float64, changed in place.
        scatter: blocks of the sum, from the diagonal down, likewise.
        blocks: their columns (first, end).
    """
    for few in torch.split(places, MOST_ROWS):
        high, low, step, total, lost, squares = _fixed_point(rows, few)
        new = len(high)
        delta = (total + lost) * step / new - mean
        squares -= lost * (2 * total + lost) / new
        # Chan, Golub and LeVeque 1979: both sums are about means of their own.
        between = count * new / (count + new)
        cross = torch._int_mm(high.T, low)
        for block, (start, end) in zip(scatter, blocks, strict=True):
            rest, own = slice(start, None), slice(start, end)
            highs = torch._int_mm(high[:, rest].T, high[:, own])
            lows = torch._int_mm(low[:, rest].T, low[:, own])
            parts = (
                highs,
                cross[rest, own],
                cross[own, rest],
                lows,
                total[rest],
                step[rest],
                delta[rest],
            )
            _add_products(block.numpy(), new, between, *(part.numpy() for part in parts))
            block.diagonal().add_(squares[own] * step[own].square())
        count += new
        mean += delta * (new / count)
    return count


@numba.njit(nogil=True)
def _add_products(
    block: Array,
    count: int,
    between: float,
    highs: Array,
    cross: Array,
    crossed: Array,
    lows: Array,
    total: Array,
    step: Array,
    delta: Array,
) -> None:
    """Add products of bytes [r, c], brought about the mean, in units of the rows."""
    rows, columns = block.shape
    both = np.empty((_STRIP, columns), np.int32)
    for start in range(0, rows, _STRIP):
        strip = min(_STRIP, rows - start)
        for column in range(columns):
            for row in range(strip):
                both[row, column] = crossed[column, start + row]
        for row in range(strip):
            at = start + row
            unit = step[at] / count
            for column in range(columns):
                middle = 256.0 * (both[row, column] + cross[at, column])
                product = 65536.0 * highs[at, column] + middle + lows[at, column]
                centred = count * product - total[at] * total[column]
                shift = between * delta[at] * delta[column]
                block[at, column] += centred * (unit * step[column]) + shift


class _FixedPoint(NamedTuple):
    """Rows times a scale, rounded to integers of 16 bits."""

    high: Tensor
    """[n, d], int8."""
    low: Tensor
    """[n, d], int8; the integer is 256 high + low."""
    step: Tensor
    """[d], of the integers; float64 as the sums over the rows that follow."""
    total: Tensor
    """[d], of the integers."""
    lost: Tensor
    """[d], of what was rounded off."""
    squares: Tensor
    """[d], of what the squares lost by it."""


def _fixed_point(rows: Tensor, places: Tensor) -> _FixedPoint:
    numbers, at = halves.bits(rows), places.numpy()
    largest = torch.from_numpy(_largest(numbers, at)).view(rows.dtype).float()
    # A low byte above 127 counts down from the next high one, which must be 127 at most. Columns below
    # 2^-100 have a scale beyond float32: they are zero beside any other.
    exponent = torch.frexp(largest * 1.004).exponent.clamp(min=-100)
    scale = torch.ldexp(torch.ones_like(largest), 15 - exponent)
    high, low = np.empty((2, len(at), len(scale)), np.int8)
    sums = np.zeros((3, len(scale)))
    for start in range(0, len(at), _PIECE):
        own = slice(start, start + _PIECE)
        sums += _SPLIT[rows.dtype](numbers, at[own], scale.numpy(), high[own], low[own])
    total, lost, squares = torch.from_numpy(sums)
    step = 1 / scale.double()
    return _FixedPoint(torch.from_numpy(high), torch.from_numpy(low), step, total, lost, squares)


@numba.njit(nogil=True)
def _largest(rows: Array, places: Array) -> Array:
    """Bits of the largest absolute number of each column."""
    largest = np.zeros(rows.shape[1], np.int16)
    for place in places:
        for column in range(rows.shape[1]):
            largest[column] = max(largest[column], halves.magnitude(rows[place, column]))
    return largest


def _split_of(float32: Callable[[Any], Any]) -> Any:
    @numba.njit(nogil=True)
    def split(rows: Array, places: Array, scale: Array, high: Array, low: Array) -> Array:
        sums = np.zeros((3, rows.shape[1]), np.float32)
        for at, place in enumerate(places):
            for column in range(rows.shape[1]):
                value = float32(rows[place, column]) * scale[column]
                rounded = np.rint(value)
                off = value - rounded
                integer = np.int32(rounded)
                high[at, column] = np.int8((integer + 128) >> 8)
                low[at, column] = np.int8(integer)
                sums[0, column] += rounded
                sums[1, column] += off
                sums[2, column] += (value + rounded) * off
        return sums

    return split


_SPLIT = {torch.float16: _split_of(halves.float16), torch.bfloat16: _split_of(halves.bfloat16)}
