"""Sums of products of bytes in the tiles of AMX, for Numba.

A tile is 1 KiB: 16 rows of 64 bytes. One instruction multiplies two tiles and adds the 16 x 16 sums over
64 products each to a third. Libraries have these products too, but pack the same matrix twice and sum
its upper half as well as the lower.
"""

import functools
from typing import Any

import llvmlite.binding
import llvmlite.ir
import numba
import numba.extending
import numpy as np
import torch

from mir_task.halves import Array

WIDTH = 16
"""Columns of a tile of sums."""
DEPTH = 64
"""Products that one instruction adds to each sum."""


@functools.cache
def available() -> bool:
    """Whether this processor has the tiles, and the system lets the process use them."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of later torch only
    return bool(known.get("amx_int8")) and bool(getattr(torch.cpu, "_init_amx", bool)())


# What the tiles are configured by: all eight in full size.
_PALETTE = np.zeros(64, np.uint8)
_PALETTE[0], _PALETTE[16:32:2], _PALETTE[48:56] = 1, DEPTH, WIDTH

# $0 is the palette, $1 and $2 the strips, $3 the steps, $4 the sums, which tiles 0 to 3 are. In one
# piece, for which no compiler need know of tiles.
_BEGIN = """
    ldtilecfg ($0)
    movq $1, %r8
    movq $2, %r9
    movq $3, %r10
    movl $$64, %r11d
    tilezero %tmm0
    tilezero %tmm1
    tilezero %tmm2
    tilezero %tmm3
1:
"""
# Tiles 4 and 5 take the bytes of the left, 6 and 7 of the right.
_TWO = """
    tileloadd (%r8, %r11), %tmm4
    tileloadd 1024(%r8, %r11), %tmm5
    tileloadd (%r9, %r11), %tmm6
    tileloadd 1024(%r9, %r11), %tmm7
    tdpbssd %tmm6, %tmm4, %tmm0
    tdpbssd %tmm7, %tmm4, %tmm1
    tdpbssd %tmm6, %tmm5, %tmm1
    tdpbssd %tmm7, %tmm5, %tmm2
    addq $$2048, %r8
    addq $$2048, %r9
"""
# Tiles 4 to 6 take the bytes of the left, 7 one after the other of the right.
_THREE = """
    tileloadd (%r8, %r11), %tmm4
    tileloadd (%r9, %r11), %tmm7
    tdpbssd %tmm7, %tmm4, %tmm0
    tileloadd 1024(%r8, %r11), %tmm5
    tdpbssd %tmm7, %tmm5, %tmm1
    tileloadd 2048(%r8, %r11), %tmm6
    tdpbssd %tmm7, %tmm6, %tmm2
    tileloadd 1024(%r9, %r11), %tmm7
    tdpbssd %tmm7, %tmm4, %tmm1
    tdpbssd %tmm7, %tmm5, %tmm2
    tdpbssd %tmm7, %tmm6, %tmm3
    tileloadd 2048(%r9, %r11), %tmm7
    tdpbssd %tmm7, %tmm4, %tmm2
    tdpbssd %tmm7, %tmm5, %tmm3
    addq $$3072, %r8
    addq $$3072, %r9
"""
_END = """
    decq %r10
    jnz 1b
    tilestored %tmm0, ($4, %r11)
    tilestored %tmm1, 1024($4, %r11)
    tilestored %tmm2, 2048($4, %r11)
    tilestored %tmm3, 3072($4, %r11)
    tilerelease
"""
_CHANGED = "~{r8},~{r9},~{r10},~{r11},~{memory},~{flags}"
llvmlite.binding.initialize_native_asmparser()


@numba.njit(nogil=True)
def multiply(left: Array, right: Array, sums: Array) -> None:
    """Sum the products of the columns of two strips.

    Args:
        left: [steps, 2 or 3, 16, 16] in int32; bytes of 64 rows by 16 columns a step, the highest
            first, those of four rows in one number and the fours of a column side by side:
            [column, four].
        right: likewise, [four, column].
        sums: [4, 16, 16] in int32, written, each [left column, right column]: of the highest bytes with
            the highest, of those one place lower together, then two and three places. Of three bytes,
            the lowest with the lowest are left out; of two, the last sums are zero.
    """
    addresses = left.ctypes.data, right.ctypes.data, len(left), sums.ctypes.data
    if left.shape[1] == 2:
        _multiply_two(_PALETTE.ctypes.data, *addresses)
    else:
        _multiply_three(_PALETTE.ctypes.data, *addresses)


def _instructions(text: str) -> Any:
    """A function for Numba of five addresses or numbers."""

    @numba.extending.intrinsic
    def run(_context: Any, palette: Any, left: Any, right: Any, steps: Any, sums: Any) -> Any:
        del palette, left, right, steps, sums
        address = numba.types.intp

        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            integer = llvmlite.ir.IntType(64)
            function = llvmlite.ir.FunctionType(llvmlite.ir.VoidType(), [integer] * len(values))
            builder.asm(function, text, f"r,r,r,r,r,{_CHANGED}", values, side_effect=True)
            return context.get_dummy_value()

        return numba.types.void(*[address] * 5), generate

    return run


_multiply_two = _instructions(_BEGIN + _TWO + _END)
_multiply_three = _instructions(_BEGIN + _THREE + _END)
