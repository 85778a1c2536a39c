"""Each measure of `mir_extras` against an independent computation, and through both passes."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch

from mir_task import LayerResult, MIRError, MIRMeter
from mir_task.metric.extras import EXTRAS
from mir_task.metric.extras.cka import linear_cka
from mir_task.metric.extras.entropy_rank import effective_rank
from mir_task.metric.extras.mmd import mmd2
from mir_task.metric.extras.neighbours import neighbour_overlap
from mir_task.metric.extras.sliced_wasserstein import directions, sliced_wasserstein
from mir_task.metric.extras.token_cosine import token_cosines
from mir_task.metric.frechet import Gaussian
from mir_task.result import jackknife_stderr
from mir_task.settings import Extra
from tests.metric.test_diagnostics import KINDS, metered, tokens
from tests.support import evaluate, independent


def paired(
    count: int, size: int, noise: float = 1.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of documents, of which the second follow from the first but for noise."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, size, generator=generator, dtype=torch.float64) + 3
    b = a @ torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return a, b + noise * torch.randn(count, 5, generator=generator, dtype=torch.float64)


def test_the_key_takes_the_measures_that_there_are() -> None:
    assert set(get_args(Extra)) == set(EXTRAS)
    with pytest.raises(MIRError, match="extras must be of cka, .*, entropy_rank, got kid"):
        MIRMeter(extras=["cka", "kid"])


class TestCKA:
    @pytest.mark.parametrize("size", [3, 40])
    def test_equals_an_independent_computation(self, size: int) -> None:
        a, b = paired(9, size)
        found, left_out = linear_cka(a, b)
        assert found == pytest.approx(independent.cka(a.numpy(), b.numpy()), rel=1e-9)
        for n, each in enumerate(left_out):
            some = np.arange(9) != n
            assert each == pytest.approx(independent.cka(a.numpy()[some], b.numpy()[some]), rel=1e-9)
        generator = torch.Generator().manual_seed(1)
        rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        assert linear_cka(a, 2 * a @ rotation + 1)[0] == pytest.approx(1)

    def test_of_unpaired_features_is_near_zero_with_few_of_them(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(50, 500, generator=generator) for _ in range(2))
        assert abs(linear_cka(a, b)[0]) < 0.05
        assert linear_cka(a[:3], b[:3]) == (None, [])
        assert linear_cka(a, torch.ones(50, 4))[0] is None
        assert len(linear_cka(a[:4], b[:4])[1]) == 0

    def test_standard_error_is_of_the_right_size(self) -> None:
        draws = zip(*(x.split(60) for x in paired(60 * 80, 8, noise=6.0)), strict=True)
        found = [linear_cka(*pair) for pair in draws]
        spread = np.std([value for value, _ in found], ddof=1)  # known to 8% of 80 draws
        errors = [jackknife_stderr(left_out) for _, left_out in found]
        assert 0.8 < math.sqrt(np.mean(np.square(errors))) / spread < 1.4


class TestNeighbours:
    @pytest.mark.parametrize("noise", [0.1, 3.0, 100.0])
    def test_equals_an_independent_computation(self, noise: float) -> None:
        a, b = paired(40, 12, noise)
        wanted = independent.neighbour_overlap(a.numpy(), b.numpy(), 10)
        assert neighbour_overlap(a, b, 10) == pytest.approx(wanted, abs=1e-12)

    def test_of_the_same_and_of_unpaired_features(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(300, 50, generator=generator) for _ in range(2))
        assert neighbour_overlap(a, 3 * a, 10) == 1
        assert neighbour_overlap(a, b, 10) == pytest.approx(10 / 299, abs=0.01)
        assert neighbour_overlap(a[:21], b[:21], 10) is None


def test_token_cosines_equal_an_independent_computation() -> None:
    v, t = tokens("full", 70, 1), tokens("massive", 52, 2)
    assert token_cosines(v, t) == pytest.approx(
        independent.token_cosines(v.numpy(), t.numpy()), rel=1e-9
    )
    with_zeros = torch.cat([v, torch.zeros(5, v.shape[1])])
    assert token_cosines(with_zeros, t) == pytest.approx(token_cosines(v, t))
    assert token_cosines(v[:2] * 5, v)[1] == pytest.approx(1)
    assert token_cosines(torch.zeros(3, 4), torch.ones(3, 4)) == (None, None)


class TestSlicedWasserstein:
    @pytest.mark.parametrize("count", [70, 60, 52])
    def test_equals_plain_loops_where_means_are_equal(self, count: int) -> None:
        v, t = tokens("full", 70, 1), tokens("massive", count, 2)
        v, t = v - v.mean(0), t - t.mean(0)
        onto = directions(v.shape[1]).T.numpy()
        assert np.linalg.norm(onto, axis=1) == pytest.approx(1)
        wanted = independent.sliced_wasserstein(v.numpy(), t.numpy(), onto)
        assert sliced_wasserstein(v, t) == pytest.approx(wanted, rel=1e-9)

    def test_is_near_that_of_many_other_directions(self) -> None:
        v, t = tokens("full", 70, 1), tokens("full", 60, 2)
        onto = np.random.default_rng(1).normal(size=(20_000, v.shape[1]))
        onto /= np.linalg.norm(onto, axis=1, keepdims=True)
        wanted = independent.sliced_wasserstein(v.numpy(), t.numpy(), onto)
        assert sliced_wasserstein(v, t) == pytest.approx(wanted, rel=0.03)

    def test_a_shift_counts_exactly(self) -> None:
        v = tokens("full", 70, 1)
        shift = torch.arange(24, dtype=torch.float64)
        assert sliced_wasserstein(v, v + shift) == pytest.approx(float(shift.norm()) / 24**0.5)
        assert sliced_wasserstein(v, v) == pytest.approx(0, abs=1e-12)

    def test_directions_are_the_same_on_every_machine(self) -> None:
        drawn = np.array([0.1257302210933933, -0.1321048632913019, 0.6404226504432182])
        assert directions(3)[:, 0].tolist() == pytest.approx(drawn / np.linalg.norm(drawn), rel=1e-12)


def test_mmd_equals_an_independent_computation() -> None:
    v, t = tokens("full", 70, 1), tokens("full", 52, 2)  # an odd number of distances
    assert mmd2(v, t) == pytest.approx(independent.mmd2(v.numpy(), t.numpy()), rel=1e-9)
    pairs = torch.randn(60, 2, 60, 8, generator=torch.Generator().manual_seed(0))
    same = [mmd2(*pair) for pair in pairs]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)
    assert min(same) < 0  # unbiased, so not clamped
    assert mmd2(torch.ones(4, 2), torch.ones(4, 2)) is None


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
    found = effective_rank(Gaussian(torch.zeros(size), covariance, None))
    assert found == pytest.approx(wanted, rel=1e-4)


FIELDS = {
    **dict.fromkeys(("cka", "cka_stderr", "neighbour_overlap"), 1e-6),
    **dict.fromkeys(("token_cosine", "best_token_cosine", "sliced_wasserstein", "mmd2"), 1e-9),
    **dict.fromkeys(("vision_effective_rank", "text_effective_rank"), 1e-6),
}
"""With how much of them the order of the documents may move."""


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("rule", ["replace", "drop"])
def test_all_of_a_meter_whatever_the_split(rule: str, kept: bool) -> None:
    v, t = tokens("full", 1600, 1).float(), tokens("full", 1200, 2).float()
    documents = list(enumerate(zip(v.split(40), t.split(30), strict=True)))

    def fill(meter: MIRMeter, part) -> MIRMeter:
        for n, (vision, text) in part:
            meter.update(n, [vision], [text])
        return meter

    def joined(meters: list[MIRMeter]) -> MIRMeter:
        for other in meters[1:]:
            meters[0].merge(other)
        return meters[0]

    settings = {"outliers": rule, "extras": tuple(EXTRAS), "memory": None if kept else 0.0}
    layers: list[LayerResult] = []
    for cuts in ([documents], [documents[25:], documents[:25]]):
        meter = joined([fill(MIRMeter(**settings), part) for part in cuts])
        if not kept:
            meter = joined(
                [fill(again, part) for again, part in ((meter.second_pass(), p) for p in cuts)]
            )
        layers += meter.compute().layers
    for name, tolerance in FIELDS.items():
        assert getattr(layers[1], name) == pytest.approx(getattr(layers[0], name), rel=tolerance), name
    plain = metered(v, t, rule, kept=kept).compute().layers[0]
    assert all(getattr(plain, name) is None for name in FIELDS)
    assert layers[0].frechet == pytest.approx(plain.frechet, rel=1e-4)

    layer = layers[0]
    means = [
        np.stack([part.double().mean(0).numpy() for part in x.split(n)]) for x, n in ((v, 40), (t, 30))
    ]
    wanted = linear_cka(*map(torch.from_numpy, means))
    assert layer.cka == pytest.approx(wanted[0], rel=1e-4)
    assert layer.cka_stderr == pytest.approx(jackknife_stderr(wanted[1]), rel=1e-3)
    overlap = independent.neighbour_overlap(*means, 10)
    assert layer.neighbour_overlap == pytest.approx(overlap, abs=1e-12)
    # 1024 of the tokens of each modality, so near the figures of all.
    assert layer.mmd2 == pytest.approx(independent.mmd2(v.numpy(), t.numpy()), abs=0.02)
    of_all = independent.token_cosines(v.numpy(), t.numpy())
    assert (layer.token_cosine, layer.best_token_cosine) == pytest.approx(of_all, abs=0.02)
    distance = sliced_wasserstein(v.double(), t.double()) * layer.text_scale
    assert layer.sliced_wasserstein == pytest.approx(distance, rel=0.03)


@pytest.mark.parametrize("kept", [True, False])
def test_measures_of_the_sample_equal_an_independent_computation_of_it(kept: bool) -> None:
    v, t = tokens("full", 1600, 1).float(), tokens("full", 1200, 2).float()
    meter = metered(v, t, "replace", kept=kept, extras=tuple(EXTRAS), sample_rows=1024)
    known = meter.known or meter._learn()
    (measured,) = meter._distances({1: meter.layer(1)}, known).values()
    assert measured.rows is not None
    vision, text = (rows.double().numpy() for rows in measured.rows)
    assert len(vision) == len(text) == 1024
    layer = measured.result
    # NumPy's median of an even number of distances is between the two in the middle.
    assert layer.mmd2 == pytest.approx(independent.mmd2(vision, text), rel=1e-6)
    found = (layer.token_cosine, layer.best_token_cosine)
    assert found == pytest.approx(independent.token_cosines(vision, text), rel=1e-9)
    centred = (vision - vision.mean(0), text - text.mean(0))
    spread = independent.sliced_wasserstein(*centred, directions(vision.shape[1]).T.numpy())
    of_means = np.mean((vision.mean(0) - text.mean(0)) ** 2)
    wanted = math.sqrt(of_means + spread**2) * layer.text_scale
    assert layer.sliced_wasserstein == pytest.approx(wanted, rel=1e-9)


def test_they_reach_the_side_file_with_those_of_the_decoder_s_input(llava, tmp_path) -> None:
    task = evaluate.task(mir_extras=list(EXTRAS), mir_documents=24)
    scores = evaluate.evaluate(evaluate.load(llava), task, output=tmp_path)["results"]["mir_test"]
    report = evaluate.report(tmp_path)
    assert scores["mir,none"] == report["mir"]
    assert [layer["layer"] for layer in report["layers"]] == [1, 2, 3]
    assert report["input_layer"]["layer"] == 0
    for layer in itertools.chain([report["input_layer"]], report["layers"]):
        assert -1 <= layer["cka"] <= 1
        assert 0 <= layer["neighbour_overlap"] <= 1
        assert layer["cka_stderr"] > 0
        assert -1 <= layer["token_cosine"] < layer["best_token_cosine"] <= 1
        assert layer["sliced_wasserstein"] > 0
        assert 0 < layer["mmd2"] < 2
        assert 1 < layer["vision_effective_rank"] < layer["dimensions"]
        assert 1 < layer["vision_participation_ratio"] < layer["dimensions"]
    assert report["settings"]["mir_extras"] == list(EXTRAS)
    with pytest.raises(
        MIRError, match="mir_extras is .*: it must be 'cka', 'neighbours', .* or 'entropy_r"
    ):
        evaluate.task(mir_extras=["kid"])
