r"""The Fréchet distance between two Gaussians, exact for singular covariances.

:math:`F = \lVert \mu_a - \mu_b \rVert^2 + \mathrm{Tr}(S_a) + \mathrm{Tr}(S_b) -
2\,\mathrm{Tr}((S_a S_b)^{1/2})`. For any A, B with A^T A = S_a and B^T B = S_b the root term is the
nuclear norm of A B^T, whose squared singular values are the eigenvalues of A S_b A^T. So one factor and
the sum of roots of one symmetric matrix are enough, of the size of the smaller rank; on GPUs that sum is
computed without eigenvalues (`mir_task.metric.spectrum`). Factors are:

* of few tokens: the centred ones over sqrt(n - 1);
* of a definite covariance: its Cholesky factor;
* of a singular one: a Cholesky factor with pivoting, of as many rows as its rank.

No epsilon is added. Each root comes with an estimate of its error, and one that is not small enough is
computed anew in float64, and then as a nuclear norm, which squares nothing.
"""

import math
from typing import NamedTuple

import scipy.linalg.lapack
import torch
from torch import Tensor

from mir_task.metric import spectrum
from mir_task.metric.precision import full_precision

ACCEPTED_ERROR = 1e-4
"""Error of the root term over both traces above which it is computed the safest way."""
# Pivots that are chosen at a time.
_PIVOTS = 128


class FrechetTerms(NamedTuple):
    """The terms of the Fréchet distance between two Gaussians."""

    mean: float
    """||mu_a - mu_b||^2."""
    traces: float
    """Tr(S_a) + Tr(S_b)."""
    root: float
    """Tr((S_a S_b)^(1/2))."""
    product: float
    """Tr(S_a S_b)."""
    error: float
    """Estimate of the error of the distance."""
    coarse: spectrum.Coarse | None = None
    """By which the root term of covariances that differ little is found for less; GPUs only."""

    @property
    def covariance(self) -> float:
        """Tr(S_a) + Tr(S_b) - 2 Tr((S_a S_b)^(1/2)), which rounding must not make negative."""
        return max(self.traces - 2 * self.root, 0.0)

    @property
    def distance(self) -> float:
        """The Fréchet distance, at least 0."""
        return self.mean + self.covariance

    def scaled(self, scale: float) -> "FrechetTerms":
        """Terms of the same tokens multiplied by `scale`: all are homogeneous."""
        square = scale**2
        return FrechetTerms(
            mean=self.mean * square,
            traces=self.traces * square,
            root=self.root * square,
            product=self.product * square**2,
            error=self.error * square,
        )


class Gaussian(NamedTuple):
    """Mean [d] and covariance of a set of tokens, as [d, d] or as a factor of fewer rows than d."""

    mean: Tensor
    covariance: Tensor | None
    factor: Tensor | None
    """[n, d] with factor^T factor = covariance: the centred tokens over sqrt(n - 1), where n < d."""
    precision: float = 0.0
    """Relative error of the covariance's entries, where it is above that of their dtype."""

    @classmethod
    def from_tokens(cls, tokens: Tensor) -> "Gaussian":
        """Mean and covariance (n - 1) of tokens [n, d], in their dtype and on their device."""
        mean = tokens.mean(0)
        centred = (tokens - mean) / math.sqrt(len(tokens) - 1)
        if len(tokens) < tokens.shape[1]:
            return cls(mean, covariance=None, factor=centred)
        return cls(mean, covariance=centred.T @ centred, factor=None)

    def to(self, dtype: torch.dtype) -> "Gaussian":
        """The same in another dtype."""
        covariance, factor = (None if x is None else x.to(dtype) for x in (self.covariance, self.factor))
        return Gaussian(self.mean.to(dtype), covariance, factor, self.precision)

    def trace(self) -> float:
        """Tr(S)."""
        if self.factor is not None:
            return float(self.factor.square().sum())
        assert self.covariance is not None
        return float(self.covariance.trace())

    def square_trace(self) -> float:
        """Tr(S^2)."""
        if self.factor is not None:
            return float(_gram(self.factor).square().sum())
        assert self.covariance is not None
        return float(self.covariance.square().sum())

    def root(self) -> Tensor:
        """[m, d] with root^T root = S and m at most the rank that the precision can tell."""
        if self.factor is not None:
            return self.factor
        assert self.covariance is not None
        return _pivoted_cholesky(self.covariance)


@full_precision()
def frechet_terms(a: Gaussian, b: Gaussian, near: FrechetTerms | None = None) -> FrechetTerms:
    """Terms of the Fréchet distance, in the dtype of the Gaussians unless that is not precise enough.

    Args:
        a: one Gaussian.
        b: the other.
        near: terms of Gaussians that differ little from these, such as those of all documents where
            these leave a few out. On GPUs the root term's difference from theirs is then integrated at
            fewer points, which leaves a hundredth of it out at most.
    """
    traces = a.trace() + b.trace()
    rounding = max(torch.finfo(a.mean.dtype).eps, a.precision, b.precision)
    found = _root_term(a, b, near)
    if found.error > ACCEPTED_ERROR * traces:
        a, b = a.to(torch.float64), b.to(torch.float64)
        found = _root_term(a, b)
    if found.error > ACCEPTED_ERROR * traces:
        found = _safest_root_term(a, b)
    return FrechetTerms(
        mean=float((a.mean - b.mean).square().sum()),
        traces=traces,
        root=found.root,
        product=found.product,
        error=2 * found.error + rounding * traces,
        coarse=found.coarse,
    )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between the Gaussians of tokens a [r, d] and b [s, d], in float64."""
    return frechet_terms(Gaussian.from_tokens(a.double()), Gaussian.from_tokens(b.double())).distance


class Root(NamedTuple):
    """Tr((S_a S_b)^(1/2)), an estimate of its error, and Tr(S_a S_b)."""

    root: float
    error: float
    product: float
    coarse: spectrum.Coarse | None = None


def _root_term(a: Gaussian, b: Gaussian, near: FrechetTerms | None = None) -> Root:
    if a.factor is not None and b.factor is not None:
        cross = a.factor @ b.factor.T
        return trace_root(_gram(cross)) if cross.is_cuda else _nuclear_norm(cross)
    if a.factor is not None or b.factor is not None:
        few, many = (a, b) if a.factor is not None else (b, a)
        assert few.factor is not None
        assert many.covariance is not None
        return trace_root(few.factor @ many.covariance @ few.factor.T)
    assert a.covariance is not None
    assert b.covariance is not None
    for one, other in ((a.covariance, b.covariance), (b.covariance, a.covariance)):
        lower, failed = torch.linalg.cholesky_ex(one)
        if not failed:
            return trace_root(lower.T @ (other @ lower), near)
    return trace_root(_gram(a.root() @ b.root().T))


def _safest_root_term(a: Gaussian, b: Gaussian) -> Root:
    return _nuclear_norm(a.root() @ b.root().T)


def _pivoted_cholesky(covariance: Tensor) -> Tensor:
    """R [r, d] with R^T R = S [d, d] and r the rank that its precision can tell.

    Many pivots at a time, those that are largest then, in float64.
    """
    size, rank, precision = len(covariance), 0, torch.finfo(covariance.dtype).eps
    exact = covariance.double()
    rows, rest = torch.empty_like(exact), exact.diagonal().clone()
    nothing = precision * size * float(rest.max())
    while rank < size:
        values, pivots = rest.topk(min(_PIVOTS, size - rank))
        pivots = pivots[values > nothing]
        some = torch.addmm(exact[pivots], rows[:rank, pivots].T, rows[:rank], alpha=-1)
        corner = some[:, pivots].cpu().numpy()
        lower, order, found, _ = scipy.linalg.lapack.dpstrf(corner, lower=1, tol=nothing)
        if not found:
            break
        chosen = torch.from_numpy(order[:found] - 1).to(pivots)
        some, pivots = some[chosen], pivots[chosen]
        factor = torch.from_numpy(lower[:found, :found]).to(exact)
        more = torch.linalg.solve_triangular(factor, some, upper=False)
        rows[rank : rank + found] = more
        rest -= more.square().sum(0)
        rest[pivots] = 0
        rank += found
    return rows[:rank].to(covariance)


def trace_root(gram: Tensor, near: FrechetTerms | None = None) -> Root:
    """Sum of the roots of the eigenvalues of a symmetric [m, m], of which the lower half is read.

    Eigenvalues are known to some eps of the largest, and so their roots to eps / (2 root), or to the
    root of eps near zero.
    """
    product = float(gram.trace())
    if near is not None and near.coarse is not None and near.coarse.fits(gram):
        difference = spectrum.difference(gram, near.coarse)
        if difference is not None:
            return Root(near.root + difference, near.error / 2, product)
    if spectrum.is_supported(gram) and (found := spectrum.root_sum(gram)) is not None:
        return Root(found.root, found.error, product, found.coarse)
    values = torch.linalg.eigvalsh(gram, UPLO="L").clamp(min=0)
    if not len(values) or not values[-1]:  # of rank 0, such as where all tokens are equal
        return Root(0.0, 0.0, 0.0)
    noise = 4 * torch.finfo(values.dtype).eps * values[-1]
    error = noise / ((values + noise).sqrt() + values.sqrt())
    # Errors of single eigenvalues have either sign; those near zero were clamped and have not.
    clamped = values < noise
    total = error[clamped].sum() + error[~clamped].square().sum().sqrt()
    return Root(float(values.sqrt().sum()), float(total), float(values.sum()))


def _gram(cross: Tensor) -> Tensor:
    """Inner products of the rows or columns of a [r, s], whichever are fewer."""
    return cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross


def _nuclear_norm(cross: Tensor) -> Root:
    values = torch.linalg.svdvals(cross)
    if not len(values):
        return Root(0.0, 0.0, 0.0)
    error = torch.finfo(values.dtype).eps * values[0] * math.sqrt(len(values))
    return Root(float(values.sum()), float(error), float(values.square().sum()))
