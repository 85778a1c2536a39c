"""Figures of a layer beside its distance, from the same means and covariances.

`docs/diagnostics.md` has the definitions with their sources and how to read them.
"""

import math

from torch import Tensor

from mir_task.metric.frechet import Gaussian


def rms_norm(gaussian: Gaussian) -> float:
    """Root mean square norm of a Gaussian: sqrt(||mu||^2 + Tr(S)).

    That of n tokens themselves is less by a part of 1 / (2 n) at most, as S is over n - 1.
    """
    return math.sqrt(float(gaussian.mean.square().sum()) + gaussian.trace())


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Cosine of two means [d]; None where one of them is zero."""
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else None


def participation_ratio(gaussian: Gaussian) -> float:
    r"""Participation ratio of a covariance: :math:`(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2`.

    How many directions the tokens use, as the effective rank by entropy, with large eigenvalues counting
    for more; it takes no eigenvalues. 0 where all tokens are equal.
    """
    squares = gaussian.square_trace()
    return gaussian.trace() ** 2 / squares if squares else 0.0
