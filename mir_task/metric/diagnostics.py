"""Figures of a layer beside its distance, from the same means and covariances.

`docs/diagnostics.md` has the definitions with their sources and how to read them.
"""

import math

import torch
from torch import Tensor

from mir_task.metric import spectrum
from mir_task.metric.frechet import Gaussian
from mir_task.metric.precision import full_precision


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Cosine of two means [d]; None where one of them is zero."""
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else None


def participation_ratio(gaussian: Gaussian) -> float:
    r"""Participation ratio of a covariance: :math:`(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2`.

    How many directions the tokens use, as `effective_rank`, with large eigenvalues counting for more;
    it takes no eigenvalues. 0 where all tokens are equal.
    """
    squares = gaussian.square_trace()
    return gaussian.trace() ** 2 / squares if squares else 0.0


@full_precision()
def effective_rank(gaussian: Gaussian) -> float:
    r"""Effective rank of a covariance (Roy and Vetterli 2007): :math:`\exp(-\sum_i p_i \log p_i)`.

    p are the eigenvalues over their sum, from the smaller side where a factor of few rows is known.
    0 where all tokens are equal. Eigenvalues are float32: their errors of some 1e-7 of the trace
    move the result by less than 1e-4 of itself.
    """
    trace = gaussian.trace()
    if not trace:
        return 0.0
    dtype = torch.float64 if gaussian.mean.is_cuda else torch.float32
    if gaussian.factor is not None:
        factor = (gaussian.factor / math.sqrt(trace)).to(dtype)
        matrix = factor @ factor.T
    else:
        assert gaussian.covariance is not None
        matrix = (gaussian.covariance / trace).to(dtype)
    if (
        matrix.is_cuda
        and spectrum.is_supported(matrix)
        and (entropy := spectrum.entropy(matrix)) is not None
    ):
        return math.exp(entropy)
    shares = torch.linalg.eigvalsh(matrix.float()).clamp(min=0).double()
    return math.exp(float(torch.special.entr(shares / shares.sum()).sum()))


def linear_cka(a: Tensor, b: Tensor) -> float | None:
    """Linear CKA of paired features a and b [n, d], with the unbiased estimator of HSIC.

    Kornblith et al. 2019, with HSIC_1 of Song et al. 2012 as in Nguyen et al. 2021: without it, fewer
    pairs than dimensions give values near 1 whatever they are. None of fewer than 4 pairs, and where one
    side does not vary.
    """
    if len(a) < 4:
        return None
    first, second = (_centred_kernel(x.double()) for x in (a, b))
    norms = _hsic(first, first) * _hsic(second, second)
    return _hsic(first, second) / math.sqrt(norms) if norms > 0 else None


def _centred_kernel(features: Tensor) -> Tensor:
    """Inner products [n, n] of centred features [n, d], zero on the diagonal."""
    centred = features - features.mean(0)
    return (centred @ centred.T).fill_diagonal_(0)


def _hsic(a: Tensor, b: Tensor) -> float:
    """HSIC_1 of Song et al. 2012 (JMLR 13, eq. 5), from kernels [n, n] with zero diagonals."""
    n = len(a)
    sums = a.sum(0), b.sum(0)
    crossed = sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums[0] @ sums[1])
    return float((a * b).sum() + crossed) / (n * (n - 3))


def mmd2(a: Tensor, b: Tensor) -> float | None:
    """Unbiased squared MMD of rows a [r, d] and b [s, d] (Gretton et al. 2012, eq. 3).

    The kernel is exp(-|x - y|^2 / (2 w^2)), w the median distance between any two rows of both. None
    where w is zero.
    """
    r, s = len(a), len(b)
    distances = torch.nn.functional.pdist(torch.cat([a, b]).double())
    width = distances.median()
    if not width:
        return None
    kernel = torch.zeros(r + s, r + s, dtype=torch.float64, device=a.device)
    above = torch.triu_indices(r + s, r + s, 1, device=a.device)
    kernel[above[0], above[1]] = torch.exp(-distances.square() / (2 * width**2))
    within = 2 * kernel[:r, :r].sum() / (r * (r - 1)) + 2 * kernel[r:, r:].sum() / (s * (s - 1))
    return float(within - 2 * kernel[:r, r:].mean())
