"""The sets of inputs of the paper's section 2.2, through the real command, and their table."""

import json
import statistics

import pytest
from click.testing import CliRunner

from mir_task.commands.cli import main
from mir_task.tasks import TASK_CONFIGS, groups_in, packaged_tasks
from tests.support import evaluate, hub
from tests.support.command import results, run

SETS = ("mir_contents", "mir_placements", "mir_relevance", "mir_sizes")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    hub.coco_captions(root)
    hub.textvqa(root, images=1004)
    hub.docvqa(root)
    hub.chartqa(root)
    hub.cnn_dailymail(root, rows=1010)
    hub.mail(root)
    hub.code(root)
    return root


@pytest.fixture
def offline(data, monkeypatch, tmp_path):
    monkeypatch.setenv("MIR_TASK_DATA", str(data))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_the_groups_hold_packaged_tasks() -> None:
    groups = groups_in(TASK_CONFIGS)
    assert groups["mir_robustness"] == ("mir_contents", "mir_relevance", "mir_placements", "mir_sizes")
    for name in SETS:
        assert set(groups[name]) <= set(packaged_tasks())


def test_relevant_and_irrelevant_texts_count_as_many_rows(llava, offline, tmp_path) -> None:
    lm, reports = evaluate.load(llava), {}
    tasks = [
        evaluate.task(task=f"mir_{name}", mir_base=f"mir_coco_{name}", mir_documents=5, mir_groups=0)
        for name in ("relevant", "irrelevant")
    ]
    evaluate.evaluate(lm, *tasks, output=tmp_path)
    for path in tmp_path.rglob("*_mir_mir_*.json"):
        report = json.loads(path.read_text())
        reports[report["task"]] = report
    for report in reports.values():
        assert [document["text_tokens"] for document in report["documents"]] == [32] * 5
        assert report["layers"][0]["text_tokens"] == 160
    relevant, irrelevant = reports.values()
    assert [d["id"].split("+")[0] for d in relevant["documents"]] == [
        d["id"].split("+")[0] for d in irrelevant["documents"]
    ]
    assert relevant["mir"] != irrelevant["mir"]


def test_too_few_text_tokens_are_named(llava, offline) -> None:
    from mir_task import MIRError

    task = evaluate.task(mir_base="mir_coco", mir_documents=3, mir_text_rows=4000)
    with pytest.raises(MIRError, match=r"text tokens, 4000 were asked for: lower mir_text_rows"):
        evaluate.evaluate(evaluate.load(llava), task)


@pytest.mark.slow
def test_all_sets_by_the_command_and_their_table(llava, data, tmp_path) -> None:
    arguments = f"pretrained={llava},device=cpu,device_map=cpu"
    command = ["lmms-eval", "--model", "llava_hf", "--model_args", arguments, "--limit", "4"]
    environment = {"MIR_TASK_DATA": str(data), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    output = tmp_path / "out"
    options = ("--tasks", "mir_robustness", "--output_path", str(output))
    run(*command, *options, cwd=tmp_path, **environment)
    scores = results(output)
    groups = groups_in(TASK_CONFIGS)
    tasks = {task for name in SETS for task in groups[name]}
    values = {task: scores["results"][task]["mir,none"] for task in tasks}
    assert all(isinstance(value, float) for value in values.values())
    assert len(values) == 23

    printed = CliRunner().invoke(main, ["robustness", str(output)])
    assert printed.exit_code == 0, printed.output
    rows = [line.split(" | ") for line in printed.output.splitlines() if "of" in line]
    spread = {row[0].removeprefix("| "): row for row in rows}
    for name in SETS:
        own = [values[task] for task in groups[name]]
        assert spread[name][1] == f"{len(own)} of {len(own)}"
        assert spread[name][4] == f"{max(own) - min(own):.4f}"
        assert spread[name][5].removesuffix(" |") == f"{statistics.stdev(own):.4f}"


def test_a_folder_without_side_files_is_one_message(tmp_path) -> None:
    (tmp_path / "2026_mir_broken.json").write_text("{")
    printed = CliRunner().invoke(main, ["robustness", str(tmp_path)])
    assert printed.exit_code == 1
    assert "left out" in printed.output
    assert "no side file of a task of mir_robustness" in printed.output
