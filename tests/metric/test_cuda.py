"""What runs on a GPU gives the figures of the CPU."""

import pytest
import torch
from torch import Tensor

from mir_task import MIRMeter, modality_integration_rate
from mir_task.metric.frechet import Gaussian, frechet_terms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def _tokens(count: int, size: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -2, size)
    rows = torch.randn(count, size, generator=generator) * scales + torch.randn(
        size, generator=generator
    )
    rows[::50] *= 6
    return rows.to(dtype)


@pytest.mark.parametrize("size", [64, 300, 1024])
@pytest.mark.parametrize(("vision", "text"), [("many", "many"), ("few", "many"), ("few", "few")])
def test_terms(size: int, vision: str, text: str) -> None:
    count = {"many": 3 * size, "few": size // 2}
    a, b = (_tokens(count[n], size, i, torch.float64) for i, n in enumerate((vision, text)))
    here = frechet_terms(*map(Gaussian.from_tokens, (a, b)))
    there = frechet_terms(*(Gaussian.from_tokens(x.cuda()) for x in (a, b)))
    assert there.root == pytest.approx(here.root, rel=1e-8)
    assert abs(there.distance - here.distance) <= there.error + here.error
    assert there.error <= 1e-7 * there.traces


@pytest.mark.parametrize("size", [300, 700])
def test_singular_covariances(size: int) -> None:
    a, b = (_tokens(3 * size, size, i, torch.float64) for i in range(2))
    a[:, size // 2 :] = 0
    b[:, : size // 3] = a[:, : size // 3]
    here = frechet_terms(*map(Gaussian.from_tokens, (a, b)))
    there = frechet_terms(*(Gaussian.from_tokens(x.cuda()) for x in (a, b)))
    assert abs(there.distance - here.distance) <= there.error + here.error
    assert there.error <= 1e-5 * there.traces
    both = b.clone()
    both[:, 5] = 0
    here, there = (
        frechet_terms(Gaussian.from_tokens(a.to(device)), Gaussian.from_tokens(both.to(device)))
        for device in ("cpu", "cuda")
    )
    assert there.root == pytest.approx(here.root, rel=1e-8)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rule", ["replace", "drop"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_meter(rule: str, dtype: torch.dtype, kept: bool) -> None:
    size, documents = 256, 40
    vision, text = ([_tokens(150, size, 2 * n + m, dtype) for n in range(documents)] for m in (0, 1))
    stored = modality_integration_rate([torch.cat(vision)], [torch.cat(text)], outliers=rule)

    def fill(meter: MIRMeter, device: str) -> MIRMeter:
        for number, (v, t) in enumerate(zip(vision, text, strict=True)):
            meter.update(number, [v.to(device)], [t.to(device)])
        return meter

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # as several adapters have it
    try:
        settings = {"outliers": rule, "groups": 5, "memory": None if kept else 0.0}
        meter = fill(MIRMeter(**settings), "cuda")
        if not kept:
            meter = fill(meter.second_pass(), "cuda")
        result = meter.compute()
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert result.mir == pytest.approx(stored.mir, abs=1e-6 if kept or rule == "drop" else 1e-4)
    assert result.layers[0].vision_outliers == stored.layers[0].vision_outliers
    ratio = stored.layers[0].vision_participation_ratio
    assert result.layers[0].vision_participation_ratio == pytest.approx(ratio, rel=1e-4)
    host = fill(MIRMeter(outliers=rule, groups=5), "cpu").compute()
    assert result.mir_stderr == pytest.approx(host.mir_stderr, rel=1e-2)
