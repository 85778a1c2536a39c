"""`mir-task compare`."""

import json
import math
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy import stats

from mir_task.commands.cli import main
from mir_task.demo.checkpoint import make_llava
from mir_task.reports.compare import compare
from mir_task.reports.records import read_record
from mir_task.result import MIRResult
from tests.support import evaluate, runs


def command(*arguments) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    return done.exit_code, done.output


def record(folder, name="a", mir=3.0, *, groups=5, seed=0, **changes):
    measured = runs.result(mir, groups=groups, seed=seed)
    return read_record(runs.side_file(folder / name, name, measured, **changes))


@pytest.fixture(scope="module")
def measured(llava, tmp_path_factory):
    """Folders of two models of one shape, measured by the harness, and of a deeper one."""
    root = tmp_path_factory.mktemp("measured")
    shapes = {"a": llava}
    for name, layers in (("b", 3), ("deep", 4)):
        folder = root / "checkpoints" / name
        shapes[name] = make_llava(folder, hidden_size=64, layers=layers, image_size=56, seed=1)
    for name, checkpoint in shapes.items():
        arguments = f"pretrained={checkpoint},device=cpu,device_map=cpu"
        task = evaluate.task(mir_documents=9)
        evaluate.evaluate("llava_hf", task, output=root / name, model_args=arguments)
    return root


def test_models_that_the_harness_measured(measured) -> None:
    code, printed = command(measured / "a", measured / "b")
    assert code == 0, printed
    first, second = (evaluate.report(measured / name) for name in "ab")
    assert f"difference, second less first: {second['mir'] - first['mir']:+.4f}" in printed
    assert "paired: both saw the same documents in the same 3 groups" in printed
    assert "2 degrees of freedom" in printed

    for folders in (("a", "deep"), ("deep", "a")):
        code, printed = command(*(measured / name for name in folders))
        assert code == 1
        assert "do not compare" in printed
    assert "the second has 3 layers, not 4 layers" in printed


def test_a_model_does_not_differ_from_itself(measured) -> None:
    (path,) = (measured / "a").rglob("*_mir_*.json")
    same = compare(read_record(path), read_record(path))
    assert same.difference == 0
    assert same.interval == (0, 0)
    assert same.sentence.startswith("The difference cannot be told from zero")
    assert {layer.share for layer in same.layers} == {None}


def test_the_paired_interval_is_the_jackknife_of_the_difference(tmp_path) -> None:
    # Both move together from group to group, so their difference is far better known than either.
    common, own = [0.0, 0.3, -0.2, 0.1, -0.1], [0.01, -0.01, 0.0, 0.02, -0.02]
    base = runs.result(3.0, layers=2)
    results = []
    for factor, moved in ((1.0, common), (1.2, [x + y for x, y in zip(common, own, strict=True)])):
        left_out = [[factor * layer.frechet * 10**by for layer in base.layers] for by in moved]
        layers = [{**layer, "frechet": factor * layer["frechet"]} for layer in base.to_dict()["layers"]]
        values = {**base.to_dict(), "layers": layers, "leave_one_group_out": left_out}
        results.append(MIRResult.from_dict(values))
    first, second = (
        read_record(runs.side_file(tmp_path / name, name, result))
        for name, result in zip("ab", results, strict=True)
    )
    found = compare(first, second)
    assert found.difference == pytest.approx(math.log10(1.2))
    stderr = math.sqrt(4 * statistics.pvariance(own))
    assert found.error is not None
    assert found.error.stderr == pytest.approx(stderr)
    assert first.mir_stderr > 10 * stderr
    reach = 2.7764451 * stderr  # Student's t with 4 degrees of freedom
    assert found.interval == pytest.approx((math.log10(1.2) - reach, math.log10(1.2) + reach))
    assert "The first model has the lower MIR" in found.sentence
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert [layer.difference for layer in found.layers] == pytest.approx(
        [0.2 * layer.frechet for layer in base.layers]
    )


def test_other_groups_are_not_paired_and_it_says_so(tmp_path) -> None:
    first = record(tmp_path, "a", 3.0, groups=5, seed=1)
    second = record(tmp_path, "b", 3.001, groups=4, seed=2)
    found = compare(first, second)
    assert found.error.how.startswith("not paired")
    assert found.error.stderr == pytest.approx(math.hypot(first.mir_stderr, second.mir_stderr))
    assert 3 <= found.error.freedom <= 7  # between the smaller and the sum of both
    reach = found.error.stderr * stats.t.ppf(0.975, found.error.freedom)
    assert found.interval[1] - found.difference == pytest.approx(reach)


def test_without_a_standard_error_there_is_no_interval(tmp_path) -> None:
    record(tmp_path, "a", 3.0, groups=0)
    record(tmp_path, "b", 3.1)
    code, printed = command(tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "95% interval: none" in printed
    assert "is not known" in printed


def test_json_holds_what_is_printed(tmp_path) -> None:
    record(tmp_path, "a", 3.0, seed=1)
    record(tmp_path, "b", 3.1, seed=2)
    target = tmp_path / "difference.json"
    code, printed = command(tmp_path / "a", tmp_path / "b", "--json", target)
    content = json.loads(target.read_text())
    assert code == 0
    assert content["difference"] == pytest.approx(0.1)
    assert content["sentence"] in printed
    assert len(content["layers"]) == 6


def test_folders_that_leave_open_which_file_is_meant(tmp_path) -> None:
    record(tmp_path, "a", 3.0)
    record(tmp_path, "a", 3.2, task="mir_coco")
    record(tmp_path, "b", 3.1)
    assert command(tmp_path / "a", tmp_path / "b")[0] == 0  # mir_demo is the only one of both
    record(tmp_path, "b", 3.3, task="mir_coco")
    code, printed = command(tmp_path / "a", tmp_path / "b")
    assert code == 1
    assert "holds 2 side files, not one" in printed
    code, printed = command(tmp_path / "a", tmp_path / "b", "--task", "mir_coco")
    assert "difference, second less first: +0.1000" in printed


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 2}'])
def test_what_is_no_side_file_is_one_message(tmp_path, content) -> None:
    record(tmp_path, "a", 3.0)
    path = tmp_path / "x_mir_demo.json"
    path.write_text(content)
    code, printed = command(tmp_path / "a", path)
    assert code == 1
    assert "is no side file" in printed
    assert command(tmp_path / "a", tmp_path / "nowhere")[0] == 2


def with_gains(folder: Path, name: str, gains: list[float]) -> Path:
    measured = runs.result(3.0).model_copy(
        update={"caption_loss": 2.0, "caption_gain": sum(gains) / len(gains), "caption_gain_stderr": 0.1}
    )
    documents = [
        {"id": f"d{n}", "row": n, "caption_gain": gain, "caption_gain_tokens": 5}
        for n, gain in enumerate(gains)
    ]
    path = runs.side_file(folder / name, name, measured)
    path.write_text(json.dumps({**json.loads(path.read_text()), "documents": documents}))
    return path


def test_caption_gains_are_compared_over_documents(tmp_path) -> None:
    base = [0.1, 0.9, 0.4, 0.2, 0.7, 0.3, 0.5, 0.6]
    noise = [0.01, -0.02, 0.0, 0.02, -0.01, 0.01, 0.0, -0.01]
    raised = [gain + 0.2 + by for gain, by in zip(base, noise, strict=True)]
    first, second = with_gains(tmp_path, "a", base), with_gains(tmp_path, "b", raised)
    found = compare(read_record(first), read_record(second)).caption_gain
    differences = [after - before for before, after in zip(base, raised, strict=True)]
    stderr = statistics.stdev(differences) / math.sqrt(len(differences))
    assert found.difference == pytest.approx(statistics.mean(differences))
    assert found.stderr == pytest.approx(stderr)
    reach = stats.t.ppf(0.975, 7) * stderr
    assert found.interval == pytest.approx((found.difference - reach, found.difference + reach))
    code, printed = command(first, second)
    assert code == 0, printed
    assert "caption gain 0.4625 and 0.6625; second less first: +0.2000 nats a token" in printed
    assert "paired over 8 documents" in printed
    assert "The second model takes more from the image." in printed
    assert "It cannot be told from zero." in command(first, first)[1]


def test_without_gains_nothing_is_said_of_them(tmp_path) -> None:
    assert compare(record(tmp_path), record(tmp_path, "b", 3.1)).caption_gain is None
