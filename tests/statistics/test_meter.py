import gc
import itertools
import json
import math
import random
import weakref

import pytest
import torch

from mir_task import MIRError, MIRMeter, modality_integration_rate
from mir_task.statistics import finish, medians, sums
from mir_task.statistics.finish import learn

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


def pooled(docs, outliers: str):
    rows = [[torch.cat([doc[which][0] for _, doc in docs])] for which in (1, 2)]
    return modality_integration_rate(*rows, outliers=outliers)


def again(meter: MIRMeter, docs, settings: dict) -> MIRMeter:
    """A second pass over documents that were not kept."""
    assert meter.needs_second_pass()
    with pytest.raises(MIRError, match="no room to keep the rows .* second_pass.* or raise memory"):
        meter.compute()
    return refill(meter.second_pass(), docs)


def refill(meter: MIRMeter, docs) -> MIRMeter:
    for position, (document_id, vision, text) in docs:
        meter.update(document_id, vision, text, group=position)
    return meter


def close(result, wanted, tolerance: float) -> None:
    assert result.mir == pytest.approx(wanted.mir, abs=tolerance)
    assert result.mir_published_fast == pytest.approx(
        wanted.mir_published_fast, abs=10 * tolerance, nan_ok=True
    )
    assert result.layers[0].vision_outliers == wanted.layers[0].vision_outliers
    assert result.layers[0].text_outliers == wanted.layers[0].text_outliers


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float32, torch.bfloat16),
        *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float64, torch.float16)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outliers", "tolerance"), [("drop", 1e-7), ("replace", 1e-4)])
def test_both_passes_equal_the_pooled_computation(
    kind: str, outliers: str, tolerance: float, dtype: torch.dtype
) -> None:
    # The error of counted medians falls with the root of the number of tokens.
    count = 600 if kind in ("sparse_outliers", "early_unlike_late") else 200
    docs = list(enumerate(stream(kind, 0, count, dtype)))
    wanted = pooled(docs, outliers)
    settings = {"outliers": outliers, "groups": 5}
    kept = metered(docs, **settings)
    assert not kept.needs_second_pass()
    of_kept = kept.compute()
    close(of_kept, wanted, 1e-9)
    counted = again(metered(docs, memory=0.0, **settings), docs, settings).compute()
    close(counted, wanted, tolerance)
    assert counted.mir_stderr == pytest.approx(of_kept.mir_stderr, rel=0.02)


def test_some_layers_kept_and_others_counted_again() -> None:
    docs = list(enumerate(documents(600)))
    wanted = metered(docs, groups=5).compute()
    each = sum(rows.nbytes for _, (_, vision, text) in docs for rows in (vision[0], text[0]))
    sample = 2 * 1024 * DIMENSIONS * 4
    settings = {"groups": 5, "memory": (each + 2 * sample) / 2**30}
    first = metered(docs, **settings)
    assert first.tokens.kept() == [1]
    second = again(first, docs, settings)
    assert list(second.measured) == [1]
    result = second.compute()
    assert result.layers[0] == wanted.layers[0]
    for layer, expected in zip(result.layers, wanted.layers, strict=True):
        assert layer.frechet == pytest.approx(expected.frechet, rel=1e-4)
    assert result.mir_stderr == pytest.approx(wanted.mir_stderr, rel=1e-3)


def test_a_first_pass_ends_when_a_second_one_is_asked_for() -> None:
    docs = list(enumerate(documents(600)))
    first = metered(docs, memory=0.0)
    values = {refill(first.second_pass(), docs).compute().mir for _ in range(2)}
    assert len(values) == 1
    for count in (lambda: first.update("new", *docs[0][1][1:]), lambda: first.merge(metered(docs))):
        with pytest.raises(MIRError, match="a second pass has been asked for"):
            count()
    with pytest.raises(MIRError, match="no room to keep"):
        first.compute()


@pytest.mark.parametrize("merged", [False, True])
def test_the_groups_of_a_second_pass_are_those_of_the_first(merged: bool) -> None:
    docs = list(enumerate(stream("plain", 0)))
    wanted = again(metered(docs, memory=0.0, groups=5), docs, {}).compute()
    first = metered(docs, memory=0.0, groups=5)
    seconds = [first.second_pass() for _ in range(1 + merged)]
    for number, (_, document) in enumerate(random.Random(0).sample(docs, len(docs))):
        seconds[number % len(seconds)].update(*document)  # no group: the order would give another
    if merged:
        seconds[0].merge(seconds[1])
    found = seconds[0].compute()
    assert found.mir == pytest.approx(wanted.mir, abs=1e-9)
    assert found.mir_stderr == pytest.approx(wanted.mir_stderr, rel=1e-6)
    with pytest.raises(MIRError, match=r"'d3': its group is 4 \(row 4\), and was 3 in the first pass"):
        first.second_pass().update(*docs[3][1], group=4)


def test_a_document_without_tokens_has_no_mean() -> None:
    docs = documents(6)
    meter = metered(enumerate(docs), extras=("neighbours", "cka"))
    before = meter.compute()
    none = [rows[:0] for rows in docs[0][1]]
    with pytest.raises(
        MIRError, match="'new': it has no vision tokens, and of the extras neighbours, cka"
    ):
        meter.update("new", none, docs[0][2])
    assert meter.compute() == before
    plain = metered(enumerate(docs))
    plain.update("new", none, docs[0][2])
    assert len(plain) == 7


def test_outliers_that_are_dropped_leave_too_few_for_a_standard_error() -> None:
    torch.manual_seed(0)
    far = [1e4 * torch.ones(2, DIMENSIONS)], [torch.randn(40, DIMENSIONS)]
    near = [torch.randn(300, DIMENSIONS)], [torch.randn(40, DIMENSIONS)]
    meter = metered(enumerate([("near", *near), ("far", *far)]), outliers="drop", groups=2)
    result = meter.compute()
    assert result.layers[0].vision_outliers == 2
    assert result.mir_stderr is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"dtype": torch.float16},
            "dtype must be None, torch.float32 or torch.float64, got torch.float16",
        ),
        ({"numbers": [1, 1, 2]}, r"numbers must be of different layers, got \[1, 1, 2\]"),
    ],
)
def test_arguments_that_do_not_fit(settings, said) -> None:
    with pytest.raises(MIRError, match=said):
        MIRMeter(**settings)


def test_a_device_without_memory_and_layers_without_one_from_1_on_are_told() -> None:
    _, vision, text = documents(1)[0]
    with pytest.raises(MIRError, match="rows came on cpu, and memory has GiB for cuda:0 only"):
        MIRMeter(memory={torch.device("cuda:0"): 1.0}).update("a", vision, text)
    meter = MIRMeter(numbers=[0])
    meter.update("a", vision[:1], text[:1])
    with pytest.raises(MIRError, match="no decoder layer was measured"):
        meter.compute()


def test_a_second_pass_of_other_documents_is_refused() -> None:
    docs = list(enumerate(stream("plain", 0)))
    second = metered(docs, memory=0.0).second_pass()
    refill(second, [*docs[:-1], (199, ("d199", *([rows[0][:-1]] for rows in docs[-1][1][1:])))])
    with pytest.raises(MIRError, match="6199 vision tokens in the second pass .* 6200 in the first"):
        second.compute()


def test_a_second_pass_of_documents_with_other_names_is_refused() -> None:
    docs = list(enumerate(stream("plain", 0)))
    second = metered(docs, memory=0.0).second_pass()
    refill(second, [(n, (f"{i}x" if n == 7 else i, *rows)) for n, (i, *rows) in docs])
    with pytest.raises(MIRError, match="2 were counted in one of them only, such as 'd7'"):
        second.compute()


def test_layers_that_the_first_pass_measured_survive_a_merge() -> None:
    docs = list(enumerate(documents(600)))
    rows = sum(part.nbytes for _, (_, v, t) in docs for part in (v[0], t[0]))
    first = metered(docs, memory=(rows + 4 * 1024 * DIMENSIONS * 4) / 2**30)
    second = refill(first.second_pass(), docs)
    wanted = second.compute()
    empty = MIRMeter(numbers=second.numbers, known=second.known)
    empty.merge(second)
    assert len(wanted.layers) == LAYERS
    assert empty.compute() == wanted


def test_values_that_many_tokens_share_have_exact_medians() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6000, 12, generator=generator).relu()  # zero in half of them
    rows[:, 3] = 1.5
    rows[:, 4:] = (rows[:, 4:] * 3).round()
    for dtype in (torch.float32, torch.bfloat16):
        typed = rows.to(dtype)
        thresholds = medians.around(typed[:1024])
        counted = medians.of_counts(medians.count_at_most(typed, thresholds), len(typed), thresholds)
        exact = medians.of_rows([typed])
        assert counted[3:].equal(exact[3:])
        assert counted[:3].sub(exact[:3]).abs().max() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 999, 1000])
def test_processes_find_the_exact_medians_by_counts(count: int, dtype: torch.dtype) -> None:
    rows = 3 * torch.randn(count, 20, generator=torch.Generator().manual_seed(count)).to(dtype)
    rows[:, 0], rows[:, 1], rows[::2, 2] = -1.0, 0.0, -0.0
    parts = [[part] for part in rows.split(max(count // 3, 1))]
    searches = [medians.Search(part, count, rows[0]) for part in [*parts, []]]
    for _ in range(searches[0].rounds):
        together = sum(search.counts() for search in searches)
        for search in searches:
            search.narrow(together)
    exact = rows.double().sort(0).values[(count - 1) // 2]
    assert searches[0].median.equal(exact)
    assert medians.of_rows([rows]).equal(exact)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("outliers", ["replace", "drop"])
@pytest.mark.parametrize(
    "kind", ["plain", "sparse_outliers", pytest.param("far_mean", marks=pytest.mark.slow)]
)
class TestMerge:
    def value(self, meter: MIRMeter) -> list[float]:
        result = meter.compute()
        return [result.mir, result.mir_published_fast, result.mir_stderr]

    def parts(self, kind: str, outliers: str, cuts: list[int], kept: bool) -> list[MIRMeter]:
        docs = list(enumerate(stream(kind, 0)))
        edges = [0, *cuts, len(docs)]
        settings = {"groups": 4, "outliers": outliers}
        parts = [docs[start:end] for start, end in itertools.pairwise(edges)]
        if kept:
            return [metered(part, **settings) for part in parts]
        first = joined([metered(part, **settings, memory=0.0) for part in parts])
        return [refill(meter, part) for meter, part in ((first.second_pass(), part) for part in parts)]

    def test_split_invariant(self, kind: str, outliers: str, kept: bool) -> None:
        whole = self.value(self.parts(kind, outliers, [], kept)[0])
        for cuts in ([30], [1, 2], [10, 20, 59]):
            assert self.value(joined(self.parts(kind, outliers, cuts, kept))) == pytest.approx(
                whole, rel=1e-9
            )

    def test_commutative_and_associative(self, kind: str, outliers: str, kept: bool) -> None:
        values = []
        for order in ("abc", "cba", "a(bc)"):
            a, b, c = self.parts(kind, outliers, [15, 40], kept)
            if order == "a(bc)":
                values.append(self.value(joined([a, joined([b, c])])))
            else:
                values.append(self.value(joined([a, b, c] if order == "abc" else [c, b, a])))
        assert values[1] == pytest.approx(values[0], rel=1e-9)
        assert values[2] == pytest.approx(values[0], rel=1e-9)

    def test_with_an_empty_meter(self, kind: str, outliers: str, kept: bool) -> None:
        (whole,) = self.parts(kind, outliers, [], kept)
        empty = MIRMeter(groups=4, outliers=outliers, numbers=whole.numbers, known=whole.known)
        empty.merge(whole)
        whole.merge(MIRMeter(groups=4, outliers=outliers, numbers=whole.numbers, known=whole.known))
        assert self.value(empty) == pytest.approx(self.value(whole), rel=1e-12)


def joined(meters: list[MIRMeter]) -> MIRMeter:
    first, *others = meters
    for other in others:
        first.merge(other)
    return first


def test_one_meter_kept_its_rows_and_the_other_did_not() -> None:
    docs = list(enumerate(stream("plain", 0)))
    whole = metered(docs, memory=0.0)
    for order in (1, -1):
        parts = [metered(docs[:90]), metered(docs[90:], memory=0.0)][::order]
        first = joined(parts)
        assert first.needs_second_pass()
        assert refill(first.second_pass(), docs).compute().mir == pytest.approx(
            refill(whole.second_pass(), docs).compute().mir, abs=1e-12
        )


def test_memory_of_a_meter_that_keeps_no_rows_does_not_grow_but_for_the_norms() -> None:
    def held(count: int) -> tuple[int, int]:
        """Bytes of norms, and of everything else."""
        meter = metered(enumerate(stream("plain", 0, count)), memory=0.0)
        tokens = [of for pair in meter.tokens.layers.values() for of in pair]
        return sum(n.nbytes for of in tokens for n in of.norms), sum(of.nbytes for of in tokens)

    assert held(400) == (8 * 400 * (31 + 22), held(100)[1])
    assert held(100)[1] == 2 * 1024 * SIZE * 8


class TestOwnTensors:
    """What a caller does with tensors after `update` changes nothing, and holds no memory."""

    def rows(self, seed: int) -> torch.Tensor:
        return torch.randn(40, DIMENSIONS, generator=torch.Generator().manual_seed(seed))

    @pytest.mark.parametrize("memory", [None, 0.0])
    def test_a_buffer_that_is_used_again(self, memory: float | None) -> None:
        def run(meter: MIRMeter, *, again: bool) -> MIRMeter:
            buffers = [torch.empty(40, DIMENSIONS) for _ in range(2)]
            for n in range(8):
                fresh = [self.rows(2 * n), self.rows(2 * n + 1) + 1]
                if again:
                    vision, text = (b.copy_(rows) for b, rows in zip(buffers, fresh, strict=True))
                else:
                    vision, text = fresh
                meter.update(n, [vision], [text])
            return meter

        values = []
        for reused in (False, True):
            meter = run(MIRMeter(memory=memory), again=reused)
            if memory is not None:
                meter = run(meter.second_pass(), again=reused)
            values.append(meter.compute().mir)
        assert values[0] == values[1]

    def test_a_view_does_not_hold_its_base(self) -> None:
        base = torch.randn(10_000, DIMENSIONS)
        held = weakref.ref(base.untyped_storage())
        meter = MIRMeter()
        meter.update(0, [base[:5]], [base[5:9]])
        assert [rows.tolist() for rows in meter.tokens.layer(1)[0].rows] == [base[:5].tolist()]
        del base
        gc.collect()
        assert held() is None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_no_graph_is_kept(self, dtype: torch.dtype) -> None:
        leaf = torch.randn(30, DIMENSIONS, dtype=dtype, requires_grad=True)
        for memory in (None, 0.0):
            meter = MIRMeter(memory=memory)
            meter.update(0, [leaf * 2], [leaf + 1])
            for tokens in meter.tokens.layer(1):
                held = [*tokens.norms, *(tokens.rows or []), tokens.sample(meter.tokens.choices[0])]
                assert not any(tensor.requires_grad for tensor in held)


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
        with pytest.raises(MIRError, match="'d1': 2 layers of 8 .* those before have 3 of 8: one meter"):
            meter.update(other, vision[:2], text[:2])

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("fault", ["tokens", "nan", "dimensions"])
    def test_a_document_that_is_refused_leaves_nothing_behind(self, fault: str, which: int) -> None:
        docs = documents(5)
        wanted = metered(enumerate(docs), groups=2).compute()
        meter = metered(enumerate(docs[:4]), groups=2)
        broken = [list(docs[4][1]), list(docs[4][2])]
        broken[which][2] = {
            "tokens": broken[which][2][:-1],
            "nan": broken[which][2] * math.nan,
            "dimensions": broken[which][2][:, :4],
        }[fault]
        with pytest.raises(MIRError, match="document 'd4'"):
            meter.update("d4", *broken, group=4)
        assert len(meter) == 4
        assert "d4" not in meter
        meter.update(*docs[4], group=4)
        assert meter.compute() == wanted

    def test_layers_with_different_numbers_of_tokens(self) -> None:
        ((document_id, vision, text),) = documents(1)
        text[1] = text[1][:-1]
        with pytest.raises(
            MIRError, match="'d0': layer 2 has 3 text tokens, layer 1 has 4: every layer"
        ):
            MIRMeter().update(document_id, vision, text)

    def test_settings_differ(self) -> None:
        with pytest.raises(MIRError, match="different settings cannot be merged"):
            MIRMeter(outliers="drop").merge(MIRMeter())

    def test_second_passes_after_different_first_passes(self) -> None:
        docs = list(enumerate(stream("plain", 0)))
        one, other = (
            refill(metered(part, memory=0.0).second_pass(), part) for part in (docs[:9], docs[9:])
        )
        with pytest.raises(MIRError, match="different first passes cannot be merged"):
            one.merge(other)

    def test_one_group(self) -> None:
        with pytest.raises(MIRError, match="at least 2, got 1"):
            MIRMeter(groups=1)


class TestGroups:
    def test_without_positions_the_documents_are_counted(self) -> None:
        docs = documents(9)
        by_number = MIRMeter(groups=3)
        for doc in docs:
            by_number.update(*doc)
        assert by_number.compute() == metered(enumerate(docs), groups=3).compute()

    def test_group_numbers_beyond_sixteen_bits(self) -> None:
        meter = MIRMeter(groups=40_000)
        for n in range(4):
            meter.update(n, [torch.randn(3, 4)], [torch.randn(3, 4)], group=39_996 + n)
        assert list(meter.documents.values()) == [39_996, 39_997, 39_998, 39_999]

    def test_a_group_that_leaves_one_token_gives_no_standard_error(self) -> None:
        generator = torch.Generator().manual_seed(0)
        meter = MIRMeter(groups=2)
        for n, tokens in enumerate((9, 1)):
            meter.update(
                n,
                [torch.randn(9, 4, generator=generator)],
                [torch.randn(tokens, 4, generator=generator)],
            )
        result = meter.compute()
        assert result.mir_stderr is None
        assert math.isfinite(result.mir)


@pytest.mark.parametrize("outliers", ["replace", "drop"])
@pytest.mark.parametrize("constant", ["vision", "text", "both"])
def test_constant_tokens_have_a_distance(constant: str, outliers: str) -> None:
    generator = torch.Generator().manual_seed(0)
    vision, text = (torch.randn(60, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    if constant != "text":
        vision[:] = 2.0
    if constant != "vision":
        text[:] = 1.0
    meter = MIRMeter(groups=2, outliers=outliers)
    for n, (v, t) in enumerate(zip(vision.split(10), text.split(10), strict=True)):
        meter.update(n, [v], [t])
    scale = 1 / text.norm(dim=1).mean()
    spread = sum(rows.var(0).sum() for rows in (vision, text))
    wanted = ((vision.mean(0) - text.mean(0)).square().sum() + spread) * scale**2
    for result in (meter.compute(), modality_integration_rate([vision], [text], outliers=outliers)):
        (layer,) = result.layers
        assert layer.frechet == pytest.approx(float(wanted), rel=1e-12)
        assert math.isfinite(layer.frechet_error)
        json.dumps(result.to_dict(), allow_nan=False)


def test_constant_tokens_that_are_equal_have_no_mir() -> None:
    same = torch.ones(20, 4)
    with pytest.raises(MIRError, match="zero to rounding"):
        modality_integration_rate([same], [same])
    meter = MIRMeter()
    meter.update(0, [same], [same])
    with pytest.raises(MIRError, match="zero to rounding"):
        meter.compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_counted_in_whatever_precision_they_come(dtype: torch.dtype) -> None:
    rows = torch.randn(700, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    for first in (torch.float16, torch.float32):
        thresholds = medians.around(rows[:300].to(first))
        counts = medians.count_at_most(rows.to(dtype), thresholds)
        assert counts.equal((rows.to(dtype).double() <= thresholds.double().unsqueeze(1)).sum(1))


def test_documents_of_different_precision() -> None:
    docs = documents(12)
    mixed = [
        (i, *([rows.to(torch.bfloat16 if n % 2 else torch.float32) for rows in m] for m in modalities))
        for n, (i, *modalities) in enumerate(docs)
    ]
    exact = [(i, *([rows.float() for rows in m] for m in modalities)) for i, *modalities in mixed]
    wanted = metered(enumerate(exact)).compute()
    assert metered(enumerate(mixed)).compute().mir == pytest.approx(wanted.mir, abs=1e-12)
    second = refill(metered(enumerate(mixed), memory=0.0).second_pass(), enumerate(mixed))
    assert second.compute().mir == pytest.approx(wanted.mir, abs=1e-2)


@pytest.mark.parametrize("kind", ["plain", "far_mean"])
def test_products_in_float32_are_off_by_the_error_that_is_given(kind: str, monkeypatch) -> None:
    docs = list(enumerate(stream(kind, 0, 200, torch.bfloat16)))
    exact = metered(docs, groups=5).compute()
    for module in (sums, finish):
        monkeypatch.setattr(module, "root_dtype", lambda device: torch.float32)
    single = metered(docs, groups=5).compute()
    assert single != exact
    (layer,), (wanted,) = single.layers, exact.layers
    assert abs(layer.frechet - wanted.frechet) <= layer.frechet_error
    assert layer.frechet_error < 1e-2 * layer.frechet
    assert single.mir_stderr == pytest.approx(exact.mir_stderr, rel=1e-2)


def test_rows_of_a_layer_are_freed_once_its_turn_is_over(monkeypatch) -> None:
    meter = metered(enumerate(documents(20)))
    held = {number: weakref.ref(meter.tokens.layer(number)[0]) for number in (1, 2, 3)}
    known = learn(meter.tokens.layers, [0] * 20, meter.tokens.choices, meter.options)
    layers = {number: meter.layer(number) for number in known}
    meter.clear()
    alive, measured = [], finish._measured
    monkeypatch.setattr(
        finish,
        "_measured",
        lambda *given: (
            alive.append([n for n, of in held.items() if of() is not None]) or measured(*given)
        ),
    )
    finish.distances(layers, known, [0] * 20, [], meter.options)
    assert alive == [[2, 3], [3], []]
