"""The study: its world, its parts, the tasks made of it, and the tables of its results."""

import itertools
import json
import re

import datasets
import numpy as np
import pytest
import torch

from studies.alignment import arms, connectors, data, gate, language, models, report, run, train, world
from studies.alignment.train import Arm

PART = re.compile(r"a (\w+) (\w+) (\w+) at (\w+)")


def some(number, *, held_out=True, seed=0):
    return list(itertools.islice(world.scenes(seed, held_out=held_out), number))


class TestWorld:
    def test_answers_are_in_the_caption(self) -> None:
        random = np.random.default_rng(0)
        for scene in some(200):
            things = [match.groups() for match in PART.finditer(world.caption(scene))]
            assert len(things) == len(scene)
            for kind, text, answer in world.questions(scene, random):
                asked = text.split()[-1]
                told = {
                    "colour": lambda a=asked, t=things: [c for _, c, s, _ in t if s == a],
                    "shape": lambda a=asked, t=things: [s for _, c, s, _ in t if c == a],
                    "size": lambda a=asked, t=things: [z for z, _, s, _ in t if s == a],
                    "where": lambda a=asked, t=things: [p for _, _, s, p in t if s == a],
                    "at": lambda a=asked, t=things: [s for _, _, s, p in t if p == a] or ["nothing"],
                    "count": lambda t=things: [world.COUNTS[len(t) - 2]],
                    "exists": lambda a=asked, t=things: ["yes" if a in [s for *_, s, _ in t] else "no"],
                }[kind]()
                assert told == [answer], (scene, text)

    def test_training_shows_no_held_out_scene(self) -> None:
        held_out = set(train.scenes(train.EVALUATION, train.EVALUATED, held_out=True))
        assert held_out.isdisjoint(train.scenes((0, 1), 5000))
        assert all(map(world.is_held_out, held_out))

    def test_an_image_shows_its_things_where_they_are(self) -> None:
        (scene,) = some(1)
        image = world.render(scene, 0).astype(float)
        for cell in range(9):
            row, column = divmod(cell, 3)
            centre = image[row * 16 + 4 : row * 16 + 12, column * 16 + 4 : column * 16 + 12]
            coloured = np.ptp(centre.reshape(-1, 3).mean(0)) > 30 or centre.std() > 40
            assert coloured <= (cell in [thing.cell for thing in scene])


class TestLanguage:
    def test_the_processor_sends_what_training_sent(self) -> None:
        (scene,) = some(1)
        text, image = world.caption(scene), world.render(scene, 0)
        conversation = [
            {"role": "user", "content": [{"type": "image", "image": image}]},
            {"role": "assistant", "content": [{"type": "text", "text": text}]},
        ]
        inputs = models.make_processor().apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids, labels = language.conversation([(train.PLACEHOLDERS, text)])
        assert inputs["input_ids"].tolist() == [ids]
        assert [label for label in labels if label != language.IGNORED] == [
            *language.encode(text),
            language.EOS,
        ]
        pixels = models.pixels(torch.from_numpy(image)[None])
        torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_gate() -> None:
    found = gate.check()
    assert found["decoder"] >= gate.DECODER_GATE
    assert found["encoder"] >= gate.ENCODER_GATE


@pytest.mark.parametrize("kind", ["linear", "mlp", "mlp4", "resampler"])
def test_connectors(kind) -> None:
    model = models.make_llava(*gate.load(), seed=0, connector=kind, matched_norm=True).model
    connector = model.multi_modal_projector
    rows = connector(torch.randn(2, models.TOKENS, models.ENCODER.hidden_size))
    words = model.language_model.embed_tokens.weight[len(language.SPECIAL_TOKENS) :]
    assert rows.shape == (2, models.TOKENS, models.DECODER.hidden_size)
    torch.testing.assert_close(rows.norm(dim=-1), words.norm(dim=1).mean().expand(2, models.TOKENS))
    small = connectors.make(kind, 64, 128, models.TOKENS, std=0.05, scale=0.1)[-1]
    assert not isinstance(small, connectors.FixedNorm)


@pytest.mark.parametrize("unlocked", ["connector", "encoder", "half", "decoder"])
def test_what_is_unlocked_alone_is_trained(unlocked) -> None:
    model = Arm(seed=0).model()
    train.unlock(model, unlocked)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examples = train.captioned(train.scenes((0, 1), 32), (0, 1), "full")
    losses = train.train(model.train(), examples, seed=0, learning_rate=1e-3, warmup=0.0)
    assert len(losses) == 2
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    parts = {name.split(".")[1] if name.startswith("model.") else "lm_head" for name in moved}
    assert (
        parts
        == {
            "connector": {"multi_modal_projector"},
            "encoder": {"multi_modal_projector", "vision_tower"},
            "half": {"multi_modal_projector", "language_model"},
            "decoder": {"multi_modal_projector", "language_model", "lm_head"},
        }[unlocked]
    )
    if unlocked == "half":
        assert not any(".layers.2." in name for name in moved)


def test_names_of_arms_are_their_settings() -> None:
    chosen = arms.arms()
    assert len({arm.name for arm in chosen}) == len(chosen) == len(set(chosen))
    assert Arm(seed=1, pairs=8, detail="shapes", moca=True).name == "pairs8-detail_shapes-moca-seed1"


class TestTasks:
    def test_questions_are_those_of_the_study(self) -> None:
        random = np.random.default_rng([*train.EVALUATION, 1])
        drawn = train.scenes(train.EVALUATION, train.EVALUATED, held_out=True)
        asked = [
            {"scene": number, "kind": q.kind, "question": q.text, "answer": q.answer}
            for number, scene in enumerate(drawn)
            for q in world.questions(scene, random)
        ]
        assert [json.loads(line) for line in data.QUESTIONS.read_text("utf-8").splitlines()] == asked

    def test_images_are_those_of_the_study(self) -> None:
        table = datasets.load_dataset("parquet", data_files=str(data.SCENES / "scenes.parquet"))["train"]
        for row, (image, caption) in zip(table, train.held_out_pairs(), strict=True):
            assert np.array_equal(row["image"], image)
            assert row["full"] == caption


class TestReport:
    @pytest.mark.slow
    def test_tables_are_what_the_records_give(self) -> None:
        stored = (report.STUDY / "tables.md").read_text("utf-8")
        assert stored == report.tables(report.read(report.RUNS), report.read(report.INPUTS))

    def test_every_arm_has_run(self) -> None:
        assert set(report.read(report.RUNS)) == {arm.name for arm in arms.arms()}

    def test_what_is_not_there_is_named(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(report, "STUDY", tmp_path)
        monkeypatch.setattr(report, "INPUTS", tmp_path / "inputs")
        with pytest.raises(SystemExit, match=r"21 arms are not stored, pairs.* studies\S+inputs`"):
            report.main()
        monkeypatch.setattr(report, "RUNS", tmp_path / "runs")
        with pytest.raises(SystemExit, match=r"93 arms are not stored, pairs.* studies.alignment.run`"):
            report.main()
        assert not list(tmp_path.iterdir())

    def test_partial_correlation_of_ranks(self) -> None:
        random = np.random.default_rng(0)
        z = random.normal(size=4000)
        x, y = z + random.normal(size=4000), z + random.normal(size=4000)
        assert report.spearman(x, y) > 0.4
        assert abs(report.spearman(x, y, z)) < 0.06

    def test_interval_holds_the_coefficient(self) -> None:
        random = np.random.default_rng(0)
        x = random.normal(size=60)
        y = x + random.normal(size=60)
        low, high = report.interval([str(row // 3) for row in range(60)], x, y)
        assert low < report.spearman(x, y) < high

    def test_exact_permutations_of_settings(self) -> None:
        settings = [name for name in "abcd" for _ in range(2)]
        x = np.repeat(np.arange(4.0), 2)
        assert report.permutation_p(settings, x, x) == pytest.approx(2 / 24)
        assert report.permutation_p(settings, x, -x) == pytest.approx(2 / 24)
        assert report.permutation_p(settings, x, np.arange(8.0) % 2) == 1

    def test_holm(self) -> None:
        # Holm (1979): times 4, 3, 2, 1 in rising order, never below the one before, 1 at most.
        assert report.holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
        assert report.holm([0.6, 0.7]) == [1, 1]

    def test_pairs_that_two_order_differently(self) -> None:
        right, exact, fast = [1, 2, 3, 3], [3, 2, 1, 0], [3, 1, 2, 0]
        agree = report.agreement(right, exact, fast)
        assert [each.tolist() for each in agree] == [[True] * 5, [True, True, True, False, True]]
        assert report.exact_is_right(right, exact, fast) == 1
        assert np.isnan(report.exact_is_right(right, exact, exact))


@pytest.mark.slow
def test_an_arm_from_its_seed_once_more(tmp_path) -> None:
    arm = Arm(seed=0, pairs=1000)
    run.run_one(arm, tmp_path, tmp_path)
    stored, again = (
        json.loads((folder / f"{arm.name}.json").read_text()) for folder in (run.RUNS, tmp_path)
    )
    assert round(again["mir"]["mir"], 3) == round(stored["mir"]["mir"], 3)
    for budget, score in stored["accuracy"].items():
        assert again["accuracy"][budget]["all"] == pytest.approx(score["all"], abs=0.01)


class TestPictures:
    @pytest.fixture(scope="class")
    def records(self):
        return report.read(run.RUNS)

    def test_untrained_models_stand_at_zero(self, records) -> None:
        figure = report.plot_scale(records)
        for axis in figure.axes:
            (mean,) = [
                line for line in axis.lines if len(line.get_xdata()) == 7 and line.get_linestyle() == "-"
            ]
            assert list(mean.get_xdata()) == [0, 1000, 2000, 4000, 8000, 16000, 32000]
            assert "log scale" in axis.get_xlabel()
            places = axis.transData.transform([(x, 0) for x in mean.get_xdata()])[:, 0]
            assert (np.diff(places) > 20).all()

    def test_bars_are_the_spread_of_the_seeds(self, records) -> None:
        figure = report.plot_scale(records)
        values = [records[f"pairs4000-seed{seed}"]["mir"]["mir"] for seed in range(3)]
        (bars,) = figure.axes[0].containers
        segment = bars.lines[2][0].get_segments()[3]
        middle, spread = np.mean(values), np.std(values, ddof=1)
        assert segment[:, 1] == pytest.approx([middle - spread, middle + spread])

    def test_amounts_of_data_go_from_dark_to_light(self, records) -> None:
        figure = report.plot_layers(records)
        shades = [sum(bars.lines[0].get_color()[:3]) for bars in figure.axes[0].containers]
        assert len(shades) == 7
        assert shades == sorted(shades)
        labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert labels[:2] == ["0", "1,000"]

    def test_the_scatter_has_a_point_a_setting(self, records) -> None:
        figure = report.plot_scatter(records)
        counts = [len(bars.lines[0].get_xdata()) for bars in figure.axes[0].containers]
        wanted = [
            len({arm.name.rpartition("-seed")[0] for arm in of}) for _, of in arms.QUESTIONS.values()
        ]
        assert counts == wanted


def test_the_board_is_made_of_what_is_stored(tmp_path, monkeypatch) -> None:
    from studies.alignment import board

    stored, gains = board.RESULTS, json.loads(board.GAINS.read_text("utf-8"))
    monkeypatch.setattr(board, "RESULTS", tmp_path)
    board.write_board(gains)
    for name in ("board.md", "board.csv", "board.html"):
        assert (tmp_path / name).read_text("utf-8") == (stored / name).read_text("utf-8"), name
    for name, gain in gains.items():
        record = json.loads((board.RUNS / f"{name}.json").read_text("utf-8"))
        assert gain["mir"] == pytest.approx(record["mir"]["mir"], abs=2e-5)
        assert gain["caption_loss"] == pytest.approx(record["mir"]["caption_loss"], abs=1e-4)
