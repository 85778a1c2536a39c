import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from mir_task import LayerResult, MIRMeter, MIRResult, modality_integration_rate
from mir_task.result import jackknife_stderr
from tests.support import independent

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


@pytest.mark.parametrize("rule", ["replace", "drop"])
@pytest.mark.parametrize("kind", KINDS)
def test_scale_free_distance(kind: str, rule: str) -> None:
    v, t = tokens(kind, 400, 1), tokens(kind, 300, 2)
    (layer,) = modality_integration_rate([v], [t], outliers=rule).layers
    wanted = independent.scale_free(v, t, rule)
    assert layer.scale_free_distance == pytest.approx(wanted, abs=1e-6)
    assert layer.bures_cosine == pytest.approx(1 - wanted / 2, abs=1e-6)
    assert math.cos(layer.bures_angle) == pytest.approx(layer.bures_cosine, abs=1e-12)
    (scaled,) = modality_integration_rate([37 * v], [t], outliers=rule).layers
    assert scaled.scale_free_distance == pytest.approx(layer.scale_free_distance, abs=1e-9)
    assert scaled.frechet > 10 * layer.frechet


def test_norms_traces_and_the_product_of_means_give_the_mean_term() -> None:
    (layer,) = modality_integration_rate([tokens("full", 400, 1)], [tokens("full", 300, 2)]).layers
    norms = [(norm * layer.text_scale) ** 2 for norm in (layer.vision_rms_norm, layer.text_rms_norm)]
    spread = layer.vision_trace + layer.text_trace
    assert sum(norms) - spread - 2 * layer.mean_product == pytest.approx(layer.mean_term, rel=1e-9)


def test_tokens_that_are_all_zero_have_no_scale_free_distance() -> None:
    (layer,) = modality_integration_rate([torch.zeros(3, 2)], [torch.ones(3, 2)]).layers
    assert layer.scale_free_distance is layer.bures_cosine is layer.bures_angle is None


def test_of_the_oracle(oracle) -> None:
    result = modality_integration_rate(oracle.vision, oracle.text)
    for layer, v, t in zip(result.layers, oracle.vision, oracle.text, strict=True):
        check(layer, independent.diagnostics(v, t))


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


def test_thirds_of_the_depth() -> None:
    result = several_layers()
    distances = [layer.frechet for layer in result.layers]
    parts = (distances[:1], distances[1:3], distances[3:])
    assert result.mir_thirds == pytest.approx([math.log10(sum(part)) for part in parts])
    assert sum(10**third for third in result.mir_thirds) == pytest.approx(10**result.mir)
    assert result.mir_thirds_stderr == (None, None, None)
    two = result.model_copy(update={"layers": result.layers[:2]})
    assert two.mir_thirds == (None, *(pytest.approx(math.log10(part)) for part in distances[:2]))


@pytest.mark.parametrize("kept", [True, False])
def test_standard_errors_of_thirds_and_of_the_scale_free_sum(kept: bool) -> None:
    """Equal to measuring anew without each group, where no token is an outlier."""
    generator = torch.Generator().manual_seed(0)
    documents = []
    for seed in range(1, 41):
        norms = torch.rand(50, 1, generator=generator) + 1
        layers = [tokens("full", 50, seed).float() + layer for layer in range(3)]
        documents.append([rows / rows.norm(dim=1, keepdim=True) * norms for rows in layers])

    def measured(numbers: list[int], memory: float | None = None, groups: int = 0) -> MIRResult:
        def fill(meter: MIRMeter) -> MIRMeter:
            for n in numbers:
                rows = [x[:28] for x in documents[n]], [x[28:] for x in documents[n]]
                meter.update(n, *rows, group=n)
            return meter

        meter = fill(MIRMeter(groups=groups, memory=memory))
        return (fill(meter.second_pass()) if meter.needs_second_pass() else meter).compute()

    result = measured(list(range(40)), None if kept else 0.0, groups=4)
    assert all(layer.vision_outliers + layer.text_outliers == 0 for layer in result.layers)
    without = [measured([n for n in range(40) if n % 4 != group]) for group in range(4)]
    wanted = [jackknife_stderr([of.mir_thirds[third] for of in without]) for third in range(3)]
    assert result.mir_thirds_stderr == pytest.approx(wanted, rel=1e-6)
    wanted = jackknife_stderr([of.scale_free_mir for of in without])
    assert result.scale_free_mir_stderr == pytest.approx(wanted, rel=1e-6)
    assert result.scale_free_mir == pytest.approx(
        math.log10(sum(layer.scale_free_distance for layer in result.layers))
    )


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
    for name in ("half_layers", "mir_thirds", "input_layer", "scale_free_leave_one_group_out"):
        del content[name]
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
    assert old.input_layer is old.scale_free_mir is old.layers[0].bures_angle is None
    assert old.mir_thirds == result.mir_thirds
    assert old.layers[1].vision_effective_rank == 7.5
    assert old.layers[0].vision_tokens_per_dimension is None
    assert MIRResult.from_dict(old.to_dict()) == old
