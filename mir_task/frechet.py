r"""The Fréchet distance between two Gaussians, exact for singular covariances.

:math:`F = \lVert \mu_a - \mu_b \rVert^2 + \mathrm{Tr}(S_a) + \mathrm{Tr}(S_b) -
2\,\mathrm{Tr}((S_a S_b)^{1/2})`. For any A, B with A^T A = S_a and B^T B = S_b the root term is the
nuclear norm of A B^T, whose squared singular values are the eigenvalues of A S_b A^T. So one factor and
one symmetric eigenvalue problem are enough, of the size of the smaller rank:

* few tokens: the centred tokens over sqrt(n - 1) are a factor;
* a definite covariance: its Cholesky factor;
* a singular one: a Cholesky factor with pivoting, of as many rows as its rank.

No epsilon is added. Each root comes with an estimate of its error, and one that is not small enough is
computed anew in float64, and then as a nuclear norm, which squares nothing.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import scipy.linalg.lapack
import torch
from torch import Tensor

ACCEPTED_ERROR = 1e-4
"""Error of the root term over both traces above which it is computed the safest way."""
_BLOCKS = 8


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
        return Gaussian(*(None if part is None else part.to(dtype) for part in self))  # type: ignore[arg-type]

    def trace(self) -> float:
        """Tr(S)."""
        if self.factor is not None:
            return float(self.factor.square().sum())
        assert self.covariance is not None
        return float(self.covariance.trace())

    def root(self) -> Tensor:
        """[m, d] with root^T root = S and m at most the rank that the precision can tell."""
        if self.factor is not None:
            return self.factor
        assert self.covariance is not None
        if self.covariance.device.type == "cpu":
            pstrf = scipy.linalg.lapack.get_lapack_funcs("pstrf", dtype=self.covariance.numpy().dtype)
            lower, pivots, rank, _ = pstrf(self.covariance.numpy(), lower=1)
            rows = torch.zeros_like(self.covariance)[:rank]
            rows[:, torch.from_numpy(pivots - 1).long()] = torch.from_numpy(lower).tril()[:, :rank].T
            return rows
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > torch.finfo(values.dtype).eps * len(values) * values[-1]
        root: Tensor = (vectors[:, kept] * values[kept].sqrt()).T
        return root


def frechet_terms(a: Gaussian, b: Gaussian) -> FrechetTerms:
    """Terms of the Fréchet distance, in the dtype of the Gaussians unless that is not precise enough."""
    traces, rounding = a.trace() + b.trace(), torch.finfo(a.mean.dtype).eps
    root, product, error = _root_term(a, b)
    if error > ACCEPTED_ERROR * traces:
        a, b = a.to(torch.float64), b.to(torch.float64)
        root, product, error = _root_term(a, b)
    if error > ACCEPTED_ERROR * traces:
        root, product, error = _safest_root_term(a, b)
    return FrechetTerms(
        mean=float((a.mean - b.mean).square().sum()),
        traces=traces,
        root=root,
        product=product,
        error=2 * error + rounding * traces,
    )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between the Gaussians of tokens a [r, d] and b [s, d], in float64."""
    return frechet_terms(Gaussian.from_tokens(a.double()), Gaussian.from_tokens(b.double())).distance


def _root_term(a: Gaussian, b: Gaussian) -> tuple[float, float, float]:
    """Tr((S_a S_b)^(1/2)), Tr(S_a S_b), and an estimate of the first one's error."""
    if a.factor is not None and b.factor is not None:
        return _nuclear_norm(a.factor @ b.factor.T)
    if a.factor is not None or b.factor is not None:
        few, many = (a, b) if a.factor is not None else (b, a)
        assert few.factor is not None
        assert many.covariance is not None
        return _trace_root(few.factor @ many.covariance @ few.factor.T)
    assert a.covariance is not None
    assert b.covariance is not None
    for one, other in ((a.covariance, b.covariance), (b.covariance, a.covariance)):
        if (lower := _cholesky(one)) is not None:
            return _trace_root(_congruence(lower, other))
    root_a, root_b = a.root(), b.root()
    if len(root_b) < len(root_a):
        root_a, root_b = root_b, root_a
    cross = root_a @ root_b.T
    return _trace_root(cross @ cross.T)


def _safest_root_term(a: Gaussian, b: Gaussian) -> tuple[float, float, float]:
    return _nuclear_norm(a.root() @ b.root().T)


def _cholesky(covariance: Tensor) -> Tensor | None:
    """L [d, d] with L L^T = S, its upper blocks undefined; None where S is not definite."""
    lower = torch.empty_like(covariance)
    for start, end in _blocks(len(lower)):
        before = lower[start:, :start], lower[start:end, :start].T
        column = torch.addmm(covariance[start:, start:end], *before, alpha=-1)
        corner, failed = torch.linalg.cholesky_ex(column[: end - start])
        if failed:
            return None
        lower[start:end, start:end] = corner
        rest = torch.linalg.solve_triangular(corner.T, column[end - start :], upper=True, left=False)
        lower[end:, start:end] = rest
    return lower


def _congruence(lower: Tensor, covariance: Tensor) -> Tensor:
    """L^T S L [d, d] of such a factor, its upper blocks undefined."""
    product = torch.empty_like(covariance)
    for start, end in _blocks(len(lower)):
        product[start:, start:end] = covariance[start:, start:] @ lower[start:, start:end]
    for start, end in _blocks(len(lower)):  # no block further down needs these rows of S L
        product[start:end, :end] = lower[start:, start:end].T @ product[start:, :end]
    return product


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    """Rows or columns (first, end), in parts: half of a triangular matrix takes less than the whole."""
    return itertools.pairwise(size * n // _BLOCKS for n in range(_BLOCKS + 1))


def _trace_root(gram: Tensor) -> tuple[float, float, float]:
    """Sum of the roots of the eigenvalues of a symmetric [m, m] given by its lower half.

    Eigenvalues are known to some eps of the largest, and so their roots to eps / (2 root), or to the
    root of eps near zero.
    """
    if not len(gram):  # a covariance of rank 0
        return 0.0, 0.0, 0.0
    values = torch.linalg.eigvalsh(gram, UPLO="L").clamp(min=0)
    noise = 4 * torch.finfo(values.dtype).eps * values[-1]
    error = noise / ((values + noise).sqrt() + values.sqrt())
    # Errors of single eigenvalues have either sign; those near zero were clamped and have not.
    clamped = values < noise
    total = error[clamped].sum() + error[~clamped].square().sum().sqrt()
    return float(values.sqrt().sum()), float(values.sum()), float(total)


def _nuclear_norm(cross: Tensor) -> tuple[float, float, float]:
    values = torch.linalg.svdvals(cross)
    if not len(values):
        return 0.0, 0.0, 0.0
    error = torch.finfo(values.dtype).eps * values[0] * math.sqrt(len(values))
    return float(values.sum()), float(values.square().sum()), float(error)
