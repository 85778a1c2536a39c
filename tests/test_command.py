"""The `lmms-eval` command as users type it, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Output of a command, which is to exit with 0."""
    finished = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def arguments(checkpoint: Path, output: Path, tasks: str) -> list[str]:
    model = f"pretrained={checkpoint},device=cpu,device_map=cpu"
    return [
        *("--tasks", tasks, "--model", "llava_hf", "--model_args", model),
        *("--output_path", str(output)),
    ]


def results(output: Path) -> dict[str, Any]:
    (path,) = output.rglob("*_results.json")
    return json.loads(path.read_text())


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


def test_the_adapters_bars_do_not_flood_the_log(both) -> None:
    log, _ = both
    assert log.count("Model Responding") <= 60  # those of demo_vqa's one call


def test_two_runs_agree_to_the_last_digit(both, llava, tmp_path) -> None:
    _, folder = both
    run("lmms-eval", *arguments(llava, tmp_path, "mir_demo"), cwd=tmp_path)
    assert results(tmp_path)["results"]["mir_demo"] == results(folder)["results"]["mir_demo"]


def test_without_output_path_there_is_the_table_alone(llava, tmp_path) -> None:
    command = arguments(llava, tmp_path, "mir_demo")[:-2]
    log = run("lmms-eval", *command, "--limit", "4", cwd=tmp_path)
    assert "|mir_demo|" in log
    assert list(tmp_path.iterdir()) == []


def test_two_processes_give_the_figure_of_one(both, llava, tmp_path) -> None:
    _, folder = both
    launch = ["torchrun", "--nproc_per_node", "2", "--master_port", "29517", "-m", "lmms_eval"]
    run(*launch, *arguments(llava, tmp_path, "mir_demo"), cwd=tmp_path, OMP_NUM_THREADS="1")
    one, two = (results(f)["results"]["mir_demo"] for f in (folder, tmp_path))
    for key in ("mir,none", "mir_published_fast,none", "mir_stderr,none"):
        assert two[key] == pytest.approx(one[key], abs=1e-6)


FAILING_RANK = """
import os
if os.environ.get("RANK") == "1":
    import mir_task.placement as placement
    def broken(*arguments):
        raise RuntimeError("rank 1 has run out of luck")
    import mir_task.measure as measure
    measure.send = broken
from lmms_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def test_a_failure_on_one_process_ends_both_with_its_message(llava, tmp_path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(FAILING_RANK)
    launch = ["torchrun", "--nproc_per_node", "2", "--master_port", "29518", str(script)]
    log = run(*launch, *arguments(llava, tmp_path, "mir_demo"), cwd=tmp_path, OMP_NUM_THREADS="1")
    assert "process 1 failed: MIRError: document" in log
    assert log.count("rank 1 has run out of luck") >= 2
    assert not list(tmp_path.rglob("*_results.json"))


def test_tasks_are_listed_and_include_path_works_too(tmp_path) -> None:
    from mir_task.settings import TASK_CONFIGS

    log = run("lmms-eval", "--tasks", "list", cwd=tmp_path)
    assert {"mir_demo", "demo_vqa"} <= {line.strip(" -") for line in log.splitlines()}
    log = run("lmms-eval", "--include_path", str(TASK_CONFIGS), "--tasks", "list", cwd=tmp_path)
    assert log.count("mir_demo") == 1


def test_importing_the_package_loads_neither_harness_nor_transformers() -> None:
    code = "import sys, mir_task; print([m for m in ('lmms_eval', 'transformers') if m in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=Path.cwd()).strip() == "[]"
    loud = code.replace("mir_task;", "mir_task.harness;")
    assert "lmms_eval" in run(sys.executable, "-c", loud, cwd=Path.cwd())
