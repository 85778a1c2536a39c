import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import scipy.stats
import torch

from studies.alignment import language, world
from studies.decoders import arm, family, gate, reading, recipes, report, run, small


@pytest.mark.parametrize("decoder", recipes.DECODERS)
def test_most_arms_see_the_same_number_of_pictures(decoder):
    arms = recipes.recipes(decoder)
    n = recipes.SEEN[decoder]
    assert [arm.seed for arm in arms] == list(range(recipes.SEEDS[decoder], recipes.SEEDS[decoder] + 20))
    assert [arm.seen / n for arm in arms[:6]] == [0, 1 / 4, 1 / 2, 1, 2, 4]
    assert {arm.seen for arm in arms[6:]} == {n}
    bad = [arm for arm in arms[6:] if arm.shuffled or arm.style != "full"]
    assert len(bad) == 10
    assert not [arm for arm in bad if arm.shuffled and arm.style != "full"]


def test_a_recipe_is_drawn_from_its_seed_alone():
    assert recipes.recipe("wide", 7) == recipes.recipe("wide", 7)
    others = [dataclasses.replace(arm, seed=0) for arm in recipes.recipes("wide")]
    assert len(set(others)) > 15


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_shuffled_captions_move_to_other_pictures(share):
    texts = [str(number) for number in range(40)]
    mixed = family.shuffle(texts, share, np.random.default_rng(0))
    assert sorted(mixed) == sorted(texts)
    assert sum(a != b for a, b in zip(mixed, texts, strict=True)) == 40 * share


@pytest.mark.parametrize("name", small.NAMES)
def test_tokenizers_know_every_word_and_keep_the_special_tokens(name):
    encode = small.Encode(name)
    for word in language.WORDS:
        assert language.UNKNOWN not in encode(word) or word == "<unk>", word
    assert encode("<s> <image> </s>") == [language.BOS, language.IMAGE, language.EOS]
    scene = next(world.scenes(3, held_out=True))
    text = world.caption(scene)
    assert small.tokenizer(name).convert_tokens_to_ids(small.tokenizer(name).tokenize(text)) == encode(
        text
    )


def test_the_tokenizer_that_is_kept_is_the_one_that_is_made():
    for name in small.NAMES:
        made = json.loads(small.make_tokenizer(name).to_str())
        kept = json.loads((small.WEIGHTS / f"{name}.json").read_text("utf-8"))
        assert set(made["model"]["vocab"]) == set(kept["model"]["vocab"])  # ids of equal counts differ


def test_kinds_that_are_not_answered_are_asked_more():
    answered = dict.fromkeys(world.KINDS, 1.0) | {"at": 0.3}
    asked = reading.weights(answered)
    assert asked["at"] == reading.UNANSWERED * asked["where"]
    assert math.isclose(sum(asked.values()), 1)


def test_a_table_tells_of_every_thing_what_its_columns_name():
    scene = next(world.scenes(3, held_out=False))
    words = [thing.words().split() for thing in scene]
    named, told = reading.table(scene, np.random.default_rng(0))
    lines = [line.replace("at ", "at_").split() for line in told.removesuffix(" .").split(" , ")]
    assert len({frozenset(zip(named.split(), line, strict=True)) for line in lines}) == len(scene)
    wanted = [
        {"size": size, "colour": colour, "shape": shape, "at": f"at_{place}"}
        for _, size, colour, shape, _, place in words
    ]
    for line in lines:
        assert dict(zip(named.split(), line, strict=True)) in wanted


def test_a_line_that_was_cut_off_is_run_again_and_spoils_no_other(tmp_path):
    path = tmp_path / "wide.jsonl"
    records = [{"recipe": recipes.as_dict(each)} for each in recipes.recipes("wide")[:3]]
    run.append(path, records[0])
    with path.open("a") as file:
        file.write(json.dumps(records[1])[:40])
    run.append(path, records[2])
    assert set(run.read(path)) == {"wide-220", "wide-222"}
    assert run.read(tmp_path / "none.jsonl") == {}


def test_no_arm_is_begun_that_would_not_end_within_the_slice(tmp_path):
    arms = recipes.recipes("wide")
    assert run.run(arms, tmp_path, tmp_path, minutes=run.SLOWEST / 60 - 1) == 0
    assert not list(tmp_path.iterdir())


def test_the_rise_over_the_gate_is_over_pictures():
    before = [[0] * 14, [0] * 14]
    after = [[1] * 7 + [0] * 7, [1] * 7 + [0] * 7]
    points, error = gate.rise(before, after, 7)
    assert points == 0.5
    assert math.isclose(error, math.sqrt(0.5) / math.sqrt(2))


def test_retrieval_is_corrected_by_the_prior_of_a_token(monkeypatch):
    random = np.random.default_rng(0)
    prior, lengths = random.uniform(1, 3, 30), random.integers(2, 9, 30)
    image = 99
    examples = family.Examples(
        torch.arange(30.0)[:, None], [([image, n], [language.IGNORED, n]) for n in range(30)]
    )

    def losses(reader, given, batch=100):
        found = []
        for own, (ids, _) in zip(given.features[:, 0].tolist(), given.conversations, strict=True):
            helps = 0.1 if image in ids and own == ids[-1] else 0.0
            found.append([prior[ids[-1]] - helps] * int(lengths[ids[-1]]))
        return found, []

    class Stub:
        def held_out(self, style):
            return [], examples

    Stub.image = image

    def crossed(reader, given, drawn):
        return prior[drawn] - 0.1 * (drawn == np.arange(30))

    monkeypatch.setattr(arm, "per_document", losses)
    monkeypatch.setattr(arm, "crossed_losses", crossed)
    figures, _ = arm.caption_figures(None, Stub(), "full")
    assert figures["retrieval_corrected"] == 1
    assert figures["retrieval"] < 0.5
    assert math.isclose(figures["caption_gain"], 0.1)


def test_captions_after_other_images_lose_as_much_as_in_whole_conversations():
    scenes = family.Scenes("wide")
    reader = family.Reader(scenes.model(recipes.Recipe("wide", 0, 0)), scenes.image)
    features, conversations = scenes.held_out("full")[1]
    examples = family.Examples(features[:7], conversations[:7])
    drawn = np.stack([np.arange(7), (np.arange(7) + 3) % 7])
    found = arm.crossed_losses(reader, examples, drawn, batch=4)
    for documents, losses in zip(drawn, found, strict=True):
        crossed = family.Examples(features[:7], [conversations[each] for each in documents])
        whole = [np.mean(each) for each in family.per_document(reader, crossed)[0]]
        assert np.allclose(losses, whole, atol=1e-5)
    assert np.abs(found[0] - found[1]).min() > 1e-3
    ids, labels = conversations[1]
    other = family.Examples(features[:2], [conversations[0], (ids[1:], labels[1:])])
    with pytest.raises(ValueError, match="different prompts"):
        arm.crossed_losses(reader, other, drawn[:, :2])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed, which compiles a decoder")
def test_a_compiled_decoder_trains_in_bfloat16_as_another_does_in_float32():
    scenes, recipe = family.Scenes("wide"), recipes.Recipe("wide", 0, 120)
    reader, losses = arm.pretrain(recipe, scenes, "cpu", bfloat16=True)
    exact = arm.pretrain(recipe, scenes, "cpu")[1]
    assert len(losses) == 8
    assert np.allclose(losses, exact, rtol=0.02)
    assert losses[-1] < losses[0]
    assert "forward" not in vars(reader.llava.model.language_model)


def test_bfloat16_sees_weights_that_a_step_has_changed():
    layer, row = torch.nn.Linear(8, 1), torch.randn(4, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with arm.products("cpu", bfloat16=True):
        before = layer(row)
        before.float().sum().backward()
        optimizer.step()
        after = layer(row)
    assert before.dtype == torch.bfloat16
    assert not torch.equal(before, after)


def sample(seed, decoders=("deep", "wide")):
    """Arms with random figures."""
    random = np.random.default_rng(seed)
    return report.Sample(
        {"recipe": {"decoder": name}, "x": random.normal(), "y": random.normal(), "z": random.normal()}
        for name in decoders
        for _ in range(20)
    )


def test_correlations_are_those_of_scipy_within_decoders():
    arms = sample(0)
    x, y, z = (lambda r, key=key: r[key] for key in "xyz")
    halves = [arms.records[:20], arms.records[20:]]
    one = [scipy.stats.spearmanr(*([f(r) for r in half] for f in (x, y))).statistic for half in halves]
    value, drawn = arms.spearman(x, y)
    assert math.isclose(value, np.mean(one))
    assert len(drawn) == report.RESAMPLES
    assert abs(drawn.mean() - value) < 0.05
    partial = []
    for half in halves:
        ranks = [scipy.stats.rankdata([f(r) for r in half]) for f in (x, y, z)]
        rest = [
            np.subtract(ranks[i], np.polyval(np.polyfit(ranks[2], ranks[i], 1), ranks[2]))
            for i in (0, 1)
        ]
        partial.append(scipy.stats.pearsonr(*rest).statistic)
    assert math.isclose(arms.spearman(x, y, z)[0], np.mean(partial))


def test_p_values_are_uniform_where_nothing_is_told():
    values = [sample(seed).p(lambda r: r["x"], lambda r: r["y"]) for seed in range(60)]
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.01
    assert sample(0).p(lambda r: r["x"], lambda r: r["x"]) < 1e-3


def test_the_tables_are_those_of_the_stored_arms():
    arms = report.arms_of(report.RESULTS)
    assert {name: len(records) for name, records in arms.items()} == {"deep": 20, "wide": 20}
    assert report.tables(arms) == (report.RESULTS / "tables.md").read_text("utf-8")


def test_the_coefficients_that_are_told_stand_in_the_tables():
    told = " ".join((report.RESULTS / "README.md").read_text("utf-8").split())
    coefficients = set(re.findall(r"[+-]\d\.\d\d \[[^]]*\]", told))
    assert len(coefficients) > 30
    tables = (report.RESULTS / "tables.md").read_text("utf-8")
    assert not [each for each in coefficients if each not in tables]


@pytest.mark.parametrize("decoder", ["deep", "wide"])
def test_arms_that_ran_again_from_their_seeds_found_the_same(decoder):
    first = run.read(report.RESULTS / f"{decoder}.jsonl")
    again = run.read(report.RESULTS / "again" / f"{decoder}.jsonl")
    assert len(again) == 3
    for name, record in again.items():
        for part in ("mir", "captions", "outcome", "training_loss"):
            differences = list(apart(first[name][part], record[part]))
            assert max(differences, default=0) < 5e-4, (name, part)


def apart(one, other):
    """Differences of all numbers of two records of the same form."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), [other[key] for key in one]
    if isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            yield from apart(*pair)
    elif isinstance(one, float):
        yield abs(one - other)
    else:
        assert one == other
