"""Sums over eigenvalues without the eigenvalues, and the factors behind them."""

import pytest
import torch
from torch import Tensor

from mir_task import MIRMeter
from mir_task.metric import frechet, spectrum
from mir_task.metric.precision import full_precision

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
    assert abs(found.root - truth) <= found.error
    by_eigenvalues = frechet.trace_root(matrix).error
    assert found.error <= 60 * by_eigenvalues + 2.1 * spectrum.PRECISION[dtype] * truth


def test_a_sum_of_roots_that_is_not_there() -> None:
    assert spectrum.root_sum(torch.zeros(SIZE, SIZE)) == spectrum.RootSum(0.0, 0.0)
    assert spectrum.root_sum(_matrix(torch.linspace(-0.5, 1, SIZE), torch.float64)) is None


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float64) for kind in ("equal", "wide", "half of them zero", "a massive one")),
        *((kind, torch.float32) for kind in ("equal", "half of them zero")),
    ],
)
def test_the_difference_of_two_sums_that_differ_little(kind: str, dtype: torch.dtype) -> None:
    matrix = _matrix(SPECTRA[kind], dtype)
    found = spectrum.root_sum(matrix)
    assert found is not None
    generator = torch.Generator().manual_seed(1)
    for share in (0.02, 0.2):  # what a group of documents may change
        factors = 1 + share * torch.rand(SIZE, generator=generator, dtype=torch.float64)
        changed = _matrix(SPECTRA[kind] * factors, dtype)
        assert found.coarse.fits(changed)
        truth = [
            float(torch.linalg.eigvalsh(m.double()).clamp(min=0).sqrt().sum()) for m in (changed, matrix)
        ]
        difference = spectrum.difference(changed, found.coarse)
        assert difference == pytest.approx(truth[0] - truth[1], rel=1e-2)
    assert len(found.coarse.shifts) == (12 if dtype == torch.float64 else 10)
    # Log-determinants of the same matrix differ in rounding from one processor's kernels to another's.
    assert spectrum.difference(matrix, found.coarse) == pytest.approx(0, abs=1e-12 * truth[1])
    assert spectrum.difference(-matrix, found.coarse) is None
    assert not found.coarse.fits(matrix[:-1, :-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_determinants(dtype: torch.dtype) -> None:
    matrix = _matrix(torch.logspace(0, -3, SIZE), dtype)
    shifts = torch.tensor([1e-4, 1e-2, 3.0], dtype=torch.float64)
    shifted = matrix.double() + shifts[:, None, None] * torch.eye(SIZE)
    truth = torch.linalg.slogdet(shifted).logabsdet
    precision = 1e-11 if dtype == torch.float64 else 5e-3
    assert torch.allclose(spectrum.log_determinants(matrix, shifts), truth, rtol=0, atol=precision)
    assert 0.7 <= spectrum.largest_eigenvalue(matrix) <= 1.001
    negative = torch.tensor([-0.5, 1.0], dtype=torch.float64)
    assert spectrum.log_determinants(matrix, negative).isnan().tolist() == [True, False]


@pytest.mark.parametrize("kind", SPECTRA)
def test_entropy(kind: str) -> None:
    values = SPECTRA[kind].double() / SPECTRA[kind].sum()
    truth = float(torch.special.entr(values).sum())
    assert spectrum.entropy(_matrix(values, torch.float64)) == pytest.approx(truth, abs=3e-5)


def _documents(size: int, seed: int) -> list[Tensor]:
    """Tokens of documents that resemble each other within one."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1, size, dtype=torch.float64)
    return [
        (
            torch.randn(1, size, generator=generator, dtype=torch.float64) / 2
            + torch.randn(2 * size // 20, size, generator=generator, dtype=torch.float64)
        )
        * scales
        + seed / 10
        for _ in range(30)
    ]


def test_log_determinants_give_the_distances_and_standard_errors_of_eigenvalues(monkeypatch) -> None:
    vision, text = _documents(SIZE, 0), _documents(SIZE, 1)

    def measured():
        meter = MIRMeter(groups=5)
        for n, (v, t) in enumerate(zip(vision, text, strict=True)):
            meter.update(n, [v], [t])
        return meter.compute()

    truth = measured()
    calls: list[Tensor] = []
    monkeypatch.setattr(spectrum, "is_supported", lambda matrix: True)
    difference = spectrum.difference
    monkeypatch.setattr(spectrum, "difference", lambda m, c: calls.append(m) or difference(m, c))
    found = measured()
    assert len(calls) == 5
    assert found != truth
    assert found.mir == pytest.approx(truth.mir, abs=1e-8)
    assert found.mir_published_fast == pytest.approx(truth.mir_published_fast, abs=1e-12)
    assert found.mir_stderr == pytest.approx(truth.mir_stderr, rel=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 100, 200, SIZE])
def test_pivoted_cholesky(rank: int, dtype: torch.dtype) -> None:
    values = torch.cat([torch.logspace(0, -2, rank), torch.zeros(SIZE - rank)])
    matrix = _matrix(values, dtype) if rank else torch.zeros(SIZE, SIZE, dtype=dtype)
    rows = frechet.Gaussian(torch.zeros(SIZE, dtype=dtype), matrix, None).root()
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
