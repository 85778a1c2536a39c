"""Figures of a layer beside its distance, from the same means and covariances.

`docs/diagnostics.md` has the definitions with their sources and how to read them.
"""

import math

import torch
from torch import Tensor

from mir_task.frechet import Gaussian


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Cosine of two means [d]; None where one of them is zero."""
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else None


def effective_rank(gaussian: Gaussian) -> float:
    r"""Effective rank of a covariance (Roy and Vetterli 2007): :math:`\exp(-\sum_i p_i \log p_i)`.

    p are the eigenvalues over their sum, from the smaller side where a factor of few rows is known.
    0 where all tokens are equal. Eigenvalues are float32: their errors of some 1e-7 of the trace
    move the result by less than 1e-4 of itself.
    """
    trace = gaussian.trace()
    if not trace:
        return 0.0
    if gaussian.factor is not None:
        factor = (gaussian.factor / math.sqrt(trace)).float()
        matrix = factor @ factor.T
    else:
        assert gaussian.covariance is not None
        matrix = (gaussian.covariance / trace).float()
    shares = torch.linalg.eigvalsh(matrix).clamp(min=0).double()
    return math.exp(float(torch.special.entr(shares / shares.sum()).sum()))
