"""A large symmetric matrix on the CPU as a band of the same eigenvalues, and its log-determinants.

The tridiagonal form, by which libraries find eigenvalues, reads the whole matrix once a column and waits
for memory. Block reflectors (Schreiber and Van Loan 1989) bring it to a band by products of matrices
alone (Bischof, Lang and Sun 2000). Cholesky factors of a band cost next to nothing.
"""

import itertools
from collections.abc import Iterator

import numba
import numpy as np
import scipy.linalg.blas
import scipy.linalg.lapack
import torch
from torch import Tensor

from mir_task.halves import Array

_WIDTH = 64
_BLOCKS = 8
_MATVECS = 12


def blocks(size: int) -> Iterator[tuple[int, int]]:
    """Rows or columns (first, end), in parts: half of a symmetric matrix takes less than the whole."""
    return itertools.pairwise(size * n // _BLOCKS for n in range(_BLOCKS + 1))


class Band:
    """Diagonals of a band matrix, in float64.

    Args:
        matrix: [n, n] on the CPU, n at least twice the width of the band, valid in its diagonal
            `blocks` and below them.
        width: of the band, without the main diagonal.
    """

    def __init__(self, matrix: Tensor, width: int = _WIDTH) -> None:
        self.diagonals = _reduce(matrix.clone(), width)
        """[width + 1, n], from the main one down, as LAPACK has them."""

    def largest(self) -> float:
        """About the largest eigenvalue, if none is far below zero, by the power method."""
        below, size = len(self.diagonals) - 1, self.diagonals.shape[1]
        vector = np.random.default_rng(0).standard_normal(size)
        norm = 0.0
        for _ in range(_MATVECS):
            vector = scipy.linalg.blas.dsbmv(below, 1.0, self.diagonals, vector, lower=1)
            norm = float(np.linalg.norm(vector))
            if not norm:
                return 0.0
            vector /= norm
        return norm

    def log_determinants(self, shifts: Tensor) -> Tensor:
        """[k], float64, of the matrix plus each of some shifts [k]; NaN where that is not definite."""
        logs = [self._log_determinant(shift) for shift in shifts.tolist()]
        return torch.tensor(logs, dtype=torch.float64)

    def _log_determinant(self, shift: float) -> float:
        shifted = self.diagonals.copy(order="F")
        shifted[0] += shift
        factor, failed = scipy.linalg.lapack.dpbtrf(shifted, lower=1, overwrite_ab=1)
        return float("nan") if failed else 2 * float(np.log(factor[0]).sum())


def _reduce(matrix: Tensor, width: int) -> Array:
    size, edges = len(matrix), [0, *(end for _, end in blocks(len(matrix)))]
    firsts = [0, *range(size % width or width, size, width)]
    for first, start in itertools.pairwise(firsts):
        columns = matrix[start:, first:start]
        basis = _orthonormal(columns)
        # The reflector I - Y T Y^T takes the columns to their top rows, up to signs.
        signs = torch.from_numpy(_signs(basis[: start - first].numpy()))
        top = (basis.T @ columns).triu() * signs[:, None]
        columns.zero_()
        columns[: len(top)] = top
        y = basis
        y.diagonal().sub_(signs)
        t = torch.linalg.inv(y[: len(top)]).T * -signs[:, None]
        rest = matrix[start:, start:]
        parts = list(itertools.pairwise([0, *(edge - start for edge in edges if edge > start)]))
        product = torch.zeros_like(y)
        for begin, end in parts:
            product[begin:].addmm_(rest[begin:, begin:end], y[begin:end])
            product[begin:end].addmm_(rest[end:, begin:end].T, y[end:])
        product = product @ t
        x = torch.addmm(product, y, t.T @ (y.T @ product), alpha=-0.5)
        left, right = torch.cat([x, y], 1), torch.cat([y, x], 1).T
        for begin, end in parts:
            rest[begin:, begin:end].addmm_(left[begin:], right[:, begin:end], alpha=-1)
    diagonals = np.zeros((width + 1, size), order="F")
    for below in range(width + 1):
        diagonals[below, : size - below] = matrix.diagonal(-below).numpy()
    return diagonals


def _orthonormal(columns: Tensor) -> Tensor:
    """A basis [n, k] of columns [n, k], by two Cholesky factors where they are precise enough."""
    basis, identity = columns, torch.eye(columns.shape[1], dtype=columns.dtype)
    for number in range(2):
        gram = basis.T @ basis
        lower, failed = torch.linalg.cholesky_ex(gram)
        far = number and float(gram.fill_diagonal_(0).abs().max()) > 0.01
        if failed or far:
            precise: Tensor = torch.linalg.qr(columns)[0]
            return precise
        basis = basis @ torch.linalg.solve_triangular(lower.T, identity, upper=True)
    return basis


@numba.njit(nogil=True)
def _signs(corner: Array) -> Array:
    """Signs to subtract from the diagonal [k, k] of a basis so that elimination needs no pivots.

    Ballard, Demmel, Grigori, Jacquelin, Knight and Nguyen 2015.
    """
    size, rest = len(corner), corner.copy()
    signs = np.ones(size, corner.dtype)
    for first in range(size):
        if rest[first, first] >= 0:
            signs[first] = -1
        rest[first, first] -= signs[first]
        for row in range(first + 1, size):
            factor = rest[row, first] / rest[first, first]
            for column in range(first + 1, size):
                rest[row, column] -= factor * rest[first, column]
    return signs
