"""Second moments of rows up to float32 as sums of integers, where AMX multiplies bytes in tiles.

Each column is written in 16 bits, or 24 of float32, in steps of a power of two that its largest number
needs. float16, bfloat16 and float32 have 11, 8 and 24 bits, so what is near the largest stays as it is,
and the rest is off by half a step at most, to either side. Means and variances take back what was
rounded off; in the other covariances it averages out, and so do the products of the lowest of three
bytes, which are left out. Bytes are multiplied apart and summed in int32 without rounding, so that no
centring is needed, however far from zero the mean is. That takes a fraction of the time of products in
float32.
"""

import functools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from mir_task import halves, tiles
from mir_task.halves import Array

MOST_ROWS = 1 << 13
"""Rows whose bytes are multiplied at a time: a few strips of them fit the processor's cache, and their
sums of three products, of 2^14 at most, are far within int32."""
# Of these turned strips, so many tiles.
_TURNED = 3 << 8
# Steps whose sums of integers are exact in float32.
_PIECE = 1 << 3
_WIDTH = tiles.WIDTH


def suit(rows: Tensor) -> bool:
    """Whether the moments of rows [n, d] are to be had this way."""
    at_hand = rows.device.type == "cpu" and tiles.available()
    return at_hand and (rows.dtype == torch.float32 or rows.dtype in halves.FORMATS)


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
        rows: [n, d] that `suit`.
        places: [k] of those that count.
        count: of rows so far.
        mean: of them, float64, changed in place.
        scatter: blocks of the sum, from the diagonal down, likewise.
        blocks: their columns (first, end), the first of each a multiple of `tiles.WIDTH`.
    """
    for few in places.chunk(math.ceil(len(places) / MOST_ROWS)):
        packed, step, total, lost, squares = _fixed_point(rows, few)
        new = len(few)
        delta = (total + lost) * step / new - mean
        squares -= lost * (2 * total + lost) / new
        # Chan, Golub and LeVeque 1979: both sums are about means of their own.
        between = count * new / (count + new)
        _add_on_threads(
            packed.numpy(),
            *(new, between, total.numpy(), step.numpy(), delta.numpy()),
            tuple(block.numpy() for block in scatter),
            np.array([start for start, _ in blocks]),
        )
        for block, (start, end) in zip(scatter, blocks, strict=True):
            block.diagonal().add_(squares[start:end] * step[start:end].square())
        count += new
        mean += delta * (new / count)
    return count


def _add_on_threads(packed: Array, *rest: Any) -> None:
    """`_add_products` of all strips, on as many threads as PyTorch has."""
    strips, steps, of_bytes = packed.shape[:3]
    threads = min(torch.get_num_threads(), strips)
    share = max(min(_TURNED // (steps * of_bytes), strips // (2 * threads)), 1)
    # The later a strip, the more there are before it: a thread takes long shares and short ones.
    firsts = np.arange(0, strips, share)[::-1]
    turned = torch.empty(threads, share, *packed.shape[1:], dtype=torch.int32).numpy()
    sums = torch.empty(threads, 4, _WIDTH, _WIDTH, dtype=torch.int32).numpy()

    def work(thread: int) -> None:
        own = np.concatenate([firsts[n :: 2 * threads] for n in (thread, 2 * threads - 1 - thread)])
        _add_products(own, turned[thread], sums[thread], packed, *rest)

    others = [_threads().submit(work, thread) for thread in range(1, threads)]
    work(0)
    for other in others:
        other.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """They start when there is work for them, and stay: new ones would have cold memory of their own."""
    return ThreadPoolExecutor(os.cpu_count())


@numba.njit(nogil=True)
def _add_products(
    firsts: Array,
    turned: Array,
    sums: Array,
    packed: Array,
    count: int,
    between: float,
    total: Array,
    step: Array,
    delta: Array,
    scatter: tuple[Array, ...],
    starts: Array,
) -> None:
    """Add products of bytes, brought about the mean, in units of the rows.

    Of the strips from some first ones on, as many as there is room to turn, with all before them.
    """
    centred = np.empty((_WIDTH, _WIDTH))
    highest = 256.0 ** (2 * packed.shape[2] - 2)
    for first in firsts:
        end = min(first + len(turned), len(packed))
        for left in range(first, end):
            _turn(packed[left], turned[left - first])
        block = 0
        for right in range(end):
            while block + 1 < len(starts) and starts[block + 1] <= right * _WIDTH:
                block += 1
            own, start = scatter[block], starts[block]
            across, width = right * _WIDTH, min(_WIDTH, len(total) - right * _WIDTH)
            for left in range(max(first, right), end):
                down, height = left * _WIDTH, min(_WIDTH, len(total) - left * _WIDTH)
                tiles.multiply(turned[left - first], packed[right], sums)
                for row in range(height):
                    unit, shift = step[down + row] / count, between * delta[down + row]
                    for column in range(width):
                        lower = sums[2, row, column] + sums[3, row, column] / 256.0
                        product = sums[0, row, column] + (sums[1, row, column] + lower / 256.0) / 256.0
                        about = count * (highest * product) - total[down + row] * total[across + column]
                        centred[row, column] = (
                            about * (unit * step[across + column]) + shift * delta[across + column]
                        )
                top, edge = down - start, across - start
                for row in range(height):
                    for column in range(width):
                        own[top + row, edge + column] += centred[row, column]
                if left != right and top < own.shape[1]:  # above the diagonal of a block
                    for column in range(width):
                        for row in range(height):
                            own[edge + column, top + row] += centred[row, column]


@numba.njit(nogil=True)
def _turn(strip: Array, turned: Array) -> None:
    """A strip's tiles as the left side of a product: a column's bytes side by side."""
    for step in range(len(strip)):
        for byte in range(strip.shape[1]):
            for column in range(_WIDTH):
                for four in range(_WIDTH):
                    turned[step, byte, column, four] = strip[step, byte, four, column]


class _FixedPoint(NamedTuple):
    """Rows times a scale, rounded to integers of 16 or 24 bits."""

    packed: Tensor
    """[strips, steps, 2 or 3, 16, 16], int32: bytes of 64 rows by 16 columns a tile, the highest first,
    those of four rows in one number. The integer is 256 high + low, and so on."""
    step: Tensor
    """[d], of the integers; float64 as the sums over the rows that follow."""
    total: Tensor
    """[d], of the integers."""
    lost: Tensor
    """[d], of what was rounded off."""
    squares: Tensor
    """[d], of what the squares lost by it, and by the squares of the lowest of three bytes."""


def _fixed_point(rows: Tensor, places: Tensor) -> _FixedPoint:
    at, half = places.numpy(), rows.dtype in halves.FORMATS
    numbers = halves.bits(rows) if half else rows.numpy()
    largest = torch.from_numpy((_largest_bits if half else _largest)(numbers, at)).view(rows.dtype)
    # A low byte above 127 counts down from the next higher one, and the highest must be 127 at most.
    # Columns below 2^-100 have a scale beyond float32: they are zero beside any other.
    exponent = torch.frexp(largest.double() * 1.004).exponent.clamp(min=-100)
    of_bytes = 2 if half else 3
    scale = torch.ldexp(torch.ones(len(largest)), 8 * of_bytes - 1 - exponent)
    strips, steps = math.ceil(len(scale) / _WIDTH), math.ceil(len(at) / tiles.DEPTH)
    packed = torch.empty(strips, steps, of_bytes, _WIDTH, _WIDTH, dtype=torch.int32)
    totals = torch.zeros(3, len(scale), dtype=torch.float64)
    if half:
        form = halves.FORMATS[rows.dtype]
        _pack_halves(numbers, at, scale.numpy(), form.shift, form.factor, packed.numpy(), totals.numpy())
    else:
        _pack(numbers, at, scale.numpy(), packed.numpy(), totals.numpy())
    return _FixedPoint(packed, 1 / scale.double(), *totals)


@numba.njit(nogil=True)
def _largest_bits(rows: Array, places: Array) -> Array:
    """Bits of the largest absolute number of each column."""
    largest = np.zeros(rows.shape[1], np.int16)
    for place in places:
        for column in range(rows.shape[1]):
            largest[column] = max(largest[column], halves.magnitude(rows[place, column]))
    return largest


@numba.njit(nogil=True)
def _largest(rows: Array, places: Array) -> Array:
    """The largest absolute number of each column."""
    largest = np.zeros(rows.shape[1], np.float32)
    for place in places:
        for column in range(rows.shape[1]):
            largest[column] = max(largest[column], abs(rows[place, column]))
    return largest


@numba.njit(nogil=True)
def _pack_halves(
    rows: Array, places: Array, scale: Array, shift: int, factor: Any, packed: Array, totals: Array
) -> None:
    """Write rows as two bytes, and add up what `_FixedPoint` says of them."""
    size, (strips, steps) = len(scale), packed.shape[:2]
    # What the last strip has beyond the columns stays undefined: no sum of it is added.
    integers = np.empty((tiles.DEPTH, strips * _WIDTH), np.int32)
    sums = np.zeros((3, size), np.float32)
    for step in range(steps):
        for row in range(tiles.DEPTH):
            at = step * tiles.DEPTH + row
            if at >= len(places):
                integers[row] = 0
                continue
            place = places[at]
            for column in range(size):
                value = halves.float32(rows[place, column], shift, factor) * scale[column]
                rounded = np.rint(value)
                off = value - rounded
                integers[row, column] = np.int32(rounded)
                sums[0, column] += rounded
                sums[1, column] += off
                sums[2, column] += (value + rounded) * off
        _write_two(integers, packed, step)
        if (step + 1) % _PIECE == 0 or step + 1 == steps:
            for kind in range(3):
                _move(sums[kind], totals[kind])


@numba.njit(nogil=True)
def _pack(rows: Array, places: Array, scale: Array, packed: Array, totals: Array) -> None:
    """Write rows as three bytes, and add up what `_FixedPoint` says of them."""
    size, (strips, steps) = len(scale), packed.shape[:2]
    integers = np.empty((tiles.DEPTH, strips * _WIDTH), np.int32)
    total, sums = np.zeros(size, np.int32), np.zeros((2, size), np.float32)
    for step in range(steps):
        for row in range(tiles.DEPTH):
            at = step * tiles.DEPTH + row
            if at >= len(places):
                integers[row] = 0
                continue
            place = places[at]
            for column in range(size):
                value = rows[place, column] * scale[column]
                rounded = np.rint(value)
                off = value - rounded
                integer = np.int32(rounded)
                lowest = np.float32(np.int8(integer))
                integers[row, column] = integer
                total[column] += integer
                sums[0, column] += off
                sums[1, column] += (value + rounded) * off + lowest * lowest
        _write_three(integers, packed, step)
        _move(total, totals[0])
        for kind in range(2):
            _move(sums[kind], totals[kind + 1])


@numba.njit(nogil=True)
def _move(sums: Array, totals: Array) -> None:
    """Add sums to totals, and begin them anew."""
    for column in range(len(sums)):
        totals[column] += sums[column]
        sums[column] = 0


def _writer(of_bytes: int) -> Any:
    """A function for compiled loops; the number of bytes is a constant to the compiler."""

    @numba.njit(nogil=True)
    def write(integers: Array, packed: Array, step: int) -> None:
        for strip in range(len(packed)):
            for four in range(_WIDTH):
                for column in range(_WIDTH):
                    for byte in range(of_bytes):
                        places = of_bytes - 1 - byte
                        # Each lower byte carries one when it is above 127.
                        carry = np.int32((0, 128, 32896)[places])
                        word = np.int32(0)
                        for row in range(4):
                            integer = integers[4 * four + row, strip * _WIDTH + column]
                            word |= (np.int32(integer + carry) >> (8 * places) & 255) << (8 * row)
                        packed[strip, step, byte, four, column] = word

    return write


_write_two, _write_three = _writer(2), _writer(3)
