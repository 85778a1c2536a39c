import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mir_task import MIRError, MIRMeter, modality_integration_rate
from mir_task.commands.cli import main
from mir_task.files import write_json
from mir_task.reports import figures, plot
from mir_task.reports.report import write_report
from mir_task.statistics.finish import distances, learn
from tests.support import evaluate, runs


def report(folder: Path, name: str, task: str = "mir_x", layers: int = 3, modality: str = "image"):
    """Write a side file of made-up tokens and return its path."""
    generator = torch.Generator().manual_seed(len(name))
    pairs = [(torch.randn(40, 6, generator=generator) * 2, torch.randn(30, 6, generator=generator))]
    result = modality_integration_rate(*zip(*pairs * layers, strict=True))
    extras = {"cka": 0.3, "mmd2": 0.2, "vision_effective_rank": 4.0, "text_effective_rank": 3.0}
    extras |= {"neighbour_overlap": 0.2, "token_cosine": 0.1, "best_token_cosine": 0.4}
    extras |= {"sliced_wasserstein": 0.1}
    layers = [{**layer, **extras} for layer in result.to_dict()["layers"]]
    run = {"date": name, "task": task, "settings": {"mir_modality": modality}, "layers": layers}
    return runs.side_file(folder, f"lab/{name}", result, **run)


def drawn(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["plot", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def refused(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["plot", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """Whatever a figure says, seen when it is saved."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    seen: list[str] = []
    save = Figure.savefig

    def watched(figure, *arguments, **settings):
        save(figure, *arguments, **settings)
        seen.extend(text.get_text() for text in figure.findobj(Text) if text.get_visible())

    monkeypatch.setattr(Figure, "savefig", watched)
    return seen


def test_a_folder_stands_for_its_side_files(tmp_path, texts) -> None:
    for name in ("one", "other"):
        report(tmp_path / "runs" / name, name)
    single = report(tmp_path, "third")
    drawn(tmp_path / "runs", single, "--to", tmp_path / "p.png", "--labels", "a,b,c")
    assert {"a", "b", "c"} <= {text.partition(":")[0] for text in texts}
    (tmp_path / "empty").mkdir()
    code, message = refused(tmp_path / "empty", "--to", tmp_path / "p.png")
    assert code == 1
    assert f"no side file, <date>_mir_<task>.json, is in {tmp_path / 'empty'} or below" in message


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_several_models_over_each_other(tmp_path, ending: str, texts) -> None:
    files = [report(tmp_path, "one"), report(tmp_path, "other", layers=5)]
    picture = tmp_path / "new" / f"picture.{ending}"
    assert drawn(*files, "--to", picture) == str(picture)
    if ending == "png":
        assert min(Image.open(picture).size) > 500
    elif ending == "pdf":
        assert picture.read_bytes().startswith(b"%PDF-")
        assert b"/Type3" not in picture.read_bytes()
    else:
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    assert list(picture.parent.iterdir()) == [picture]
    values = [json.loads(path.read_text())["mir"] for path in files]
    for name, value in zip(("one", "other"), values, strict=True):
        assert f"lab/{name}: MIR {value:.3f}" in texts
    assert {"mir_x", "share of the sum of distances", "mean term", "covariance term"} <= set(texts)


def test_curves_are_those_of_the_side_file(tmp_path, monkeypatch) -> None:
    from matplotlib.axes import Axes

    curves = []
    draw = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *a, **k: curves.append((a, k)) or draw(*a, **k))
    files = [report(tmp_path, "one"), report(tmp_path, "other", layers=5)]
    drawn(*files, "--to", tmp_path / "p.png", "--diagnostic", "participation_ratio")
    names = ["frechet", "mean_term", "covariance_term", "vision_norm", "text_norm"]
    names += ["vision_participation_ratio", "text_participation_ratio"]
    found = [list(arguments[2]) for arguments, _ in curves]
    for path in files:
        layers = json.loads(path.read_text())["layers"]
        for name in names:
            assert [layer[name] for layer in layers] in found
    assert len(curves) == 2 * len(names)
    # Each model has one colour and one marker, which no other model has.
    styles = {(k["color"], k["marker"]) for _, k in curves}
    assert len(styles) == len({colour for colour, _ in styles}) == 2
    assert len({marker for _, marker in styles}) == 2


def test_the_decoder_s_input_is_layer_0_of_a_diagnostic(tmp_path, monkeypatch) -> None:
    from matplotlib.axes import Axes

    curves = []
    draw = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *a, **k: curves.append(a[1]) or draw(*a, **k))
    path = report(tmp_path, "one")
    content = json.loads(path.read_text())
    content["input_layer"] = content["layers"][0] | {"layer": 0}
    write_json(path, content)
    for diagnostic, numbers in (("bures_angle", [0, 1, 2, 3]), ("share", [1, 2, 3])):
        curves.clear()
        drawn(path, "--to", tmp_path / "p.png", "--diagnostic", diagnostic)
        assert [1, 2, 3] == curves[0] == curves[-2]
        assert curves[-1] == numbers


@pytest.mark.parametrize("diagnostic", plot.DIAGNOSTICS)
def test_each_diagnostic_of_one_model(tmp_path, diagnostic: str, texts) -> None:
    drawn(
        report(tmp_path, "one", modality="audio"), "--to", tmp_path / "p.png", "--diagnostic", diagnostic
    )
    panel = plot.DIAGNOSTICS[diagnostic]
    scale = "\nlog scale" if panel.log else ""
    assert panel.label.format(tokens="audio") + scale in texts
    assert "audio tokens" in texts
    assert texts.count("F_k") + texts.count("$F_k$") == 1


@pytest.mark.parametrize(
    ("others", "labels"),
    [
        ([("b", "mir_x")], ["lab/a", "lab/b"]),
        ([("a", "mir_y")], ["mir_x", "mir_y"]),
        ([("a", "mir_y"), ("b", "mir_x")], ["lab/a · mir_x", "lab/a · mir_y", "lab/b · mir_x"]),
    ],
)
def test_labels_say_what_differs(tmp_path, texts, others, labels) -> None:
    files = [report(tmp_path, *name) for name in [("a", "mir_x"), *others]]
    drawn(*files, "--to", tmp_path / "p.png")
    assert [text.split(": MIR")[0] for text in texts if ": MIR" in text] == labels


def test_two_runs_of_one_model_and_task_are_told_by_their_files(tmp_path, texts) -> None:
    files = [report(tmp_path / folder, "a") for folder in ("first", "second")]
    drawn(*files, "--to", tmp_path / "p.png")
    assert [text.split(": MIR")[0] for text in texts if ": MIR" in text] == [str(f) for f in files]


def test_labels_and_a_title_of_one_s_own(tmp_path, texts) -> None:
    files = [report(tmp_path, name) for name in ("one", "other")]
    to = ("--to", tmp_path / "p.pdf")
    drawn(*files, *to, "--labels", 'ours,"theirs, later"', "--title", "Figure 1")
    assert [text.split(": MIR")[0] for text in texts if ": MIR" in text] == ["ours", "theirs, later"]
    assert "Figure 1" in texts
    assert "mir_x" not in texts
    for labels in ("ours", "ours,ours", "a,b,c"):
        code, message = refused(*files, *to, "--labels", labels)
        assert code == 1
        assert f"({', '.join(labels.split(','))}) for 2 side files" in message
    rows = plot.write_rows(tmp_path / "r.npz", {1: (np.eye(9), np.eye(9))}, "t", "vision")
    assert refused("--tokens", rows, "--labels", "a", *to)[0] == 2
    texts.clear()
    drawn("--tokens", rows, "--title", "Figure 2", *to)
    assert "Figure 2" in texts


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"documents": 9}, "9 documents"),
        ({"placement": "user_generate"}, "placement user_generate, not placement assistant_chat"),
        ({"task": "mir_other"}, "task mir_other, not task mir_demo"),
        ({"settings": {"mir_text_limit": 30}}, "first 30 words, not whole texts"),
        ({"layers": 4}, "4 layers, not 6 layers"),
    ],
)
def test_what_does_not_compare_is_said_beside_and_in_the_picture(
    tmp_path, texts, change, reason
) -> None:
    layers = change.pop("layers", 6)
    paths = [runs.side_file(tmp_path / f"a{n}", f"a{n}", runs.result(3.0)) for n in range(2)]
    alike = CliRunner().invoke(main, ["plot", *map(str, paths), "--to", str(tmp_path / "p.png")])
    assert alike.stderr == ""
    # The one that differs comes first: it is measured by what most have.
    paths.insert(0, runs.side_file(tmp_path / "b", "b", runs.result(3.0, layers=layers), **change))
    texts.clear()
    done = CliRunner().invoke(main, ["plot", *map(str, paths), "--to", str(tmp_path / "p.png")])
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'p.png'}\n"
    assert re.match(r"warning: b[^:]*: values do not compare with the others \(", done.stderr)
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert any("do not compare" in text and reason in text.replace("\n", " ") for text in texts)


def test_error_bars_are_the_jackknife_s(tmp_path, monkeypatch, texts) -> None:
    from matplotlib.axes import Axes

    bars = []
    draw = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda *a, **k: bars.append(a[1:]) or draw(*a, **k))
    measured = runs.result(3.0)
    left_out = np.array(measured.leave_one_group_out)
    paths = [runs.side_file(tmp_path / name, name, measured) for name in "ab"]
    drawn(*paths, "--to", tmp_path / "p.png")
    assert len(bars) == 4  # distance and share of both
    values = {"frechet": left_out, "share": left_out / left_out.sum(1, keepdims=True)}
    for (numbers, _, errors), of_groups in zip(bars[::2], values.values(), strict=True):
        spread = np.sqrt(4 / 5 * ((of_groups - of_groups.mean(0)) ** 2).sum(0))
        assert numbers == [1, 2, 3, 4, 5, 6]
        assert errors == pytest.approx(spread)
    labels = [text for text in texts if "bars: standard error" in text]
    assert [label.split("\n")[1] for label in labels] == [
        "log scale; bars: standard error",
        "bars: standard error",
    ]


def test_without_groups_there_are_no_bars(tmp_path, texts) -> None:
    drawn(runs.side_file(tmp_path, "a", runs.result(3.0, groups=0)), "--to", tmp_path / "p.png")
    assert not any("bars" in text for text in texts)


def test_forty_models_keep_the_layout(tmp_path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    panels, legends = [], []
    save = Figure.savefig

    def watched(figure, *arguments, **settings):
        save(figure, *arguments, **settings)
        panels.append([axes.get_window_extent() for axes in figure.axes])
        legends.append((figure.legends[0].get_window_extent(), figure.bbox))

    monkeypatch.setattr(Figure, "savefig", watched)
    paths = [
        runs.side_file(tmp_path / f"{n}", f"org/a-model-with-a-long-name-{n}", runs.result(3 + n / 100))
        for n in range(40)
    ]
    for count in (3, 40):
        drawn(*paths[:count], "--to", tmp_path / "p.png", "--ordered")
    few, many = panels
    for before, after in zip(few, many, strict=True):
        assert after.height > 0.9 * before.height
        assert after.width > 0.9 * before.width
    box, whole = legends[1]
    assert box.y0 >= 0
    assert box.y1 < min(panel.y0 for panel in many)
    assert (box.x0 >= 0, box.x1 <= whole.x1) == (True, True)


def test_models_in_an_order_go_from_dark_to_light() -> None:
    shades = [sum(colour[:3]) for colour in figures.colours(9, ordered=True)]
    assert shades == sorted(shades)
    assert len(set(figures.colours(7))) == 7


class TestRows:
    @pytest.fixture
    def rows(self, tmp_path) -> Path:
        """Two clouds of tokens far apart in the first of three layers, with one outlier."""
        generator = torch.Generator().manual_seed(0)
        rows = {}
        for number, shift in ((1, 30.0), (2, 1.0), (5, 0.0), (0, 40.0)):
            vision = torch.randn(60, 8, generator=generator) + shift
            rows[number] = (vision.numpy(), torch.randn(50, 8, generator=generator).numpy())
        rows[1][1][7] *= 100
        return plot.write_rows(tmp_path / "rows.npz", rows, "mir_x · lab/a", "vision")

    @pytest.mark.parametrize("method", plot.METHODS)
    def test_clouds_far_apart_are_apart_in_the_picture(
        self, rows, tmp_path, monkeypatch, method
    ) -> None:
        from matplotlib.axes import Axes

        clouds = []
        draw = Axes.scatter
        monkeypatch.setattr(Axes, "scatter", lambda *a, **k: clouds.append(a[1:]) or draw(*a, **k))
        picture = tmp_path / "p.svg"
        drawn("--tokens", rows, "--layers", "1", "--method", method, "--to", picture)
        assert picture.exists()
        vision, text = (np.stack(points) for points in clouds)
        assert vision.shape == (2, 60)
        assert text.shape == (2, 49)  # without its outlier
        gap = np.linalg.norm(vision.mean(1) - text.mean(1))
        assert gap > 2 * max(np.linalg.norm(cloud.std(1)) for cloud in (vision, text))

    def test_first_middle_and_last_layer_unless_told(self, rows, tmp_path, texts) -> None:
        drawn("--tokens", rows, "--to", tmp_path / "p.png")
        found = [text for text in texts if text.startswith("layer")]
        assert [text.split(" (")[0] for text in found] == ["layer 1", "layer 2", "layer 5"]
        assert found[0] == "layer 1 (outliers left out: 1)"
        assert {"mir_x · lab/a · PCA", "vision tokens", "text tokens"} <= set(texts)
        texts.clear()
        drawn("--tokens", rows, "--layers", "0,5", "--to", tmp_path / "p.png")
        assert [text[:7] for text in texts if text.startswith("layer")] == ["layer 0", "layer 5"]

    def test_bad_input(self, rows, tmp_path) -> None:
        to = ("--to", tmp_path / "p.png")
        code, message = refused("--tokens", rows, "--layers", "1,3,9", *to)
        assert code == 1
        assert "has no layer 3, 9: it holds 0, 1, 2, 5" in message
        code, message = refused("--tokens", report(tmp_path, "one"), *to)
        assert code == 1
        assert "one_mir_mir_x.json holds no tokens" in message
        assert "set mir_sample_rows: 300" in message
        for name, content in (("empty", b""), ("cut", rows.read_bytes()[:200])):
            (tmp_path / f"{name}.npz").write_bytes(content)
            code, message = refused("--tokens", tmp_path / f"{name}.npz", *to)
            assert code == 1
            assert f"{name}.npz holds no tokens" in message
        assert refused("--tokens", rows, "--layers", "1,x", *to)[0] == 2

    def test_without_scikit_learn(self, rows, tmp_path, monkeypatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "sklearn.decomposition", None)
        code, message = refused("--tokens", rows, "--to", tmp_path / "p.png")
        assert code == 1
        assert "pip install 'mir-task[plot]'" in message


class TestBadInput:
    def test_usage(self, tmp_path) -> None:
        file = report(tmp_path, "one")
        assert refused(file, "--to", tmp_path / "p.gif")[0] == 2
        assert refused(file)[0] == 2
        code, message = refused("--to", tmp_path / "p.png")
        assert code == 2
        assert "give side files, or --tokens FILE.npz" in message
        assert refused(file, "--tokens", file, "--to", tmp_path / "p.png")[0] == 2

    def test_no_side_file(self, tmp_path) -> None:
        other = write_json(tmp_path / "x_results.json", {"results": {}})
        code, message = refused(other, "--to", tmp_path / "p.png")
        assert code == 1
        assert "x_results.json is no side file" in message

    def test_a_diagnostic_that_an_older_file_lacks(self, tmp_path) -> None:
        path = report(tmp_path, "one")
        content = json.loads(path.read_text())
        for layer in content["layers"]:
            del layer["mean_cosine"]
        write_json(path, content)
        to = ("--to", tmp_path / "p.png")
        code, message = refused(path, *to, "--diagnostic", "mean_cosine")
        assert code == 1
        assert "lab/one: the side file lacks mean_cosine" in message
        drawn(path, *to, "--diagnostic", "norm_ratio")

    def test_command_and_module_know_the_same_choices(self) -> None:
        options = {option.name: option for option in main.commands["plot"].params}
        assert tuple(options["diagnostic"].type.choices) == tuple(plot.DIAGNOSTICS)
        assert tuple(options["method"].type.choices) == plot.METHODS


def documents(count: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (n, torch.randn(20, 8, generator=generator), torch.randn(15, 8, generator=generator))
        for n in range(count)
    ]


def of_layer(docs, rule: str, sample_rows: int) -> MIRMeter:
    meter = MIRMeter(outliers=rule, sample_rows=sample_rows, memory=0.0)
    return counted(meter, docs)


def counted(meter: MIRMeter, docs) -> MIRMeter:
    for n, vision, text in docs:
        meter.update(n, [vision], [text])
    return meter


def sampled(meter: MIRMeter, docs) -> tuple[torch.Tensor, torch.Tensor] | None:
    second = counted(meter.second_pass(), docs)
    groups = list(second.documents.values())
    (layer,) = distances({1: second.layer(1)}, second.known, groups, [], second.options).values()
    return layer.rows


@pytest.mark.parametrize("rule", ["replace", "drop"])
def test_sampled_rows_are_tokens_whatever_the_order_and_the_split(rule: str) -> None:
    docs = documents(60)
    whole = of_layer(docs, rule, 50)
    first, second = (of_layer(part, rule, 50) for part in (docs[40:], docs[39::-1]))
    first.merge(second)
    kept = counted(MIRMeter(outliers=rule, sample_rows=50), docs)
    known = learn(kept.tokens.layers, [0] * 60, kept.tokens.choices, kept.options)
    samples = [
        [of_modality.sample for of_modality in known[1]],
        sampled(whole, docs),
        sampled(first, docs),
    ]
    for sample in samples:
        for rows, position, expected in zip(sample, (1, 2), samples[0], strict=True):
            assert rows.shape == (50, 8)
            tokens = {tuple(row.tolist()) for doc in docs for row in doc[position]}
            assert {tuple(row.tolist()) for row in rows} <= tokens
            assert torch.equal(rows, expected)
    assert [len(rows) for rows in sampled(of_layer(docs[:2], rule, 50), docs[:2])] == [40, 30]
    assert sampled(of_layer(docs, rule, 0), docs) is None


@pytest.mark.parametrize("rule", ["replace", "drop"])
def test_a_run_writes_tokens_when_asked_to(llava, tmp_path, rule: str) -> None:
    task = evaluate.task(mir_sample_rows=30, mir_outliers=rule)
    plain = evaluate.task(mir_outliers=rule)
    scores = [
        evaluate.evaluate(evaluate.load(llava), t, output=tmp_path / str(n))["results"]["mir_test"]
        for n, t in enumerate((task, plain))
    ]
    assert scores[0] == scores[1]
    (path,) = tmp_path.rglob("*.npz")
    assert path.name.endswith("_mir_mir_test.npz")
    with np.load(path) as file:
        assert {name for name in file.files if name[-1].isdigit()} == {
            f"{modality}_{k}" for modality in ("vision", "text") for k in (0, 1, 2, 3)
        }
        assert file["vision_3"].shape == file["text_1"].shape == (30, 64)
        norms = np.linalg.norm(file["text_2"], axis=1).mean()
    layer = evaluate.report(tmp_path / "0")["layers"][1]
    assert norms == pytest.approx(layer["text_norm"], rel=0.05)
    drawn("--tokens", path, "--to", tmp_path / "p.png")


def test_the_picture_beside_the_side_file_has_no_name_missing(tmp_path, texts) -> None:
    result = modality_integration_rate([torch.randn(40, 6)], [torch.randn(30, 6)])
    run = {"task": "mir_x", "model_name": "", "settings": {"mir_modality": "video"}}
    whole = json.loads(runs.side_file(tmp_path / "other", "x", result, **run).read_text())
    data, picture = write_report(tmp_path / "d_mir_x", result, whole)
    assert (data.name, picture.name) == ("d_mir_x.json", "d_mir_x.png")
    assert f"mir_x\nMIR {result.mir:.3f}" in texts
    assert "video tokens" in texts


def test_missing_layer_of_a_file(tmp_path) -> None:
    path = plot.write_rows(tmp_path / "r.npz", {4: (np.ones((3, 2)), np.ones((3, 2)))}, "t", "vision")
    with pytest.raises(MIRError, match="has no layer 1: it holds 4$"):
        plot.draw_tokens(path, tmp_path / "p.png", layers=[1])
