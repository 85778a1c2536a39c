"""Half-precision numbers on the processor by their bits, in loops that convert on the way."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def suit(rows: Tensor) -> bool:
    """Whether rows are half-precision numbers on the processor."""
    return rows.dtype in (torch.float16, torch.bfloat16) and rows.device.type == "cpu"


def bits(rows: Tensor) -> Array:
    """The same memory as int16."""
    return rows.view(torch.int16).numpy()


def norms(rows: Tensor) -> Tensor:
    """L2 norms [n] of rows [n, d], summed in float32; infinite where a number is, or is NaN."""
    kernel, infinity = _NORMS[rows.dtype]
    return torch.from_numpy(kernel(bits(rows.contiguous()), infinity))


@numba.njit(inline="always")
def float16(number: Any) -> Any:
    """float32 of the bits of a finite float16: 13 bits more, and an exponent that is larger by 112."""
    sign, rest = (np.int32(number) & 0x8000) << 16, (np.int32(number) & 0x7FFF) << 13
    return np.int32(sign | rest).view(np.float32) * np.float32(2.0**112)


@numba.njit(inline="always")
def bfloat16(number: Any) -> Any:
    """float32 of the bits of a bfloat16."""
    return np.int32(np.int32(number) << 16).view(np.float32)


@numba.njit(inline="always")
def magnitude(number: Any) -> Any:
    """Integers in the order of the absolute numbers."""
    return np.int16(number & 0x7FFF)


@numba.njit(inline="always")
def ordered(number: Any) -> Any:
    """Integers in the order of the numbers: a negative is the smaller the larger its other bits."""
    return np.int16(number ^ ((number >> 15) & 0x7FFF))


def _norms_of(float32: Callable[[Any], Any]) -> Any:
    # In another order, several sums side by side.
    @numba.njit(nogil=True, fastmath={"reassoc", "contract"})
    def kernel(rows: Array, infinity: int) -> Array:
        norms = np.empty(len(rows), np.float32)
        for row in range(len(rows)):
            total, largest = np.float32(0), np.int16(0)
            for column in range(rows.shape[1]):
                value = float32(rows[row, column])
                total += value * value
                largest = max(largest, magnitude(rows[row, column]))
            norms[row] = np.sqrt(total) if largest < infinity else np.inf
        return norms

    return kernel


_NORMS = {torch.float16: (_norms_of(float16), 0x7C00), torch.bfloat16: (_norms_of(bfloat16), 0x7F80)}
