import math

import numpy as np
import pytest
import torch

from mir_task import MIRError, MIRMeter, MIRResult, modality_integration_rate
from mir_task.metric import definition
from mir_task.metric.frechet import FrechetTerms, Gaussian, frechet_distance, frechet_terms
from tests.conftest import Oracle

SEEDS = range(3)


def check_against_oracle(oracle: Oracle) -> None:
    for rule, key in (("replace", "frechet_float64"), ("drop", "frechet_float64_outliers_dropped")):
        result = modality_integration_rate(oracle.vision, oracle.text, outliers=rule)
        for layer, expected in zip(result.layers, oracle.expected["layers"], strict=True):
            assert layer.frechet == pytest.approx(expected[key], rel=1e-7, abs=0)
        assert result.mir == pytest.approx(oracle.expected[f"mir_log10_sum__{key}"], abs=1e-7)


def test_oracle(oracle: Oracle) -> None:
    check_against_oracle(oracle)


def test_text_scale_and_outlier_counts_equal_the_oracle(oracle: Oracle) -> None:
    result = modality_integration_rate(oracle.vision, oracle.text)
    for layer, expected in zip(result.layers, oracle.expected["layers"], strict=True):
        assert layer.text_scale == pytest.approx(expected["text_scale"], rel=1e-14, abs=0)
        assert layer.vision_outliers == expected["vision_outliers"]
        assert layer.text_outliers == expected["text_outliers"]
        assert layer.vision_tokens == oracle.vision.shape[1]
        assert layer.text_tokens == oracle.text.shape[1]
        assert layer.mean_term + layer.covariance_term == pytest.approx(layer.frechet, rel=1e-14)
        assert layer.text_norm == pytest.approx(1 / layer.text_scale, rel=1e-14)


# Not of rank_deficient: the published fast mode inverts a singular matrix there, its figure is noise.
@pytest.mark.parametrize("name", ["full_rank", "aligned"])
def test_published_fast_figures(name: str) -> None:
    oracle = Oracle(name)
    result = modality_integration_rate(oracle.vision, oracle.text)
    for layer, expected in zip(result.layers, oracle.expected["layers"], strict=True):
        assert layer.frechet_published_fast == pytest.approx(expected["published_fast"], rel=1e-5)
    assert result.mir_published_fast == pytest.approx(
        oracle.expected["mir_log10_sum__published_fast"], abs=1e-5
    )


def fixed_point_root(a: torch.Tensor, b: torch.Tensor) -> float:
    """The published fast mode: an iteration for the square root that starts at a fixed point."""
    product = a @ b + 1e-9 * torch.eye(len(a), dtype=a.dtype)
    root, inverse_root = product, torch.eye(len(a), dtype=a.dtype)
    for _ in range(5):
        root = (root + torch.linalg.inv(inverse_root) @ product) / 2
        inverse_root = (inverse_root + torch.linalg.inv(root) @ product) / 2
    return root.trace().item()


def unsymmetrised_root(a: torch.Tensor, b: torch.Tensor) -> float:
    """Symmetric eigenvalues of a product that is not symmetric."""
    return torch.linalg.eigvalsh(a @ b).clamp(min=0).sqrt().sum().item()


@pytest.mark.parametrize("wrong_root", [fixed_point_root, unsymmetrised_root])
def test_a_wrong_root_fails_the_oracle_test(oracle: Oracle, wrong_root, monkeypatch) -> None:
    def wrong_terms(a: Gaussian, b: Gaussian, near: None) -> FrechetTerms:
        covariances = [g.root().T @ g.root() for g in (a, b)]
        return frechet_terms(a, b)._replace(root=wrong_root(*covariances))

    monkeypatch.setattr(definition, "frechet_terms", wrong_terms)
    with pytest.raises(AssertionError):
        check_against_oracle(oracle)


def tokens(count: int, dimensions: int, seed: int, kind: str = "full") -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    rows = rows @ torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    if kind == "decaying":  # condition number 1e6 of the covariance, and more
        rows = rows * torch.logspace(0, -3, dimensions, dtype=torch.float64)
    if kind == "singular":
        rows[:, dimensions // 2 :] = rows[:, : dimensions - dimensions // 2]
    if kind == "rank_one":
        rows = rows[:, :1] * torch.linspace(1, 2, dimensions, dtype=torch.float64)
    if kind == "massive":
        rows[:, 3] += 300
    if kind == "duplicates":
        rows[count // 2 :] = rows[0]
    return rows


KINDS = [
    ("full", 90, 70),
    ("decaying", 90, 70),
    ("singular", 90, 70),
    ("rank_one", 90, 70),
    ("massive", 90, 70),
    ("duplicates", 90, 70),
    ("few_tokens", 12, 9),
    ("few_text", 90, 9),
    ("few_vision", 12, 70),
]


@pytest.fixture(params=KINDS, ids=[kind for kind, *_ in KINDS])
def sample(request: pytest.FixtureRequest):
    """Makes a pair of token sets [n, 24] of one kind from a seed."""
    kind, vision, text = request.param
    return lambda seed: (tokens(vision, 24, seed, kind), tokens(text, 24, seed + 100, kind))


def size(a: torch.Tensor, b: torch.Tensor) -> float:
    """What rounding is measured against: the traces of both covariances."""
    return (a.var(0).sum() + b.var(0).sum()).item()


@pytest.mark.parametrize("seed", SEEDS)
class TestProperties:
    # An eigenvalue that is zero comes back as 1e-16 of the largest, and its root as 1e-8.
    tolerance = 1e-7

    def test_equal_samples_are_at_distance_zero(self, sample, seed: int) -> None:
        a, _ = sample(seed)
        assert frechet_distance(a, a.clone()) == pytest.approx(0, abs=self.tolerance * size(a, a))

    def test_symmetric(self, sample, seed: int) -> None:
        a, b = sample(seed)
        assert frechet_distance(a, b) == pytest.approx(
            frechet_distance(b, a), rel=0, abs=self.tolerance * size(a, b)
        )

    def test_invariant_under_a_common_rotation(self, sample, seed: int) -> None:
        a, b = sample(seed)
        rotation, _ = torch.linalg.qr(tokens(24, 24, seed + 7))
        assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(
            frechet_distance(a, b), abs=self.tolerance * size(a, b)
        )

    def test_a_mean_shift_adds_its_square(self, sample, seed: int) -> None:
        a, _ = sample(seed)
        shift = tokens(1, 24, seed + 8)[0]
        assert frechet_distance(a + shift, a) == pytest.approx(
            shift.square().sum().item(), rel=1e-9, abs=self.tolerance * size(a, a)
        )

    def test_mir_does_not_change_when_both_are_scaled_together(self, sample, seed: int) -> None:
        a, b = sample(seed)
        once = modality_integration_rate([a], [b])
        scaled = modality_integration_rate([a * 1024], [b * 1024])
        assert scaled.mir == pytest.approx(once.mir, abs=1e-9)
        assert scaled.mir_published_fast == pytest.approx(once.mir_published_fast, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_routes_of_few_and_many_tokens_agree(seed: int) -> None:
    few, many = tokens(12, 24, seed), tokens(90, 24, seed + 1)
    assert Gaussian.from_tokens(few).factor is not None
    as_covariance = Gaussian(few.mean(0), few.T.cov(), None)
    for other in (Gaussian.from_tokens(many), Gaussian.from_tokens(few * 2)):
        short = frechet_terms(Gaussian.from_tokens(few), other)
        full = frechet_terms(as_covariance, other)
        assert short[:4] == pytest.approx(full[:4], rel=1e-7)


def test_closed_form_of_commuting_covariances() -> None:
    # Orthogonal columns: covariances are diagonal, so Tr((AB)^(1/2)) = sum of sqrt(a b).
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    a, b = signs * torch.tensor([1.0, 2]), signs * torch.tensor([3.0, 5])
    assert frechet_distance(a, b) == pytest.approx(4 / 3 * ((1 - 3) ** 2 + (2 - 5) ** 2), rel=1e-12)


def test_outlier_rules_by_hand() -> None:
    ones = torch.ones(20, 2, dtype=torch.float64)
    ones[::2, 0] = 2
    far = torch.cat([ones, torch.tensor([[500.0, 0.0]], dtype=torch.float64)])
    replaced = modality_integration_rate([far], [ones * 3])
    dropped = modality_integration_rate([far], [ones * 3], outliers="drop")
    by_hand = torch.cat([ones, torch.tensor([[2.0, 1.0]], dtype=torch.float64)])
    scale = replaced.layers[0].text_scale
    assert replaced.layers[0].vision_outliers == dropped.layers[0].vision_outliers == 1
    assert replaced.layers[0].frechet == pytest.approx(
        frechet_distance(by_hand * scale, ones * 3 * scale), rel=1e-12
    )
    assert dropped.layers[0].frechet == pytest.approx(
        frechet_distance(ones * scale, ones * 3 * scale), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_statistics_are_float64_whatever_comes_in(oracle: Oracle, dtype: torch.dtype) -> None:
    vision, text = oracle.vision.to(dtype), oracle.text.to(dtype)
    result = modality_integration_rate(vision, text)
    assert result == modality_integration_rate(vision.double(), text.double())
    assert result.mir == pytest.approx(oracle.expected["mir_log10_sum__frechet_float64"], abs=2e-3)


def test_dtype_option_is_obeyed(oracle: Oracle) -> None:
    exact = modality_integration_rate(oracle.vision, oracle.text)
    single = modality_integration_rate(oracle.vision, oracle.text, dtype=torch.float32)
    assert single.mir != exact.mir
    assert single.mir == pytest.approx(exact.mir, abs=1e-3)


def test_result_survives_json(oracle: Oracle) -> None:
    import json

    result = modality_integration_rate(oracle.vision, oracle.text)
    assert MIRResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_published_fast_without_a_logarithm_is_nan_and_null() -> None:
    # A dominant direction shared by both: Tr(S_v S_t) exceeds all other terms.
    line = torch.linspace(-9, 9, 40, dtype=torch.float64)[:, None] * torch.ones(1, 3)
    result = modality_integration_rate([line * 1.01], [line])
    assert math.isnan(result.mir_published_fast)
    assert result.to_dict()["mir_published_fast"] is None


class TestBadInput:
    def good(self) -> torch.Tensor:
        return tokens(30, 4, 0)

    def test_outlier_rule(self) -> None:
        with pytest.raises(MIRError, match="replace, drop, got 'keep'"):
            modality_integration_rate([self.good()], [self.good()], outliers="keep")

    def test_layers_differ(self) -> None:
        with pytest.raises(MIRError, match="got 2 vision and 1 text layers"):
            modality_integration_rate([self.good()] * 2, [self.good()])

    def test_shape(self) -> None:
        with pytest.raises(MIRError, match=r"layer 1: text .* \[tokens, d\], got torch.float64 \[4\]"):
            modality_integration_rate([self.good()], [self.good()[0]])

    def test_dimensions_differ(self) -> None:
        with pytest.raises(MIRError, match="vision tokens have 4 dimensions, text tokens 3"):
            modality_integration_rate([self.good()], [self.good()[:, :3]])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, value: float) -> None:
        broken = self.good()
        broken[3, 2] = value
        for dtype, way in (
            (torch.float64, "its weights or what it was given are not finite, in float64"),
            (torch.float16, "float16 overflows in many models: load the model in bfloat16"),
        ):
            good = self.good().to(dtype)
            with pytest.raises(MIRError, match=f"layer 2: NaN or infinity .* text tokens; {way}"):
                modality_integration_rate([good] * 2, [good, broken.to(dtype)])

    def test_fewer_than_two_tokens(self) -> None:
        with pytest.raises(MIRError, match=r"layer 1: 1 vision token\(s\); .* measure more documents"):
            modality_integration_rate([self.good()[:1]], [self.good()])

    def test_zero_text(self) -> None:
        with pytest.raises(MIRError, match="every text token is zero"):
            modality_integration_rate([self.good()], [torch.zeros(5, 4)])

    @pytest.mark.parametrize("kind", ["full", "singular", "rank_one"])
    def test_sum_of_distances_is_zero(self, kind: str) -> None:
        same = tokens(90, 24, 0, kind)
        with pytest.raises(MIRError, match="zero to rounding"):
            modality_integration_rate([same], [same.clone()])


def test_a_result_is_one_short_line_and_its_layers_are_at_hand(oracle: Oracle) -> None:
    result = modality_integration_rate(oracle.vision, oracle.text)
    for shown in (repr(result), str(result), f"{result}"):
        assert shown.startswith(f"MIRResult(mir={result.mir:.4f}, mir_published_fast=")
        assert f"{len(result.layers)} layers in .layers" in shown
        assert len(shown) < 150
        assert "\n" not in shown
    assert all(len(repr(layer)) < 150 for layer in result.layers)


def test_numpy_arrays_are_taken_as_tensors_are(oracle: Oracle) -> None:
    wanted = modality_integration_rate(oracle.vision, oracle.text)
    vision, text = oracle.vision.numpy(), oracle.text.numpy()
    text.flags.writeable = False
    assert modality_integration_rate(vision, text) == wanted
    meter = MIRMeter()
    meter.update("all", list(vision), list(text))
    assert meter.compute().mir == pytest.approx(wanted.mir, abs=1e-9)
    assert modality_integration_rate(vision[:1], list(oracle.text[:1])).layers == wanted.layers[:1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[[1.0, 2.0], [3.0, 4.0]]], "layer 1: vision is of type list: pass a tensor or a numpy array"),
        ([torch.ones(2, 2), None], "layer 2: vision is of type NoneType"),
        ([np.array([["a", "b"]])], "layer 1: vision is of type ndarray"),
        (3, "vision is of type int: pass one tensor"),
        ("rows", "vision is of type str: pass one tensor"),
        ([np.ones((2, 2), dtype=int)], r"layer 1: vision must be a floating-point tensor .*int64"),
    ],
)
def test_rows_of_other_types_are_refused_by_name(rows, message: str) -> None:
    with pytest.raises(MIRError, match=message):
        modality_integration_rate(rows, [torch.ones(2, 2)])
    with pytest.raises(MIRError, match=f"document 'a': {message}"):
        MIRMeter().update("a", rows, [torch.ones(2, 2)])


def test_views_of_arrays_and_dtypes_of_the_root() -> None:
    random = np.random.default_rng(0)
    vision, text = random.normal(size=(40, 4)), random.normal(size=(40, 4)) + 1
    wanted = modality_integration_rate([vision], [text]).mir
    found = modality_integration_rate([vision[::-1]], [text[::-1]]).mir
    assert found == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(
        MIRError, match="dtype must be None, torch.float32 or torch.float64, got torch.bfloat16"
    ):
        modality_integration_rate([vision], [text], dtype=torch.bfloat16)
