r"""Sums over the eigenvalues of a large positive semidefinite matrix, without the eigenvalues.

As :math:`\sqrt\lambda = \sqrt m + \frac1\pi \int_0^\infty \log\frac{t^2 + \lambda}{t^2 + m}\,dt`,
the sum of roots is an integral over log-determinants of the matrix plus multiples of the identity.
Those take Cholesky factors. On a GPU many are computed at a time, by products of matrices, in a third of
the time of eigenvalues and a sixth of that of the polar factor (H200, 4,096 dimensions). On the CPU the
matrix becomes a band first (`mir_task.band`).

With t an elliptic function of the variable of integration, as Hale, Higham and Trefethen (2008) have it
for functions of matrices, the integrand is analytic and periodic. Then the midpoint rule converges
exponentially: 10 points for float32, 35 for float64.
"""

import math

import torch
from torch import Tensor

from mir_task.band import Band

# Relative error of the integral.
_PRECISION = {torch.float64: 1e-9, torch.float32: 1e-6}
# From these sizes it is faster than eigenvalues, on a GPU and on the CPU.
_SMALLEST, _SMALLEST_BAND = 256, 1536
# GPUs of these compute capabilities multiply float64 at half the speed of float32 or more: P100, V100,
# A100, H100 and B200 and their like. Others take up to 64 times as long.
_FAST_DOUBLE = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
_BLOCK = 128
_MATVECS = 8
# Of the free memory of a GPU, what factors may take.
_SHARE = 0.25


def suits(matrix: Tensor) -> bool:
    """Whether the sum of roots of a [n, n] is to be had this way."""
    if not matrix.is_cuda:
        return matrix.device.type == "cpu" and len(matrix) >= _SMALLEST_BAND
    fast = torch.cuda.get_device_capability(matrix.device) in _FAST_DOUBLE
    return len(matrix) >= _SMALLEST and (fast or matrix.dtype == torch.float32)


def root_sum(matrix: Tensor) -> tuple[float, float] | None:
    """Sum of the roots of the eigenvalues and an estimate of its error; None where no factor is found.

    Args:
        matrix: [n, n] that `suits`, positive semidefinite up to rounding; valid below the diagonal and
            in its diagonal `mir_task.band.blocks`.
    """
    size, precision = len(matrix), _PRECISION[matrix.dtype]
    of = _Dense(matrix) if matrix.is_cuda else Band(matrix)
    largest = of.largest()
    if not largest > 0:
        return (0.0, 0.0) if largest == 0 else None
    # Eigenvalues are known to this; those below the end of the range may be off by their roots. The
    # least shift is a small part of that end, and must be beyond rounding for a factor to be found.
    noise = 4 * torch.finfo(matrix.dtype).eps * largest
    low, high = 32 * noise, 2 * largest
    shifts, weights = _quadrature(low, high, precision)
    logs = of.log_determinants(shifts)
    if not logs.isfinite().all():
        return None
    root = size * math.sqrt(low) + float(weights @ (logs - size * (shifts + low).log()))
    small, inverses = _near_zero(shifts[:3], logs[:3])
    error = 2 * small * math.sqrt(noise) + noise * math.sqrt(inverses) / 2 + 2 * precision * root
    return root, error


def entropy(matrix: Tensor) -> float | None:
    r""":math:`-\sum_i p_i \log p_i` of the eigenvalues p to 2e-5; None where no factor is found.

    :math:`p \log p = p (1 + \log c) + \int_0^\infty \frac{p}{c + s} - \log(1 + p / s)\,ds` for any c.
    By the trapezoidal rule in log s.

    Args:
        matrix: [n, n] float64 on a GPU, that `suits`, of trace 1, given by its lower half.
    """
    lower = matrix.tril()
    # With this c the integrand falls off as 1 / s^2.
    c = float(lower.square().sum() - matrix.diagonal().square().sum() / 2)
    step = 1.43
    shifts = torch.arange(math.log(1e-10), math.log(100), step, dtype=torch.float64).exp()
    logs = _Dense(matrix).log_determinants(shifts) - len(matrix) * shifts.log()
    total = 1 + math.log(c) + step * float(shifts @ (1 / (c + shifts) - logs))
    return -total if math.isfinite(total) else None


def _quadrature(low: float, high: float, precision: float) -> tuple[Tensor, Tensor]:
    r"""Points t^2 and weights [k] of :math:`\frac1\pi\int_0^\infty f(t)\,dt`, in float64.

    For f of singularities at :math:`\pm i \sqrt\lambda`, low <= lambda <= high, and no others: t is an
    elliptic function with one period twice `length` and the other pi, written as a sum over its poles.
    """
    length = math.log(4 * math.sqrt(high / low))
    count = math.ceil(length * math.log(0.3 / precision) / math.pi**2)
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


class _Dense:
    """A matrix [n, n] on a GPU, given by its lower half."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def largest(self) -> float:
        """About the largest eigenvalue, by the power method."""
        lower, diagonal = self.matrix.tril(), self.matrix.diagonal()
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

    def log_determinants(self, shifts: Tensor) -> Tensor:
        """[k], float64 on the CPU, of the matrix plus each of some shifts [k]; NaN if not definite."""
        each, at_once = self.matrix.numel() * self.matrix.element_size(), len(shifts)
        if self.matrix.is_cuda:
            at_once = int(torch.cuda.mem_get_info(self.matrix.device)[0] * _SHARE / each)
        return torch.cat([self._at_once(part) for part in torch.split(shifts, max(at_once, 1))])

    def _at_once(self, shifts: Tensor) -> Tensor:
        factors = self.matrix.expand(len(shifts), -1, -1).clone()
        factors.diagonal(dim1=1, dim2=2).add_(shifts.to(factors)[:, None])
        failed = torch.zeros(len(shifts), dtype=torch.int32, device=factors.device)
        identity = torch.eye(_BLOCK).to(factors)
        for start in range(0, len(self.matrix), _BLOCK):
            end = min(start + _BLOCK, len(self.matrix))
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
