"""`entropy_rank`: effective ranks of both covariances by the entropy of their eigenvalues.

Definition: Roy and Vetterli 2007 (EUSIPCO), of the covariance. Cost: the eigenvalues of both
covariances, or log-determinants on GPUs. No standard error: each group left out would cost as much
again.
"""

import math

import torch

from mir_task.metric import spectrum
from mir_task.metric.extras.offer import Figures, Offer
from mir_task.metric.frechet import Gaussian
from mir_task.metric.precision import full_precision


def compute(layer: Offer) -> Figures:
    """`vision_effective_rank` and `text_effective_rank` of a layer."""
    vision, text = map(effective_rank, layer.gaussians)
    return {"vision_effective_rank": vision, "text_effective_rank": text}


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
