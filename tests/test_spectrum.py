"""Sums over eigenvalues without the eigenvalues, and the factors behind them."""

import math

import pytest
import torch
from torch import Tensor

from mir_task import frechet, spectrum
from mir_task.band import Band, blocks
from mir_task.frechet import Gaussian, frechet_terms
from mir_task.precision import full_precision

SIZE = 301
DTYPES = (torch.float64, torch.float32)
SPECTRA = {
    "equal": torch.ones(SIZE),
    "wide": torch.logspace(0, -6, SIZE),
    "beyond float64": torch.logspace(0, -18, SIZE),
    "half of them zero": torch.cat([torch.logspace(0, -3, 150), torch.zeros(SIZE - 150)]),
    "a massive one": torch.cat([torch.tensor([1e6]), torch.logspace(0, -2, SIZE - 1)]),
    "few": torch.cat([torch.ones(5), torch.zeros(SIZE - 5)]),
}


def _matrix(values: Tensor, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(noise).Q
    return ((vectors * values.double()) @ vectors.T).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SPECTRA)
def test_the_sum_of_roots_is_off_by_its_error_at_most(kind: str, dtype: torch.dtype) -> None:
    matrix = _matrix(SPECTRA[kind], dtype)
    truth = float(torch.linalg.eigvalsh(matrix.double()).clamp(min=0).sqrt().sum())
    found = spectrum.root_sum(matrix)
    assert found is not None
    root, error = found
    assert abs(root - truth) <= error
    by_eigenvalues = frechet._trace_root(matrix)[2]
    assert error <= 60 * by_eigenvalues + 2.1 * spectrum._PRECISION[dtype] * truth


def test_a_sum_of_roots_that_is_not_there() -> None:
    assert spectrum.root_sum(torch.zeros(SIZE, SIZE)) == (0.0, 0.0)
    assert spectrum.root_sum(_matrix(torch.linspace(-0.5, 1, SIZE), torch.float64)) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_to_log_determinants(dtype: torch.dtype) -> None:
    matrix = _matrix(torch.logspace(0, -3, SIZE), dtype)
    shifts = torch.tensor([1e-4, 1e-2, 3.0], dtype=torch.float64)
    shifted = matrix.double() + shifts[:, None, None] * torch.eye(SIZE)
    truth = torch.linalg.slogdet(shifted).logabsdet
    precision = 1e-11 if dtype == torch.float64 else 5e-3
    for of in (Band(matrix), spectrum._Dense(matrix)):
        assert torch.allclose(of.log_determinants(shifts), truth, rtol=0, atol=precision)
        assert 0.7 <= of.largest() <= 1.001
    negative = torch.tensor([-0.5, 1.0], dtype=torch.float64)
    for of in (Band(matrix), spectrum._Dense(matrix)):
        assert of.log_determinants(negative).isnan().tolist() == [True, False]


@pytest.mark.parametrize("kind", SPECTRA)
def test_entropy(kind: str) -> None:
    values = SPECTRA[kind].double() / SPECTRA[kind].sum()
    truth = float(torch.special.entr(values).sum())
    assert spectrum.entropy(_matrix(values, torch.float64)) == pytest.approx(truth, abs=3e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("kind", SPECTRA)
def test_a_band_has_the_eigenvalues(kind: str, width: int, dtype: torch.dtype) -> None:
    matrix = _matrix(SPECTRA[kind], dtype)
    truth = torch.linalg.eigvalsh(matrix.double())
    for _, end in blocks(SIZE):  # it does not look above the diagonal blocks
        matrix[:end, end:] = math.nan
    before = matrix.clone()
    band = Band(matrix, width)
    assert torch.equal(matrix.nan_to_num(7), before.nan_to_num(7))
    whole = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for below, diagonal in enumerate(band.diagonals):
        whole.diagonal(-below).copy_(torch.from_numpy(diagonal[: SIZE - below].copy()))
    values = torch.linalg.eigvalsh(whole, UPLO="L")
    precision = 60 * torch.finfo(dtype).eps * float(truth.max())
    assert torch.allclose(values, truth, rtol=0, atol=precision)


def test_large_covariances_go_that_way() -> None:
    size = spectrum._SMALLEST_BAND
    scales = torch.logspace(0, -1, size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    a, b = (
        Gaussian.from_tokens(
            torch.randn(size + 500, size, generator=generator, dtype=torch.float64) * scale
        )
        for scale in (scales, scales.flip(0))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectrum, "suits", lambda matrix: False)
        truth = frechet_terms(a, b)
    found = frechet_terms(a, b)
    assert found.root != truth.root
    assert abs(found.root - truth.root) <= found.error + truth.error
    assert found.error <= 1e-8 * found.traces
    assert found.product == pytest.approx(truth.product)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 100, 200, SIZE])
def test_pivoted_cholesky(rank: int, dtype: torch.dtype) -> None:
    values = torch.cat([torch.logspace(0, -2, rank), torch.zeros(SIZE - rank)])
    matrix = _matrix(values, dtype) if rank else torch.zeros(SIZE, SIZE, dtype=dtype)
    rows = frechet._pivoted_cholesky(matrix)
    assert rows.dtype == dtype
    assert len(rows) == rank
    assert float((rows.T @ rows - matrix).abs().max()) <= SIZE * torch.finfo(dtype).eps


def test_full_precision_lasts_as_long_as_the_block() -> None:
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = True
    try:
        with full_precision():
            assert getattr(products, "fp32_precision", "ieee") == "ieee"
        assert products.allow_tf32
    finally:
        products.allow_tf32 = before
