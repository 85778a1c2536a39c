"""Second moments as sums of integers, against float64 and against the float32 that takes their place."""

import pytest
import torch

from mir_task import MIRMeter, integers, tiles
from mir_task.moments import Moments

SIZE = 320  # blocks of 80 columns
AMX = pytest.mark.skipif(not tiles.available(), reason="this processor or torch has no AMX for bytes")
KINDS = ["plain", "far_mean", "one_far_channel", "massive_channel", "heavy_tails", "singular", "tiny"]


def moments_of(rows: torch.Tensor) -> Moments:
    moments = Moments.of_none(rows)
    moments.add(rows, torch.arange(len(rows)))
    return moments


def tokens(kind: str, count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows [count, SIZE] whose covariance is hard to sum."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
    if kind == "singular":
        mixing[SIZE // 2 :] = 0
    x = torch.randn(count, SIZE, generator=generator, dtype=torch.float64) @ mixing
    if kind == "far_mean":
        x += 30
    if kind == "one_far_channel":
        x[:, 7] = 300 + 0.3 * x[:, 7]
    tails = torch.randn(count, 1, generator=generator, dtype=torch.float64).exp()
    if kind == "massive_channel":
        x[:, 7:8] *= 100 * tails
    if kind == "heavy_tails":
        x *= tails
    if (
        kind == "tiny"
    ):  # below the normal numbers of float16; a column of zeros, one beside which all are
        x *= 1e-6 if dtype == torch.float16 else 1e-15
        x[:, 3] = 0
        x[:, 4] *= 1e-20
    return x.to(dtype)


@AMX
@pytest.mark.parametrize("count", [1, 2, 127, 129, 3000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_those_of_float64(kind: str, dtype: torch.dtype, count: int) -> None:
    rows = tokens(kind, count, dtype)
    got, wanted = moments_of(rows), moments_of(rows.double())
    spread = rows.double().sub(wanted.mean).square().sum(0).sqrt()
    spread += 1e-6 * spread.max() + 1e-9 * wanted.mean.abs()
    assert got.count == count
    assert ((got.mean - wanted.mean).abs() <= 1e-9 * (spread + wanted.mean.abs())).all()
    if count > 1:
        error = (got.gaussian().covariance - wanted.gaussian().covariance).abs() * (count - 1)
        on_diagonal = 1e-9 * spread.square().clamp(min=1e-3 * spread.max() ** 2)
        allowed = 1e-4 * spread[:, None] * spread
        if dtype == torch.float32:  # rounding of the rows, half a step, and the products of lowest bytes
            on_diagonal += count * (torch.finfo(dtype).eps * wanted.mean).square()
            largest = 2.0**-24 * 2 * rows.double().abs().amax(0)
            allowed += largest[:, None] * spread + spread[:, None] * largest
            allowed += count**0.5 * 2.0**14 * largest[:, None] * largest
        assert (error.diagonal() <= on_diagonal).all()
        assert (error <= allowed).all()


@AMX
@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        (torch.float16, 0x7F70),  # all bytes nearly as large as they get
        (torch.float32, 0x7F7D73),
        *((dtype, torch.finfo(dtype).max) for dtype in (torch.float16, torch.bfloat16, torch.float32)),
    ],
)
@pytest.mark.parametrize("more", [0, 1])
def test_the_largest_sums_fit(more: int, dtype: torch.dtype, largest: float) -> None:
    # In as many rows as one sum may have, and one more. The products of the lowest of three bytes, which
    # are left out, are all the same here and do not average out.
    precision = 2.0**-32 if dtype == torch.float32 else 1e-12
    rows = torch.full((integers.MOST_ROWS + more, 33), -largest, dtype=dtype)
    rows[::2, 5] = largest
    got, wanted = moments_of(rows), moments_of(rows.double())
    torch.testing.assert_close(got.mean, wanted.mean, rtol=1e-12, atol=1e-14 * largest)
    torch.testing.assert_close(
        got.gaussian().covariance,
        wanted.gaussian().covariance,
        rtol=1e-9,
        atol=precision * largest**2,
    )


def mir(vision: torch.Tensor, text: torch.Tensor, kept: int | None) -> float:
    meter = MIRMeter(outliers="drop", kept_rows=kept, groups=2)
    for number, (v, t) in enumerate(zip(vision.split(300), text.split(200), strict=True)):
        meter.update(number, [v], [t], group=number)
    if meter.needs_second_pass():
        again = meter.second_pass()
        for number, (v, t) in enumerate(zip(vision.split(300), text.split(200), strict=True)):
            again.update(number, [v], [t], group=number)
        meter = again
    return meter.compute().mir


@AMX
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("singular", "tiny")])
def test_mir_is_that_of_all_rows_kept(kind: str, dtype: torch.dtype) -> None:
    vision, text = tokens(kind, 9000, dtype), 1.1 * tokens(kind, 6000, dtype, seed=1)
    assert mir(vision, text, kept=2000) == pytest.approx(mir(vision, text, kept=10**6), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_without_amx_float32_gives_the_same(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tokens(kind, 3000, dtype)
    here = moments_of(rows).gaussian()
    monkeypatch.setattr(tiles, "available", lambda: False)
    there = moments_of(rows).gaussian()
    spread = there.covariance.diagonal().clamp(min=0).sqrt()
    spread += 1e-6 * spread.max()
    assert ((here.mean - there.mean).abs() <= 1e-6 * (spread + there.mean.abs())).all()
    assert ((here.covariance - there.covariance).abs() <= 5e-5 * spread[:, None] * spread).all()


def test_only_rows_of_the_processor_up_to_float32_suit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "available", lambda: True)
    rows = torch.ones(3, 4)
    assert integers.suit(rows.half())
    assert integers.suit(rows.bfloat16())
    assert integers.suit(rows)
    assert not integers.suit(rows.double())
    assert not integers.suit(torch.ones(3, 4, dtype=torch.float16, device="meta"))


@AMX
@pytest.mark.parametrize("size", [16, 40, 320, 1100])
def test_any_number_of_threads_gives_the_same(size: int) -> None:
    rows = (
        tokens("far_mean", 700, torch.float16)[:, :size]
        .repeat(1, -(-size // SIZE))[:, :size]
        .contiguous()
    )
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            moments = moments_of(rows)
            if threads == 1:
                one = moments
            for block, of_one in zip(moments.scatter, one.scatter, strict=True):
                assert torch.equal(block, of_one)
    finally:
        torch.set_num_threads(before)
    wanted = moments_of(rows.double()).gaussian().covariance
    torch.testing.assert_close(one.gaussian().covariance, wanted, rtol=0, atol=1e-4)


@AMX
def test_other_users_of_the_tiles_are_not_disturbed() -> None:
    rows = tokens("plain", 500, torch.bfloat16)
    products = [rows.T @ rows]
    for _ in range(2):
        moments_of(rows)
        products.append(rows.T @ rows)
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[0], products[2])


def test_a_torch_that_does_not_tell_has_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not tiles.available.__wrapped__()


@AMX
def test_tiles_that_the_system_withholds_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: False)
    assert not tiles.available.__wrapped__()


@AMX
def test_rows_at_some_places_are_added_to_those_before() -> None:
    rows = tokens("far_mean", 2 * integers.MOST_ROWS + 300, torch.float16)[:, :40].contiguous()
    some, others = (part.nonzero().squeeze(1) for part in (rows[:, 0] > 31, rows[:, 0] < 30.5))
    assert len(some) < integers.MOST_ROWS < len(others)
    got, wanted = Moments.of_none(rows), Moments.of_none(rows)
    for places in (others[:0], some, others, some):
        got.add(rows, places)
        wanted.add(rows.double(), places)
    assert got.count == wanted.count == 2 * len(some) + len(others)
    torch.testing.assert_close(got.mean, wanted.mean, rtol=1e-10, atol=0)
    covariance = wanted.gaussian().covariance
    torch.testing.assert_close(got.gaussian().covariance, covariance, rtol=0, atol=1e-5)
