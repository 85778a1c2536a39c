"""`mir-task zoo`: a batch of models through the real command."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from click.testing import CliRunner

from mir_task import MIRError
from mir_task.commands.cli import main
from mir_task.commands.guard import RUN_VARIABLE, end_run
from mir_task.commands.zoo import progress_line
from mir_task.commands.zoo_list import Options, read, run_of
from mir_task.commands.zoo_runs import Outcome, Zoo, whole_results
from mir_task.demo.checkpoint import make_llava
from tests.support.command import BIN


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for seed in range(2):
        make_llava(root / f"good-{seed}", hidden_size=32, layers=2, image_size=56, seed=seed)
    return root


def entry(checkpoint: Path) -> dict:
    arguments = f"pretrained={checkpoint},device=cpu,device_map=cpu"
    return {"model": "llava_hf", "model_args": arguments, "tasks": "mir_demo", "limit": 4}


def listed(folder: Path, *checkpoints: Path) -> Path:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump([entry(checkpoint) for checkpoint in checkpoints]))
    return path


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [str(BIN / "mir-task"), "zoo", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell has what it starts in the background ignore Ctrl-C, and this may be such a shell's.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def zoo(*arguments: str | Path, cwd: Path) -> tuple[int, str]:
    process = start(*arguments, cwd=cwd)
    printed, _ = process.communicate(timeout=400)
    return process.returncode, printed


def values(output: Path) -> dict[str, float]:
    """MIR by the name of the checkpoint."""
    found = {}
    for path in output.rglob("*_mir_mir_demo.json"):
        report = json.loads(path.read_text())
        found[Path(report["model_name"]).name] = report["mir"]
    return found


@pytest.mark.slow
def test_failures_are_named_and_only_what_is_missing_runs_again(checkpoints, tmp_path) -> None:
    broken, hanging = tmp_path / "broken", tmp_path / "hanging"
    shutil.copytree(checkpoints / "good-0", broken)
    (broken / "config.json").write_text("{")
    hanging.touch()
    models, output = tmp_path / "models.yaml", tmp_path / "out"
    entries = [
        entry(checkpoints / "good-0"),
        entry(broken),
        entry(hanging),
        entry(checkpoints / "good-1"),
    ]
    entries[2] |= {"model": "standin_hangs", "model_args": f"pretrained={hanging}"}
    models.write_text(yaml.safe_dump(entries))
    root = Path(__file__).parents[2]
    path = f"PYTHONPATH={root}:{root / 'tests' / 'standins' / 'installed'}"
    command = (models, "--output_path", output, "--env", path)

    code, printed = zoo(*command, "--time-limit", "1m", cwd=tmp_path)
    assert code == 1, printed
    assert printed.count(": done in") == 2
    assert set(values(output)) == {"good-0", "good-1"}
    lines = printed.splitlines()
    failures = lines[lines.index("2 done, 2 failed") + 1 :]
    assert re.search(r"broken-\w+: it wrote no results \(OSError: .*not a valid JSON", failures[0])
    assert re.search(r"hanging-\w+: it took longer than its time limit of 60 s", failures[1])

    shutil.copy(checkpoints / "good-0" / "config.json", broken)
    hanging.unlink()
    code, printed = zoo(*command, cwd=tmp_path)
    assert code == 1
    assert "2 finished before, 2 failed before" in printed
    code, printed = zoo(*command, "--retry-failed", cwd=tmp_path)
    assert code == 0, printed
    assert "2 finished before, 2 done" in printed.splitlines()
    assert "## Group 1: task mir_demo, " in printed
    assert len(values(output)) == 4
    assert all(path.is_dir() for path in output.iterdir())


def of_run(*parts: str) -> list[psutil.Process]:
    """Processes of any run whose command line holds these parts."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if RUN_VARIABLE in process.environ() and set(parts) <= set(process.cmdline()):
                found.append(process)
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.2)


WORKERS = """
import subprocess, sys, time
worker = [sys.executable, "-c", "import time; time.sleep(600)", "worker-of-the-test"]
subprocess.Popen(worker, start_new_session=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize("ending", ["its input", "the command", "the guard"])
def test_a_run_ends_with_all_that_it_started(ending: str) -> None:
    command = [sys.executable, "-c", WORKERS, "0" if ending == "the command" else "600"]
    guard = subprocess.Popen(
        [sys.executable, "-m", "mir_task.commands.guard", *command],
        stdin=subprocess.PIPE,
        env={**os.environ, RUN_VARIABLE: ending},
    )
    if ending != "the command":
        wait_for(lambda: bool(of_run("worker-of-the-test")), 60)
    if ending == "its input":
        guard.stdin.close()
    elif ending == "the guard":
        guard.kill()
        guard.wait()
        end_run(ending)
    guard.wait(60)
    assert not of_run("worker-of-the-test")


@pytest.mark.slow
def test_workers_of_a_launcher_end_with_it_and_with_the_batch(tmp_path) -> None:
    hanging, models = tmp_path / "hanging", tmp_path / "models.yaml"
    hanging.touch()
    arguments = {"model": "standin_hangs", "model_args": f"pretrained={hanging}", "tasks": "mir_demo"}
    models.write_text(yaml.safe_dump([arguments]))
    root = Path(__file__).parents[2]
    path = f"PYTHONPATH={root}:{root / 'tests' / 'standins' / 'installed'}"
    command = (models, "--output_path", tmp_path / "out", "--env", path)
    command = (*command, "--launcher", "torchrun", "--processes", "2")
    for victim in ("launcher", "batch"):
        batch = start(*command, cwd=tmp_path)
        wait_for(lambda: len(of_run("lmms_eval")) == 4, 120)  # guard, launcher, two workers
        _, launcher, *_ = sorted(of_run("lmms_eval"), key=psutil.Process.create_time)
        if victim == "launcher":
            launcher.kill()
            printed, _ = batch.communicate(timeout=120)
            assert "1 failed" in printed.splitlines()
        else:
            batch.kill()
            batch.wait()
        wait_for(lambda: not of_run(), 60)
        shutil.rmtree(tmp_path / "out")


def test_a_running_batch_says_what_it_does_and_how_to_go_on(tmp_path) -> None:
    hanging, models, output = tmp_path / "hanging", tmp_path / "models.yaml", tmp_path / "out"
    hanging.touch()
    arguments = {"model": "standin_hangs", "model_args": f"pretrained={hanging}", "tasks": "mir_demo"}
    models.write_text(yaml.safe_dump([arguments]))
    root = Path(__file__).parents[2]
    path = f"PYTHONPATH={root}:{root / 'tests' / 'standins' / 'installed'}"
    old = os.umask(0o022)
    try:
        batch = start(models, "--env", path, "--output-path", output, cwd=tmp_path)
        wait_for(lambda: list(output.glob(".*.partial")), 60)
        (folder,) = output.glob(".*.partial")
        assert folder.stat().st_mode & 0o777 == 0o755
        time.sleep(10)
        batch.send_signal(signal.SIGINT)
        printed, _ = batch.communicate(timeout=60)
    finally:
        os.umask(old)
    assert batch.returncode == 130, printed
    lines = [line for line in printed.splitlines() if line.startswith("[1/1] standin_hangs-")]
    assert len(lines) >= 3, printed
    assert all(re.search(r": \d+ s, \w", line) for line in lines)
    assert "broken off: 0 of 1 models are over and stay" in printed
    assert f"\n  mir-task zoo {models} --env {path} --output-path {output}\n" in printed
    assert "Aborted" not in printed
    wait_for(lambda: not of_run(str(folder / "config.yaml")), 60)


def test_the_time_that_is_left_is_told_down_to_seconds(models) -> None:
    over = [Outcome(run, "done", "mir_demo 0.5", 29.0) for run in read(models)]
    assert ", about 29 s left: " in progress_line(over[0], over[:1], 2, 1)


@pytest.mark.parametrize("content", ["[]", "{", '{"why": [1]}', "3"])
def test_a_record_of_a_failure_that_is_none_is_named(models, tmp_path, content) -> None:
    run, _ = read(models)
    house = Zoo([run], tmp_path / "out", Options())
    path = tmp_path / "out" / f"{run.name}.failed.json"
    path.write_text(content)
    assert f"{path} is no record of a failure" in house.before(run).detail


@pytest.mark.slow
def test_a_batch_killed_at_any_time_goes_on_to_the_same_values(checkpoints, tmp_path) -> None:
    models = listed(tmp_path, checkpoints / "good-0", checkpoints / "good-1")
    assert zoo(models, "--output_path", tmp_path / "whole", cwd=tmp_path)[0] == 0
    generator = random.Random(0)
    for _ in range(3):
        process = start(models, "--output_path", tmp_path / "killed", cwd=tmp_path)
        time.sleep(generator.uniform(1, 30))
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, printed = zoo(models, "--output_path", tmp_path / "killed", cwd=tmp_path)
    assert code == 0, printed
    assert values(tmp_path / "killed") == values(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_is_named_and_nothing_is_lost(checkpoints, tmp_path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        models = listed(tmp_path, checkpoints / "good-0")
        code, printed = zoo(models, "--output_path", small / "out", cwd=tmp_path)
        assert code == 1
        assert f"the disk of {small / 'out'} is full; " in printed
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        code, printed = zoo(models, "--output_path", small / "out", "--retry-failed", cwd=tmp_path)
        assert code == 0, printed
        assert len(values(small / "out")) == 1
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture
def models(tmp_path) -> Path:
    return listed(tmp_path, tmp_path / "one", tmp_path / "two")


def test_dry_run_and_commands_for_a_scheduler(models, tmp_path) -> None:
    names = [run.name for run in read(models)]
    out = ["--output_path", str(tmp_path / "out")]
    printed = CliRunner().invoke(main, ["zoo", str(models), *out, "--dry-run"])
    assert printed.output.splitlines() == [f"{name}: would run" for name in names]
    command = ["zoo", str(models), *out, "--print-commands", "--time-limit", "2h", "--env", "A=b c"]
    printed = CliRunner().invoke(main, command)
    start = f"mir-task zoo {models} --only "
    rest = f"--output_path {tmp_path / 'out'} --time_limit 7200 --env 'A=b c'"
    assert printed.output.splitlines() == [f"{start}{name} {rest}" for name in names]


def test_commands_are_of_one_run_each_however_the_list_is_spelled(models, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(models.parent)
    names = [run.name for run in read(models)]
    chosen = [word for name in names for word in ("--only", name)]
    spelled = ["zoo", f"./{models.name}", "--env=A=b", "--retry-failed", *chosen]
    printed = CliRunner().invoke(main, [*spelled, "--output_path=out", "--print-commands"])
    lines = printed.output.splitlines()
    assert lines == [
        f"mir-task zoo {models.name} --only {name} --output_path out --env A=b --retry_failed"
        for name in names
    ]
    for line, name in zip(lines, names, strict=True):  # each is a command that runs that one
        again = CliRunner().invoke(main, [*line.split()[1:], "--dry-run"])
        assert again.output == f"{name}: would run\n"
    refused = CliRunner().invoke(main, [*spelled, "--output_path=out", "--gpus=0,1", "--print-commands"])
    assert refused.exit_code == 2
    assert "--print_commands goes without --gpus" in refused.output


def test_a_run_is_another_with_other_files_of_its_tasks(tmp_path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "own.yaml").write_text("task: own\n")
    entry = {"model": "a", "tasks": "own", "model_args": "pretrained=a"}

    def name() -> str:
        return run_of({**entry, "include_path": str(tasks)}, "entry 1").name

    names = [name(), name()]
    assert names[0] == names[1]
    (tasks / "own.yaml").write_text("task: own\nmir_seed: 7\n")
    names.append(name())
    assert names[2] != names[0]


@pytest.mark.parametrize(
    ("tasks", "missing"),
    [
        ("mir_demo", None),
        ("mir_*", None),
        ("tagged", None),
        ("group", None),
        ("my/task.yaml", None),
        ("mir_coco*", "mir_coco*"),
        ("mir_demo,mmmu", "mmmu"),
        ("empty_group", "empty_group"),
    ],
)
def test_tasks_by_pattern_tag_and_file_have_results(tmp_path, tasks, missing) -> None:
    content = {
        "results": {"mir_demo": {"mir,none": 1.0}, "vqa": {"acc,none": 0.5}},
        "configs": {"vqa": {"tag": ["tagged"]}, "mir_demo": {"tag": None}},
        "group_subtasks": {"group": ["vqa"], "empty_group": []},
    }
    (tmp_path / "20260101_000000_results.json").write_text(json.dumps(content))
    run = run_of({"model": "a", "tasks": tasks}, "entry 1")
    if missing is None:
        assert whole_results(tmp_path, run) == content["results"]
    else:
        with pytest.raises(MIRError, match=f"its results have no {re.escape(missing)}$"):
            whole_results(tmp_path, run)


def test_a_run_is_another_with_other_arguments_or_tasks(models) -> None:
    first, second = read(models)
    assert first.name != second.name
    assert [run.name for run in read(models)] == [first.name, second.name]
    assert read(models, ["mir_coco"])[0].name != first.name
    changed = [{**entry, "limit": 5} for entry in yaml.safe_load(models.read_text())]
    models.write_text(yaml.safe_dump(changed))
    assert read(models)[0].name != first.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- model: llava_hf\n  tasks: [mir_demo", "cannot be read"),
        ("- tasks: mir_demo\n", "entry 1 is no mapping with a `model`"),
        ("- model: llava_hf\n", "entry 1 has no `tasks`"),
        ("- {model: a, tasks: b}\n- {model: a, tasks: b}\n", "entry 2 is the same as one before it"),
    ],
)
def test_a_bad_list_is_one_message(tmp_path, content, message) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(content)
    with pytest.raises(MIRError, match=message):
        read(path)


def test_results_that_another_program_has_half_written_are_named(models, tmp_path) -> None:
    output = tmp_path / "out"
    run, _ = read(models)
    house = Zoo([run], output, Options())
    assert house.before(run) is None
    folder = output / run.name / "model"
    folder.mkdir(parents=True)
    path = folder / "20260101_000000_results.json"
    path.write_text('{"results": {"mir_demo": {"mir,none": 0.5')
    known = house.before(run)
    assert known.state == "failed before"
    assert f"{path} is no results file of the harness" in known.detail
    for content in ("[]", '{"results": [1]}', '{"results": {"mir_demo": [1]}}', '{"results": null}'):
        path.write_text(content)
        assert f"{path} is no results file of the harness" in house.before(run).detail
    path.write_text('{"results": {"mir_other": {"mir,none": 0.5}}}')
    assert house.before(run).detail == "its results have no mir_demo"
    path.write_text('{"results": {"mir_demo": {"mir,none": 0.5}}}')
    assert house.before(run).detail == "mir_demo 0.5000"


def test_an_output_folder_that_is_a_file_is_one_message(models, tmp_path) -> None:
    (tmp_path / "out").write_text("")
    printed = CliRunner().invoke(main, ["zoo", str(models), "--output_path", str(tmp_path / "out")])
    assert printed.exit_code == 1
    assert "out cannot be written to" in printed.output


@pytest.mark.parametrize("gpus", [(), ("0", "3")])
def test_runs_side_by_side_know_that_they_share_the_host(tmp_path, monkeypatch, gpus) -> None:
    environments = []

    def not_started(*arguments, env, **options):
        environments.append({name: env.get(name) for name in ("CUDA_VISIBLE_DEVICES", "MIR_TASK_RUNS")})
        raise OSError("no more")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "Popen", not_started)
    runs = read(listed(tmp_path, Path("one"), Path("two")))
    outcomes = list(Zoo(runs, tmp_path / "out", Options(gpus=gpus)).run(retry_failed=False))
    assert [outcome.state for outcome in outcomes] == ["failed", "failed"]
    assert environments == [
        {"CUDA_VISIBLE_DEVICES": gpu, "MIR_TASK_RUNS": "2" if gpu else None}
        for gpu in gpus or [None, None]
    ]


def test_a_value_that_is_none_is_a_failure_with_its_reason(tmp_path) -> None:
    run = read(listed(tmp_path, tmp_path / "one"))[0]
    folder = tmp_path / "out" / "one"
    folder.mkdir(parents=True)
    scores = {task: {"mir,none": "N/A"} for task in run.tasks}
    (folder / "d_results.json").write_text(json.dumps({"results": scores}))
    with pytest.raises(MIRError, match=f"{run.tasks[0]} could not be measured$"):
        whole_results(folder.parent, run)
    (folder / f"d_failed_{run.tasks[0]}.json").write_text('{"why": "NaN in layer 3"}')
    with pytest.raises(MIRError, match=f"{run.tasks[0]} could not be measured: NaN in layer 3"):
        whole_results(folder.parent, run)
