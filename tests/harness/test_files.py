"""All files of a run where it is killed, where the disk is full, and where others write beside it."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from loguru import logger
from PIL import Image

from mir_task.reports.records import read_runs
from tests.support import evaluate
from tests.support.command import arguments, run

FEW = {"task": "mir_few", "mir_documents": 4, "mir_groups": 2, "mir_sample_rows": 20}


def whole(folder: Path) -> list[str]:
    """Endings of the files under a folder that a reader would look at, each of which has to be whole."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith("."):
            continue
        if path.suffix == ".json":
            assert json.loads(path.read_text())["task"] == "mir_few"
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        else:
            assert path.suffix == ".npz"
            with np.load(path) as arrays:
                assert all(arrays[name].size for name in arrays.files)
        found.append(path.suffix)
    return found


def partial(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*")]


def _killed_at(step: int, checkpoint: Path, output: Path) -> None:
    """A run that is killed right before the given change of a file of its own."""
    seen = 0

    def watch(event: str, given: tuple) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.link", "os.rename", "os.remove", "os.mkdir"):
            seen += str(output) in str(given[0])
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    lm, task = evaluate.load(checkpoint), evaluate.task(**FEW)
    sys.addaudithook(watch)
    evaluate.evaluate(lm, task, output=output)
    os._exit(0)


def test_a_run_killed_at_any_change_of_a_file_leaves_whole_files(llava, tmp_path) -> None:
    evaluate.evaluate(evaluate.load(llava), evaluate.task(**FEW))  # imports all there is to import
    context = multiprocessing.get_context("fork")
    left: list[list[str]] = []
    for step in range(1, 40):
        output = tmp_path / str(step)
        process = context.Process(target=_killed_at, args=(step, llava, output))
        process.start()
        process.join(120)
        left.append(whole(output) if output.exists() else [])
        assert read_runs([output]).faults == []
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert left[0] == []
    assert left[-1] == [".json", ".npz", ".png"]
    assert len(left) > 9
    assert [".json"] in left
    assert not partial(output)


SIZES = ("4k", "24k", "60k", "120k", "1m")


def test_a_full_disk_costs_the_files_that_do_not_fit(llava, tmp_path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    left = {}
    for size in SIZES:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)]
        if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
            pytest.skip("no small disk can be mounted here")
        said: list[str] = []
        sink = logger.add(said.append, level="ERROR", format="{message}")
        try:
            lm, task = evaluate.load(llava), evaluate.task(**FEW)
            scores = evaluate.evaluate(lm, task, output=small)["results"]["mir_few"]
            assert isinstance(scores["mir,none"], float)
            left[size] = whole(small)
            assert not partial(small)
        finally:
            logger.remove(sink)
            subprocess.run(["umount", str(small)], check=True)
        for ending in {".json", ".png", ".npz"} - set(left[size]):
            assert any(f"_mir_mir_few{ending} could not be written (OSError: " in line for line in said)
    assert left["4k"] == []
    assert len({tuple(of) for of in left.values()}) > 2
    assert [".json", ".npz"] in left.values()  # the tokens, though the picture does not fit
    assert left["1m"] == [".json", ".npz", ".png"]


def test_a_second_run_in_one_process_leaves_the_first_ones_files(llava, tmp_path) -> None:
    for count in (4, 5, 6):
        task = evaluate.task(
            **{**FEW, "mir_documents": count, "mir_text_rows": 5000 * (count == 5) or None}
        )
        beside = ["demo_vqa"] if count == 5 else []
        evaluate.evaluate(evaluate.load(llava), task, *beside, output=tmp_path, limit=count)
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("*_mir_mir_few.json")]
    assert sorted(len(each["documents"]) for each in found) == [4, 6]
    assert whole(tmp_path).count(".png") == whole(tmp_path).count(".npz") == 2
    assert len(list(tmp_path.rglob("*_failed_mir_few.json"))) == 1
    assert read_runs([tmp_path]).faults == []
    assert sorted(len(record.rows) for record in read_runs([tmp_path]).records) == [4, 6]


SAME_TIME = """
import lmms_eval.utils
lmms_eval.utils.get_datetime_str = lambda timezone=None: "20260101_000000"
from lmms_eval.__main__ import cli_evaluate
cli_evaluate()
"""


@pytest.mark.slow
def test_two_commands_on_one_output_path_at_one_time(llava, tmp_path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    commands = [
        [sys.executable, "-c", SAME_TIME, *arguments(llava, tmp_path / "out", "mir_demo"), "--limit", n]
        for n in ("4", "5")
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: run(*command, cwd=tmp_path), commands))
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("*_mir_mir_demo.json")]
    assert sorted(len(each["documents"]) for each in found) == [4, 5]
    assert len(list(tmp_path.rglob("*_mir_mir_demo.png"))) == 2
    assert not partial(tmp_path)


def test_a_file_system_without_links(tmp_path, monkeypatch) -> None:
    from mir_task.files import write_json

    def no_links(*paths: object) -> None:
        raise PermissionError("links are not for this file system")

    monkeypatch.setattr(os, "link", no_links)
    path = write_json(tmp_path / "a.json", {"n": 1}, new=True)
    with pytest.raises(FileExistsError):
        write_json(path, {"n": 2}, new=True)
    assert json.loads(path.read_text()) == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]
