"""Half-precision numbers by their bits, all 65,536 of them, against what PyTorch makes of them."""

import numpy as np
import pytest
import torch

from mir_task import MIRError, MIRMeter, halves
from mir_task.medians import MedianCounts, _count_below

HALVES = [torch.float16, torch.bfloat16]


def all_numbers(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).short().view(dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_of_all_numbers(dtype: torch.dtype) -> None:
    numbers = all_numbers(dtype)
    got, wanted = halves.norms(numbers[:, None]), numbers.float().abs()
    assert got.dtype == torch.float32
    finite = numbers.isfinite()
    assert got[~finite].isinf().all()
    # float32 has no square of the largest and of the smallest numbers of bfloat16, here as elsewhere.
    squared = finite & (wanted.square() < torch.inf) & ((wanted == 0) | (wanted > 1e-18))
    torch.testing.assert_close(got[squared], wanted[squared], rtol=1e-6, atol=0)
    assert int(squared.sum()) > 0.45 * len(numbers)


@pytest.mark.parametrize("width", [1, 7, 64, 1031])
@pytest.mark.parametrize("dtype", HALVES)
def test_norms_of_rows_as_they_lie(dtype: torch.dtype, width: int) -> None:
    rows = torch.randn(2 * width, 50, generator=torch.Generator().manual_seed(0)).to(dtype).T[:, ::2]
    wanted = torch.linalg.vector_norm(rows.double(), dim=1)
    torch.testing.assert_close(halves.norms(rows).double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_number_that_is_none_is_found(dtype: torch.dtype, number: float) -> None:
    rows = torch.ones(5, 40, dtype=dtype)
    rows[3, 17] = number
    with pytest.raises(MIRError, match=r"layer 1: NaN or infinity in the hidden states of text"):
        MIRMeter().update("a", [torch.ones(5, 40, dtype=dtype)], [rows])


@pytest.mark.parametrize("dtype", HALVES)
def test_bits_are_in_the_order_of_the_numbers(dtype: torch.dtype) -> None:
    numbers = all_numbers(dtype)
    numbers = numbers[numbers.isfinite()]
    ordered = np.array([halves.ordered.py_func(bits) for bits in halves.bits(numbers)])
    values = numbers.float().numpy()
    places = np.argsort(ordered)
    assert (np.diff(values[places]) >= 0).all()
    assert len(np.unique(ordered)) == len(numbers)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_counts_below_thresholds(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40_000, 9, generator=generator).to(dtype)  # more than 16 bits count
    rows[::7] = 0.0
    rows[1::7] = -0.0
    thresholds = MedianCounts.around(rows[:500]).thresholds
    thresholds[2, :3] = 0.0
    thresholds[2, 3:6] = -0.0
    wanted = torch.stack([(rows <= threshold).sum(0) for threshold in thresholds])
    assert torch.equal(_count_below(rows, thresholds), wanted)
