"""Second moments of half-precision rows as exact sums of integers, on processors that multiply bytes in tiles.

Each column is written in 16 bits, in steps of a power of two that its largest number needs: float16 and
bfloat16 have 11 and 8 bits, so what is within a sixteenth of the largest stays as it is, and the rest is off by
half a step at most, to either side. High and low bytes are multiplied apart and summed in int32 without any
rounding, so no centring is needed, however far from zero the mean is. Four such products take half as long
as one of float32.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_ROWS = 1 << 15
"""Sums of two products of bytes, of 2^14 at most, of so many rows stay within int32."""
# Rows that are turned to bytes at a time: few enough for the cache, and for sums exact in float32.
_PIECE = 256


def suit(rows: Tensor) -> bool:
    """Whether the moments of rows are to be had this way, and sooner than in float32."""
    return rows.dtype in (torch.float16, torch.bfloat16) and rows.device.type == "cpu" and _tiles()


@functools.cache
def _tiles() -> bool:
    """AMX: without it products of bytes are slower, and on the oldest processors not exact."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # of later torch only
    return bool(capabilities.get("amx_int8")) and hasattr(torch, "_int_mm")


def sums(rows: Tensor, blocks: Sequence[tuple[int, int]]) -> tuple[Tensor, list[Tensor]]:
    """Sum [d] of rows [n, d] and sum of their outer products about their mean, in float64.

    Args:
        rows: float16 or bfloat16, `MOST_ROWS` at most.
        blocks: columns (first, end) of the blocks that are returned, each from the diagonal down.
    """
    high, low, total, step = _bytes(rows)
    scatter = []
    for start, end in blocks:
        rest, own = slice(start, None), slice(start, end)
        block = _product(high, rest, high, own).double().mul_(256)
        block.add_(_product(high, rest, low, own).add_(_product(low, rest, high, own))).mul_(256)
        block.add_(_product(low, rest, low, own))
        block.addr_(total[rest], total[own], alpha=-1 / len(rows))
        scatter.append(block.mul_(step[rest, None]).mul_(step[own]))
    return total * step, scatter


def _product(a: Tensor, columns_a: slice, b: Tensor, columns_b: slice) -> Tensor:
    product: Tensor = torch._int_mm(a[:, columns_a].T, b[:, columns_b])
    return product


def _bytes(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """High and low bytes [n, d], signed, of rows [n, d] in steps [d], and the sums [d] of both."""
    largest = torch.stack([piece.abs().amax(0) for piece in rows.split(_PIECE)]).amax(0).float()
    # A low byte above 127 counts down from the next high one, which must be 127 at most. The step of
    # columns below 2^-100 has no inverse in float32: they are zero beside any other.
    bits = 15 - torch.frexp(largest * 1.004).exponent.clamp(min=-100)
    scale = torch.ldexp(torch.ones_like(largest), bits)
    high, low = torch.empty(2, *rows.shape, dtype=torch.int8)
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for piece, of_high, of_low in zip(*(part.split(_PIECE) for part in (rows, high, low)), strict=True):
        values = piece.float().mul_(scale).round_()
        total += values.sum(0)
        steps = values.to(torch.int16)
        of_low.copy_(steps)
        of_high.copy_(steps.add_(128).bitwise_right_shift_(8))
    return high, low, total, 1 / scale.double()
