"""The command as a whole: how it is typed, what it says of what it does not know, how fast it is."""

import json
import re
import resource
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from mir_task.commands.cli import main
from mir_task.tasks import TASK_CONFIGS, tasks_in
from tests.support import runs


def typed(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="mir-task")


def commands(group: click.Group = main, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    "words", [["--help"], ["leaderboard", "--help"], ["zoo", "-h"], ["tasks", "-h"]]
)
def test_help_is_there_at_once_and_by_python_too(words) -> None:
    def seconds() -> float:
        """Of the processor, as what else runs here does not add to it."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "mir_task", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("Usage: mir-task ")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_python_without_arguments_is_the_command_without_arguments() -> None:
    command = [sys.executable, "-m", "mir_task"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr).startswith("Usage: mir-task [OPTIONS] COMMAND")


def test_every_option_is_spelled_with_underscores_and_says_what_it_does() -> None:
    for path, command in commands():
        for option in command.params:
            if isinstance(option, click.Option):
                assert all("-" not in name.lstrip("-") for name in option.opts), (path, option.opts)
                assert len((option.help or "").split()) >= 4, (path, option.opts, option.help)
                assert not (option.help or "").startswith("Of "), (path, option.opts)
        assert command.help, path


@pytest.mark.parametrize(("path", "command"), [each for each in commands() if each[1].params])
def test_every_option_may_be_typed_with_hyphens(path, command) -> None:
    names = [name for option in command.params for name in option.opts if "_" in name]
    for name in names:
        for spelled in (name, name.replace("_", "-")):
            with_value = typed(*path, spelled, "--nothing_such")
            assert f"No such option '{spelled}'" not in with_value.output, with_value.output
    assert "No such option" in typed(*path, "--nothing_such_at_all").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["taks"], "no command 'taks' (did you mean tasks?); there are card, check, compare, "),
        (["data", "prepar"], "no command 'prepar' (did you mean prepare?)"),
        (["check", "--modle", "x"], "--model"),
        (
            ["check", "--model", "x", "--task", "mir_cocoo"],
            "no MIR task 'mir_cocoo' (did you mean mir_coco?)",
        ),
        (["samples", "--model", "x", "--sizes", "ten"], "'ten' is no list of numbers such as 10,100"),
        (["plot", "--to", "x.png", "--diagnostic", "shares", "a.json"], "'shares'"),
    ],
)
def test_a_mistyped_word_is_shown_with_what_may_be_meant(words, message) -> None:
    done = typed(*words)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    "words",
    [
        ["leaderboard", "runs"],
        ["robustness", "runs"],
        ["compare", "runs", "runs"],
        ["zoo", "runs", "--output_path", "out"],
        ["check", "--model", "x", "--include_path", "runs"],
        ["plot", "runs", "--to", "x.png"],
        ["tasks", "--include_path", "runs"],
    ],
)
def test_a_path_that_is_not_there_is_named_whole(words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = typed(*words)
    assert done.exit_code == 2
    assert str(tmp_path / "runs") in "".join(done.output.split())


def test_a_folder_that_cannot_be_written_to_is_one_message(tmp_path) -> None:
    runs.run(tmp_path, "one", 2.0, {"bench": 0.5})
    (tmp_path / "file").write_text("")
    done = typed("leaderboard", tmp_path, "--html", tmp_path / "file" / "board.html")
    assert done.exit_code == 1
    assert f"Error: {tmp_path / 'file'}" in done.output


def test_columns_that_nothing_has_are_refused_with_those_that_there_are(tmp_path) -> None:
    runs.run(tmp_path, "one", 2.0, {"mmbench_en": 0.5, "textvqa": 0.4})
    assert "mmbench_en acc" in typed("leaderboard", tmp_path, "--benchmark", "mmb*").output
    done = typed("leaderboard", tmp_path, "--benchmark", "nothing*")
    assert done.exit_code == 1
    assert "'nothing*' is no column of these results; the columns are mmbench_en acc, textvqa acc" in (
        " ".join(done.output.split())
    )
    done = typed("leaderboard", tmp_path, "--benchmark", "textvq acc")
    assert "(did you mean textvqa acc?)" in done.output


def test_tasks_are_listed_with_what_they_measure_and_whether_offline(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MIR_TASK_DATA", raising=False)
    lines = {line.split()[0]: line for line in typed("tasks").output.splitlines() if line}
    for name in tasks_in(TASK_CONFIGS):
        assert re.match(rf"{name} +\d+ +(yes|no) +\w.* \[.+\]$", lines[name]), lines[name]
    assert re.match(r"mir_demo +100 +yes", lines["mir_demo"])
    assert re.match(r"mir_coco +100 +no .*five captions\. \[lmms-lab", lines["mir_coco"])
    (tmp_path / "mir_coco.parquet").write_bytes(b"")
    (tmp_path / "own.yaml").write_text("task: mir_own\nmir_media_dataset: nowhere\nmir_documents: 7\n")
    (tmp_path / "all.yaml").write_text("group: mine\ntask: [mir_own, {task: mir_demo}]\n")
    monkeypatch.setenv("MIR_TASK_DATA", str(tmp_path))
    output = typed("tasks", "--include-path", tmp_path).output
    assert re.search(r"^mir_coco +100 +yes", output, re.MULTILINE)
    assert re.search(r"^mir_own +7 +no +image and text, paired\. \[nowhere\]", output, re.MULTILINE)
    assert "mine: mir_own, mir_demo" in output


@pytest.mark.parametrize("content", [[], {"results": []}, {"results": {"t": [1]}}, [[1]], None, 3])
def test_a_list_in_the_place_of_results_is_named(tmp_path, content) -> None:
    runs.run(tmp_path, "one", 2.0, {"bench": 0.5})
    path = tmp_path / "20270101_000000_results.json"
    path.write_text(json.dumps(content))
    done = typed("leaderboard", tmp_path)
    assert done.exit_code == 0
    assert f"left out: {path} is no results file of lmms-eval" in done.output
