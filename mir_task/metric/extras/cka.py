"""`cka`: linear CKA of documents' mean vision and mean text rows, debiased.

Definition: centred kernel alignment of Kornblith et al. 2019 (arXiv 1905.00414) with linear kernels,
HSIC by the unbiased estimator HSIC_1 of Song et al. 2012 (JMLR 13, eq. 5), as in Nguyen et al. 2021
(arXiv 2010.15327). Cost: a mean row of each document and modality in a layer, and two kernels of
documents by documents.
"""

import math

from torch import Tensor

from mir_task.metric.extras.offer import Figures, Offer
from mir_task.result import jackknife_stderr

FEWEST = 4
"""Documents that HSIC_1 takes."""


def compute(layer: Offer) -> Figures:
    """`cka` of a layer and its standard error by the delete-one-document jackknife."""
    vision, text = layer.means()
    value, left_out = linear_cka(vision, text)
    known = [each for each in left_out if each is not None]
    error = jackknife_stderr(known) if len(known) == len(left_out) > 1 else None
    return {"cka": value, "cka_stderr": error}


def linear_cka(a: Tensor, b: Tensor) -> tuple[float | None, list[float | None]]:
    """Linear CKA of paired features, and that without each pair.

    The unbiased estimator matters: with the usual one, fewer pairs than dimensions give values near 1
    whatever they are.

    Args:
        a: [n, d].
        b: [n, e].

    Returns:
        None of fewer than 4 pairs, and where one side does not vary; without each pair likewise, nothing
        of fewer than 5 pairs.
    """
    if len(a) < FEWEST:
        return None, []
    first, second = (_centred_kernel(x.double()) for x in (a, b))
    pairs = ((first, second), (first, first), (second, second))
    columns = zip(*(_hsic(*pair) for pair in pairs), strict=True)
    values = [_cosine(*column) for column in columns]
    return values[0], values[1:]


def _cosine(product: float, one: float, other: float) -> float | None:
    return product / math.sqrt(one * other) if one > 0 and other > 0 else None


def _centred_kernel(features: Tensor) -> Tensor:
    """Inner products [n, n] of centred features [n, d], zero on the diagonal."""
    centred = features - features.mean(0)
    return (centred @ centred.T).fill_diagonal_(0)


def _hsic(a: Tensor, b: Tensor) -> list[float]:
    """HSIC_1 from kernels [n, n] with zero diagonals, then that without each row and column.

    It does not depend on where the features are centred, so those left need not be centred anew.
    """
    n, each = len(a), (a * b).sum(1)
    sums, others = a.sum(0), b.sum(0)
    inner = sums @ others
    products, one, other = (x.sum() for x in (each, sums, others))
    whole = _estimate(n, products, one, other, inner)
    if n == FEWEST:
        return [float(whole)]
    products, one, other = (x.sum() - 2 * x for x in (each, sums, others))
    inner = inner - sums * others - a @ others - b @ sums + each
    return [float(whole), *_estimate(n - 1, products, one, other, inner).tolist()]


def _estimate(n: int, products: Tensor, a: Tensor, b: Tensor, inner: Tensor) -> Tensor:
    """HSIC_1 of n pairs from sums over their kernels: of products, of both, of row sums' products."""
    crossed = a * b / ((n - 1) * (n - 2)) - 2 / (n - 2) * inner
    return (products + crossed) / (n * (n - 3))
