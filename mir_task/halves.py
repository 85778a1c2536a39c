"""Half-precision numbers on the processor by their bits, in loops that convert on the way."""

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def suit(rows: Tensor) -> bool:
    """Whether rows are half-precision numbers on the processor."""
    return rows.dtype in FORMATS and rows.device.type == "cpu"


def bits(rows: Tensor) -> Array:
    """The same memory as int16."""
    return rows.view(torch.int16).numpy()


class Format(NamedTuple):
    """How float32 is had of the bits of a dtype."""

    shift: np.int32
    """Bits that the fraction lacks."""
    factor: np.float32
    """Two to the power by which the exponent is too small."""
    infinity: int
    """Its bits, below those of NaN."""


FORMATS = {
    torch.float16: Format(np.int32(13), np.float32(2.0**112), 0x7C00),
    torch.bfloat16: Format(np.int32(16), np.float32(1), 0x7F80),
}


def norms(rows: Tensor) -> Tensor:
    """L2 norms [n] of rows [n, d], summed in float32; infinite where a number is, or is NaN."""
    return torch.from_numpy(_norms(bits(rows.contiguous()), *FORMATS[rows.dtype]))


@numba.njit(inline="always")
def float32(number: Any, shift: int, factor: Any) -> Any:
    """float32 of the bits of a finite number."""
    # Below 32 as the compiler can see, or else it counts in 64 bits.
    sign, rest = (np.int32(number) & 0x8000) << 16, (np.int32(number) & 0x7FFF) << (shift & 31)
    return np.int32(sign | rest).view(np.float32) * factor


@numba.njit(inline="always")
def magnitude(number: Any) -> Any:
    """Integers in the order of the absolute numbers."""
    return np.int16(number & 0x7FFF)


@numba.njit(inline="always")
def ordered(number: Any) -> Any:
    """Integers in the order of the numbers: a negative is the smaller the larger its other bits."""
    return np.int16(number ^ ((number >> 15) & 0x7FFF))


# In another order, several sums side by side.
@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _norms(rows: Array, shift: int, factor: Any, infinity: int) -> Array:
    norms = np.empty(len(rows), np.float32)
    for row in range(len(rows)):
        total, largest = np.float32(0), np.int16(0)
        for column in range(rows.shape[1]):
            value = float32(rows[row, column], shift, factor)
            total += value * value
            largest = max(largest, magnitude(rows[row, column]))
        norms[row] = np.sqrt(total) if largest < infinity else np.inf
    return norms
