import itertools
import math
import random

import pytest
import torch

from mir_task import MIRError, MIRMeter, modality_integration_rate
from mir_task.medians import MedianCounts

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
    assert result.mir == pytest.approx(pooled.mir, abs=1e-12)
    for layer, wanted in zip(result.layers, pooled.layers, strict=True):
        assert layer.vision_outliers == wanted.vision_outliers
        assert layer.text_tokens == wanted.text_tokens
        assert layer.text_norm == pytest.approx(wanted.text_norm, rel=1e-12)


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
    # No token is an outlier, so leaving a group out is measuring the others.
    docs = [
        (n, (i, *([rows / rows.norm(dim=1, keepdim=True) for rows in m] for m in modalities)))
        for n, (i, *modalities) in enumerate(documents(9))
    ]
    result = metered(docs, groups=3).compute()
    assert all(layer.vision_outliers + layer.text_outliers == 0 for layer in result.layers)
    left_out = [metered([d for d in docs if d[0] % 3 != group]).compute() for group in range(3)]
    values = [replicate.mir for replicate in left_out]
    mean = sum(values) / 3
    assert result.mir_stderr == pytest.approx(
        math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in values)), rel=1e-9
    )
    for group, replicate in zip(result.leave_one_group_out, left_out, strict=True):
        assert group == pytest.approx([layer.frechet for layer in replicate.layers], rel=1e-9)


def test_no_standard_error_with_an_empty_group() -> None:
    docs = list(enumerate(documents(3)))
    assert metered(docs, groups=4).compute().mir_stderr is None
    assert metered(docs).compute().mir_stderr is None


SIZE = 24
KEPT = 1000  # rows that may wait, so that most are folded in


def stream(
    kind: str, seed: int, count: int = 200, dtype: torch.dtype = torch.float64
) -> list[tuple[str, list, list]]:
    """Documents of one layer whose statistics are hard to fold in on the way."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    if kind == "steep":
        mixing = mixing @ torch.diag(torch.logspace(0, -3, SIZE, dtype=torch.float64))

    def rows(tokens: int, position: int, modality: int) -> torch.Tensor:
        x = torch.randn(tokens, SIZE, generator=generator, dtype=torch.float64)
        if kind == "heavy_tails":
            x = x / torch.rand(tokens, 1, generator=generator, dtype=torch.float64).clamp(min=1e-3)
        x = x @ mixing + modality
        if kind == "far_mean":
            x[:, 3] += 3000
        if kind == "drift":
            x = x * (1 + position / 20) + position / 10
        if kind == "first_outliers" and position < 2:
            x = x * 30
        if kind == "early_unlike_late" and position < 40:
            x = x * 10  # a few of all tokens, and all that is seen when the first are folded in
        if kind == "sparse_outliers" and position % 2:
            x[0] *= 8  # two in a hundred of the tokens
        return x.to(dtype)

    return [(f"d{n}", [rows(31, n, 0)], [rows(22, n, 1)]) for n in range(count)]


KINDS = [
    "plain",
    "steep",
    "heavy_tails",
    "far_mean",
    "drift",
    "first_outliers",
    "sparse_outliers",
    "early_unlike_late",
]


def bounded(docs, **settings) -> MIRMeter:
    """A meter that folds rows in, run a second time where it asks for it."""
    meter = metered(docs, kept_rows=KEPT, **settings)
    if meter.needs_second_pass():
        with pytest.raises(MIRError, match="run the documents again through second_pass"):
            meter.compute()
        meter = refill(meter.second_pass(), docs)
        assert not meter.needs_second_pass()
    return meter


def refill(meter: MIRMeter, docs) -> MIRMeter:
    for position, (document_id, vision, text) in docs:
        meter.update(document_id, vision, text, group=position)
    return meter


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outliers", "tolerance"), [("drop", 1e-6), ("replace", 1e-4)])
def test_bounded_memory_equals_the_stored_computation(
    kind: str, seed: int, outliers: str, tolerance: float, dtype: torch.dtype
) -> None:
    # The error of counted medians falls with the root of the number of tokens.
    count = 600 if kind in ("sparse_outliers", "early_unlike_late") else 200
    docs = list(enumerate(stream(kind, seed, count, dtype)))
    stored = metered(docs, kept_rows=10**6, outliers=outliers, groups=5).compute()
    folded = bounded(docs, outliers=outliers, groups=5)
    assert folded.layers[1].vision.moments, "nothing was folded in, so nothing is tested"
    result = folded.compute()
    assert result.mir == pytest.approx(stored.mir, abs=tolerance)
    assert result.mir_published_fast == pytest.approx(
        stored.mir_published_fast, abs=tolerance, nan_ok=True
    )
    assert result.mir_stderr == pytest.approx(stored.mir_stderr, rel=0.02)
    assert result.layers[0].vision_outliers == stored.layers[0].vision_outliers
    assert result.layers[0].text_outliers == stored.layers[0].text_outliers


def test_some_streams_ask_for_a_second_pass_and_plain_ones_do_not() -> None:
    asked = {
        kind: metered(enumerate(stream(kind, 0, 600)), kept_rows=KEPT).needs_second_pass()
        for kind in KINDS
    }
    assert asked["early_unlike_late"]
    for kind in ("plain", "steep", "far_mean", "sparse_outliers", "first_outliers"):
        assert not asked[kind]


def test_late_tokens_can_be_counted_instead() -> None:
    docs = list(enumerate(stream("early_unlike_late", 0, 600)))
    stored = metered(docs, kept_rows=10**6).compute()
    counted = metered(docs, kept_rows=KEPT, late="count").compute()
    assert stored.late_tokens == 0
    assert counted.late_tokens > 0
    assert counted.mir != pytest.approx(stored.mir, abs=1e-4)


@pytest.mark.parametrize(("outliers", "tolerance"), [("drop", 1e-9), ("replace", 2e-4)])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["plain", "sparse_outliers", "far_mean"])
class TestMerge:
    def value(self, meter: MIRMeter) -> list[float]:
        result = meter.compute()
        return [result.mir, result.mir_published_fast, result.mir_stderr]

    def parts(self, kind: str, seed: int, outliers: str, cuts: list[int]) -> list[MIRMeter]:
        docs = list(enumerate(stream(kind, seed)))
        edges = [0, *cuts, len(docs)]
        return [
            metered(docs[start:end], kept_rows=KEPT, groups=4, outliers=outliers)
            for start, end in itertools.pairwise(edges)
        ]

    def test_split_invariant(self, kind: str, seed: int, outliers: str, tolerance: float) -> None:
        whole = self.value(self.parts(kind, seed, outliers, [])[0])
        for cuts in ([30], [1, 2], [10, 20, 59]):
            first, *others = self.parts(kind, seed, outliers, cuts)
            for other in others:
                first.merge(other)
            assert self.value(first) == pytest.approx(whole, abs=tolerance)

    def test_commutative_and_associative(
        self, kind: str, seed: int, outliers: str, tolerance: float
    ) -> None:
        values = []
        for order in ("abc", "cba", "a(bc)"):
            a, b, c = self.parts(kind, seed, outliers, [15, 40])
            if order == "a(bc)":
                b.merge(c)
                a.merge(b)
            else:
                first, *others = (a, b, c) if order == "abc" else (c, b, a)
                for other in others:
                    first.merge(other)
                a = first
            values.append(self.value(a))
        assert values[1] == pytest.approx(values[0], abs=tolerance)
        assert values[2] == pytest.approx(values[0], abs=tolerance)

    def test_with_an_empty_meter(self, kind: str, seed: int, outliers: str, tolerance: float) -> None:
        (whole,) = self.parts(kind, seed, outliers, [])
        empty = metered([], kept_rows=KEPT, groups=4, outliers=outliers)
        empty.merge(whole)
        whole.merge(metered([], kept_rows=KEPT, groups=4, outliers=outliers))
        assert self.value(empty) == pytest.approx(self.value(whole), abs=tolerance)


def test_memory_does_not_grow_with_documents_but_for_the_norms() -> None:
    def held(meter: MIRMeter) -> tuple[int, int]:
        """Bytes of all tensors and of the norms alone."""
        tensors, norms = 0, 0
        for layer in meter.layers.values():
            for statistics in (layer.vision, layer.text):
                own = [n for group in statistics._norms.values() for n in group]
                norms += sum(n.nbytes for n in own)
                waiting = [t for tokens in statistics._waiting for t in tokens]
                sample = [statistics._sample._rows, statistics._sample._priorities]
                moments = [t for m in statistics.moments.values() for t in (m.mean, *m.scatter)]
                tensors += sum(t.nbytes for t in [*own, *waiting, *sample, *moments])
        return tensors, norms

    few, many = (held(metered(enumerate(stream("plain", 0, n)), kept_rows=KEPT)) for n in (100, 400))
    assert many[1] == 8 * 400 * (31 + 22)
    largest_wait = 2 * (KEPT + 31) * (SIZE * 8 + 10) + 2 * 1024 * (SIZE * 8 + 8)
    assert many[0] - many[1] < few[0] - few[1] + largest_wait


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
        with pytest.raises(
            MIRError, match="'d1' has 2 layers of 8 .* those before have 3 of 8: one meter"
        ):
            meter.update(other, vision[:2], text[:2])

    def test_settings_differ(self) -> None:
        with pytest.raises(MIRError, match="different settings cannot be merged"):
            MIRMeter(outliers="drop").merge(MIRMeter())

    def test_one_group(self) -> None:
        with pytest.raises(MIRError, match="at least 2, got 1"):
            MIRMeter(groups=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_counted_in_whatever_precision_they_come(dtype: torch.dtype) -> None:
    rows = torch.randn(700, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    for first in (torch.float16, torch.float32):
        counts = MedianCounts.around(rows[:300].to(first))
        counts.count(rows.to(dtype))
        wanted = (rows.to(dtype).double() <= counts.thresholds.double().unsqueeze(1)).sum(1)
        assert counts.below.equal(wanted)
