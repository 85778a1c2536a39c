"""Second moments of half-precision rows as sums of integers, where AMX multiplies bytes in tiles.

Each column is written in 16 bits, in steps of a power of two that its largest number needs: float16 and
bfloat16 have 11 and 8 bits, so what is within a sixteenth of the largest stays as it is, and the rest is
off by half a step at most, to either side. Means and variances take back what was rounded off; in the
other covariances it averages out. High and low bytes are multiplied apart and summed in int32 without
rounding, so that no centring is needed, however far from zero the mean is. The three products take less
than half as long as one of float32.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_ROWS = 1 << 15
"""Sums of two products of bytes, of 2^14 at most, of so many rows stay within int32."""
# Rows that are turned to bytes at a time: few enough for the cache, and for sums exact in float32.
_PIECE = 128


def suit(rows: Tensor) -> bool:
    """Whether the moments of rows are to be had this way, and sooner than in float32."""
    return rows.dtype in (torch.float16, torch.bfloat16) and rows.device.type == "cpu" and _tiles()


@functools.cache
def _tiles() -> bool:
    """AMX: without it products of bytes are slower, and on the oldest processors not exact."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of later torch only
    return bool(known.get("amx_int8")) and hasattr(torch, "_int_mm")


def moments(rows: Tensor, blocks: Sequence[tuple[int, int]]) -> tuple[Tensor, list[Tensor]]:
    """Mean [d] of rows [n, d] and sum of their outer products about it, in float64.

    Args:
        rows: float16 or bfloat16, from 1 to `MOST_ROWS`.
        blocks: columns (first, end) of the blocks that are returned, each from the diagonal down.
    """
    high, low, scale, total, lost, squares = _fixed_point(rows)
    squares -= lost * (2 * total + lost) / len(rows)
    cross = torch._int_mm(high.T, low)
    scatter = []
    for start, end in blocks:
        rest, own = slice(start, None), slice(start, end)
        block = torch._int_mm(high[:, rest].T, high[:, own]).double().mul_(65536)
        block.add_(cross[rest, own] + cross[own, rest].T, alpha=256)
        block.add_(torch._int_mm(low[:, rest].T, low[:, own]))
        block.addr_(total[rest], total[own], alpha=-1 / len(rows))
        block.diagonal().add_(squares[own])
        scatter.append(block.div_(scale[rest, None]).div_(scale[own]))
    return (total + lost) / scale / len(rows), scatter


class _FixedPoint(NamedTuple):
    """Rows times a scale, rounded to integers of 16 bits."""

    high: Tensor
    """[n, d], int8."""
    low: Tensor
    """[n, d], int8; the integer is 256 high + low."""
    scale: Tensor
    """[d], float64 as the sums over the rows that follow."""
    total: Tensor
    """[d], of the integers."""
    lost: Tensor
    """[d], of what was rounded off."""
    squares: Tensor
    """[d], of what the squares lost by it."""


def _fixed_point(rows: Tensor) -> _FixedPoint:
    # Without the sign, bits are integers of the order of the numbers, and compared faster.
    bits = [(piece.view(torch.int16) & 0x7FFF).amax(0) for piece in torch.split(rows, _PIECE)]
    largest = torch.stack(bits).amax(0).view(rows.dtype).float()
    # A low byte above 127 counts down from the next high one, which must be 127 at most. Columns below
    # 2^-100 have a scale beyond float32: they are zero beside any other.
    exponent = torch.frexp(largest * 1.004).exponent.clamp(min=-100)
    scale = torch.ldexp(torch.ones_like(largest), 15 - exponent)
    high, low = torch.empty(2, *rows.shape, dtype=torch.int8)
    total, lost, squares = torch.zeros(3, rows.shape[1], dtype=torch.float64)
    pieces = (torch.split(part, _PIECE) for part in (rows, high, low))
    for piece, of_high, of_low in zip(*pieces, strict=True):
        values = piece.float().mul_(scale)
        rounded = values.round()
        off = values.sub_(rounded)
        total += rounded.sum(0)
        lost += off.sum(0)
        integers = rounded.to(torch.int16)
        squares += rounded.mul_(2).add_(off).mul_(off).sum(0)
        of_low.copy_(integers)
        of_high.copy_(integers.add_(128).bitwise_right_shift_(8))
    return _FixedPoint(high, low, scale.double(), total, lost, squares)
