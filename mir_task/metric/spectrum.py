r"""Sums over the eigenvalues of a large positive semidefinite matrix, without the eigenvalues.

As :math:`\sqrt\lambda = \sqrt m + \frac1\pi \int_0^\infty \log\frac{t^2 + \lambda}{t^2 + m}\,dt`,
the sum of roots is an integral over log-determinants of the matrix plus multiples of the identity.
Those take Cholesky factors. On a GPU many are computed at a time, by products of matrices, in a third of
the time of eigenvalues and a sixth of that of the polar factor (H200, 4,096 dimensions).

With t an elliptic function of the variable of integration, as Hale, Higham and Trefethen (2008) have it
for functions of matrices, the integrand is analytic and periodic. Then the midpoint rule converges
exponentially: 10 points for float32, 36 for float64. Every third of these make a midpoint rule too,
which is enough for the difference between two sums that differ little.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mir_task.metric.precision import has_fast_float64

PRECISION = {torch.float64: 1e-9, torch.float32: 1e-6}
"""Relative error of the integral."""
# From this size on it is faster than eigenvalues.
_SMALLEST = 256
_BLOCK = 128
_MATVECS = 8
# Of the free memory of a GPU, what factors may take.
_SHARE = 0.25
# One in so many points is enough for a difference. Of the few of float32 all are needed.
_THIN = {torch.float64: 3, torch.float32: 1}


class Coarse(NamedTuple):
    """Some points of the integral over a matrix [n, n], for matrices that differ little from it."""

    shifts: Tensor
    """t^2 [k], float64 on the CPU."""
    weights: Tensor
    logs: Tensor
    """Log-determinants of the matrix plus these shifts."""
    like: Tensor
    """Empty, of the dtype and on the device of the matrix, [n, 0]."""

    def fits(self, matrix: Tensor) -> bool:
        """Whether a matrix is of the same size, dtype and device."""
        like = self.like
        return (len(matrix), matrix.dtype, matrix.device) == (len(like), like.dtype, like.device)


class RootSum(NamedTuple):
    """Sum of the roots of a matrix's eigenvalues."""

    root: float
    error: float
    """Estimate of the sum's error."""
    coarse: Coarse | None = None


def is_supported(matrix: Tensor) -> bool:
    """Whether this way is the faster one for a symmetric [n, n]."""
    if not matrix.is_cuda or len(matrix) < _SMALLEST:
        return False
    return matrix.dtype == torch.float32 or has_fast_float64(matrix.device)


def root_sum(matrix: Tensor) -> RootSum | None:
    """Sum of the roots of the eigenvalues; None where no factor is found.

    Args:
        matrix: [n, n], positive semidefinite up to rounding, given by its lower half.
    """
    size, precision = len(matrix), PRECISION[matrix.dtype]
    largest = largest_eigenvalue(matrix)
    if not largest > 0:
        return RootSum(0.0, 0.0) if largest == 0 else None
    # Eigenvalues are known to this; those below the end of the range may be off by their roots. The
    # least shift is a small part of that end, and must be beyond rounding for a factor to be found.
    noise = 4 * torch.finfo(matrix.dtype).eps * largest
    low, high = 32 * noise, 2 * largest
    thin = _THIN[matrix.dtype]
    shifts, weights = _quadrature(low, high, precision, thin)
    logs = log_determinants(matrix, shifts)
    if not logs.isfinite().all():
        return None
    root = size * math.sqrt(low) + float(weights @ (logs - size * (shifts + low).log()))
    small, inverses = _near_zero(shifts[:3], logs[:3])
    error = 2 * small * math.sqrt(noise) + noise * math.sqrt(inverses) / 2 + 2 * precision * root
    some = slice(thin // 2, None, thin)
    coarse = Coarse(shifts[some], thin * weights[some], logs[some], matrix[:, :0].clone())
    return RootSum(root, error, coarse)


def difference(matrix: Tensor, coarse: Coarse) -> float | None:
    """By how much a matrix's sum of roots is above that of the one behind `coarse`, to a hundredth.

    None where no factor is found.
    """
    logs = log_determinants(matrix, coarse.shifts)
    return float(coarse.weights @ (logs - coarse.logs)) if logs.isfinite().all() else None


def entropy(matrix: Tensor) -> float | None:
    r""":math:`-\sum_i p_i \log p_i` of the eigenvalues p to 2e-5; None where no factor is found.

    :math:`p \log p = p (1 + \log c) + \int_0^\infty \frac{p}{c + s} - \log(1 + p / s)\,ds` for any c.
    By the trapezoidal rule in log s.

    Args:
        matrix: [n, n] float64 of trace 1, given by its lower half.
    """
    lower = matrix.tril()
    # With this c the integrand falls off as 1 / s^2.
    c = float(lower.square().sum() - matrix.diagonal().square().sum() / 2)
    step = 1.43
    shifts = torch.arange(math.log(1e-10), math.log(100), step, dtype=torch.float64).exp()
    logs = log_determinants(matrix, shifts) - len(matrix) * shifts.log()
    total = 1 + math.log(c) + step * float(shifts @ (1 / (c + shifts) - logs))
    return -total if math.isfinite(total) else None


def _quadrature(low: float, high: float, precision: float, multiple: int) -> tuple[Tensor, Tensor]:
    r"""Points t^2 and weights [k] of :math:`\frac1\pi\int_0^\infty f(t)\,dt`, in float64; k a multiple.

    For f of singularities at :math:`\pm i \sqrt\lambda`, low <= lambda <= high, and no others: t is an
    elliptic function with one period twice `length` and the other pi, written as a sum over its poles.
    """
    length = math.log(4 * math.sqrt(high / low))
    count = multiple * math.ceil(length * math.log(0.3 / precision) / math.pi**2 / multiple)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) * length / count
    poles = torch.arange(-5, 6, 2, dtype=torch.float64)[:, None] * length - places
    t = math.sqrt(high) * (1 / poles.sinh()).sum(0)
    slope = math.sqrt(high) * (poles.cosh() / poles.sinh() ** 2).sum(0)
    return t**2, slope * length / (count * math.pi)


def _near_zero(shifts: Tensor, logs: Tensor) -> tuple[float, float]:
    """How many eigenvalues lie far below three shifts, and the sum of one over each of the others.

    From log-determinants: d log det(A + s) / d log s is the sum of s / (lambda + s), which is 1 for the
    former and s / lambda for the latter.
    """
    steps = shifts.log().diff()
    first, second = (logs.diff() / steps).tolist()
    a, b = (shifts.diff() / steps).tolist()
    return max((b * first - a * second) / (b - a), 0.0), max((second - first) / (b - a), 0.0)


def largest_eigenvalue(matrix: Tensor) -> float:
    """About the largest eigenvalue of a [n, n] given by its lower half, by the power method."""
    lower, diagonal = matrix.tril(), matrix.diagonal()
    bound = float((2 * lower.square().sum() - diagonal.square().sum()).sqrt())
    if not bound > 0:
        return bound
    generator = torch.Generator().manual_seed(0)
    last = vector = torch.randn(len(lower), generator=generator).to(lower)
    for _ in range(_MATVECS):
        last = vector  # it does not grow, as it is divided by the bound
        vector = torch.addmv(diagonal * last, lower, last, alpha=1 / bound, beta=-1 / bound)
        vector.addmv_(lower.T, last, alpha=1 / bound)
    return bound * float(vector.norm() / last.norm())


def log_determinants(matrix: Tensor, shifts: Tensor) -> Tensor:
    """[k], float64 on the CPU, of a matrix plus each of some shifts [k]; NaN if not definite."""
    at_once = len(shifts)
    if matrix.is_cuda:
        free = torch.cuda.mem_get_info(matrix.device)[0]
        at_once = int(free * _SHARE / (matrix.numel() * matrix.element_size()))
    return torch.cat([_factored(matrix, part) for part in torch.split(shifts, max(at_once, 1))])


def _factored(matrix: Tensor, shifts: Tensor) -> Tensor:
    """`log_determinants` by Cholesky factors of all shifts at once."""
    factors = matrix.expand(len(shifts), -1, -1).clone()
    factors.diagonal(dim1=1, dim2=2).add_(shifts.to(factors)[:, None])
    failed = torch.zeros(len(shifts), dtype=torch.int32, device=factors.device)
    identity = torch.eye(_BLOCK).to(factors)
    for start in range(0, len(matrix), _BLOCK):
        end = min(start + _BLOCK, len(matrix))
        columns = factors[:, start:, start:end]
        columns.baddbmm_(factors[:, start:, :start], factors[:, start:end, :start].mT, alpha=-1)
        corner, info = torch.linalg.cholesky_ex(columns[:, : end - start])
        failed |= info
        columns[:, : end - start] = corner
        # Libraries solve many small systems slower than they invert a corner.
        unit = identity[: end - start, : end - start].expand_as(corner)
        inverse = torch.linalg.solve_triangular(corner, unit, upper=False)
        columns[:, end - start :] = columns[:, end - start :] @ inverse.mT
    logs = 2 * factors.diagonal(dim1=1, dim2=2).double().log().sum(1)
    return torch.where(failed == 0, logs, math.nan).cpu()
