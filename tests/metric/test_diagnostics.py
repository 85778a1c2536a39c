import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from mir_task import LayerResult, MIRError, MIRMeter, MIRResult, modality_integration_rate
from mir_task.metric import diagnostics
from mir_task.metric.frechet import Gaussian
from tests.support import evaluate, independent

SIZE = 24


def tokens(kind: str, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
    rows = rows @ torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64) + seed
    if kind == "steep":
        rows = rows * torch.logspace(0, -4, SIZE, dtype=torch.float64)
    if kind == "singular":
        rows[:, SIZE // 2 :] = rows[:, : SIZE // 2]
    if kind == "rank_one":
        rows = rows[:, :1] * torch.linspace(1, 2, SIZE, dtype=torch.float64)
    if kind == "massive":
        rows[:, 3] *= 300
    if kind == "outliers":
        rows[::50] *= 30
    return rows


KINDS = ["full", "steep", "singular", "rank_one", "massive", "outliers"]


def check(layer: LayerResult, wanted: dict[str, float]) -> None:
    found = layer.to_dict()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("rule", ["replace", "drop"])
@pytest.mark.parametrize(("vision", "text"), [(400, 300), (15, 300), (400, 15), (15, 12)])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_an_independent_computation(kind: str, vision: int, text: int, rule: str) -> None:
    v, t = tokens(kind, vision, 1), tokens(kind, text, 2)
    (layer,) = modality_integration_rate([v], [t], outliers=rule).layers
    check(layer, independent.diagnostics(v, t, rule))


def metered(v: torch.Tensor, t: torch.Tensor, rule: str, *, kept: bool, **settings: Any) -> MIRMeter:
    def fill(meter: MIRMeter) -> MIRMeter:
        for n, rows in enumerate(zip(v.split(40), t.split(30), strict=True)):
            meter.update(n, *([part] for part in rows))
        return meter

    meter = fill(MIRMeter(outliers=rule, memory=None if kept else 0.0, **settings))
    assert meter.needs_second_pass() != kept
    return meter if kept else fill(meter.second_pass())


@pytest.mark.parametrize("groups", [0, 4])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_of_rows_that_are_kept_and_of_sums(kind: str, kept: bool, groups: int) -> None:
    v, t = tokens(kind, 1600, 1), tokens(kind, 1200, 2)
    (layer,) = metered(v, t, "drop", kept=kept, groups=groups).compute().layers
    check(layer, independent.diagnostics(v, t, "drop"))


def test_of_sums_with_replaced_outliers() -> None:
    v, t = tokens("outliers", 1600, 1), tokens("outliers", 1200, 2)
    (layer,) = metered(v, t, "replace", kept=False).compute().layers
    found, wanted = layer.to_dict(), independent.diagnostics(v, t)
    assert layer.vision_outliers == 32
    for name, value in wanted.items():  # medians are counted, see test_moments
        assert found[name] == pytest.approx(value, rel=3e-4), name


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_effective_ranks_where_asked_for(kind: str, kept: bool) -> None:
    v, t = tokens(kind, 1600, 1), tokens(kind, 1200, 2)
    (layer,) = metered(v, t, "drop", kept=kept, extras=["entropy_rank"]).compute().layers
    for rows, found in ((v, layer.vision_effective_rank), (t, layer.text_effective_rank)):
        wanted = independent.effective_rank(independent.without_outliers(rows.numpy(), "drop"))
        assert found == pytest.approx(wanted, rel=1e-4)  # eigenvalues are float32
    (plain,) = metered(v, t, "drop", kept=kept).compute().layers
    assert plain.vision_effective_rank is plain.text_effective_rank is None


def test_of_the_oracle(oracle) -> None:
    result = modality_integration_rate(oracle.vision, oracle.text)
    for layer, v, t in zip(result.layers, oracle.vision, oracle.text, strict=True):
        check(layer, independent.diagnostics(v, t))


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("shape", ["flat", "decaying", "half", "one", "massive"])
def test_effective_rank_of_known_spectra(shape: str, size: int) -> None:
    spectrum = {
        "flat": np.ones(size),
        "decaying": np.logspace(0, -8, size),
        "half": np.arange(size) < size // 2,
        "one": np.arange(size) < 1,
        "massive": np.r_[1e5, np.logspace(0, -2, size - 1)],
    }[shape].astype(float)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    covariance = torch.from_numpy(basis * spectrum @ basis.T)
    shares = spectrum[spectrum > 0] / spectrum.sum()
    wanted = math.exp(-(shares * np.log(shares)).sum())
    found = diagnostics.effective_rank(Gaussian(torch.zeros(size), covariance, None))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_equal_tokens_and_zero_means() -> None:
    signs = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    (layer,) = modality_integration_rate([signs], [torch.ones(3, 2)]).layers
    assert layer.text_participation_ratio == 0
    assert layer.vision_participation_ratio == pytest.approx(1)
    assert layer.mean_cosine is None


def several_layers() -> MIRResult:
    """Distances 9, 4, 16, 1 and 0.25, but for rounding."""
    vision = [tokens("full", 400, 1) for _ in range(5)]
    text = [rows + shift for rows, shift in zip(vision, (3.0, 2.0, 4.0, 1.0, 0.5), strict=True)]
    return modality_integration_rate(vision, text)


def test_shares_and_the_layers_of_half_the_sum() -> None:
    result = several_layers()
    distances = [layer.frechet for layer in result.layers]
    assert result.shares == pytest.approx([d / sum(distances) for d in distances])
    largest = sorted(range(5), key=lambda n: -distances[n])
    fewest = next(n for n in range(1, 6) if sum(distances[i] for i in largest[:n]) >= sum(distances) / 2)
    assert result.half_layers == tuple(sorted(n + 1 for n in largest[:fewest]))
    assert 1 <= fewest < 5


def test_side_file_has_them_and_reads_back() -> None:
    result = several_layers()
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert MIRResult.from_dict(content) == result
    assert [layer["share"] for layer in content["layers"]] == list(result.shares)
    assert content["half_layers"] == list(result.half_layers)
    assert content["layers"][0]["centroid_distance"] == result.layers[0].centroid_distance > 0


def test_older_side_files_are_read() -> None:
    result = several_layers()
    content = result.to_dict()
    del content["half_layers"]
    new = {*independent.diagnostics(np.eye(3), np.eye(3)), "share", "dimensions"}
    content["late_tokens"] = 0  # of the time when tokens could be counted before their bounds were known
    content["layers"] = [
        {name: value for name, value in layer.items() if name not in new} for layer in content["layers"]
    ]
    content["layers"][1] |= {"vision_effective_rank": 7.5, "text_effective_rank": 3.5}
    old = MIRResult.from_dict(content)
    assert old.mir == result.mir
    assert old.shares == result.shares
    assert old.layers[0].norm_ratio == result.layers[0].norm_ratio
    assert old.layers[0].vision_participation_ratio is None
    assert old.layers[1].vision_effective_rank == 7.5
    assert old.layers[0].vision_tokens_per_dimension is None
    assert MIRResult.from_dict(old.to_dict()) == old


@pytest.mark.parametrize("size", [3, 40])
def test_cka_equals_an_independent_computation(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(9, size, generator=generator, dtype=torch.float64) + 3
    b = a @ torch.randn(size, 5, generator=generator, dtype=torch.float64)
    b += torch.randn(9, 5, generator=generator, dtype=torch.float64)
    found = diagnostics.linear_cka(a, b)
    assert found == pytest.approx(independent.cka(a.numpy(), b.numpy()), rel=1e-9)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    assert diagnostics.linear_cka(a, 2 * a @ rotation + 1) == pytest.approx(1)


def test_cka_of_unpaired_documents_is_near_zero_with_few_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, 500, generator=generator) for _ in range(2))
    assert abs(diagnostics.linear_cka(a, b)) < 0.05
    assert diagnostics.linear_cka(a[:3], b[:3]) is None
    assert diagnostics.linear_cka(a, torch.ones(50, 4)) is None


def test_mmd_equals_an_independent_computation() -> None:
    v, t = tokens("full", 70, 1), tokens("full", 52, 2)  # an odd number of distances
    assert diagnostics.mmd2(v, t) == pytest.approx(independent.mmd2(v.numpy(), t.numpy()), rel=1e-9)
    pairs = torch.randn(60, 2, 60, 8, generator=torch.Generator().manual_seed(0))
    same = [diagnostics.mmd2(*pair) for pair in pairs]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)
    assert min(same) < 0  # unbiased, so not clamped
    assert diagnostics.mmd2(torch.ones(4, 2), torch.ones(4, 2)) is None


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rule", ["replace", "drop"])
def test_extras_of_a_meter_whatever_the_split(rule: str, kept: bool) -> None:
    v, t = tokens("full", 1600, 1).float(), tokens("full", 1200, 2).float()
    documents = list(enumerate(zip(v.split(200), t.split(150), strict=True)))

    def fill(meter: MIRMeter, part) -> MIRMeter:
        for n, (vision, text) in part:
            meter.update(n, [vision], [text])
        return meter

    def joined(meters: list[MIRMeter]) -> MIRMeter:
        for other in meters[1:]:
            meters[0].merge(other)
        return meters[0]

    settings = {"outliers": rule, "extras": ("cka", "mmd"), "memory": None if kept else 0.0}
    layers = []
    for cuts in ([documents], [documents[5:], documents[:5]]):
        meter = joined([fill(MIRMeter(**settings), part) for part in cuts])
        if not kept:
            meter = joined(
                [fill(again, part) for again, part in ((meter.second_pass(), p) for p in cuts)]
            )
        layers += meter.compute().layers
    means = [
        np.stack([part.double().mean(0).numpy() for part in x.split(n)]) for x, n in ((v, 200), (t, 150))
    ]
    assert layers[0].cka == pytest.approx(independent.cka(*means), rel=1e-4)
    assert layers[1].cka == pytest.approx(layers[0].cka, rel=1e-6)
    assert layers[1].mmd2 == pytest.approx(layers[0].mmd2, rel=1e-9)
    # 1024 of the tokens of each modality, so near the figure of all.
    assert layers[0].mmd2 == pytest.approx(independent.mmd2(v.numpy(), t.numpy()), abs=0.02)
    plain = metered(v, t, rule, kept=kept).compute().layers[0]
    assert plain.cka is None
    assert plain.mmd2 is None
    assert layers[0].frechet == pytest.approx(plain.frechet, rel=1e-4)


def test_extras_reach_the_side_file(llava, tmp_path) -> None:
    task = evaluate.task(mir_extras=["cka", "mmd", "entropy_rank"])
    scores = evaluate.evaluate(evaluate.load(llava), task, output=tmp_path)["results"]["mir_test"]
    report = evaluate.report(tmp_path)
    assert scores["mir,none"] == report["mir"]
    for layer in report["layers"]:
        assert -1 <= layer["cka"] <= 1
        assert 0 < layer["mmd2"] < 2
        assert 1 < layer["vision_effective_rank"] < layer["dimensions"]
        assert 1 < layer["vision_participation_ratio"] < layer["dimensions"]
    assert report["settings"]["mir_extras"] == ["cka", "mmd", "entropy_rank"]
    with pytest.raises(MIRError, match="mir_extras: Input should be 'cka', 'mmd' or 'entropy_rank'"):
        evaluate.task(mir_extras=["kid"])
