import math
import random

import pytest
import torch

from mir_task import MIRError, MIRMeter, modality_integration_rate

LAYERS, DIMENSIONS = 3, 8


def documents(count: int) -> list[tuple[str, list[torch.Tensor], list[torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)

    def rows(tokens: int, shift: float) -> list[torch.Tensor]:
        return [
            torch.randn(tokens, DIMENSIONS, generator=generator) * (layer + 1) + shift
            for layer in range(LAYERS)
        ]

    return [(f"d{n}", rows(6 + n % 3, 0.5), rows(4 + n % 2, 0.0)) for n in range(count)]


def metered(chosen, **settings) -> MIRMeter:
    meter = MIRMeter(**settings)
    for position, (document_id, vision, text) in chosen:
        meter.update(document_id, vision, text, group=position)
    return meter


@pytest.mark.parametrize("outliers", ["replace", "drop"])
def test_equals_the_pooled_computation(outliers: str) -> None:
    docs = documents(10)
    result = metered(enumerate(docs), outliers=outliers).compute()
    pooled = modality_integration_rate(
        [torch.cat([v[k] for _, v, _ in docs]) for k in range(LAYERS)],
        [torch.cat([t[k] for _, _, t in docs]) for k in range(LAYERS)],
        outliers=outliers,
    )
    assert result == pooled


@pytest.mark.parametrize("seed", range(3))
def test_order_and_split_do_not_matter(seed: int) -> None:
    docs = list(enumerate(documents(11)))
    whole = metered(docs, groups=3).compute()
    shuffled = random.Random(seed).sample(docs, len(docs))
    cut = 4 + seed
    first, second = metered(shuffled[:cut], groups=3), metered(shuffled[cut:], groups=3)
    first.merge(second)
    assert len(first) == 11
    assert "d3" in first
    merged = first.compute()
    assert merged.mir == pytest.approx(whole.mir, abs=1e-12)
    assert merged.mir_stderr == pytest.approx(whole.mir_stderr, rel=1e-9)


def test_standard_error_is_the_delete_a_group_jackknife() -> None:
    docs = list(enumerate(documents(9)))
    result = metered(docs, groups=3).compute()
    left_out = [metered([d for d in docs if d[0] % 3 != group]).compute() for group in range(3)]
    values = [replicate.mir for replicate in left_out]
    mean = sum(values) / 3
    assert result.mir_stderr == pytest.approx(
        math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in values)), rel=1e-12
    )
    assert result.leave_one_group_out == tuple(
        tuple(layer.frechet for layer in replicate.layers) for replicate in left_out
    )


def test_no_standard_error_with_an_empty_group() -> None:
    docs = list(enumerate(documents(3)))
    assert metered(docs, groups=4).compute().mir_stderr is None
    assert metered(docs).compute().mir_stderr is None


class TestBadInput:
    def test_no_documents(self) -> None:
        with pytest.raises(MIRError, match="no documents were counted"):
            MIRMeter().compute()

    def test_one_document_twice(self) -> None:
        ((document_id, vision, text),) = documents(1)
        meter = metered([(0, (document_id, vision, text))])
        with pytest.raises(MIRError, match="document 'd0' was counted before"):
            meter.update(document_id, vision, text)
        with pytest.raises(MIRError, match="document 'd0' was counted before"):
            meter.merge(metered([(0, (document_id, vision, text))]))

    def test_not_finite_names_layer_and_document(self) -> None:
        ((document_id, vision, text),) = documents(1)
        text[1][2, 0] = math.inf
        with pytest.raises(MIRError, match="document 'd0': layer 2: NaN or infinity .* text tokens"):
            MIRMeter().update(document_id, vision, text)

    def test_another_model(self) -> None:
        (_, vision, text), (other, _, _) = documents(2)
        meter = metered([(0, ("d0", vision, text))])
        with pytest.raises(MIRError, match="'d1' has 2 layers of 8 .* 'd0' has 3 of 8: one meter"):
            meter.update(other, vision[:2], text[:2])

    def test_settings_differ(self) -> None:
        with pytest.raises(MIRError, match="different settings cannot be merged"):
            MIRMeter(outliers="drop").merge(MIRMeter())

    def test_one_group(self) -> None:
        with pytest.raises(MIRError, match="at least 2, got 1"):
            MIRMeter(groups=1)
