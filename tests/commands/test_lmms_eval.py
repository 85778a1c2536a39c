"""The `lmms-eval` command as users type it, in processes of its own."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import evaluate, hub, independent
from tests.support.command import BIN, arguments, results, run, torchrun


@pytest.fixture(scope="module")
def both(llava, tmp_path_factory) -> tuple[str, Path]:
    """`mir_demo` and `demo_vqa` in one run, from a folder that is not the checkout."""
    folder = tmp_path_factory.mktemp("both")
    log = run("lmms-eval", *arguments(llava, folder, "mir_demo,demo_vqa"), cwd=folder)
    return log, folder


def test_one_results_file_with_mir_and_the_benchmark(both) -> None:
    log, folder = both
    scores = results(folder)["results"]
    assert isinstance(scores["mir_demo"]["mir,none"], float)
    assert isinstance(scores["mir_demo"]["mir_stderr,none"], float)
    assert isinstance(scores["demo_vqa"]["exact_match,none"], float)
    (row,) = [line for line in log.splitlines() if "|mir " in line]
    assert f"{scores['mir_demo']['mir,none']:.4f}" in row
    stems = {path.name.split("_mir_demo")[0] for path in folder.rglob("*_mir_mir_demo.*")}
    (stem,) = stems
    assert (next(folder.rglob("*_results.json"))).name == stem.removesuffix("_mir") + "_results.json"


RECORDING = """
import pytest, torch
from transformers import LlavaForConditionalGeneration
from tests.support.evaluate import Received
received = Received(LlavaForConditionalGeneration, pytest.MonkeyPatch())
from lmms_eval.__main__ import cli_evaluate
cli_evaluate()
torch.save(received.documents, "received.pt")
"""


def test_mir_of_the_command_equals_an_independent_computation(llava, tmp_path) -> None:
    from transformers import LlavaForConditionalGeneration

    script = tmp_path / "record.py"
    script.write_text(RECORDING)
    checkout = str(Path(__file__).parents[2])
    command = [sys.executable, str(script), *arguments(llava, tmp_path, "mir_demo")]
    run(*command, cwd=tmp_path, PYTHONPATH=checkout)
    received = torch.load(tmp_path / "received.pt")
    assert len(received) == 100
    model = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    value = results(tmp_path)["results"]["mir_demo"]["mir,none"]
    assert value == pytest.approx(independent.mir_of_model(model, received), abs=1e-4)


def test_the_adapters_bars_do_not_flood_the_log(both) -> None:
    log, _ = both
    assert log.count("Model Responding") <= 60  # those of demo_vqa's one call


@pytest.mark.slow
def test_two_runs_agree_to_the_last_digit(both, llava, tmp_path) -> None:
    _, folder = both
    run("lmms-eval", *arguments(llava, tmp_path, "mir_demo"), cwd=tmp_path)
    assert results(tmp_path)["results"]["mir_demo"] == results(folder)["results"]["mir_demo"]


@pytest.mark.slow
def test_the_response_cache_does_not_swallow_documents(llava, tmp_path) -> None:
    scores = []
    for name in ("first", "second"):
        command = [*arguments(llava, tmp_path / name, "mir_demo"), "--limit", "6"]
        run("lmms-eval", *command, "--use_cache", str(tmp_path / "cache"), cwd=tmp_path)
        scores.append(results(tmp_path / name)["results"]["mir_demo"])
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_without_output_path_there_is_the_table_alone(llava, tmp_path) -> None:
    command = arguments(llava, tmp_path, "mir_demo")[:-2]
    log = run("lmms-eval", *command, "--limit", "4", cwd=tmp_path)
    assert "|mir_demo|" in log
    assert list(tmp_path.iterdir()) == []


FEW = """
task: mir_few
class: !function mir_task.harness.MIRTask
mir_base: mir_demo
mir_documents: 2
mir_sample_rows: 20
mir_extras: [cka, mmd]
"""


@pytest.mark.parametrize("processes", [pytest.param(n, marks=pytest.mark.slow) for n in (2, 5)] + [3])
def test_several_processes_give_the_figure_of_one(llava, tmp_path, processes: int) -> None:
    # 7 and 2 documents: they do not divide, and of the second task one of three processes has none.
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "mir_few.yaml").write_text(FEW)
    command = [*arguments(llava, tmp_path, "mir_demo,mir_few"), "--limit", "7"]
    torchrun(processes, "-m", "lmms_eval", "--include_path", str(tasks), *command, cwd=tmp_path)
    together = results(tmp_path)["results"]
    few = {"task": "mir_few", "mir_documents": 2, "mir_groups": 0}
    alone = evaluate.evaluate(evaluate.load(llava), "mir_demo", evaluate.task(**few), limit=7)["results"]
    for task in ("mir_demo", "mir_few"):
        for key in ("mir,none", "mir_published_fast,none"):
            assert together[task][key] == pytest.approx(alone[task][key], abs=1e-6)
    stderr = alone["mir_demo"]["mir_stderr,none"]
    assert together["mir_demo"]["mir_stderr,none"] == pytest.approx(stderr, abs=1e-6)
    assert together["mir_few"]["mir_stderr,none"] == "N/A"
    (rows,) = tmp_path.rglob("*_mir_mir_few.npz")
    with np.load(rows) as file:
        assert file["text_3"].shape == (20, 64)


@pytest.mark.slow
def test_captions_on_two_processes_are_those_of_one(llava, tmp_path) -> None:
    command = [*arguments(llava, tmp_path, "mir_scenes"), "--limit", "5"]
    torchrun(2, "-m", "lmms_eval", *command, cwd=tmp_path)
    together = results(tmp_path)["results"]["mir_scenes"]
    alone = evaluate.evaluate(evaluate.load(llava), "mir_scenes", limit=5)["results"]["mir_scenes"]
    for name in ("caption_gain", "caption_gain_stderr", "caption_loss", "mir"):
        assert together[f"{name},none"] == pytest.approx(alone[f"{name},none"], abs=1e-4)


FAILING_RANK = """
import os, time
import mir_task.harness.adapter as adapter
send = adapter.Adapter.send
def broken(*arguments):
    if os.environ["RANK"] == "1":
        open("failed", "w").write(str(time.time()))
        raise RuntimeError("rank 1 has run out of luck")
    time.sleep(2)  # 34 documents would take over a minute
    return send(*arguments)
adapter.Adapter.send = broken
from lmms_eval.__main__ import cli_evaluate
cli_evaluate()
open("ended-" + os.environ["RANK"], "w").write(str(time.time()))
"""


def test_a_failure_on_one_process_ends_all_at_once_with_its_message(llava, tmp_path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(FAILING_RANK)
    log = torchrun(3, str(script), *arguments(llava, tmp_path, "mir_demo"), cwd=tmp_path)
    assert log.count("process 1 failed: MIRError: RuntimeError: rank 1 has run out of luck") >= 2
    assert log.count("rank 1 has run out of luck") >= 3
    assert not list(tmp_path.rglob("*_results.json"))
    # In files: what processes print may be interleaved.
    failed, *ended = (
        float((tmp_path / n).read_text()) for n in ("failed", *(f"ended-{r}" for r in range(3)))
    )
    assert max(ended) - failed < 30


BREAKING_AT_ITS_END = """
import atexit, os, time
if os.environ["RANK"] == "1":
    atexit.register(os.abort)  # after all that is registered later
from lmms_eval.loggers import EvaluationTracker
save = EvaluationTracker.save_results_aggregated
def slowly(*arguments, **options):
    time.sleep(10)
    return save(*arguments, **options)
EvaluationTracker.save_results_aggregated = slowly
from lmms_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def test_a_process_that_breaks_at_its_end_leaves_the_results_whole(llava, tmp_path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(BREAKING_AT_ITS_END)
    command = [*arguments(llava, tmp_path / "out", "mir_demo"), "--limit", "4"]
    log = torchrun(2, str(script), *command, cwd=tmp_path, code=1)
    assert "Signal 6" in log or "SIGABRT" in log  # the launcher saw the process break
    assert isinstance(results(tmp_path / "out")["results"]["mir_demo"]["mir,none"], float)


@pytest.mark.slow
def test_data_that_one_process_cannot_read_end_all_with_its_message(llava, tmp_path) -> None:
    log = torchrun(2, "-m", "lmms_eval", *arguments(llava, tmp_path, "mir_textvqa"), cwd=tmp_path)
    assert log.count("mir-task data prepare mir_textvqa --to DIR") >= 2
    assert "Connection closed" not in log


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_task_that_cannot_be_loaded_is_an_entry_of_the_results(llava, tmp_path, processes) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "nothing.jsonl").write_text("")
    (tasks / "mir_bad.yaml").write_text(
        FEW.replace("mir_few", "mir_bad") + "mir_media_dataset: nothing.jsonl\n"
    )
    command = [*arguments(llava, tmp_path, "mir_bad,mir_demo,demo_vqa")]
    command += ["--limit", "5", "--log_samples"]
    command = ["-m", "lmms_eval", "--include_path", str(tasks), *command]
    if processes > 1:
        torchrun(processes, *command, cwd=tasks)
    else:
        run(sys.executable, *command, cwd=tasks)
    scores = results(tmp_path)["results"]
    assert scores["mir_bad"]["mir,none"] == "N/A"
    assert isinstance(scores["mir_demo"]["mir,none"], float)
    assert isinstance(scores["demo_vqa"]["exact_match,none"], float)
    (why,) = tmp_path.rglob("*_failed_mir_bad.json")
    assert "nothing.jsonl" in json.loads(why.read_text())["why"]


@pytest.mark.slow
def test_a_folder_of_tasks_that_no_index_has(llava, tmp_path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "few.yaml").write_text(FEW)
    (tasks / "more.yaml").write_text(
        "task: mir_more\nclass: !function mir_task.harness.MIRTask\n"
        "mir_base: mir_few\nmir_documents: 3\n"
    )
    run("lmms-eval", *arguments(llava, tmp_path / "out", str(tasks)), cwd=tmp_path)
    scores = results(tmp_path / "out")["results"]
    assert all(isinstance(scores[name]["mir,none"], float) for name in ("mir_few", "mir_more"))
    assert {name: len(ids) for name, ids in documents(tmp_path / "out").items()} == {
        "mir_few": 2,
        "mir_more": 3,
    }


def test_tasks_are_listed_and_include_path_works_too(tmp_path) -> None:
    from mir_task.tasks import TASK_CONFIGS

    log = run("lmms-eval", "--include_path", str(TASK_CONFIGS), "--tasks", "list", cwd=tmp_path)
    assert {"mir_demo", "demo_vqa"} <= {line.strip(" -") for line in log.splitlines()}
    assert log.count("mir_demo") == 1


TASKS = ("mir_coco", "mir_coco_cnndm", "mir_textvqa")


def documents(output: Path) -> dict[str, list[str]]:
    """Ids of the documents of each side file under a folder."""
    reports = [json.loads(path.read_text()) for path in output.rglob("*_mir_*.json")]
    return {report["task"]: [d["id"] for d in report["documents"]] for report in reports}


@pytest.mark.slow
def test_tasks_on_folders_of_the_real_schema_and_on_carried_copies(llava, tmp_path) -> None:
    root, carried = tmp_path / "hub", tmp_path / "carried"
    hub.coco_captions(root)
    hub.textvqa(root)
    hub.cnn_dailymail(root)
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    here = {"MIR_TASK_DATA": str(root), **cache}
    first, second, two = tmp_path / "first", tmp_path / "second", tmp_path / "two"
    run("lmms-eval", *arguments(llava, first, ",".join(TASKS)), cwd=tmp_path, **here)
    for task in TASKS:
        log = run("mir-task", "data", "prepare", task, "--to", str(carried), cwd=tmp_path, **here)
        assert f"{task}.parquet" in log

    there = {"MIR_TASK_DATA": str(carried), **cache}
    run("lmms-eval", *arguments(llava, second, ",".join(TASKS)), cwd=tmp_path, **there)
    torchrun(2, "-m", "lmms_eval", *arguments(llava, two, "mir_textvqa"), cwd=tmp_path, **there)
    assert documents(first) == documents(second)
    assert all(len(ids) == 100 for ids in documents(first).values())
    assert documents(two)["mir_textvqa"] == documents(first)["mir_textvqa"]
    scores = [results(output)["results"] for output in (first, second, two)]
    for task in TASKS:
        assert scores[1][task] == scores[0][task]
    assert scores[2]["mir_textvqa"]["mir,none"] == pytest.approx(
        scores[0]["mir_textvqa"]["mir,none"], abs=1e-6
    )


@pytest.mark.slow
def test_offline_without_a_copy_is_one_message(llava, tmp_path) -> None:
    log = run("lmms-eval", *arguments(llava, tmp_path, "mir_textvqa"), cwd=tmp_path)
    assert "mir-task data prepare mir_textvqa --to DIR" in log
    assert not list(tmp_path.rglob("*_results.json"))


@pytest.mark.slow
def test_more_processes_than_documents(llava, tmp_path) -> None:
    command = [*arguments(llava, tmp_path, "mir_demo"), "--limit", "1"]
    torchrun(2, "-m", "lmms_eval", *command, cwd=tmp_path)
    two = results(tmp_path)["results"]["mir_demo"]
    one = evaluate.evaluate(evaluate.load(llava), "mir_demo", limit=1)["results"]["mir_demo"]
    assert two["mir,none"] == pytest.approx(one["mir,none"], abs=1e-9)
    assert len(documents(tmp_path)["mir_demo"]) == 1


@pytest.mark.slow
def test_a_wheel_holds_all_that_the_demo_needs(tmp_path) -> None:
    checkout = Path(__file__).parents[2]
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir")
    run(*build, str(tmp_path), str(checkout), cwd=tmp_path)
    (wheel,) = tmp_path.glob("mir_task-*.whl")
    site = tmp_path / "site"
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site))
    run(*install, str(wheel), cwd=tmp_path)
    where = run(
        sys.executable,
        "-c",
        "import mir_task.tasks as s; print(s.__file__, s.TASK_CONFIGS)",
        cwd=tmp_path,
        PYTHONPATH=str(site),
    )
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "mir_task = mir_task.plugin:register" in archive.read(entry_points).decode()
        assert b"import mir_task.startup" in archive.read("mir_task.pth")
    assert where.split() == [f"{site}/mir_task/tasks.py", f"{site}/mir_task/task_configs"]
    log = run(sys.executable, "-m", "mir_task", "demo", "out", cwd=tmp_path, PYTHONPATH=str(site))
    assert "|mir_demo|" in log
    assert "|demo_vqa|" in log
    assert "scenes/much" in log


class TestExitCodes:
    def code(self, *command: str) -> int:
        return subprocess.run(
            [str(BIN / "mir-task"), *command], capture_output=True, check=False
        ).returncode

    def test_done(self, tmp_path) -> None:
        assert self.code("data", "prepare", "mir_demo", "--to", str(tmp_path)) == 0

    def test_cannot(self, tmp_path) -> None:
        assert self.code("data", "prepare", "mir_coco", "--to", str(tmp_path)) == 1

    def test_usage(self, tmp_path) -> None:
        assert self.code("data", "prepare", "mir_nowhere", "--to", str(tmp_path)) == 2
        assert self.code("data", "prepare", "mir_demo") == 2
